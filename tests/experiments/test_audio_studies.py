"""The studies of piano and speech, in tiny sizes on the CPU: rows that add up, and failures that are rows."""

from __future__ import annotations

import csv
import re
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

RUN_ALL = Path(__file__).resolve().parents[2] / "experiments" / "gpu" / "run_all.sh"


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def sound(seconds: float, rate_hz: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))
    return 0.2 * np.sin(np.arange(len(noise)) / 7 + seed) + 0.02 * noise


@pytest.fixture
def piano(tmp_path: Path) -> Path:
    folder = tmp_path / "piano"
    folder.mkdir()
    rows = ["path,split"]
    for number, split in enumerate(("train", "train", "valid", "test")):
        name = "Maestro_4.wav" if split == "test" else f"{number}.wav"
        soundfile.write(folder / name, sound(0.2 if split != "test" else 0.6, 16_000, number), 16_000)
        rows.append(f"{name},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_a_context_is_trained_and_judged_in_three_ways(experiment, piano, tmp_path):
    script, study = experiment("audio.music.run"), experiment("audio.study")
    tables = {
        name: study.Study(name, columns, out=tmp_path / "out", runs=tmp_path / "runs", seconds=600, commit="abc")
        for name, columns in (("music", script.COLUMNS), ("music_positions", script.POSITION_COLUMNS))
    }
    music = script.Music(*tables.values(), piano, smoke=True)
    base = music.base("flat")
    run = music.context("flat", 8, steps=2, lr=0.002, base=base)
    of_base, row = read(tmp_path / "out" / "music.csv")
    assert (of_base["what"], of_base["tokens"], of_base["batch"]) == ("base", "1024", "2")
    other = script.Music(*tables.values(), piano, outer="S", smoke=True)
    assert "backbone.outer=S" in other.words("unet", 8, steps=1, lr=1.0)
    assert (row["context"], row["batch"], row["tokens"], row["commit"]) == ("256", "4", "2048", "abc")
    assert 0 < float(row["bits_test"]) < 9
    octaves = read(tmp_path / "out" / "music_positions.csv")
    assert [int(o["heard_from"]) for o in octaves] == [0, *(2**n for n in range(1, 10))], "up to the longest, 2^10"
    tokens = [int(o["tokens"]) for o in octaves]
    assert sum(tokens) == 9 * 1024, "0.6 s are nine whole windows"
    mean = np.average([float(o["bits"]) for o in octaves], weights=tokens)
    assert float(row["bits_test_longest"]) == pytest.approx(mean, abs=1e-3)
    assert (run / "checkpoints").is_dir()
    words = music.words("unet", 10, steps=7, lr=0.1)
    assert "data.batch_size=1" in words
    assert "trainer.max_steps=7" in words


def test_markov_models_learn_from_the_training_files_alone(experiment, piano, tmp_path):
    experiment("audio.music.run").main([str(piano), "--out", str(tmp_path), "--smoke", "--markov"])
    rows = read(tmp_path / "music_markov.csv")
    assert [row["order"] for row in rows] == ["0", "1"]
    assert {row["tokens"] for row in rows} == {str(2 * 3200)}
    assert all(0 < float(row["bits_test"]) < 8 for row in rows)


def test_speech_is_judged_language_by_language(experiment, tmp_path, monkeypatch):
    prepare, script = experiment("audio.speech.data"), experiment("audio.speech.run")
    for number, voice in enumerate(prepare.VOICES.values()):
        folder = tmp_path / "unpacked" / voice
        (folder / "digits").mkdir(parents=True)
        (folder / "silence").mkdir()
        for take in range(4):
            soundfile.write(folder / "digits" / f"{take}.wav", sound(0.6, 8000, 10 * number + take), 8000)
        soundfile.write(folder / "silence" / "1.wav", np.zeros(8000), 8000)
        soundfile.write(folder / "short.wav", sound(0.3, 8000, number), 8000)
    prepare.main([str(tmp_path / "unpacked"), str(tmp_path / "speech"), "--scale", "0.01"])
    taken = read(tmp_path / "speech" / "manifest.csv")
    assert {row["language"] for row in taken} == {"en", "fr", "ru"}
    assert {row["split"] for row in taken} == {"train", "valid", "test"}
    assert not any("silence" in row["path"] or "short" in row["path"] for row in taken)
    held_out = read(tmp_path / "speech" / "it.csv")
    assert held_out
    assert {row["split"] for row in held_out} == {"test"}
    monkeypatch.setattr(script, "TINY", {"flat": ["backbone=stack", "layer=mamba", "backbone.n_layers=1",
                                                  "backbone.d_model=8"]})  # fmt: skip
    script.main([str(tmp_path / "speech"), "--out", str(tmp_path / "out"), "--smoke", "--commit", "abc"])
    rows = read(tmp_path / "out" / "speech.csv")
    models = [(row["model"], row["language"]) for row in rows if row["what"] in ("model", "markov")]
    assert models == [(m, lang) for m in ("markov order 0", "markov order 1", "flat") for lang in script.LANGUAGES]
    assert all(0 < float(row["bits_test"]) < 9 for row in rows if row["bits_test"])


def test_what_fails_or_comes_too_late_is_a_row(experiment, tmp_path):
    study = experiment("audio.study").Study(
        "s", ["what", "note"], out=tmp_path, runs=tmp_path, seconds=60, commit="abc"
    )
    assert study.attempt("good", lambda: 3) == 3
    assert study.attempt("bad", lambda: 1 // 0, note="n") is None
    assert study.attempt("late", lambda: 3, needs_s=1000) is None
    rows = read(tmp_path / "s.csv")
    assert [(row["what"], row["note"]) for row in rows] == [("bad", "n"), ("late", "")]
    assert "ZeroDivisionError" in rows[0]["status"]
    assert "left out" in rows[1]["status"]


def test_the_pedal_holds_notes_until_it_comes_up(experiment, monkeypatch, tmp_path):
    class Action(types.SimpleNamespace):
        pass

    on, off, control = (type(name, (Action,), {}) for name in ("NoteOn", "NoteOff", "ControlChange"))

    def at(t: float, action: Action) -> types.SimpleNamespace:
        return types.SimpleNamespace(t=t, action=action)

    events = [
        at(0.0, on(key=60, velocity=80)), at(0.5, control(control=64, control_value=127)),
        at(1.0, on(key=60, velocity=0)), at(1.5, on(key=62, velocity=70)), at(2.0, off(key=62)),
        at(2.5, on(key=62, velocity=71)), at(3.0, control(control=64, control_value=0)), at(4.0, off(key=62)),
    ]  # fmt: skip
    midi = types.SimpleNamespace(load=lambda path: events, NoteOn=on, NoteOff=off, ControlChange=control)
    monkeypatch.setitem(__import__("sys").modules, "tinysoundfont", types.SimpleNamespace(midi=midi))
    told = experiment("audio.music.render").keys_of(tmp_path / "a.mid")
    assert [tuple(key) for key in told] == [
        (0.0, 60, 80), (1.5, 62, 70), (2.5, 62, 0), (2.5, 62, 71), (3.0, 60, 0), (4.0, 62, 0),
    ]  # fmt: skip


def test_stepped_likelihoods_are_those_of_the_whole(experiment, tmp_path):
    experiment("audio.step_equality").main(["--smoke", "--csv", str(tmp_path / "e.csv"), "--commit", "abc"])
    rows = read(tmp_path / "e.csv")
    assert [(row["model"], row["dtype"]) for row in rows] == [
        (model, dtype) for model in ("unet_sc09_6m", "mamba_130m") for dtype in ("fp32", "bf16")
    ]
    for row in rows:
        assert float(row["largest_off_nats"]) < (1e-4 if row["dtype"] == "fp32" else 0.5)
        assert -40 * 4 < float(row["total_nats"]) < -40 * 1, "sharp, but not certain"


@pytest.mark.parametrize("script", ["music/run.py", "music/render.py", "speech/run.py", "step_equality.py"])
def test_it_is_a_step_of_the_gpu_run(script):
    assert re.search(rf"python3 experiments/audio/{re.escape(script)}", RUN_ALL.read_text())
