"""The study of spoken digits in tiny sizes: every part leaves its rows, its sounds and what scores them again."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

TINY = ["example:digits", "--smoke", "--seconds", "500", "--commit", "abc"]


@pytest.fixture
def run(experiment):
    return experiment("audio.digits.run")


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_models_have_equally_many_parameters(run):
    from seqmodels.cli.compose import compose
    from seqmodels.instantiate import build
    from seqmodels.model import model_spec

    counts = {}
    for name, words in run.MODELS.items():
        config = compose("train", ["experiment=digits", *words])
        model = build(model_spec(config["backbone"], config["head"], vocab_size=256, num_classes=None))
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    assert max(counts.values()) < 1.05 * min(counts.values()), counts


def test_the_classifiers_are_what_the_command_builds(run):
    from seqmodels.cli.compose import compose
    from seqmodels.instantiate import build
    from seqmodels.model import model_spec

    for words in run.CLASSIFIERS.values():
        config = compose("train", ["experiment=digit_classifier", *words])
        spec = model_spec(config["backbone"], config["head"], vocab_size=256, num_classes=10)
        assert build(spec).head.classifier.in_features == 64, "features that FID compares"


def test_every_part_leaves_its_rows_and_sounds(run, experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run.main([*TINY, "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--parts", "classifier,told"])
    rows = rows_of(tmp_path / "out" / "digits.csv")
    assert {row["status"] for row in rows} == {"ok"}, [row for row in rows if row["status"] != "ok"]
    assert {row["commit"] for row in rows} == {"abc"}
    whats = [(row["what"], row["set"]) for row in rows]
    for wanted in (("classifier", "test"), ("bits", "test"), ("scores", "train (real)"), ("scores", "samples"),
                   ("scores", "samples, after rejection")):  # fmt: skip
        assert wanted in whats
    told = [row for row in rows if (row["model"], row["set"]) == ("told", "samples")]
    assert "accuracy" in {row["metric"] for row in told}
    assert {row["note"] for row in told} == {"standard, against test", "sashimi, against train"}
    real = [row for row in rows if row["model"] == "real" and row["note"] == "standard, against test"]
    assert len(real) == 3 * len(run.SCORES), "once, however many models are scored"
    markov = rows_of(tmp_path / "out" / "digits_markov.csv")
    assert [row["order"] for row in markov if row["set"] == "test"] == ["0", "1"]
    ids = np.load(tmp_path / "out" / "samples" / "told" / "all.npy")
    assert (ids.shape, ids.dtype) == ((20, 96), np.uint8)
    assert len(list((tmp_path / "out" / "samples" / "told").glob("*.wav"))) == run.KEPT_SOUNDS
    from seqmodels.inference import load

    kept = load(tmp_path / "out" / "classifier", "cpu", objective="classify")
    assert kept.class_names == tuple("0123456789")
    write_clips(tmp_path / "fsdd")
    listen_again(experiment, tmp_path, kept)
    draw_figures(experiment, tmp_path)
    tables = capsys.readouterr().out
    assert "| U-Net S4D + Mamba, told the digit | 20 |" in tables
    assert "| test (real) | 20 |" in tables, "the newest rows"
    assert "| Markov, order 1 |" in tables


def write_clips(folder: Path) -> None:
    """Two clips of every digit in every split, shorter and longer than what is heard."""
    import soundfile

    folder.mkdir()
    for digit in range(10):
        for take in (0, 1, 5, 6, 10, 11):
            samples = np.random.default_rng(10 * digit + take).uniform(-1, 1, 80 + 3 * take)
            soundfile.write(folder / f"{digit}_kim_{take}.flac", samples, 8000)


def listen_again(experiment, folder: Path, kept) -> None:
    """The judge is asked as `seqmodels evaluate` asks it."""
    from domains.audio.metrics import SampleScores
    from seqmodels.instantiate import build
    from seqmodels.training.run_folder import RunFolder

    judge, words = experiment("audio.digits.judge"), [str(folder / "out"), str(folder / "fsdd"), "--commit", "def"]
    judge.main([*words, "--resamples", "20"])
    spec = RunFolder.open(folder / "out" / "classifier").read_config()["domain"]["dataset"]
    heard = SampleScores().hear_splits(kept, build({**spec, "folder": str(folder / "fsdd")}))
    answers = np.load(folder / "out" / "answers.npz")
    for split, (expected, _) in heard.items():
        order, own = (np.argsort(p[:, 0]) for p in (expected.probabilities_NO, answers[f"{split}.p"]))
        np.testing.assert_allclose(answers[f"{split}.f"][own], expected.features_NF[order], atol=1e-5)
    rows = [row for row in rows_of(folder / "out" / "digits.csv") if row["commit"] == "def"]
    assert {row["set"] for row in rows if row["what"] == "digit"} == set("0123456789")
    assert "test (real), noise 20 dB below" in {row["set"] for row in rows}
    for row in (row for row in rows if row["what"] == "scores"):
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    first = {(row["set"], row["metric"]): row["value"] for row in rows_of(folder / "out" / "digits.csv")
             if row["commit"] == "abc" and row["model"] == "told" and row["note"].startswith("standard")}  # fmt: skip
    assert first[("samples", "accuracy")] == next(
        row["value"] for row in rows if (row["model"], row["set"], row["metric"]) == ("told", "samples", "accuracy")
    )


def draw_figures(experiment, folder: Path) -> None:
    import soundfile

    experiment("audio.digits.figure").main([str(folder / "out"), str(folder / "fsdd")])
    for name in ("bits", "spectrograms"):
        assert (folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    joined, rate = soundfile.read(folder / "out" / "samples" / "told.wav")
    assert (len(joined), rate) == (10 * (96 + 800), 8000)


def test_as_many_steps_as_fit_and_a_lower_rate_after_a_loss_that_is_no_number(run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run, "SEGMENT", 96)
    monkeypatch.setattr(run, "CALIBRATION_STEPS", 5)
    options = run.arguments(["example:digits", "--out", str(tmp_path), "--validations", "2"])
    study = run.Study("digits", run.COLUMNS, out=tmp_path, runs=tmp_path / "runs", seconds=500, commit="abc")
    digits, plain, calls = run.Digits(study, options), study.train, []

    def train(name: str, *words: str):
        calls.append((name, words))
        if len(calls) == 2:
            raise ValueError("the loss of step 7 is nan")
        return plain(name, *words)

    monkeypatch.setattr(study, "train", train)
    folder, about = digits.trained("mamba", 0.01, 4, "experiment=digits", *run.TINY["mamba"], "optimizer.lr=0.003")
    assert [name for name, _ in calls] == ["mamba-probe", "mamba", "mamba"]
    assert (about["steps"], about["tokens"], about["lr"]) == (50, 50 * 4 * 96, "0.001")
    assert [word for word in calls[2][1] if word.startswith("trainer.val_every")] == ["trainer.val_every_steps=25"]
    assert folder == (tmp_path / "runs" / "mamba").resolve()
    assert "the loss of step 7 is nan" in rows_of(tmp_path / "digits.csv")[0]["status"]


def test_a_part_that_fails_is_a_row_and_the_next_begins(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self, name: str) -> None:
        if name == "mamba":
            raise RuntimeError("no such luck")

    monkeypatch.setattr(run.Digits, "language_model", fail)
    monkeypatch.setattr(run, "begin_markov", lambda words: type("Done", (), {"wait": lambda self: 0})())
    run.main([*TINY, "--out", str(tmp_path), "--parts", "mamba,unet_s4d"])
    (row,) = rows_of(tmp_path / "digits.csv")
    assert (row["what"], row["model"], row["status"]) == ("mamba", "mamba", "RuntimeError: no such luck")


def test_what_the_command_refuses(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for words, message in (
        ([str(tmp_path / "none")], "no such folder"),
        (["example:digits", "--parts", "lstm"], "--parts lstm: known are"),
    ):
        with pytest.raises(SystemExit):
            run.arguments([*words, "--out", str(tmp_path)])
        assert message in capsys.readouterr().err


def test_clips_are_copied_once_and_counted(experiment, tmp_path: Path):
    import soundfile

    data = experiment("audio.digits.data")
    source, dice = tmp_path / "from", np.random.default_rng(0)
    source.mkdir()
    for digit in range(2):
        for take in range(12):
            soundfile.write(source / f"{digit}_kim_{take}.flac", dice.uniform(-0.5, 0.5, 100 + take), 8000)
    assert data.copied(source, tmp_path / "to") == 24
    report = data.account(tmp_path / "to")
    assert [report[f"{split}_segments"] for split in ("train", "valid", "test")] == [4, 10, 10]
    assert (report["length_0"], report["length_1"]) == (100, 111)
    with pytest.raises(FileNotFoundError, match="no <digit>_<speaker>_<take>"):
        data.copied(tmp_path, tmp_path / "to")
