"""The command run in this process, on files of a few thousand bases."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import pytest

from seqmodels.cli import main

# Small and on the plain definition, so that nothing is compiled.
TINY = [
    "backbone=mamba_tiny",
    "backbone.d_model=8",
    "backbone.n_layers=1",
    "backbone.layer.d_state=4",
    "kernels=reference",
    "domain.dataset.window_bases=64",
    "domain.dataset.windows_per_epoch=40",
    "domain.dataset.eval_windows=8",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.max_steps=4",
    "trainer.val_every_steps=2",
    "trainer.checkpoint_every_steps=2",
    "trainer.log_every_steps=1",
]


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Each test in its own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SEQMODELS_TRACEBACK", raising=False)


def write_fasta(path: Path, contigs: int = 2, bases: int = 3000) -> Path:
    dice = np.random.default_rng(0)
    with path.open("w") as file:
        for number in range(contigs):
            letters = "".join(dice.choice(list("ACGT"), bases))
            lines = [letters[i : i + 60] for i in range(0, bases, 60)]
            file.write(f">chr{number + 1}\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def run(capfd):
    """Runs `seqmodels <words>`; returns (exit code, stdout, stderr)."""

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_fasta(folder / "my.fa")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", *TINY, "domain.dataset.fasta=my.fa", "name=first"]) == 0, out.getvalue()
    return folder


@pytest.fixture
def trained(trained_once, tmp_path) -> Path:
    """A run folder `runs/first`, trained on `my.fa`: a copy of its own for each test."""
    shutil.copytree(trained_once / "runs", tmp_path / "runs")
    shutil.copy(trained_once / "my.fa", tmp_path)
    return Path("runs/first")


@pytest.fixture
def tiny() -> list[str]:
    return list(TINY)
