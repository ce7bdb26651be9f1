from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from domains.audio.manifest import Listing, find_audio_files, list_clips, natural_key
from domains.audio.wav import AudioFileError, RawFormat

TONE = np.full(100, 0.25, np.float32)


def _names(listing: Listing) -> list[str]:
    return [clip.name for clip in listing.clips]


def test_natural_order():
    names = ["b10.wav", "b2.wav", "B1.wav", "a/2.wav", "a/10.wav", "a.wav", "b02.wav"]
    ordered = ["a.wav", "a/2.wav", "a/10.wav", "B1.wav", "b02.wav", "b2.wav", "b10.wav"]
    assert sorted(names, key=natural_key) == ordered


def test_a_folder_is_searched_through_in_natural_order(put, tmp_path: Path):
    for name in ("take10.wav", "take2.WAV", "sub/deep/x.flac", ".hidden.wav", ".git/y.wav"):
        put(name, TONE)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)  # a circle
    listing = list_clips(tmp_path)
    assert _names(listing) == ["sub/deep/x.flac", "take2.WAV", "take10.wav"]
    assert (listing.layout, listing.official) == ("folder", None)
    assert {clip.label for clip in listing.clips} == {None}
    assert [clip.info.frames for clip in listing.clips] == [100, 100, 100]


def test_links_to_folders_are_followed(put, tmp_path: Path):
    put("elsewhere/one/a.wav", TONE)
    (tmp_path / "sc09").mkdir()
    (tmp_path / "sc09" / "one").symlink_to(tmp_path / "elsewhere" / "one")
    assert [p.name for p in find_audio_files(tmp_path / "sc09")] == ["a.wav"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [("auto", [None] * 3), (None, [None] * 3), ("folder", ["cat", "cat", "dog"]), ("^([a-z]+)", ["m", "x", "m"]),
     ("(?P<take>[0-9]+)(?P<label>[ab])", ["a", "b", "a"])],
)  # fmt: skip
def test_labels_from_folder_or_name(put, tmp_path: Path, label: str | None, expected: list):
    for name in ("cat/m1a.wav", "cat/x2b.wav", "dog/m10a.wav"):
        put(name, TONE)
    assert [clip.label for clip in list_clips(tmp_path, label=label).clips] == expected


def test_speakers_from_folder_or_name(put, tmp_path: Path):
    for name in ("kim/a_1.wav", "lee/b_2.wav"):
        put(name, TONE)
    assert [clip.speaker for clip in list_clips(tmp_path, speaker="folder").clips] == ["kim", "lee"]
    assert [clip.speaker for clip in list_clips(tmp_path, speaker="^(.)_").clips] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "^([0-9]+)"}, r"a\.wav has no label: its name does not match"),
        ({"label": "folder"}, r"a\.wav has no label: it lies in no sub-folder"),
        ({"label": "name"}, "a regular expression with a group"),
        ({"label": "(("}, "not a regular expression"),
        ({"speaker": "auto-magic"}, "speaker='auto-magic'"),
        ({"on_bad_file": "ignore"}, "raise, skip"),
    ],
)
def test_rules_that_do_not_fit(put, tmp_path: Path, arguments: dict, message: str):
    put("a.wav", TONE)
    with pytest.raises(ValueError, match=message):
        list_clips(tmp_path, **arguments)


def test_folders_without_sound(tmp_path: Path):
    with pytest.raises(ValueError, match="say where the sound is"):
        list_clips()
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_clips(tmp_path / "no")
    with pytest.raises(ValueError, match=r"no sound file in it or below .*it is empty"):
        list_clips(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"other files, such as 'notes\.txt'"):
        list_clips(tmp_path)
    with pytest.raises(ValueError, match="is a file; give the folder"):
        list_clips(tmp_path / "notes.txt")
    with pytest.raises(ValueError, match="example:digits, example:loops"):
        list_clips("example:drums")


