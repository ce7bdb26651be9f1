from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from domains.audio.datasets import AudioSegments
from seqmodels.instantiate import build

CONF = Path(__file__).parents[3] / "conf" / "domain"


NAMES = sorted(path.stem for path in CONF.glob("audio_*.yaml"))
TONE = np.full(20000, 0.25, np.float32)


def spec_of(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())["dataset"]


@pytest.mark.parametrize("name", NAMES)
def test_the_yaml_names_every_argument_and_explains_each(name: str):
    for line in (CONF / f"{name}.yaml").read_text().splitlines():
        if not line.startswith("#") and not re.fullmatch(r"\s*[a-z_]+:", line):
            assert re.search(r": \S.*  # \S", line), line
    spec = spec_of(name)
    assert spec.pop("_target_") == "domains.audio.datasets.AudioSegments"
    assert set(spec) == set(inspect.signature(AudioSegments.__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "audio_digits"])
def test_without_a_place_it_asks_for_one(name: str):
    with pytest.raises(ValueError, match="say where the sound is"):
        build(spec_of(name))


def test_a_folder(put, tmp_path: Path):
    put("a.wav", TONE, 8000)
    corpus = build(spec_of("audio_folder") | {"folder": str(tmp_path)})
    assert corpus.segment_samples == 16000
    assert len(corpus.split("train")) == 2  # 40,000 samples at 16 kHz, cut by time: 32,000 for training


def test_the_packaged_digits():
    corpus = build(spec_of("audio_digits"))
    assert (corpus.segment_samples, len(corpus.class_names)) == (4000, 10)


def test_sc09_takes_the_ten_digits_and_the_official_lists(put, tmp_path: Path):
    digits = spec_of("audio_sc09")["classes"]
    for word in [*digits, "marvin"]:
        for take in range(3):
            put(f"{word}/{take}_nohash_0.wav", TONE[:16000], 16000)
    (tmp_path / "validation_list.txt").write_text("\n".join(f"{word}/1_nohash_0.wav" for word in digits))
    (tmp_path / "testing_list.txt").write_text("\n".join(f"{word}/2_nohash_0.wav" for word in digits))
    corpus = build(spec_of("audio_sc09") | {"folder": str(tmp_path)})
    assert corpus.class_names == tuple(sorted(digits))
    assert [len(corpus.split(split)) for split in ("train", "valid", "test")] == [10, 10, 10]
    assert corpus.report()["left_out_other_classes"] == 3
    assert {len(corpus.split("train")[i].ids) for i in range(10)} == {16000}
    assert corpus.tokenizer.convention == "sashimi"


@pytest.mark.parametrize(("name", "length"), [("audio_youtubemix", 131072), ("audio_beethoven", 128000)])
def test_flat_music_in_natural_order_without_ends(name: str, length: int, put, tmp_path: Path):
    for number in range(1, 18):
        put(f"out{number}.wav", np.tile(TONE, 7), 16000)  # 140,000 samples
    corpus = build(spec_of(name) | {"folder": str(tmp_path)})
    names = {s: [corpus.split(s)[i].id for i in range(len(corpus.split(s)))] for s in ("train", "valid", "test")}
    assert names["valid"] == [f"out15.wav:0-{length}"]
    assert names["test"] == [f"out16.wav:0-{length}", f"out17.wav:0-{length}"]
    assert names["train"][:2] == [f"out1.wav:0-{length}", f"out2.wav:0-{length}"]
    assert corpus.report()["dropped_short_segments"] == 17


def test_maestro_by_its_csv(put, tmp_path: Path):
    rows = ["canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration"]
    for number, split in enumerate(("train", "validation", "test")):
        put(f"2004/{number}.wav", np.stack([TONE, TONE], 1), 44100)
        rows.append(f'Bach,"Fugue, {number}",{split},2004,2004/{number}.midi,2004/{number}.wav,0.3')
    (tmp_path / "maestro.csv").write_text("\n".join(rows))
    corpus = build(spec_of("audio_maestro") | {"manifest": str(tmp_path / "maestro.csv")})
    assert [corpus.split(split)[0].id for split in ("train", "valid", "test")] == [
        f"2004/{number}.wav:0-7257" for number in range(3)
    ]
    assert corpus.report()["mixed_down_files"] == corpus.report()["resampled_files"] == 3
