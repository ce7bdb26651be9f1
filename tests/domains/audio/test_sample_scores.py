"""Scores of sounds on disk, from `seqmodels evaluate` down: tiny models, exact expectations."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from domains.audio.metrics import SampleScores, made_sounds
from domains.audio.wav import read_samples
from seqmodels.cli import main

TINY = [
    "domain.dataset.segment_samples=64", "data.num_workers=0", "data.batch_size=4", "kernels=reference",
    "backbone.d_model=8", "backbone.pool=[4]", "backbone.n_layers=1", "backbone.outer=-", "backbone.centre=-",
    "trainer.accelerator=cpu", "trainer.max_steps=1", "trainer.val_every_steps=0", "trainer.checkpoint_every_steps=1",
]  # fmt: skip
FEW = ["device=cpu", "scorer.resamples=20", "max_batches=2"]


def run(*words: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(list(words))
    return code, out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`judge`, a classifier of digits; `told`, which makes 24 of them into runs/told/results."""
    folder = tmp_path_factory.mktemp("scores")
    with contextlib.chdir(folder):
        for words in (
            ["train", "experiment=digit_classifier", *TINY, "name=judge"],
            ["train", "experiment=digits", *TINY, "name=told", "condition=class"],
            ["generate", "run=runs/told", "device=cpu", "length=40", "num_samples=24", "class_name=all"],
        ):
            code, out = run(*words)
            assert code == 0, out
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def sounds_of(words: list[str], output: str = "report.json") -> dict:
    code, out = run("evaluate", *words, *FEW, f"output={output}")
    assert code == 0, out
    return json.loads(Path(output).read_text())["sounds"]


def test_evaluate_scores_what_generate_wrote_beside_real_clips(folder: Path):
    code, out = run("evaluate", "run=runs/told", "classifier=runs/judge", *FEW, "output=report.json")
    assert code == 0, out
    report = json.loads(Path("report.json").read_text())
    assert report["metrics"]["bits_per_sample"] > 0
    rows = report["sounds"]["rows"]
    assert list(rows) == ["train (real)", "valid (real)", "test (real)", "samples", "samples, after rejection"]
    assert [row["clips"] for row in rows.values()][:4] == [40, 5, 5, 24]
    assert rows["test (real)"]["fid"]["value"] == pytest.approx(0, abs=1e-6), "the reference against itself"
    for row in rows.values():
        assert 1 <= row["inception_score"]["value"] <= 10
        assert row["inception_score"]["low"] <= row["inception_score"]["high"]
        assert 0 <= row["accuracy"]["value"] <= 1
    assert rows["samples"]["am"]["value"] > 0
    share = report["sounds"]["rejection"]
    assert rows["samples, after rejection"]["clips"] == int(share["upper"] * 12) - int(share["lower"] * 12)
    assert "FID, 0 is best" in out
    assert "samples, after rejection" in out


def test_the_accuracy_is_that_of_the_classifier_s_own_evaluation(folder: Path):
    code, out = run("evaluate", "run=runs/judge", "device=cpu", "samples=runs/told/results", "output=judge.json",
                    "scorer.resamples=0")  # fmt: skip
    assert code == 0, out
    report = json.loads(Path("judge.json").read_text())
    assert report["sounds"]["rows"]["test (real)"]["accuracy"]["value"] == pytest.approx(report["metrics"]["accuracy"])
    assert report["sounds"]["rows"]["samples"]["fid"]["low"] is None


def test_real_clips_from_a_folder_score_as_the_split_they_are(folder: Path):
    """The test clips' files, read back, have the test row's scores: same rate, cut and filling."""
    from seqmodels.inference import load
    from seqmodels.instantiate import build
    from seqmodels.training.run_folder import RunFolder

    judge, spec = load("runs/judge", "cpu"), RunFolder(Path("runs/judge")).read_config()["domain"]["dataset"]
    corpus = build(spec | {"augment": None})
    Path("copied").mkdir()
    for number in range(5):
        source = Path(corpus.split("test")[number].id.split(":")[0])
        samples = read_samples(corpus.clips[0].info.path.replace(corpus.clips[0].name, str(source)))
        soundfile.write(f"copied/{source.stem}.flac", samples, 8000)
    rows = SampleScores(resamples=0)(judge, corpus, "copied")["rows"]
    assert rows["samples"]["inception_score"].value == pytest.approx(rows["test (real)"]["inception_score"].value)
    assert rows["samples"]["fid"].value == pytest.approx(0, abs=1e-6)
    assert "accuracy" not in rows["samples"], "nobody said what they are"
    changed = SampleScores(resamples=0)(judge, build(spec), "copied")["rows"]
    values = [{name: getattr(score, "value", score) for name, score in row["train (real)"].items()}
              for row in (changed, rows)]  # fmt: skip
    assert values[0] == values[1], "augmentation is for training alone"


def test_training_clips_are_scored_as_they_are_without_augmentation(folder: Path):
    from seqmodels.instantiate import build
    from seqmodels.training.run_folder import RunFolder

    corpus = build(RunFolder(Path("runs/judge")).read_config()["domain"]["dataset"])
    changed, plain = corpus.split("train"), corpus.as_held_out("train")
    same = [np.array_equal(changed[number].ids, plain[number].ids) for number in range(len(plain))]
    assert not all(same), "the judge is trained on changed loudness and polarity"
    bare = build(RunFolder(Path("runs/judge")).read_config()["domain"]["dataset"] | {"augment": None}).split("train")
    assert all(np.array_equal(bare[number].ids, plain[number].ids) for number in range(len(plain)))


