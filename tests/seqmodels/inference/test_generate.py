"""Generation: exact likelihood, the distribution it draws from, and what must not change the result."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.heads.classification import ClassificationHead
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference import Sampling, generate, token_log_likelihood
from seqmodels.layers.attention import Attention
from seqmodels.layers.mlp import MLP
from seqmodels.model import SequenceModel


def test_log_likelihood_is_the_models_own_whatever_was_sampled_from(small_model):
    model = small_model()
    prompt_P = torch.tensor([3, 1, 4])
    sharp = Sampling(temperature=0.5, top_k=3)
    out = generate(model, 25, start_id=0, prompt_ids=prompt_P, batch_size=2, sampling=sharp)
    whole_BL = torch.cat([prompt_P.expand(2, -1), out.ids_BL], dim=1)
    expected_BL, _ = token_log_likelihood(model, whole_BL, start_id=0)
    torch.testing.assert_close(out.log_likelihood_BL, expected_BL[:, 3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.log_likelihood_B, expected_BL[:, 3:].double().sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_gpu_and_cpu_agree(small_model):
    model, prompt_P = small_model(), torch.tensor([3, 1, 4])
    expected = generate(model, 30, start_id=0, prompt_ids=prompt_P, batch_size=3)
    actual = generate(model.cuda(), 30, start_id=0, prompt_ids=prompt_P, batch_size=3)
    assert actual.ids_BL.is_cuda
    assert torch.equal(actual.ids_BL.cpu(), expected.ids_BL)
    torch.testing.assert_close(actual.log_likelihood_BL.cpu(), expected.log_likelihood_BL, rtol=1e-4, atol=1e-5)


def attention_model(**arguments) -> SequenceModel:
    """Attention between MLPs: a state that grows with what was read."""
    torch.manual_seed(0)
    layers = {"*": partial(Attention, n_heads=4, **arguments), "-": partial(MLP, activation="swiglu")}
    backbone = Stack(vocab_size=7, d_model=16, pattern="*-*-", layers=layers)
    model = SequenceModel(backbone, NextTokenHead(d_model=16, vocab_size=7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("arguments", [{}, {"n_kv_heads": 2, "d_conv": 4}, {"window": 6}], ids=str)
def test_attention_generates_what_it_finds_likely(arguments, device):
    model, prompt_P = attention_model(**arguments).to(device), torch.tensor([3, 1, 4])
    out = generate(model, 25, start_id=0, prompt_ids=prompt_P, batch_size=2, chunk_len=8)
    whole_BL = torch.cat([prompt_P.expand(2, -1), out.ids_BL.cpu()], dim=1)
    expected_BL, _ = token_log_likelihood(model, whole_BL, start_id=0)
    torch.testing.assert_close(out.log_likelihood_BL, expected_BL[:, 3:], rtol=1e-4, atol=1e-5)


def test_exact_length_and_range(small_model):
    for num_tokens in (1, 2, 31, 32, 33):
        out = generate(small_model(), num_tokens, start_id=0, chunk_len=32)
        assert out.ids_BL.shape == out.log_likelihood_BL.shape == (1, num_tokens)
        assert 0 <= int(out.ids_BL.min()) <= int(out.ids_BL.max()) < 7


def test_padding_ids_of_the_vocabulary_are_never_drawn(small_model):
    model = small_model(vocab_size=5)  # the table has 8 rows
    with torch.no_grad():
        model.head.weight[5:] = 50.0
    assert int(generate(model, 30, start_id=0, batch_size=40).ids_BL.max()) == 4


def test_seed_decides_and_rows_do_not_depend_on_the_batch(small_model):
    model = small_model()
    one = generate(model, 40, start_id=0, sampling=Sampling(seed=0)).ids_BL
    again = generate(model, 40, start_id=0, batch_size=3, sampling=Sampling(seed=0), chunk_len=7).ids_BL
    other = generate(model, 40, start_id=0, sampling=Sampling(seed=1)).ids_BL
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one, other)
    assert len({tuple(row) for row in again.tolist()}) == 3


def test_the_global_random_state_is_left_alone(small_model):
    model = small_model()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate(model, 5, start_id=0)
    assert torch.equal(torch.rand(3), expected)


def test_greedy_takes_the_most_likely(small_model):
    model = small_model()
    ids_BL = generate(model, 20, start_id=0, sampling=Sampling(temperature=0.0)).ids_BL
    logits_BLV, _ = model(torch.cat([torch.zeros(1, 1).long(), ids_BL[:, :-1]], dim=1))
    assert torch.equal(logits_BLV.argmax(-1), ids_BL)
    assert torch.equal(generate(model, 20, start_id=0, sampling=Sampling(top_k=1)).ids_BL, ids_BL)


def test_prompt_in_chunks_and_as_numpy(small_model, monkeypatch):
    model, prompt_P = small_model(), np.arange(50, dtype=np.uint8) % 7
    whole = generate(model, 12, start_id=0, prompt_ids=prompt_P)
    monkeypatch.setitem(generate.__globals__, "PREFILL_CHUNK", 8)
    pieces = generate(model, 12, start_id=0, prompt_ids=torch.from_numpy(prompt_P.astype(np.int64)))
    assert torch.equal(whole.ids_BL, pieces.ids_BL)


def test_one_prompt_a_row(small_model):
    model = small_model()
    prompts_BP = torch.tensor([[1, 2, 3], [4, 5, 6]])
    both = generate(model, 15, start_id=0, prompt_ids=prompts_BP, sampling=Sampling(temperature=0.0))
    for row in range(2):
        alone = generate(model, 15, start_id=0, prompt_ids=prompts_BP[row], sampling=Sampling(temperature=0.0))
        assert torch.equal(both.ids_BL[row], alone.ids_BL[0])


def test_tokens_come_in_chunks_as_they_are_made(small_model):
    chunks: list[torch.Tensor] = []
    out = generate(
        small_model(), 23, start_id=0, batch_size=2, chunk_len=10, on_tokens=lambda ids: chunks.append(ids.clone())
    )
    assert [chunk.shape[1] for chunk in chunks] == [10, 10, 3]
    assert torch.equal(torch.cat(chunks, dim=1), out.ids_BL)


def test_draws_follow_the_distribution():
    logits_BV = torch.tensor([1.0, 0.0, -1.0, 2.0, -30.0]).expand(20000, -1)
    uniform_B = torch.linspace(0, 1, 20001, dtype=torch.float64)[:-1]

    def shares(sampling: Sampling) -> list[float]:
        return (torch.bincount(sampling.pick(logits_BV, uniform_B), minlength=5) / 20000).tolist()

    p = torch.softmax(logits_BV[0].double(), 0)
    assert shares(Sampling()) == pytest.approx(p.tolist(), abs=1e-4)
    assert shares(Sampling(temperature=2.0)) == pytest.approx(torch.softmax(logits_BV[0] / 2, 0).tolist(), abs=1e-4)
    top2 = torch.tensor([p[0], 0, 0, p[3], 0]) / (p[0] + p[3])
    assert shares(Sampling(top_k=2)) == pytest.approx(top2.tolist(), abs=1e-4)
    assert shares(Sampling(top_k=99)) == pytest.approx(p.tolist(), abs=1e-4)
    # p sorted: 0.644 0.237 0.087 0.032; three symbols are the fewest that hold 0.9
    top3 = torch.tensor([p[0], p[1], 0, p[3], 0]) / (p[0] + p[1] + p[3])
    assert shares(Sampling(top_p=0.9)) == pytest.approx(top3.tolist(), abs=1e-4)
    assert shares(Sampling(top_p=1e-6)) == [0, 0, 0, 1, 0]
    assert shares(Sampling(top_p=0.5, top_k=4)) == [0, 0, 0, 1, 0]


def test_top_k_draws_what_the_whole_cdf_with_the_others_zeroed_would():
    generator = torch.Generator().manual_seed(3)
    logits_BV = 2 * torch.randn(2000, 301, generator=generator)
    uniform_B = torch.rand(2000, dtype=torch.float64, generator=generator)
    p_BV = (logits_BV / 0.7).double().softmax(-1)
    p_BV *= p_BV >= p_BV.topk(20).values[:, -1:]
    cdf_BV = p_BV.cumsum(-1)
    expected_B = (cdf_BV <= uniform_B[:, None] * cdf_BV[:, -1:]).sum(-1)
    assert torch.equal(Sampling(temperature=0.7, top_k=20).pick(logits_BV, uniform_B), expected_B)
    assert len(expected_B.unique()) > 200


def test_inverting_the_cdf_never_runs_off_its_end():
    logits_BV = torch.randn(1000, 300) * 20
    picked_B = Sampling().pick(logits_BV, torch.full((1000,), (1 - 2.0**-53) * (1 - 2.0**-52), dtype=torch.float64))
    assert int(picked_B.max()) < 300
    assert (logits_BV.double().softmax(-1).gather(1, picked_B[:, None]) > 0).all()


def test_symbols_of_probability_zero_are_not_drawn_at_the_ends_either():
    logits_BV = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    uniform_B = torch.tensor([0.0, 0.4999, 0.5, 1 - 2.0**-52], dtype=torch.float64)
    assert Sampling().pick(logits_BV, uniform_B).tolist() == [1, 1, 3, 3]


def test_only_allowed_symbols_are_drawn_and_their_likelihood_stays_the_models_own(small_model):
    model = small_model()
    out = generate(model, 60, start_id=0, sampling=Sampling(allowed_ids=(2, 5)))
    assert set(out.ids_BL[0].tolist()) == {2, 5}
    expected_BL, _ = token_log_likelihood(model, out.ids_BL, start_id=0)
    torch.testing.assert_close(out.log_likelihood_BL, expected_BL, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="allowed_ids run from 5 to 7"):
        generate(model, 1, start_id=0, sampling=Sampling(allowed_ids=(5, 7)))
    with pytest.raises(ValueError, match="allowed_ids is empty"):
        Sampling(allowed_ids=())


def test_mode_and_gradients_are_as_before(small_model):
    model = small_model().train()
    out = generate(model, 3, start_id=0)
    assert model.training
    assert not out.log_likelihood_BL.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_tokens": 0}, "num_tokens=0"),
        ({"num_tokens": 1, "batch_size": 0}, "batch_size=0"),
        ({"num_tokens": 1, "prompt_ids": torch.tensor([0, 7])}, "from 0 to 7; the model knows 0 to 6"),
        ({"num_tokens": 1, "prompt_ids": torch.zeros(1, 1, 1).long()}, r"\(P,\) or \(B, P\)"),
    ],
)
def test_refuses_bad_requests(small_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(small_model(), start_id=0, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}],
)
def test_refuses_bad_sampling(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Sampling(**arguments)


def test_a_classifier_cannot_generate(small_model):
    model = SequenceModel(small_model().backbone, ClassificationHead(d_model=16, num_classes=2))
    with pytest.raises(ValueError, match="next-token head"):
        generate(model, 3, start_id=0)
    with pytest.raises(ValueError, match="next-token head"):
        token_log_likelihood(model, torch.zeros(1, 3).long(), start_id=0)
