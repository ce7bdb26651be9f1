"""Truncated back-propagation: the forward pass of the whole, gradients of the pieces, runs that resume bit for bit."""

from __future__ import annotations

import dataclasses
from functools import partial

import lightning
import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.data.collate import next_token
from seqmodels.data.record import IGNORE_INDEX, Batch
from seqmodels.data.sampler import BatchSampler
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.instantiate import build
from seqmodels.layers.attention import Attention
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.mlp import MLP
from seqmodels.model import SequenceModel, model_spec
from seqmodels.training import TrainerSettings, train
from seqmodels.training import evaluate as evaluate_module
from seqmodels.training.checkpoint import find_checkpoint, read_weights
from seqmodels.training.tiny import TinyCorpus, tiny_model, tiny_recipe
from seqmodels.training.truncated import backward_in_pieces, pieces, target_weight

L = 23


def model(d_conv: int = 4) -> SequenceModel:
    torch.manual_seed(0)
    layer = partial(Mamba, d_state=4, d_conv=d_conv, implementation="reference")
    backbone = Stack(vocab_size=6, d_model=8, n_layers=1, layer=layer)
    return SequenceModel(backbone, NextTokenHead(d_model=8, vocab_size=6))


@pytest.fixture
def batch() -> Batch:
    """Three rows, one shorter than a piece, with weights."""
    dice = torch.Generator().manual_seed(0)
    target_ids_BL = torch.randint(0, 6, (3, L), generator=dice)
    lengths_B = torch.tensor([L, 3, 17])
    target_ids_BL[torch.arange(L) >= lengths_B[:, None]] = IGNORE_INDEX
    ids_BL = torch.randint(0, 6, (3, L), generator=dice)
    return Batch(ids_BL, lengths_B, ("a", "b", "c"), target_ids_BL, weights_BL=torch.rand(3, L, generator=dice))


def whole(made: SequenceModel, batch: Batch):
    logits, _ = made(batch.input_ids_BL)
    return made.head.loss(logits, batch)


@pytest.mark.parametrize("length", [1, 5, 22, 23, 100])
def test_the_loss_is_that_of_the_whole_whatever_the_pieces(batch, length):
    made = model()
    sums = backward_in_pieces(made, batch, length, backward=lambda part: part.loss_sum.backward())
    expected = whole(made, batch)
    torch.testing.assert_close(sums.loss_sum, expected.loss_sum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sums.count, expected.count)
    torch.testing.assert_close(target_weight(batch), expected.count)
    torch.testing.assert_close(sums.metric_sums, dict(expected.metric_sums), rtol=1e-5, atol=1e-5)
    assert sum(piece.input_ids_BL.shape[1] for piece in pieces(batch, length)) == L


def gradients(made: SequenceModel, run) -> dict[str, torch.Tensor]:
    made.zero_grad()
    run(made).loss_sum.backward()
    return {name: parameter.grad.clone() for name, parameter in made.named_parameters()}


def in_pieces(batch: Batch, length: int):
    return lambda made: backward_in_pieces(made, batch, length, backward=lambda part: part.loss_sum.backward())


def test_one_piece_has_the_gradient_of_the_whole(batch):
    torch.testing.assert_close(gradients(model(), in_pieces(batch, L)), gradients(model(), partial(whole, batch=batch)))


def test_gradients_are_those_of_pieces_that_start_from_a_given_state(batch):
    def by_hand(made: SequenceModel):
        with torch.no_grad():
            _, state = made(batch.input_ids_BL[:, :10])
        total = whole(made, pieces(batch, 10)[0])
        for piece in pieces(batch, 10)[1:]:
            logits, after = made(piece.input_ids_BL, state)
            total = total + made.head.loss(logits, piece)
            state = tuple(type(part)(*(tensor.detach() for tensor in part)) for part in after)
        return total

    cut = gradients(model(), in_pieces(batch, 10))
    torch.testing.assert_close(cut, gradients(model(), by_hand), rtol=1e-4, atol=1e-5)
    uncut = gradients(model(), partial(whole, batch=batch))
    assert max(float((cut[name] - uncut[name]).abs().max()) for name in cut) > 1e-3  # truncation is seen


