"""Resuming equals never stopping: bit-equal batches, dice, losses, rows and weights, whatever stopped the run."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from seqmodels.training.checkpoint import find_checkpoint, read_weights

STEPS = 30
# Rhythms that do not divide each other: checkpoints fall into the middle of a row, an epoch and an accumulated step.
RECIPE = {
    "max_steps": STEPS,
    "accumulate": 2,
    "log_every_steps": 4,
    "val_every_steps": 9,
    "checkpoint_every_steps": 5,
    "batch_size": 7,
}


class Trainer:
    """Talks to killable.py."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("killable.py")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, str(script)], text=True, **pipes)
        assert self._answer() == "ready"

    def start(self, run_dir: Path, *, resume: bool, pause: float = 0.0, **recipe) -> int:
        job = {"run_dir": str(run_dir), "resume": resume, "pause": pause, "recipe": {**RECIPE, **recipe}}
        self._say(json.dumps(job))
        return int(self._answer().split()[1])

    def wait(self) -> int:
        self._say("wait")
        return os.waitstatus_to_exitcode(int(self._answer()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()

    def _say(self, line: str) -> None:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def _answer(self) -> str:
        return self.process.stdout.readline().strip()


@pytest.fixture(scope="module")
def trainer():
    trainer = Trainer()
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def uninterrupted(trainer, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    trainer.start(run_dir, resume=False)
    assert trainer.wait() == 0, log(run_dir)
    return run_dir


def log(run_dir: Path) -> str:
    return Path(f"{run_dir}.log").read_text()


def rows(run_dir: Path) -> list[dict]:
    """metrics.csv without the rate, which is a matter of the machine."""
    with (run_dir / "metrics.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in csv.DictReader(file)]


def steps_traced(run_dir: Path) -> dict[int, set]:
    """What happened at each batch number, every time it was trained on."""
    found: dict[int, set] = {}
    for line in Path(f"{run_dir}.trace").read_text().splitlines():
        try:
            position, *rest = json.loads(line)
        except ValueError:
            continue  # a line that the kill cut off
        found.setdefault(position, set()).add(json.dumps(rest))
    return found


def assert_as_if_never_stopped(run_dir: Path, reference: Path) -> None:
    assert steps_traced(run_dir) == steps_traced(reference), "batches, losses or dice differ"
    assert rows(run_dir) == rows(reference)
    for which in ("last", "best"):
        mine, other = find_checkpoint(run_dir, which), find_checkpoint(reference, which)
        assert mine.name == other.name
        weights, expected = read_weights(mine), read_weights(other)
        assert all(torch.equal(weights[name], expected[name]) for name in expected)


def resume_until_finished(trainer: Trainer, run_dir: Path) -> None:
    trainer.start(run_dir, resume=True)
    assert trainer.wait() == 0, log(run_dir)


def test_the_reference_is_worth_comparing_with(uninterrupted):
    traced = steps_traced(uninterrupted)
    assert sorted(traced) == list(range(2 * STEPS))
    assert all(len(versions) == 1 for versions in traced.values())
    assert len({json.loads(next(iter(v)))[-1] for v in traced.values()}) == 2 * STEPS, "every step has its own dice"
    losses = [float(row["loss"]) for row in rows(uninterrupted) if row["split"] == "valid"]
    assert losses[-1] < losses[0] - 0.1, "it learns"


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again(trainer, uninterrupted, tmp_path, seed):
    dice = random.Random(seed)
    run_dir = tmp_path / "killed"
    killed = 0
    resume = False
    for _ in range(3):
        pid = trainer.start(run_dir, resume=resume, pause=0.01)
        time.sleep(dice.uniform(0.2, 1.4))
        os.kill(pid, signal.SIGKILL)
        killed += trainer.wait() == -signal.SIGKILL
        resume = (run_dir / "config.yaml").exists()
        if find_step(run_dir) == STEPS:
            break
    assert killed
    if find_step(run_dir) < STEPS:
        resume_until_finished(trainer, run_dir)
    assert_as_if_never_stopped(run_dir, uninterrupted)


def find_step(run_dir: Path) -> int:
    return max((int(folder.name[5:]) for folder in run_dir.glob("checkpoints/step-*")), default=0)


def test_killed_and_the_newest_checkpoint_truncated(trainer, uninterrupted, tmp_path):
    run_dir = tmp_path / "truncated"
    pid = trainer.start(run_dir, resume=False, pause=0.02)
    while find_step(run_dir) < 15:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    trainer.wait()
    newest = max(run_dir.glob("checkpoints/step-*"))
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    resume_until_finished(trainer, run_dir)
    assert "model.safetensors is truncated" in log(run_dir)
    assert "taking the one before it" in log(run_dir)
    assert_as_if_never_stopped(run_dir, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_cleanly(trainer, uninterrupted, tmp_path, number):
    run_dir = tmp_path / "signalled"
    pid = trainer.start(run_dir, resume=False, pause=0.02)
    while find_step(run_dir) < 5:
        time.sleep(0.01)
    os.kill(pid, number)
    assert trainer.wait() == 0, log(run_dir)
    step = find_step(run_dir)
    assert step < STEPS
    assert f"ended at step {step} stopped by {'SIGTERM' if number == signal.SIGTERM else 'Ctrl-C'}" in log(run_dir)
    assert len(steps_traced(run_dir)) == 2 * step, "saved after the very step it stopped at"
    resume_until_finished(trainer, run_dir)
    assert_as_if_never_stopped(run_dir, uninterrupted)


def test_workers_may_change_on_resume(trainer, uninterrupted, tmp_path):
    run_dir = tmp_path / "workers"
    pid = trainer.start(run_dir, resume=False, pause=0.02)
    while find_step(run_dir) < 5:
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    trainer.wait()
    trainer.start(run_dir, resume=True, num_workers=1)
    assert trainer.wait() == 0, log(run_dir)
    assert_as_if_never_stopped(run_dir, uninterrupted)
