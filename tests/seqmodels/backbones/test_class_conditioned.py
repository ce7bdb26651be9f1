"""A backbone that is told a class: the laws of backbones hold, the class is heard everywhere."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from seqmodels.backbones.class_conditioned import ClassConditioned, ConditionedState
from seqmodels.backbones.stack import Stack
from seqmodels.backbones.unet import UNet
from seqmodels.data.collate import next_token
from seqmodels.data.record import Record
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference import Sampling, generate, token_log_likelihood
from seqmodels.instantiate import build
from seqmodels.layers.bidirectional import Bidirectional
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.state import detach_state, select_state
from seqmodels.model import SequenceModel, model_spec

MAMBA = partial(Mamba, d_state=4, implementation="reference")
LAYER = {"_target_": "seqmodels.layers.mamba.Mamba", "_partial_": True}
STACK = {"_target_": "seqmodels.backbones.stack.Stack", "d_model": 8, "n_layers": 1, "layer": LAYER}
HEAD = {"_target_": "seqmodels.heads.next_token.NextTokenHead"}


def stack() -> Stack:
    return Stack(vocab_size=9, d_model=16, n_layers=2, layer=MAMBA)


def unet() -> UNet:
    return UNet(vocab_size=9, d_model=8, pool=[2, 2], n_layers=1, outer="m", centre="m", layers={"m": MAMBA})


@pytest.fixture(params=[stack, unet], ids=["stack", "unet"])
def backbone(request) -> ClassConditioned:
    torch.manual_seed(0)
    made = ClassConditioned(request.param(), num_classes=3)
    with torch.no_grad():
        made.class_embedding.weight.mul_(30)
    return made


@pytest.fixture
def ids_BL() -> torch.Tensor:
    return torch.randint(0, 9, (3, 21), generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([2, 0, 1])


def test_any_cut_gives_the_same(backbone, ids_BL):
    whole_BLD, last = backbone(ids_BL, backbone.begin(LABELS))
    for cut in (1, 2, 8, 20):
        first_BLD, state = backbone(ids_BL[:, :cut], backbone.begin(LABELS))
        second_BLD, state = backbone(ids_BL[:, cut:], state)
        torch.testing.assert_close(torch.cat([first_BLD, second_BLD], 1), whole_BLD, rtol=1e-4, atol=1e-5)
        assert torch.equal(state.labels_B, last.labels_B)


def test_rows_do_not_hear_each_others_class(backbone, ids_BL):
    whole_BLD, state = backbone(ids_BL, backbone.begin(LABELS))
    for row in range(3):
        alone_BLD, _ = backbone(ids_BL[row : row + 1], backbone.begin(LABELS[row : row + 1]))
        torch.testing.assert_close(whole_BLD[row : row + 1], alone_BLD, rtol=1e-4, atol=1e-5)
    more_BLD, _ = backbone(ids_BL, state)
    swapped_BLD, _ = backbone(ids_BL[[2, 0]], select_state(state, [2, 0]))
    torch.testing.assert_close(swapped_BLD, more_BLD[[2, 0]], rtol=1e-4, atol=1e-5)


def test_packed_sequences_equal_separate_ones(backbone, ids_BL):
    pieces = [ids_BL[0, :5], ids_BL[1, :1], ids_BL[2]]
    cu_seqlens = torch.tensor([0, 5, 6, 27], dtype=torch.int32)
    packed_1TD, _ = backbone(torch.cat(pieces)[None], backbone.begin(LABELS), cu_seqlens=cu_seqlens)
    for row, piece in enumerate(pieces):
        alone_BLD, _ = backbone(piece[None], backbone.begin(LABELS[row : row + 1]))
        found = packed_1TD[:, cu_seqlens[row] : cu_seqlens[row + 1]]
        torch.testing.assert_close(found, alone_BLD, rtol=1e-4, atol=1e-5)


def test_the_class_is_heard_at_the_first_position_and_the_last(backbone, ids_BL):
    one_BLD, _ = backbone(ids_BL[:1], backbone.begin(torch.tensor([0])))
    other_BLD, _ = backbone(ids_BL[:1], backbone.begin(torch.tensor([1])))
    difference_L = (one_BLD - other_BLD).abs().amax(dim=(0, 2))
    assert difference_L.min() > 0.01


def test_the_vector_of_the_class_learns_from_every_piece(backbone, ids_BL):
    """With the gradient of the state cut (truncated back-propagation) the second piece still reaches the table."""
    _, state = backbone(ids_BL, backbone.begin(LABELS * 0 + 1))
    hidden_BLD, _ = backbone(ids_BL, detach_state(state))
    hidden_BLD.square().sum().backward()
    assert backbone.class_embedding.weight.grad.abs().sum(1).gt(0).tolist() == [False, True, False]


def model(backbone: ClassConditioned) -> SequenceModel:
    torch.manual_seed(1)
    return SequenceModel(backbone, NextTokenHead(d_model=backbone.d_model, vocab_size=9, tied=False))


def test_generation_is_of_the_class_and_finds_itself_as_likely_as_scoring_does(backbone):
    made = model(backbone)
    with torch.no_grad():
        made.head.weight.mul_(20)
    out = generate(made, 20, start_id=0, batch_size=3, class_ids=LABELS, sampling=Sampling(seed=5), chunk_len=7)
    expected_BL, _ = token_log_likelihood(made, out.ids_BL, start_id=0, state=made.begin(LABELS), chunk_len=6)
    torch.testing.assert_close(out.log_likelihood_BL, expected_BL, rtol=1e-4, atol=1e-4)
    same = generate(made, 20, start_id=0, batch_size=3, class_ids=2, sampling=Sampling(seed=5))
    assert torch.equal(same.ids_BL[0], out.ids_BL[0])
    assert not torch.equal(same.ids_BL[1:], out.ids_BL[1:])


@pytest.mark.gpu
def test_graphed_steps_on_a_gpu_are_those_of_the_cpu(backbone):
    made, how = model(backbone), {"batch_size": 3, "class_ids": LABELS, "sampling": Sampling(seed=5)}
    expected = generate(made, 40, start_id=0, **how)
    actual = generate(made.cuda(), 40, start_id=0, **how)
    assert torch.equal(actual.ids_BL.cpu(), expected.ids_BL)
    torch.testing.assert_close(actual.log_likelihood_BL.cpu(), expected.log_likelihood_BL, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_said(backbone, ids_BL):
    made = model(backbone)
    with pytest.raises(ValueError, match=r"told one of 3 classes .* say which class"):
        backbone(ids_BL)
    with pytest.raises(ValueError, match="say which class"):
        generate(made, 2, start_id=0)
    with pytest.raises(ValueError, match="knows classes 0 to 2"):
        generate(made, 2, start_id=0, class_ids=3)
    with pytest.raises(ValueError, match=r"class_ids has shape \(2,\)"):
        generate(made, 2, start_id=0, class_ids=[0, 1], batch_size=3)
    with pytest.raises(ValueError, match="2 labels for 3 sequences"):
        backbone(ids_BL, ConditionedState(LABELS[:2], None))
    plain = SequenceModel(stack(), NextTokenHead(d_model=16, vocab_size=9))
    with pytest.raises(ValueError, match="trained without classes"):
        generate(plain, 2, start_id=0, class_ids=0)
    both_ways = Stack(vocab_size=9, d_model=8, n_layers=1, layer=partial(Bidirectional, layer=MAMBA))
    with pytest.raises(ValueError, match="cannot be conditioned"):
        ClassConditioned(both_ways, num_classes=2)


def test_the_spec_of_a_model_that_is_told_classes():
    spec = model_spec(STACK, HEAD, vocab_size=5, num_classes=4, condition="class")
    made = build(spec)
    assert (made.backbone.num_classes, made.backbone.vocab_size, made.head.vocab_size) == (4, 5, 5)
    assert made.head.weight is made.backbone.embedding.weight
    with pytest.raises(ValueError, match="has no classes"):
        model_spec(STACK, HEAD, vocab_size=5, condition="class")
    with pytest.raises(ValueError, match="condition='speaker'"):
        model_spec(STACK, HEAD, vocab_size=5, num_classes=4, condition="speaker")
    classify = {"_target_": "seqmodels.heads.classification.ClassificationHead"}
    with pytest.raises(ValueError, match="is to find out"):
        model_spec(STACK, classify, vocab_size=5, num_classes=4, condition="class")


def test_batches_for_next_symbols_bear_labels_when_every_record_has_one():
    import numpy as np

    ids = np.array([1, 2, 3])
    batch = next_token([Record("a", ids, label=1), Record("b", ids[:2], label=0)], start_id=0)
    assert batch.labels_B.tolist() == [1, 0]
    assert next_token([Record("a", ids, label=1), Record("b", ids)], start_id=0).labels_B is None