def test_published_variants_are_named_options():
    made = ["run=runs/told", "classifier=runs/judge"]
    sounds = sounds_of([*made, "scorer.convention=sashimi", "scorer.reference=train"])
    assert sounds["rejection"] == {"lower": 0.4, "upper": 0.95}
    assert sounds["rows"]["samples, after rejection"]["clips"] == 11 - 4
    assert sounds["rows"]["train (real)"]["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert sounds["rows"]["test (real)"]["fid"]["value"] > 0
    fixed = sounds_of([*made, "scorer.rejection=[0.5,1.0]"])
    assert fixed["rows"]["samples, after rejection"]["clips"] == 12
    none = sounds_of([*made, "scorer.rejection=none"])
    assert "samples, after rejection" not in none["rows"]


def test_rejection_keeps_the_likelier_ones(folder: Path):
    """Half of the sounds dropped by hand: the rows of the other half give the same scores."""
    made = made_sounds("runs/told/results")
    assert made.log_likelihood_N is not None
    Path("likely").mkdir()
    with open("runs/told/results/samples.tsv", newline="") as file:
        table = csv.DictReader(file, delimiter="\t")
        rows, columns = list(table), list(table.fieldnames or [])
    better = [row for row, nats in zip(rows, made.log_likelihood_N) if nats >= np.sort(made.log_likelihood_N)[12]]
    for row in better:
        (Path("likely") / row["file"]).write_bytes((Path("runs/told/results") / row["file"]).read_bytes())
    with open("likely/samples.tsv", "w", newline="") as file:
        table = csv.DictWriter(file, columns, delimiter="\t")
        table.writeheader()
        table.writerows(better)
    dropped = sounds_of(["run=runs/told", "classifier=runs/judge", "scorer.rejection=[0.5,1.0]"])
    by_hand = sounds_of(["run=runs/told", "classifier=runs/judge", "samples=likely", "scorer.rejection=none"])
    a, b = dropped["rows"]["samples, after rejection"], by_hand["rows"]["samples"]
    for name in ("fid", "am", "accuracy", "modified_inception_score"):
        assert a[name]["value"] == pytest.approx(b[name]["value"], rel=1e-6)


BROKEN = {
    "samples=nowhere": "nowhere: no such table of samples; make some first",
    "samples=empty": "neither samples.tsv nor a sound file is in it",
    "samples=other.tsv": "other.tsv is no table of samples",
    "samples=gone.tsv": "gone.tsv lists gone.wav, which is not there",
    "samples=strange.tsv": "sounds were made as 'eleven', and the classifier knows 0, 1, 2",
    "samples=mixed.tsv": "1 of 2 sounds were made as no class",
    "samples=nan": "nan/a.wav: sample 1 of channel 0 (0.000 s) is nan",
    "samples=torn": "torn/a.wav",
    "samples=alone": "one sound alone has no scores",
    "scorer.rejection=some": "scorer.rejection='some'; accepted: auto, tuned, none",
    "scorer.rejection=[0.9,0.1]": "0 <= lower < upper <= 1",
    "scorer.reference=held_out": "accepted: train, valid, test",
    "scorer.resamples=1": "0 or at least 2",
    "classifier=runs/told": "trained to classify",
}


@pytest.fixture
def no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes are said before the split is evaluated, which may take minutes."""

    def evaluate(*args: object, **named: object) -> None:
        raise AssertionError("the split was evaluated first")

    monkeypatch.setattr("seqmodels.training.evaluate.evaluate", evaluate)


@pytest.mark.usefixtures("no_evaluation")
@pytest.mark.parametrize("word", BROKEN)
def test_what_cannot_be_scored(folder: Path, word: str):
    Path("empty").mkdir(exist_ok=True)
    for name in ("nan", "torn", "alone"):
        Path(name).mkdir(exist_ok=True)
        soundfile.write(f"{name}/b.wav", np.zeros(500), 8000)
    soundfile.write("nan/a.wav", np.array([0.1, np.nan, 0.2] * 20, np.float32), 8000, subtype="FLOAT")
    soundfile.write("torn/a.wav", np.zeros(500), 8000)
    Path("torn/a.wav").write_bytes(Path("torn/a.wav").read_bytes()[:300])
    header = "file\tlog_likelihood_nats\tclass_name\n"
    file = "runs/told/results/generated-0_00.wav"
    Path("other.tsv").write_text("a\tb\n1\t2\n")
    Path("gone.tsv").write_text(f"{header}gone.wav\t-1\t0\n")
    Path("strange.tsv").write_text(f"{header}{file}\t-1\televen\n{file}\t-1\t3\n")
    Path("mixed.tsv").write_text(f"{header}{file}\t-1\tnone\n{file}\t-1\t3\n")
    code, out = run("evaluate", "run=runs/told", "classifier=runs/judge", *FEW, word)
    assert code == 1, out
    assert BROKEN[word] in out
    assert "Traceback" not in out


@pytest.mark.usefixtures("no_evaluation")
def test_samples_without_a_classifier():
    code, out = run("evaluate", "run=runs/told", "samples=runs/told/results", *FEW)
    assert code == 1
    assert "a classifier has to score them" in out
