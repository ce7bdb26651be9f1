"""Masked training: it learns, resumes exactly, and counts what was hidden."""

from __future__ import annotations

import csv

import lightning as L
import pytest
import torch

from seqmodels.inference import load
from seqmodels.training import ModelSpec, train
from seqmodels.training.checkpoint import find_checkpoint, read_weights
from seqmodels.training.tiny import TinyCorpus, tiny_model, tiny_recipe


def both_ways(**masking) -> ModelSpec:
    """A bidirectional model that fills in letters."""
    spec = tiny_model("masked_token")
    layer = {"_target_": "seqmodels.layers.bidirectional.Bidirectional", "_partial_": True}
    head = {**spec.head, "masking": {"_target_": "seqmodels.data.masking.Masking", **masking}}
    return ModelSpec({**spec.backbone, "layer": {**layer, "layer": spec.backbone["layer"]}}, head)


class Crash(L.Callback):
    """Fails in the middle of a step, a checkpoint or two into the run."""

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if trainer.global_step == 7:
            raise RuntimeError("crash")


def rows(run_dir) -> list[dict]:
    with (run_dir / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(file)]


def test_resuming_equals_never_stopping(tmp_path):
    recipe = tiny_recipe(max_steps=14, num_workers=0)
    train(TinyCorpus(ragged=True), both_ways(), recipe, run_dir=tmp_path / "whole", loggers=None)
    with pytest.raises(RuntimeError, match="crash"):
        train(TinyCorpus(ragged=True), both_ways(), recipe, run_dir=tmp_path / "cut", callbacks=[Crash()])
    result = train(TinyCorpus(ragged=True), both_ways(), recipe, run_dir=tmp_path / "cut", resume=True)
    assert result.step == 14
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    cut, whole = (read_weights(find_checkpoint(tmp_path / name)) for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_it_fills_in_and_is_judged_by_what_was_hidden(tmp_path):
    recipe = tiny_recipe(max_steps=120, lr=0.02, val_every_steps=60)
    model = both_ways(rate=0.3)
    result = train(TinyCorpus(), model, recipe, run_dir=tmp_path / "run", loggers=[])
    valid = result.metrics["valid"]
    # Neighbours on both sides leave one letter or two: the unigram distribution knows log2(5) = 2.32 bits.
    assert valid["bits_per_masked_letter"] < 1.9
    assert valid["accuracy"] > 0.35
    loaded = load(result.run_dir, "cpu", objective="masked_token")
    assert loaded.model.head.masking.rate == 0.3, "evaluation hides as training did"
