from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from domains.audio.manifest import Clip, Listing, list_clips
from domains.audio.splits import Part, assign_splits, duplicates_across_splits, sampled_hash
from domains.audio.wav import AudioInfo


def _listing(count: int, *, labels: int = 0, speakers: int = 0, layout: str = "folder") -> Listing:
    """Clips of distinct sizes, so that none is taken for a copy of another."""
    clips = []
    for i in range(count):
        info = AudioInfo(f"/none/{i}.wav", 8000, 1, 100, "WAV PCM_16", True, 1000 + i, 0)
        label = str(i % labels) if labels else None
        clips.append(Clip(info, f"{i}.wav", label, f"s{i // 3 % speakers}" if speakers else None))
    return Listing(clips, layout)


def _splits(listing: Listing, rule: str, **options) -> list[str]:
    parts, _ = assign_splits(listing, rule, **options)
    assert [part.clip for part in parts] == list(range(len(listing.clips)))
    return [part.split for part in parts]


@pytest.mark.parametrize(("count", "expected"), [(3, (1, 1, 1)), (10, (8, 1, 1)), (100, (80, 10, 10))])
def test_whole_files(count: int, expected: tuple[int, int, int]):
    listing = _listing(count)
    found = Counter(_splits(listing, "file"))
    assert (found["train"], found["valid"], found["test"]) == expected
    assert _splits(listing, "file") == _splits(listing, "file")
    if count > 3:
        assert _splits(listing, "file", seed=0) != _splits(listing, "file", seed=1)


def test_whole_files_hold_out_every_label_equally_often():
    listing = _listing(100, labels=5)
    splits = _splits(listing, "file")
    for split in ("valid", "test"):
        held_out = Counter(clip.label for clip, s in zip(listing.clips, splits) if s == split)
        assert set(held_out.values()) == {2}


def test_fractions():
    found = Counter(_splits(_listing(100), "file", valid_fraction=0.0, test_fraction=0.25))
    assert found == {"train": 75, "test": 25}
    for fractions in ({"valid_fraction": 0.6, "test_fraction": 0.5}, {"valid_fraction": -0.1}):
        with pytest.raises(ValueError, match="together below 1"):
            assign_splits(_listing(100), "file", **fractions)


def test_speakers_never_fall_into_two_splits():
    listing = _listing(90, speakers=10)
    splits = _splits(listing, "speaker")
    of_speaker = {}
    for clip, split in zip(listing.clips, splits):
        assert of_speaker.setdefault(clip.speaker, split) == split
    assert Counter(of_speaker.values()) == {"train": 8, "valid": 1, "test": 1}


def test_natural_order_is_88_6_6():
    splits = _splits(_listing(50), "order")
    assert splits == ["train"] * 44 + ["valid"] * 3 + ["test"] * 3


def test_time_cuts_every_file():
    parts, words = assign_splits(_listing(2), "time", valid_fraction=0.1, test_fraction=0.2)
    assert [(p.clip, p.split) for p in parts] == [(c, s) for c in (0, 1) for s in ("train", "valid", "test")]
    for clip in (0, 1):
        borders = [(p.begin, p.end) for p in parts if p.clip == clip]
        assert np.array(borders) == pytest.approx(np.array([[0.0, 0.7], [0.7, 0.8], [0.8, 1.0]]))
        assert borders[0][1] == borders[1][0]
        assert borders[1][1] == borders[2][0]
    assert "by time" in words
    parts, _ = assign_splits(_listing(2), "time", test_fraction=0.0)
    assert {part.split for part in parts} == {"train", "valid"}


@pytest.mark.parametrize("seed", [0, 1, 4])
def test_the_packaged_digits_keep_every_digit_and_voice_in_training(seed: int):
    listing = list_clips("example:digits")
    splits = _splits(listing, "balanced", seed=seed)
    assert Counter(splits) == {"train": 40, "valid": 5, "test": 5}
    of_split = {s: [clip for clip, split in zip(listing.clips, splits) if split == s] for s in set(splits)}
    assert {clip.label for clip in of_split["train"]} == set("0123456789")
    for split in ("train", "valid", "test"):
        assert len({clip.voice for clip in of_split[split]}) == 5
    assert {clip.label for clip in of_split["test"]} == set("02468")
    assert {clip.label for clip in of_split["valid"]} == set("13579")


