"""Clips to train, valid and test without leaks: official lists, whole files, whole speakers, or stretches of time.

    listing = list_clips("recordings")
    parts, words = assign_splits(listing, "speaker", valid_fraction=0.1, test_fraction=0.1, seed=0)
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from domains.audio.manifest import SPLITS, Clip, Listing, natural_key
from domains.audio.wav import AudioInfo

SPLIT_RULES = ("auto", "official", "file", "speaker", "order", "time", "balanced")
_FEW_FILES = 10  # below this, whole files held out would be too large a share, and "auto" cuts every file by time


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a clip that belongs to one split, as shares of its length: (0, 1) is the whole clip."""

    clip: int
    split: str
    begin: float = 0.0
    end: float = 1.0


def assign_splits(
    listing: Listing,
    rule: str = "auto",
    *,
    valid_fraction: float | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> tuple[list[Part], str]:
    """Divides a corpus into train, valid and test.

    Args:
        listing: the clips.
        rule: "official" (lists, takes or the manifest's column; a missing validation set is taken out of training by
            file), "file" (whole files, labels in equal shares, copies of a file together), "speaker" (whole speakers),
            "order" (files in natural order, 88/6/6 as music folders are split in the literature), "time" (every file
            cut in the order of time), "balanced" (label i loses voice i + seed, so that every label and every voice
            stays in training; even labels give test, odd ones valid), or "auto": official where there is one, the
            packaged digits balanced, by speaker where all are known, by time for fewer than ten files, else by file.
        valid_fraction: share of clips (files, speakers, or seconds under "time") for validation; None is 0.1, or 0.06
            with "order". "official" uses it only to make a missing validation set, "balanced" not at all.
        test_fraction: the same for test.
        seed: of the shuffle.

    Returns:
        The parts, in the order of the clips, and the rule in words.

    Raises:
        ValueError: an unknown rule, fractions out of range, or too few files for the rule.
    """
    if rule not in SPLIT_RULES:
        raise ValueError(f"split_by={rule!r}; accepted: {', '.join(SPLIT_RULES)}")
    rule = _automatic_rule(listing) if rule == "auto" else rule
    default = 0.06 if rule == "order" else 0.1
    valid = default if valid_fraction is None else valid_fraction
    test = default if test_fraction is None else test_fraction
    if not (valid >= 0 and test >= 0 and valid + test < 1):
        raise ValueError(f"valid_fraction={valid}, test_fraction={test}: both >= 0 and together below 1 are accepted")
    if rule == "time":
        borders = (0.0, 1 - valid - test, 1 - test, 1.0)
        pieces = [(split, borders[i], borders[i + 1]) for i, split in enumerate(SPLITS) if borders[i] < borders[i + 1]]
        parts = [Part(clip, *piece) for clip in range(len(listing.clips)) for piece in pieces]
        return parts, f"every file cut by time: first {1 - valid - test:.0%} train, then valid, then test"
    splits, words = _SPLITTERS[rule](listing, valid, test, seed)
    for split, share in zip(SPLITS, (1.0, valid, test)):
        if share > 0 and split not in splits and rule not in ("official", "balanced"):
            raise ValueError(
                f"split_by={rule!r} leaves nothing for {split!r} of {len(splits)} files; add files, change the "
                "fractions, or cut every file by time with split_by=time"
            )
    return [Part(clip, split) for clip, split in enumerate(splits)], words


def duplicates_across_splits(listing: Listing, parts: Sequence[Part]) -> int:
    """How many held-out clips hold sound of a clip in training (of equal files, whatever their names)."""
    splits_of = defaultdict(set)
    for part in parts:
        splits_of[part.clip].add(part.split)
    leaks = 0
    for group in _copies(listing.clips):
        trained = [listing.clips[clip] for clip in group if "train" in splits_of[clip]]
        held_out = [listing.clips[clip] for clip in group if splits_of[clip] <= {"valid", "test"}]
        leaks += sum(any(_overlap(clip, other) for other in trained) for clip in held_out)
    return leaks


def _overlap(a: Clip, b: Clip) -> bool:
    a_stop, b_stop = a.stop_seconds or float("inf"), b.stop_seconds or float("inf")
    return a.start_seconds < b_stop and b.start_seconds < a_stop


def _automatic_rule(listing: Listing) -> str:
    if listing.official:
        return "official"
    if listing.layout == "asterisk_digits":
        return "balanced"
    if len({clip.speaker for clip in listing.clips} - {None}) >= 3:
        return "speaker"
    return "time" if len(listing.clips) < _FEW_FILES else "file"


def _by_official(listing: Listing, valid: float, test: float, seed: int) -> tuple[list[str], str]:
    if listing.official is None:
        raise ValueError(f"split_by='official': this {listing.layout} says nothing of splits; use file, order or time")
    splits = [clip.split or "train" for clip in listing.clips]
    words = listing.official
    if "train" not in splits:  # other data to evaluate on; who trains on it is told that there is nothing
        return splits, f"{words}; none is for training"
    if "valid" not in splits and valid > 0:
        training = [clip for clip, split in enumerate(splits) if split == "train"]
        groups = _groups(listing.clips, by="speaker" if listing.clips[0].speaker else "file", among=training)
        for group in _shuffled(listing.clips, groups, seed)[: max(1, round(valid * len(groups)))]:
            for clip in group:
                splits[clip] = "valid"
        words += f"; {valid:.0%} of training taken out for validation"
    return splits, words


def _by_group(by: str) -> Callable[[Listing, float, float, int], tuple[list[str], str]]:
    def splitter(listing: Listing, valid: float, test: float, seed: int) -> tuple[list[str], str]:
        clips = listing.clips
        if by == "speaker" and any(clip.speaker is None for clip in clips):
            raise ValueError(
                "split_by='speaker', but who speaks is not known; say speaker=folder, or a regular expression with a "
                "group that finds the speaker in the file's name"
            )
        groups = _shuffled(clips, _groups(clips, by=by, among=range(len(clips))), seed)
        held_test = max(1, round(test * len(groups))) if test else 0
        held_valid = max(1, round(valid * len(groups))) if valid else 0
        splits = ["train"] * len(clips)
        for rank, group in enumerate(groups[: held_test + held_valid]):
            for clip in group:
                splits[clip] = "test" if rank < held_test else "valid"
        return splits, f"whole {by}s, shuffled with seed {seed}: {1 - valid - test:.0%}/{valid:.0%}/{test:.0%}"

    return splitter


def _by_order(listing: Listing, valid: float, test: float, seed: int) -> tuple[list[str], str]:
    n = len(listing.clips)
    first, second = int(n * (1 - valid - test) + 1e-9), int(n * (1 - test) + 1e-9)
    splits = ["train" if i < first else "valid" if i < second else "test" for i in range(n)]
    return splits, f"files in natural order: {1 - valid - test:.0%}/{valid:.0%}/{test:.0%}"


def _balanced(listing: Listing, valid: float, test: float, seed: int) -> tuple[list[str], str]:
    clips = listing.clips
    voices = sorted({clip.voice or clip.speaker or "" for clip in clips}, key=natural_key)
    labels = sorted({clip.label or "" for clip in clips}, key=natural_key)
    if len(voices) < 2 or len(labels) < 2:
        raise ValueError(
            f"split_by='balanced' needs at least two labels and two voices; there are {len(labels)} and {len(voices)}; "
            "name them with label=… and speaker=…, or split by file"
        )
    splits = []
    for clip in clips:
        label, voice = labels.index(clip.label or ""), voices.index(clip.voice or clip.speaker or "")
        held_out = (label + seed) % len(voices) == voice
        splits.append("train" if not held_out else "test" if label % 2 == 0 else "valid")
    return splits, "one voice of each label held out, a different one each time: even labels test, odd labels valid"


_SPLITTERS: dict[str, Callable[[Listing, float, float, int], tuple[list[str], str]]] = {
    "official": _by_official,
    "file": _by_group("file"),
    "speaker": _by_group("speaker"),
    "order": _by_order,
    "balanced": _balanced,
}


def _groups(clips: Sequence[Clip], *, by: str, among: Sequence[int]) -> list[list[int]]:
    """Clips that must stay together, in the order of their first."""
    if by == "speaker":
        members = defaultdict(list)
        for clip in among:
            members[clips[clip].speaker].append(clip)
        return list(members.values())
    group_of = {clip: [clip] for clip in among}
    for copies in _copies(clips):
        together = [clip for clip in copies if clip in group_of]
        for clip in together:
            group_of[clip] = together
    return [group for clip, group in group_of.items() if group[0] == clip]


def _shuffled(clips: Sequence[Clip], groups: list[list[int]], seed: int) -> list[list[int]]:
    """Groups in random order, their labels taking turns, so that the first few have each label equally often."""
    order = np.random.default_rng([seed, len(groups)]).permutation(len(groups))
    met: defaultdict[str | None, int] = defaultdict(int)
    turns = []
    for place, index in enumerate(order):
        label = clips[groups[index][0]].label
        turns.append((met[label], place, index))
        met[label] += 1
    return [groups[index] for _, _, index in sorted(turns)]


def _copies(clips: Sequence[Clip]) -> list[list[int]]:
    """Groups of two or more files of equal content: equal size first, then a hash of beginning, middle and end."""
    by_size = defaultdict(list)
    for index, clip in enumerate(clips):
        by_size[clip.info.size_bytes].append(index)
    by_content = defaultdict(list)
    for size, indices in by_size.items():
        for index in indices if len(indices) > 1 else ():
            by_content[size, sampled_hash(clips[index].info)].append(index)
    return [group for group in by_content.values() if len(group) > 1]


def sampled_hash(info: AudioInfo) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(info.path, "rb") as file:
        for place in sorted({0, max(0, info.size_bytes // 2 - 4096), max(0, info.size_bytes - 8192)}):
            file.seek(place)
            digest.update(file.read(8192))
    return digest.digest()
