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
from collections.abc import Callable
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
    "lr": 0.1,  # so large that the last step is not the best
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
    assert min(losses) < losses[0] - 0.1, "it learns"
    assert losses[-1] > min(losses), "the best step is not the last: losing it would show"


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again(trainer, uninterrupted, tmp_path, seed):
    """At random moments: after so many batches (a busy machine changes nothing) and so many milliseconds more."""
    dice = random.Random(seed)
    run_dir = tmp_path / "killed"
    for number in range(3):
        pid = trainer.start(run_dir, resume=number > 0, pause=0.01)
        wait_for_batches(run_dir, batches(run_dir) + dice.randint(8, 17))
        time.sleep(dice.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert trainer.wait() == -signal.SIGKILL
    assert 0 < find_step(run_dir) < STEPS
    assert len(steps_traced(run_dir)) < batches(run_dir), "something was done twice"
    resume_until_finished(trainer, run_dir)
    assert_as_if_never_stopped(run_dir, uninterrupted)


def test_killed_before_the_first_checkpoint(trainer, uninterrupted, tmp_path):
    run_dir = tmp_path / "early"
    pid = trainer.start(run_dir, resume=False, pause=0.02)
    wait_for_batches(run_dir, 3)
    os.kill(pid, signal.SIGKILL)
    trainer.wait()
    assert find_step(run_dir) == 0
    resume_until_finished(trainer, run_dir)
    assert "from the beginning" in log(run_dir)
    assert_as_if_never_stopped(run_dir, uninterrupted)


def batches(run_dir: Path) -> int:
    """How many batches have been trained on, those done again included."""
    trace = Path(f"{run_dir}.trace")
    return trace.read_text().count("\n") if trace.exists() else 0


def wait_for_batches(run_dir: Path, count: int) -> None:
    wait_for(lambda: batches(run_dir) >= count)


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.003)


def find_step(run_dir: Path) -> int:
    return max((int(folder.name[5:]) for folder in run_dir.glob("checkpoints/step-*")), default=0)


def test_killed_and_the_newest_checkpoint_truncated(trainer, uninterrupted, tmp_path):
    run_dir = tmp_path / "truncated"
    pid = trainer.start(run_dir, resume=False, pause=0.02)
    wait_for(lambda: find_step(run_dir) >= 15)
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
    wait_for(lambda: find_step(run_dir) >= 5)
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
    wait_for(lambda: find_step(run_dir) >= 5)
    os.kill(pid, signal.SIGKILL)
    trainer.wait()
    trainer.start(run_dir, resume=True, num_workers=1)
    assert trainer.wait() == 0, log(run_dir)
    assert_as_if_never_stopped(run_dir, uninterrupted)