def test_by_speaker_the_two_voices_of_one_person_stay_together():
    listing = list_clips("example:digits")
    splits = _splits(listing, "speaker")
    allison = {split for clip, split in zip(listing.clips, splits) if clip.speaker == "Allison"}
    assert len(allison) == 1


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        (_listing(5), "by time"),
        (_listing(10), "whole files"),
        (_listing(30, speakers=5), "whole speakers"),
        (_listing(30, speakers=2), "whole files"),
        (list_clips("example:digits"), "one voice of each label"),
        (list_clips("example:loops"), "by time"),
    ],
)
def test_the_automatic_rule(listing: Listing, words: str):
    assert words in assign_splits(listing)[1]


def _official(splits: list[str]) -> Listing:
    listing = _listing(len(splits))
    clips = [Clip(clip.info, clip.name, split=split) for clip, split in zip(listing.clips, splits)]
    return Listing(clips, "manifest", "the splits in m.jsonl")


def test_official_splits_are_taken_as_they_are():
    wanted = ["train", "test", "valid", "train", "test"]
    assert _splits(_official(wanted), "auto") == wanted


def test_a_missing_validation_set_is_taken_out_of_training():
    given = ["train"] * 30 + ["test"] * 5
    splits = _splits(_official(given), "official")
    assert Counter(splits) == {"train": 27, "valid": 3, "test": 5}
    assert splits[30:] == ["test"] * 5
    assert _splits(_official(given), "official", valid_fraction=0.0) == given


def test_a_list_of_held_out_files_alone_is_for_evaluation():
    parts, words = assign_splits(_official(["test", "test"]), "official")
    assert [part.split for part in parts] == ["test", "test"]
    assert "none is for training" in words


@pytest.mark.parametrize(
    ("listing", "rule", "message"),
    [
        (_listing(3), "random", "split_by='random'"),
        (_listing(3), "official", "says nothing of splits"),
        (_listing(3), "speaker", "who speaks is not known"),
        (_listing(5), "order", "leaves nothing for 'valid' of 5 files"),
        (_listing(2), "file", "leaves nothing for 'train' of 2 files"),
        (_listing(9), "balanced", "at least two labels and two voices"),
    ],
)
def test_rules_that_do_not_fit(listing: Listing, rule: str, message: str):
    with pytest.raises(ValueError, match=message):
        assign_splits(listing, rule)


def test_copies_stay_together_and_are_counted_where_a_list_parts_them(put, tmp_path: Path):
    for i in range(20):
        put(f"{i}.wav", np.full(100, (i % 10) / 16, np.float32))  # 10 and 0 are copies, 11 and 1, …
    listing = list_clips(tmp_path)
    splits = _splits(listing, "file")
    assert Counter(splits) == {"train": 16, "valid": 2, "test": 2}
    of_value = {}
    for clip, split in zip(listing.clips, splits):
        assert of_value.setdefault(int(Path(clip.name).stem) % 10, split) == split
    assert duplicates_across_splits(listing, [Part(i, split) for i, split in enumerate(splits)]) == 0
    parted = [Part(i, "train" if i < 17 else "test") for i in range(20)]
    assert duplicates_across_splits(listing, parted) == 3


def test_the_hash_sees_a_change_at_the_beginning_middle_and_end(put):
    seen = set()
    for place in (None, 100, 50_000, 99_990):
        samples = np.zeros(100_000, np.float32)
        if place is not None:
            samples[place] = 0.5
        path = put(f"{place}.wav", samples)
        info = AudioInfo(path, 8000, 1, 100_000, "WAV PCM_16", True, Path(path).stat().st_size, 0)
        seen.add(sampled_hash(info))
    assert len(seen) == 4
