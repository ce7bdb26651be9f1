"""Digits on demand: train with condition=class from a plain model, evaluate, generate a class by name."""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import pytest

from domains.audio.wav import read_info
from seqmodels.cli import main

TINY = [
    "domain=audio_digits", "backbone=mamba_tiny", "backbone.d_model=8", "backbone.n_layers=1", "data.batch_size=4",
    "domain.dataset.segment_samples=40", "data.num_workers=0", "trainer.accelerator=cpu", "trainer.max_steps=2",
    "trainer.val_every_steps=2", "trainer.val_batches=2", "trainer.checkpoint_every_steps=2",
]  # fmt: skip


def run(*words: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(list(words))
    return code, out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two runs: `plain`, and `told`, which starts from its backbone."""
    folder = tmp_path_factory.mktemp("told")
    with contextlib.chdir(folder):
        code, out = run("train", *TINY, "name=plain")
        assert code == 0, out
        code, out = run("train", *TINY, "name=told", "condition=class", "model_from=runs/plain")
        assert code == 0, out
        assert "new: backbone.class_embedding.weight" in out
    return folder


def test_a_class_is_made_by_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    words = ["generate", "run=runs/told", "device=cpu", "seconds=0.01", "num_samples=2"]
    code, out = run(*words, "class_name=7", "output=seven.wav")
    assert code == 0, out
    assert read_info("seven_0.wav").frames == 80
    code, out = run(*words)
    assert code != 0
    assert "class_name=null: say which class to make, one of 0, 1, 2" in out
    code, out = run(*words, "class_name=eleven")
    assert "class_name=eleven: say which class" in out
    code, out = run(*words, "run=runs/plain", "class_name=7")
    assert "this model is told no class; train one with condition=class" in out


def test_all_classes_take_turns_and_are_what_they_are_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    words = ["generate", "run=runs/told", "device=cpu", "length=30", "figure=false"]
    code, out = run(*words, "num_samples=12", "class_name=all", "batch_size=5", "output=all/a.wav")
    assert code == 0, out
    with open("all/samples.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["class_name"] for row in rows] == [str(number % 10) for number in range(12)]
    code, out = run(*words, "first_sample=11", "class_name=1", "output=one.wav")
    assert code == 0, out
    assert Path("one.wav").read_bytes()[44:104] == Path("all/a_11.wav").read_bytes()[44:104]
    assert Path("one.wav").read_bytes()[44:104] != Path("all/a_01.wav").read_bytes()[44:104]


def test_it_is_evaluated_and_resumed_like_any_other(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    code, out = run("evaluate", "run=runs/told", "device=cpu", "max_batches=1")
    assert code == 0, out
    assert "bits_per_sample" in out
    assert "predicted" not in out  # no confusion of classes that nothing predicts
    code, out = run("train", "resume=runs/told", "trainer.max_steps=3")
    assert code == 0, out


def test_seconds_that_are_no_whole_samples_are_rounded_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    words = ["generate", "run=runs/plain", "device=cpu", "output=a.wav"]
    code, out = run(*words, "seconds=0.00131")
    assert code == 0, out
    assert "seconds=0.00131 is 10.480 samples at 8000 Hz: 10 are made" in out
    assert read_info("a.wav").frames == 10
    for seconds in ("0", "-1", "0.00001"):
        code, out = run(*words, f"seconds={seconds}")
        assert code != 0
        assert "less than one sample at 8000 Hz" in out