def test_bad_files_stop_or_are_left_out_and_named(put, tmp_path: Path):
    put("good.wav", TONE)
    (tmp_path / "bad.wav").write_bytes(b"")
    with pytest.raises(AudioFileError, match=r"bad\.wav: the file is empty"):
        list_clips(tmp_path)
    listing = list_clips(tmp_path, on_bad_file="skip")
    assert _names(listing) == ["good.wav"]
    assert len(listing.skipped) == 1
    assert "bad.wav" in listing.skipped[0]
    (tmp_path / "good.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="none of 2 files can be used"):
        list_clips(tmp_path, on_bad_file="skip")


def test_headerless_files_are_listed_when_their_format_is_given(put, tmp_path: Path):
    put("a.wav", TONE)
    (tmp_path / "b.raw").write_bytes(bytes(400))
    assert _names(list_clips(tmp_path)) == ["a.wav"]
    listing = list_clips(tmp_path, raw=RawFormat(4000))
    assert [(clip.name, clip.info.sample_rate_hz) for clip in listing.clips] == [("a.wav", 8000), ("b.raw", 4000)]
    assert listing.clips[1].info.frames == 200


# --------------------------------------------------------------------------------------------------------- layouts


@pytest.fixture
def speech_commands(put: Callable[..., str], tmp_path: Path) -> Path:
    for word in ("one", "two"):
        for i in range(4):
            put(f"{word}/sp{i}_nohash_0.wav", TONE)
    put("_background_noise_/hum.wav", TONE)
    (tmp_path / "validation_list.txt").write_text("one/sp1_nohash_0.wav\ntwo/sp1_nohash_0.wav\nzero/gone.wav\n")
    (tmp_path / "testing_list.txt").write_text("one/sp2_nohash_0.wav\n")
    return tmp_path


def test_speech_commands_with_its_lists(speech_commands: Path):
    listing = list_clips(speech_commands)
    assert listing.layout == "speech_commands"
    splits = {clip.name: clip.split for clip in listing.clips}
    assert len(splits) == 8  # no noise
    valid = [name for name, split in splits.items() if split == "valid"]
    assert valid == ["one/sp1_nohash_0.wav", "two/sp1_nohash_0.wav"]
    assert [name for name, split in splits.items() if split == "test"] == ["one/sp2_nohash_0.wav"]
    assert {(clip.label, clip.name.split("/")[0]) for clip in listing.clips} == {("one", "one"), ("two", "two")}
    assert listing.clips[3].speaker == "sp3"


def test_a_file_on_both_lists_is_a_leak(speech_commands: Path):
    (speech_commands / "testing_list.txt").write_text("one/sp1_nohash_0.wav\n")
    with pytest.raises(ValueError, match=r"one/sp1_nohash_0\.wav is on both lists"):
        list_clips(speech_commands)


def test_free_spoken_digits_with_the_official_takes(put, tmp_path: Path):
    for take in (0, 4, 5, 9, 10, 49):
        put(f"7_theo_{take}.wav", TONE)
    clips = list_clips(tmp_path).clips
    assert [clip.split for clip in clips] == ["test", "test", "valid", "valid", "train", "train"]
    assert {(clip.label, clip.speaker) for clip in clips} == {("7", "theo")}
    assert {clip.label for clip in list_clips(tmp_path, label=None).clips} == {None}


def test_the_packaged_digits():
    listing = list_clips("example:digits")
    assert listing.layout == "asterisk_digits"
    assert len(listing.clips) == 50
    assert {clip.label for clip in listing.clips} == set("0123456789")
    assert {clip.speaker for clip in listing.clips} == {"Allison", "June", "Carlo", "IvrvoiceRU"}
    assert len({clip.voice for clip in listing.clips}) == 5
    assert {(clip.info.sample_rate_hz, clip.info.channels) for clip in listing.clips} == {(8000, 1)}


def test_the_packaged_loops():
    listing = list_clips("example:loops")
    assert _names(listing) == ["ambi_piano.flac", "guit_em9.flac", "loop_tabla.flac"]
    assert {(clip.info.sample_rate_hz, clip.info.channels) for clip in listing.clips} == {(44100, 2)}


# ------------------------------------------------------------------------------------------------------- manifests


def _jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_jsonl_manifest(put, tmp_path: Path):
    outside = put("other/c.wav", TONE)
    put("clips/a2.wav", TONE)
    put("clips/a10.wav", TONE)
    rows = [
        {"path": "clips/a10.wav", "label": "x", "speaker": "kim", "split": "dev", "duration": 1.0},
        {"path": "clips/a2.wav", "label": 3, "speaker": "lee", "split": "training"},
        {"path": outside, "label": "x", "speaker": "kim", "split": "test"},
    ]
    listing = list_clips(manifest=_jsonl(tmp_path / "m.jsonl", rows))
    found = {Path(clip.name).name: (clip.label, clip.speaker, clip.split) for clip in listing.clips}
    assert found == {"a2.wav": ("3", "lee", "train"), "a10.wav": ("x", "kim", "valid"), "c.wav": ("x", "kim", "test")}
    assert listing.official == "the splits in m.jsonl"
    assert [clip.name for clip in listing.clips if clip.name.startswith("clips")] == ["clips/a2.wav", "clips/a10.wav"]


def test_a_compressed_manifest_beside_another_folder(put, tmp_path: Path):
    put("sound/a.wav", TONE)
    with gzip.open(tmp_path / "m.jsonl.gz", "wt") as file:
        file.write('\n{"path": "a.wav"}\n')
    listing = list_clips(tmp_path / "sound", tmp_path / "m.jsonl.gz")
    assert (_names(listing), listing.official) == (["a.wav"], None)


def test_a_csv_as_maestro_has_it(put, tmp_path: Path):
    put("2004/a.wav", TONE)
    put("2004/b.wav", TONE)
    rows = "canonical_composer,split,audio_filename\r\nBach,train,2004/a.wav\r\nBach,validation,2004/b.wav\r\n"
    (tmp_path / "maestro.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert [clip.split for clip in list_clips(manifest=tmp_path / "maestro.csv").clips] == ["train", "valid"]


def test_lines_may_be_stretches_of_files(put, tmp_path: Path):
    put("a.wav", np.zeros(16000, np.float32))
    put("b.wav", TONE)
    rows = [
        {"path": "a.wav", "start": 1.5, "label": "y"},
        {"path": "a.wav", "offset": "0", "duration": 1.5, "label": "x"},
        {"path": "b.wav", "duration": 99.0, "label": "x"},  # of the whole file: what other programs note down
    ]
    listing = list_clips(manifest=_jsonl(tmp_path / "m.jsonl", rows))
    assert [(clip.name, clip.label, clip.start_seconds, clip.stop_seconds) for clip in listing.clips] == [
        ("a.wav", "x", 0.0, 1.5), ("a.wav", "y", 1.5, None), ("b.wav", "x", 0.0, None),
    ]  # fmt: skip


def test_classes_keep_some_labels_and_count_the_rest(put, tmp_path: Path):
    for word in ("one", "two", "cat"):
        put(f"{word}/a.wav", TONE)
    listing = list_clips(tmp_path, label="folder", classes=["one", "two"])
    assert ([clip.label for clip in listing.clips], listing.other_classes) == (["one", "two"], 1)
    with pytest.raises(ValueError, match="no clip is labelled 'three'; the labels are cat, one, two"):
        list_clips(tmp_path, label="folder", classes=["one", "three"])
    with pytest.raises(ValueError, match="the labels are none: no clip has a label"):
        list_clips(tmp_path, classes=["one"])
    with pytest.raises(ValueError, match="a list of labels was expected"):
        list_clips(tmp_path, label="folder", classes="one")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ('{"path": "a.wav"}\n{"path": \n', ValueError, r"m\.jsonl:2: is not JSON"),
        ('["a.wav"]\n', ValueError, r"m\.jsonl:1: one object such as"),
        ('{"path": "a.wav"}\n{"file": "a.wav"}\n', ValueError, r'm\.jsonl:2: has no "path"'),
        ('{"path": "c.wav"}\n', FileNotFoundError, r"m\.jsonl:1: .*c\.wav: no such file"),
        ('{"path": "a.wav", "split": "holdout"}\n', ValueError, r"m\.jsonl:1: split 'holdout'"),
        ('{"path": "a.wav", "split": "test"}\n{"path": "b.wav"}\n', ValueError, "has no split, but others have"),
        ('{"path": "a.wav", "label": "x"}\n{"path": "b.wav"}\n', ValueError, "has no label, but a.wav has"),
        ("\n", ValueError, "lists no file"),
        ('{"path": "a.wav"}\n' * 2, ValueError, r"m\.jsonl:2: lists sound of .*a\.wav more than once"),
        (
            '{"path": "a.wav", "start": 0, "duration": 0.6}\n{"path": "a.wav", "start": 0.5}\n',
            ValueError,
            r"m\.jsonl:2: lists sound of .*a\.wav more than once \(so does .*m\.jsonl:1\)",
        ),
        ('{"path": "a.wav", "start": -1}\n', ValueError, r"m\.jsonl:1: start -1, duration None: seconds were expected"),
        ('{"path": "a.wav", "start": 0, "duration": "x"}\n', ValueError, "seconds were expected"),
        ('{"path": "a.wav", "start": 0, "duration": 0}\n', ValueError, "seconds were expected"),
        ('{"path": "a.wav", "start": 0, "duration": 60}\n', ValueError, r"m\.jsonl:1: 0 s to 60 s of .*, which lasts"),
        ('{"path": "a.wav", "start": 60}\n', ValueError, r"60 s to the end of .*, which lasts"),
    ],
)
def test_broken_manifests(put, tmp_path: Path, text: str, error: type[Exception], message: str):
    put("a.wav", TONE)
    put("b.wav", TONE)
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(error, match=message):
        list_clips(manifest=tmp_path / "m.jsonl")


def test_manifests_of_another_kind(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        list_clips(manifest=tmp_path / "m.jsonl")
    (tmp_path / "m.txt").write_text("a.wav")
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.csv"):
        list_clips(manifest=tmp_path / "m.txt")