def test_a_cache_of_keys_is_carried_too(batch):
    torch.manual_seed(0)
    layers = {"*": partial(Attention, n_heads=2), "-": partial(MLP)}
    backbone = Stack(vocab_size=6, d_model=8, pattern="*-", layers=layers)
    made = SequenceModel(backbone, NextTokenHead(d_model=8, vocab_size=6))
    sums = backward_in_pieces(made, batch, 7, backward=lambda part: part.loss_sum.backward())
    torch.testing.assert_close(sums.loss_sum, whole(made, batch).loss_sum, rtol=1e-4, atol=1e-4)


def weights(run_dir) -> dict[str, torch.Tensor]:
    return read_weights(find_checkpoint(run_dir, "last"))


def recipe(max_steps: int = 6, **trainer):
    return tiny_recipe(max_steps=max_steps, accumulate=2, checkpoint_every_steps=3, **trainer)


def test_training_in_one_piece_is_training_without(tmp_path):
    for name, truncate in (("whole", None), ("one_piece", 24)):
        train(TinyCorpus(ragged=True), tiny_model(), recipe(truncate=truncate), run_dir=tmp_path / name)
    torch.testing.assert_close(weights(tmp_path / "whole"), weights(tmp_path / "one_piece"), rtol=1e-5, atol=1e-6)


def test_a_step_takes_the_gradient_of_all_pieces_once(tmp_path):
    """One step of plain SGD, two accumulated batches: weights move by the mean gradient of both."""
    one = recipe(max_steps=1, truncate=7, val_every_steps=0, gradient_clip=None)
    one = dataclasses.replace(one, optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=_constant)
    spec = tiny_model()
    train(TinyCorpus(), spec, one, run_dir=tmp_path / "run")
    lightning.seed_everything(0, verbose=False)
    made = build(model_spec(spec.backbone, spec.head, vocab_size=6))
    split, sampler = TinyCorpus().split("train"), BatchSampler(30, 4, seed=0)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    for position in range(2):
        made_batch = next_token([split[key] for key in sampler.batch(position)], start_id=5)
        count = float(target_weight(made_batch))
        sums = backward_in_pieces(
            made, made_batch, 7, backward=lambda part, count=count: (part.loss_sum / count / 2).backward()
        )
        (sums.loss_sum / count / 2).backward()
    after = weights(tmp_path / "run")
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(after[name], before[name] - parameter.grad, rtol=1e-4, atol=1e-5)


def _constant(optimizer, total_steps: int):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    def steps(count: int):
        return dataclasses.replace(recipe(max_steps=count, truncate=5), scheduler=_constant)

    train(TinyCorpus(ragged=True), tiny_model(), steps(6), run_dir=tmp_path / "whole")
    train(TinyCorpus(ragged=True), tiny_model(), steps(3), run_dir=tmp_path / "stopped")
    assert _differ(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    train(TinyCorpus(ragged=True), tiny_model(), steps(6), run_dir=tmp_path / "stopped", resume=True)
    assert not _differ(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))


def _differ(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in theirs if not torch.equal(ours[name], theirs[name])]


def test_what_it_does_not_go_with():
    with pytest.raises(ValueError, match="truncate=0 must be a whole number from 1 on"):
        TrainerSettings(truncate=0)
    with pytest.raises(ValueError, match="one device"):
        TrainerSettings(truncate=5, devices=2)
    with pytest.raises(ValueError, match="one device, strategy=auto and cuda_graph=false"):
        TrainerSettings(truncate=5, cuda_graph=True)
    with pytest.raises(ValueError, match="strategy=auto"):
        TrainerSettings(truncate=5, strategy="ddp")


def test_a_classifier_cannot_be_truncated(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.truncate needs a causal model that predicts next symbols"):
        train(TinyCorpus(2), tiny_model("classification"), recipe(truncate=5), run_dir=tmp_path / "run")


def test_long_samples_are_evaluated_in_pieces_with_the_same_result(batch, monkeypatch):
    made = model()
    expected = evaluate_module.evaluate(made, [batch, batch])
    seen, forward = [], made.forward
    monkeypatch.setattr(evaluate_module, "PIECE", 5)
    monkeypatch.setattr(made, "forward", lambda ids, *on, **how: seen.append(ids.shape[1]) or forward(ids, *on, **how))
    found = evaluate_module.evaluate(made, [batch, batch])
    assert seen == [5, 5, 5, 5, 3] * 2
    assert found.sequences == expected.sequences == 6
    torch.testing.assert_close(found.sums.loss_sum, expected.sums.loss_sum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sums.count, expected.sums.count)
