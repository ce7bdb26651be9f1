"""Mixture of logistics: it is a distribution over the levels, exact in every regime, and generates like any other."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.data.record import IGNORE_INDEX, Batch
from seqmodels.heads import mixture_of_logistics
from seqmodels.heads.mixture_of_logistics import MixtureOfLogisticsHead
from seqmodels.inference import Sampling, generate, token_log_likelihood
from seqmodels.inference.stream import Stream
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel


def head(vocab_size: int = 65536, components: int = 3, d_model: int = 8) -> MixtureOfLogisticsHead:
    torch.manual_seed(0)
    return MixtureOfLogisticsHead(d_model=d_model, vocab_size=vocab_size, components=components)


def outputs_for(head: MixtureOfLogisticsHead, weights, means, log_scales) -> torch.Tensor:
    """One row of outputs that stands for these components."""
    above = torch.tensor(log_scales, dtype=torch.float64) - head._floor
    raw = above + torch.log(-torch.expm1(-above))  # the inverse of softplus
    return torch.cat([torch.tensor(weights).log(), torch.tensor(means), raw.float()]).float()[None]


def exact(vocab_size: int, weights, means, log_scales) -> np.ndarray:
    """p of every level in float64, by the definition: differences of the CDF, with the tails at both ends."""
    edges = (2 * np.arange(1, vocab_size) - 1) / (vocab_size - 1) - 1
    p = np.zeros(vocab_size)
    for weight, mean, log_scale in zip(weights, means, log_scales):
        z = (edges - mean) / np.exp(log_scale)
        cdf = np.concatenate([[0], 0.5 * (1 + np.tanh(z / 2)), [1]])
        p += weight * np.diff(cdf)
    return p


@pytest.mark.parametrize(
    ("weights", "means", "log_scales"),
    [
        ([1.0], [0.0], [-3.0]),
        ([0.7, 0.3], [-0.5, 0.2], [-6.0, -1.0]),
        ([0.5, 0.5], [0.01, 0.9], [-10.0, -9.0]),  # about a bin wide
        ([0.5, 0.5], [-1.3, 1.5], [-3.0, -2.0]),  # beyond full scale: the end levels take the tails
        ([1.0], [0.3], [2.0]),  # wider than the scale
    ],
)
def test_it_is_the_definition_and_adds_up_to_one(weights, means, log_scales):
    made = head(components=len(weights))
    outputs_1P = outputs_for(made, weights, means, log_scales)
    logits_V = made.vocabulary_logits(outputs_1P)[0].double()
    assert float(logits_V.exp().sum()) == pytest.approx(1, abs=2e-4)
    expected = exact(65536, weights, means, log_scales)
    seen = expected > 1e-9
    np.testing.assert_allclose(logits_V.exp().numpy()[seen], expected[seen], rtol=0.02, atol=1e-12)
    ids_T = torch.tensor([0, 1, 17, 32767, 32768, 40000, 65534, 65535])
    log_p_T = made.log_prob(outputs_1P.expand(len(ids_T), -1), ids_T)
    torch.testing.assert_close(log_p_T.double(), logits_V[ids_T], rtol=1e-4, atol=1e-4)


def test_far_tails_have_finite_likelihoods_and_gradients():
    """A narrow component on the other side of the scale: 1e-4000, but a number, with a gradient that pulls it over."""
    made = head(components=1)
    outputs_1P = outputs_for(made, [1.0], [-0.9], [-9.0]).requires_grad_()
    log_p = made.log_prob(outputs_1P, torch.tensor([60000]))
    log_p.sum().backward()
    assert -20000 < log_p.item() < -10000
    assert torch.isfinite(outputs_1P.grad).all()
    assert float(outputs_1P.grad[0, 1]) > 0


def batch_of(target_ids_BL: torch.Tensor, weights_BL: torch.Tensor | None = None) -> Batch:
    lengths_B = torch.full((len(target_ids_BL),), target_ids_BL.shape[1])
    return Batch(target_ids_BL, lengths_B, ("a",) * len(lengths_B), target_ids_BL=target_ids_BL, weights_BL=weights_BL)


def test_the_loss_is_a_weighted_sum_that_leaves_ignored_targets_out():
    made = head(vocab_size=4096)
    hidden_BLD = torch.randn(2, 5, 8)
    target_ids_BL = torch.randint(0, 4096, (2, 5))
    weights_BL = torch.rand(2, 5)
    target_ids_BL[0, 2] = IGNORE_INDEX
    outputs_BLP = made(hidden_BLD)
    sums = made.loss(outputs_BLP, batch_of(target_ids_BL, weights_BL))
    log_p_BLV = made.vocabulary_logits(outputs_BLP).detach()
    expected = count = error = 0.0
    for b, t in np.ndindex(2, 5):
        if (b, t) != (0, 2):
            target, weight = int(target_ids_BL[b, t]), float(weights_BL[b, t])
            expected -= weight * float(log_p_BLV[b, t, target])
            count += weight
            mean = float((log_p_BLV[b, t].exp() * torch.arange(4096)).sum())
            error += weight * abs(mean - target)
    assert sums.loss_sum.item() == pytest.approx(expected, rel=1e-4)
    assert float(sums.count) == pytest.approx(count)
    assert float(sums.metric_sums["level_error"]) == pytest.approx(error, rel=2e-3)
    with pytest.raises(ValueError, match="needs target_ids_BL"):
        made.loss(outputs_BLP, Batch(target_ids_BL, torch.tensor([5, 5]), ("a", "b")))


def test_chunks_of_the_loss_change_neither_it_nor_its_gradient(monkeypatch):
    made, hidden_BLD, target_ids_BL = head(), torch.randn(2, 9, 8), torch.randint(0, 65536, (2, 9))
    results = []
    for positions in (2**18, 5):
        monkeypatch.setattr(mixture_of_logistics, "LOSS_CHUNK_POSITIONS", positions)
        made.zero_grad()
        sums = made.loss(made(hidden_BLD), batch_of(target_ids_BL))
        sums.loss_sum.backward()
        results.append((sums.loss_sum, made.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-3)


def test_autocast_keeps_its_outputs_in_fp32():
    made, hidden_BLD = head(), torch.randn(1, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = made(hidden_BLD)
    torch.testing.assert_close(outputs, made(hidden_BLD), rtol=0, atol=0)


def test_training_finds_a_distribution_of_16_bit_levels():
    """Two narrow peaks of unequal weight: bits/sample come down to the entropy of what the data are drawn from."""
    made, dice = head(components=4, d_model=2), np.random.default_rng(0)
    peak_T = np.where(dice.random(4000) < 0.75, 20000, 45000)
    targets = torch.from_numpy(np.rint(peak_T + dice.logistic(0, 100, 4000)).astype(np.int64))[None]
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) + np.log(100) + 2  # a logistic's is ln s + 2
    optimizer, hidden_BLD = torch.optim.Adam(made.parameters(), lr=0.05), torch.zeros(1, 4000, 2)
    for _ in range(400):
        optimizer.zero_grad()
        loss = made.loss(made(hidden_BLD), batch_of(targets)).mean_loss()
        loss.backward()
        optimizer.step()
    assert loss.item() == pytest.approx(entropy, abs=0.1)


@pytest.fixture
def model() -> SequenceModel:
    torch.manual_seed(0)
    layer = partial(Mamba, d_state=4, implementation="reference")
    return SequenceModel(Stack(vocab_size=1024, d_model=8, n_layers=1, layer=layer), head(vocab_size=1024))


def test_generation_finds_itself_as_likely_as_scoring_does(model):
    sampling = Sampling(seed=1, temperature=0.8, top_k=200, top_p=0.9)
    out = generate(model, 30, start_id=512, batch_size=2, sampling=sampling)
    expected_BL, _ = token_log_likelihood(model, out.ids_BL, start_id=512, chunk_len=7)
    torch.testing.assert_close(out.log_likelihood_BL, expected_BL, rtol=1e-3, atol=1e-3)
    piece = Stream(model, start_id=512).read(out.ids_BL[0].numpy())
    torch.testing.assert_close(piece.log_likelihood_Q, expected_BL[0], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_graphed_steps_on_a_gpu_find_themselves_as_likely_as_scoring_does(model):
    out = generate(model.cuda(), 40, start_id=512, batch_size=3, sampling=Sampling(seed=1, top_p=0.95))
    expected_BL, _ = token_log_likelihood(model, out.ids_BL, start_id=512)
    torch.testing.assert_close(out.log_likelihood_BL, expected_BL, rtol=1e-3, atol=1e-3)


def test_what_is_drawn_has_the_mixtures_distribution(model):
    out = generate(model, 1, start_id=512, batch_size=4000, sampling=Sampling(seed=2))
    hidden_BLD, _ = model.backbone(torch.tensor([[512]]))
    p_V = model.head.vocabulary_logits(model.head(hidden_BLD))[0, 0].detach().exp()
    drawn = torch.bincount(out.ids_BL[:, 0], minlength=1024).reshape(32, 32).sum(1) / 4000
    assert float((drawn - p_V.reshape(32, 32).sum(1)).abs().sum()) < 0.1


def test_numbers_out_of_range():
    with pytest.raises(ValueError, match="at least 2 levels and 1 component"):
        head(components=0)
    with pytest.raises(ValueError, match="vocab_size=1"):
        head(vocab_size=1)
