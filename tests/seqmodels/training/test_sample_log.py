"""Samples while a model is trained: files, TensorBoard and the report are there, and training is as it was without."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from domains.audio.datasets import AudioSegments
from domains.audio.tokenizer import MuLawTokenizer
from seqmodels.reporting.sound import read_wav, wav_bytes
from seqmodels.training import ModelSpec, train
from seqmodels.training.sample_log import SampleLog
from seqmodels.training.tiny import TinyCorpus, tiny_model, tiny_recipe

RECIPE = {"max_steps": 5, "val_every_steps": 5, "checkpoint_every_steps": 5, "log_every_steps": 1}


def losses(run_dir) -> list[str]:
    with (run_dir / "metrics.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_files_every_so_many_steps_and_after_the_last_and_the_same_losses(tmp_path):
    with_samples = [SampleLog(every_steps=2, num_samples=2, length=7)]
    train(TinyCorpus(), tiny_model(), tiny_recipe(**RECIPE), run_dir=tmp_path / "with", callbacks=with_samples)
    train(TinyCorpus(), tiny_model(), tiny_recipe(**RECIPE), run_dir=tmp_path / "without")
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    with (tmp_path / "with" / "samples" / "samples.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["step"], row["sample"]) for row in rows] == [(str(s), str(n)) for s in (2, 4, 5) for n in (0, 1)]
    for step in (2, 4, 5):
        lines = (tmp_path / "with" / "samples" / f"step-{step:08d}.txt").read_text().splitlines()
        assert [len(line.split()[-1]) for line in lines] == [7, 7]


def test_sound_is_in_tensorboard_and_in_the_report(tmp_path):
    corpus = AudioSegments(
        "example:digits", tokenizer=MuLawTokenizer(sample_rate_hz=8000), segment_samples=64, split_by="balanced"
    )
    model = ModelSpec(tiny_model().backbone, {"_target_": "seqmodels.heads.next_token.NextTokenHead"})
    samples = SampleLog(every_steps=3, num_samples=1, seconds=0.05)
    train(corpus, model, tiny_recipe(**RECIPE), run_dir=tmp_path / "run", callbacks=[samples])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    heard = events.Audio("samples/0")
    assert [(event.step, event.sample_rate, event.length_frames) for event in heard] == [(3, 8000, 400), (5, 8000, 400)]
    assert [event.step for event in events.Images("samples/0/spectrogram")] == [3, 5]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "bits per sample" in page
    assert page.index("Step 5") < page.index("Step 3"), "the newest comes first"
    assert page.count("<audio") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_steps": 0}, "every_steps=0"),
        ({"length": 5, "seconds": 1.0}, "give one of them"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        SampleLog(**options)


def test_a_classifier_and_letters_in_seconds_are_refused(tmp_path):
    head = {"_target_": "seqmodels.heads.classification.ClassificationHead"}
    classifier = ModelSpec(tiny_model().backbone, head)
    corpus, recipe = TinyCorpus(num_classes=2), tiny_recipe(**RECIPE)
    with pytest.raises(ValueError, match="makes no sequences"):
        train(corpus, classifier, recipe, run_dir=tmp_path / "a", callbacks=[SampleLog()])
    with pytest.raises(ValueError, match="makes letters"):
        train(TinyCorpus(), tiny_model(), recipe, run_dir=tmp_path / "b", callbacks=[SampleLog(seconds=1.0)])


@pytest.mark.parametrize("bytes_a_sample", [2, 3])
def test_wavs_of_16_and_24_bits_are_read_back(tmp_path, bytes_a_sample):
    import soundfile

    samples = np.array([-1.0, -0.25, 0.0, 0.5, 0.75])
    path, kind = tmp_path / "a.wav", {2: "PCM_16", 3: "PCM_24"}[bytes_a_sample]
    soundfile.write(path, samples, 8000, subtype=kind)
    found, rate_hz = read_wav(path)
    assert (rate_hz, found.tolist()) == (8000, samples.tolist())
    (tmp_path / "b.wav").write_bytes(wav_bytes(samples, 8000))
    assert np.abs(read_wav(tmp_path / "b.wav")[0] - samples).max() < 1e-4
    soundfile.write(path, np.zeros((4, 2)), 8000)
    with pytest.raises(ValueError, match="2 channels"):
        read_wav(path)
