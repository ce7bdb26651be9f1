"""Training through the stages of a length warm-up: resuming in the middle of one equals never stopping."""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from seqmodels.data.length_warmup import LengthWarmup, plan_stages
from seqmodels.training import train
from seqmodels.training.checkpoint import find_checkpoint, read_weights
from seqmodels.training.fit import _check_graphs
from seqmodels.training.tiny import TinyCorpus, TinySplit, tiny_model, tiny_recipe

STEPS = 14
WARMUP = LengthWarmup(start=8, steps_per_stage=3)


class AnyLengthCorpus(TinyCorpus):
    sample_length = 64

    def __init__(self):
        super().__init__(length=64)

    def train_at(self, length: int) -> TinySplit:
        return TinySplit(30 * 64 // length, seed=length, length=length)


class Trace(L.Callback):
    """What every batch held and lost; a SIGTERM after batch number `stop_at`."""

    def __init__(self, stop_at: int | None = None):
        self.stop_at, self.seen = stop_at, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        digest = (tuple(batch.input_ids_BL.shape), batch.input_ids_BL.numpy().tobytes(), batch.record_ids)
        self.seen.append((*digest, float(outputs["loss"])))
        if len(self.seen) - 1 == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def recipe(warmup: LengthWarmup = WARMUP, **trainer):
    trainer = {"max_steps": STEPS, "accumulate": 2, "checkpoint_every_steps": 100, **trainer}
    made = tiny_recipe(batch_size=1, **trainer)
    return dataclasses.replace(made, data=dataclasses.replace(made.data, length_warmup=warmup))


def run(run_dir: Path, stop_at: int | None = None, resume: bool = False, **changes) -> list:
    trace = Trace(stop_at)
    made = recipe(**changes)
    train(AnyLengthCorpus(), tiny_model(), made, run_dir=run_dir, resume=resume, callbacks=[trace], loggers=None)
    return trace.seen


def rows(run_dir: Path) -> list[dict]:
    with (run_dir / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[Path, list]:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    return run_dir, run(run_dir)


def test_shapes_follow_the_plan(uninterrupted):
    shapes = [seen[0] for seen in uninterrupted[1]]
    assert shapes == [(8, 8)] * 6 + [(4, 16)] * 6 + [(2, 32)] * 6 + [(1, 64)] * 10
    assert all(rows_ * length == 64 for rows_, length in shapes), "equally many symbols in every step"


@pytest.mark.parametrize("stop_at", [1, 5, 8, 15, 20])
def test_resumed_in_the_middle_of_a_stage_equals_never_stopped(uninterrupted, tmp_path, stop_at: int):
    """Stops within an accumulated step, at the border of two stages, within the second, third and last stage."""
    run_dir = tmp_path / "stopped"
    before = run(run_dir, stop_at)
    assert 0 < len(before) < 2 * STEPS
    after = run(run_dir, resume=True)
    assert before + after == uninterrupted[1]
    assert rows(run_dir) == rows(uninterrupted[0])
    weights, expected = (read_weights(find_checkpoint(folder, "last")) for folder in (run_dir, uninterrupted[0]))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_schedule_counts_steps_and_steps_have_equally_many_symbols(uninterrupted, tmp_path):
    """The learning rate at a step, and so at a number of symbols, is the same with and without warm-up."""
    run(tmp_path / "plain", warmup=LengthWarmup())
    rates = [
        [row["learning_rate"] for row in rows(folder) if row["split"] == "train"]
        for folder in (uninterrupted[0], tmp_path / "plain")
    ]
    assert rates[0] == rates[1]
    assert len(set(rates[0])) == len(rates[0])


def test_another_plan_is_not_resumed(tmp_path):
    run(tmp_path / "run", stop_at=8)
    with pytest.raises(ValueError, match=r"cannot continue with equal batches: stages was \[\[8, 8, 0, 240\]"):
        run(tmp_path / "run", resume=True, warmup=LengthWarmup(start=8, steps_per_stage=4))
    with pytest.raises(ValueError, match=r"stages was .* and is None"):
        run(tmp_path / "run", resume=True, warmup=LengthWarmup())


def test_a_warmup_longer_than_the_run_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "seqmodels"):
        run(tmp_path / "run", warmup=LengthWarmup(start=8, steps_per_stage=6))
    assert "8 x 8 from step 0 · 16 x 4 from step 6 · 32 x 2 from step 12 · 64 x 1 from step 18" in caplog.text
    assert "the length warm-up takes 18 steps, and trainer.max_steps=14 ends before" in caplog.text


def test_more_stages_than_cuda_graphs_can_hold_are_refused_before_the_first_step(tmp_path):
    """Else the run would end at the border of its fifth stage."""
    graphed = {"cuda_graph": True, "accumulate": 1, "accelerator": "auto"}
    message = r"holds 4 shapes of batches, and the length warm-up goes through 5 \(4, 8, 16, 32, 64\): start it at 8 "
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", warmup=LengthWarmup(start=4, steps_per_stage=3), **graphed)
    four = SimpleNamespace(stages=plan_stages(AnyLengthCorpus(), WARMUP, batch_size=1))
    _check_graphs(four, recipe(**graphed).trainer)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch asks for it while tracing
@pytest.mark.usefixtures("unchecked_shapes")
def test_stages_do_not_compile_again():
    """Symbolic batch and length: one graph for all stages with several rows, and one more for a single row."""
    from seqmodels.instantiate import build
    from seqmodels.model import model_spec

    spec = tiny_model(n_layers=2, implementation="cpu")
    model = build(model_spec(spec.backbone, spec.head, vocab_size=6, num_classes=None))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model.compile(dynamic=True, backend=count)
    torch._dynamo.reset()
    compiled = []
    for length in (8, 16, 32, 64, 128, 256):
        ids_BL = torch.zeros(256 // length, length, dtype=torch.int64)
        model(ids_BL, lengths_B=torch.full((len(ids_BL),), length))
        compiled.append(len(graphs))
    assert compiled[0] >= 1
    assert len(set(compiled[:-1])) == 1, f"graphs after each stage: {compiled}"
    assert compiled[-1] <= 2 * compiled[0]


@pytest.mark.parametrize(("warmup", "dynamic"), [(WARMUP, True), (LengthWarmup(), None)])
def test_training_asks_for_symbolic_shapes_where_they_change(monkeypatch, warmup, dynamic):
    from seqmodels.instantiate import build
    from seqmodels.model import SequenceModel, model_spec
    from seqmodels.training.module import SequenceTask

    asked = {}
    monkeypatch.setattr(SequenceModel, "compile", lambda self, **how: asked.update(how))
    spec = tiny_model()
    model = build(model_spec(spec.backbone, spec.head, vocab_size=6, num_classes=None))
    SequenceTask(model, recipe(warmup, compile=True), unit="letter")
    assert asked == {"dynamic": dynamic}
