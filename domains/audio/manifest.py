"""Folders and manifests to a list of clips, with what their layout says about label, speaker and split.

    listing = list_clips("example:digits")        every sound file below a folder, in natural order
    listing = list_clips(manifest="a.jsonl")      {"path": "a.wav", "label": "dog", "speaker": "kim", "split": "train"}

Layouts that are recognised: Speech Commands / SC09 (one folder a word, `validation_list.txt`, `testing_list.txt`),
Free Spoken Digits (`7_theo_3.flac`), the packaged examples; anything else is a plain folder.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domains.audio.wav import AUDIO_SUFFIXES, AudioFileError, AudioInfo, RawFormat, read_info

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
EXAMPLES_FOLDER = Path(__file__).parent / "examples"
_SPLIT_SPELLINGS = {
    "train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "valid",
    "test": "test", "testing": "test",
}  # fmt: skip
_FSDD_NAME = re.compile(r"^(?P<label>\d)_(?P<speaker>[^_]+)_(?P<take>\d+)$")
_PROMPT_NAME = re.compile(r"^(?P<label>\d)_(?P<voice>[a-z]{2}_[A-Z]{2}_[fm]_(?P<speaker>[^_]+))$")
_SPEECH_COMMANDS_LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}


@dataclass(frozen=True, slots=True)
class Clip:
    """One sound file of a corpus.

    Attributes:
        info: its header.
        name: how messages call it: the path below the folder or manifest.
        label: class name, or None.
        speaker: who is heard; clips of one speaker never fall into two splits under `split_by="speaker"`.
        voice: finer than the speaker where one person speaks several languages; None means the speaker.
        split: "train", "valid" or "test" where an official list or the manifest says so.
        start_seconds: where the clip begins in its file.
        stop_seconds: where it ends; None at the end of the file.
    """

    info: AudioInfo
    name: str
    label: str | None = None
    speaker: str | None = None
    voice: str | None = None
    split: str | None = None
    start_seconds: float = 0.0
    stop_seconds: float | None = None


@dataclass(slots=True)
class Listing:
    """The clips of a corpus, and what was seen on the way.

    Attributes:
        clips: in natural order of their names.
        layout: "folder", "speech_commands", "free_spoken_digits", "asterisk_digits" or "manifest".
        official: what the official split is, in words; None where there is none.
        skipped: messages about files that could not be used (only with on_bad_file="skip").
        other_classes: how many files were left out because of `classes`.
    """

    clips: list[Clip]
    layout: str
    official: str | None = None
    skipped: list[str] = field(default_factory=list)
    other_classes: int = 0


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sorts `take2` before `take10`; case matters only between names that are otherwise equal."""
    parts = re.split(r"(\d+)", text)
    key = [(0, int(part), "") if part.isdecimal() else (1, 0, part.casefold()) for part in parts if part]
    return [*key, (2, 0, text)]


def find_audio_files(folder: Path, suffixes: Sequence[str] = AUDIO_SUFFIXES) -> list[Path]:
    """Every sound file below `folder` in natural order; follows links, leaves out names that begin with a dot."""
    found: list[Path] = []
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (name for name in files if not name.startswith("."))
        found += [Path(place, name) for name in visible if Path(name).suffix.lower() in suffixes]
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder).as_posix()))


def list_clips(
    folder: str | os.PathLike[str] | None = None,
    manifest: str | os.PathLike[str] | None = None,
    *,
    label: str | None = "auto",
    speaker: str | None = None,
    classes: Sequence[str] | None = None,
    raw: RawFormat | None = None,
    on_bad_file: str = "raise",
) -> Listing:
    """Lists a folder's sound files, or a manifest's, and reads every header.

    Args:
        folder: a folder, or "example:digits" / "example:loops"; with `manifest`, what its relative paths begin at.
        manifest: `.jsonl` (one object a line) or `.csv` with a header, plain or `.gz`. `path` (also `audio_filename`,
            as MAESTRO calls it) is needed; `label`, `speaker` and `split` are used where given. A line with `start`
            (or `offset`) in seconds is the stretch of the file from there, `duration` seconds long or to its end;
            stretches of one file must not overlap. `duration` without `start` is what other programs write down of
            whole files, and is left alone like every other field.
        label: "auto" (what the layout or manifest says, else none), "folder" (name of the file's folder), None, or
            a regular expression whose group `label`, or first group, is found in the file's name.
        speaker: "folder", None (what the layout or manifest says) or a regular expression, in the same way.
        classes: clips with other labels are left out and counted; None keeps all.
        raw: encoding of headerless files; then files ending in .raw or .pcm are listed too.
        on_bad_file: "raise", or "skip" files that cannot be used and say so in `Listing.skipped`.

    Raises:
        FileNotFoundError: no such folder, manifest or file.
        ValueError: no sound below the folder; a broken manifest line; a name without label; a class that no clip has;
            a broken file.
    """
    if folder is None and manifest is None:
        raise ValueError("say where the sound is: folder=… (or example:digits, example:loops) or manifest=….jsonl")
    if on_bad_file not in ("raise", "skip"):
        raise ValueError(f"on_bad_file={on_bad_file!r}; accepted: raise, skip")
    if manifest is not None:
        found = _entries_of_manifest(Path(manifest), None if folder is None else _resolve_folder(folder))
        layout, official = "manifest", None
        if any(entry.get("split") for entry in found):
            official = f"the splits in {Path(manifest).name}"
    else:
        assert folder is not None
        layout, official, found = _entries_of_folder(_resolve_folder(folder), raw)
    _name(found, "label", label)
    _name(found, "speaker", speaker)
    listing = Listing([], layout, official)
    if classes is not None:
        every, found = found, _of_classes(found, classes)
        listing.other_classes = len(every) - len(found)
    for entry in found:
        _add(listing, entry, raw, on_bad_file)
    if not listing.clips:
        raise ValueError(f"none of {len(found)} files can be used; the first: {listing.skipped[0]}")
    return listing


# ------------------------------------------------------------------------------------------------------- listing


def _add(listing: Listing, entry: dict[str, Any], raw: RawFormat | None, on_bad_file: str) -> None:
    path = entry["path"]
    headerless = raw is not None and path.suffix.lower() in (".raw", ".pcm")
    try:
        info = read_info(path, raw=raw if headerless else None)
    except (AudioFileError, FileNotFoundError) as error:
        if on_bad_file == "raise":
            raise
        log.warning("left out: %s", error)
        listing.skipped.append(str(error))
        return
    parts = {key: entry.get(key) for key in ("label", "speaker", "voice", "split")}
    start, stop = entry.get("stretch", (0.0, None))
    if max(start, stop or 0.0) > info.seconds + 1 / info.sample_rate_hz:
        to = "the end" if stop is None else f"{stop:g} s"
        raise ValueError(f"{entry['line']}: {start:g} s to {to} of {path}, which lasts {info.seconds:.3f} s")
    listing.clips.append(Clip(info, entry["name"], **parts, start_seconds=start, stop_seconds=stop))


def _resolve_folder(folder: str | os.PathLike[str]) -> Path:
    text = os.fspath(folder)
    if text.startswith("example:"):
        names = sorted(path.name for path in EXAMPLES_FOLDER.iterdir() if path.is_dir())
        if text.removeprefix("example:") not in names:
            raise ValueError(f"folder={text!r}: the packaged examples are {', '.join('example:' + n for n in names)}")
        return EXAMPLES_FOLDER / text.removeprefix("example:")
    path = Path(text).expanduser()
    if path.is_file():
        raise ValueError(f"folder={text!r} is a file; give the folder that holds it, or manifest=… if it is a list")
    if not path.is_dir():
        raise FileNotFoundError(f"folder={text!r}: no such folder")
    return path


def _entries_of_folder(folder: Path, raw: RawFormat | None) -> tuple[str, str | None, list[dict[str, Any]]]:
    """The layout's name, its official split in words, and one entry a file."""
    suffixes = AUDIO_SUFFIXES if raw is None else (*AUDIO_SUFFIXES, ".raw", ".pcm")
    files = find_audio_files(folder, suffixes)
    if not files:
        raise ValueError(_no_audio(folder))
    entries = [{"path": path, "name": path.relative_to(folder).as_posix()} for path in files]
    if all((folder / name).is_file() for name in _SPEECH_COMMANDS_LISTS.values()):
        return "speech_commands", "validation_list.txt and testing_list.txt", _speech_commands(folder, entries)
    if all(_FSDD_NAME.match(path.stem) for path in files):
        official = "takes 0-4 test, 5-9 valid, the rest train"
        return "free_spoken_digits", official, _named(entries, _FSDD_NAME, _fsdd_split)
    if all(_PROMPT_NAME.match(path.stem) for path in files):
        return "asterisk_digits", None, _named(entries, _PROMPT_NAME)
    return "folder", None, entries


def _no_audio(folder: Path) -> str:
    others = [name for _, _, files in os.walk(folder) for name in files][:1000]
    seen = f"it holds other files, such as {others[0]!r}" if others else "it is empty"
    kinds = " ".join(AUDIO_SUFFIXES)
    return f"folder={str(folder)!r}: no sound file in it or below ({kinds}); {seen}"


def _speech_commands(folder: Path, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Words are folders; `_background_noise_` and its like are none. Files on neither list are for training."""
    split_of: dict[str, str] = {}
    for split, list_name in _SPEECH_COMMANDS_LISTS.items():
        for line in (folder / list_name).read_text().split():
            if split_of.setdefault(line, split) != split:
                raise ValueError(f"{folder / list_name}: {line} is on both lists, so validation and test would leak")
    words = [entry for entry in entries if "/" in entry["name"] and not entry["name"].startswith("_")]
    if not words:
        raise ValueError(f"folder={str(folder)!r}: has the lists of Speech Commands, but no folder of a word")
    for entry in words:
        entry["label"] = entry["name"].split("/")[-2]
        entry["split"] = split_of.get("/".join(entry["name"].split("/")[-2:]), "train")
        if "_nohash_" in entry["path"].stem:
            entry["speaker"] = entry["path"].stem.split("_nohash_")[0]
    return words


def _fsdd_split(parts: dict[str, str]) -> str:
    """Takes 0-4 are the official test set; there is no official validation set, so the next five takes are it."""
    take = int(parts["take"])
    return "test" if take < 5 else "valid" if take < 10 else "train"


def _named(
    entries: list[dict[str, Any]], pattern: re.Pattern[str], split: Callable[[dict[str, str]], str] | None = None
) -> list[dict[str, Any]]:
    for entry in entries:
        match = pattern.match(entry["path"].stem)
        assert match is not None
        entry |= {key: value for key, value in match.groupdict().items() if key != "take"}
        if split is not None:
            entry["split"] = split(match.groupdict())
    return entries


def _name(entries: list[dict[str, Any]], key: str, rule: str | None) -> None:
    """Fills `label` or `speaker` of every entry by the user's rule."""
    if rule is None and key == "label":
        for entry in entries:
            entry["label"] = None
    if rule in (None, "auto"):
        named = [entry for entry in entries if entry.get(key) is not None]
        if named and len(named) < len(entries):
            missing = next(entry for entry in entries if entry.get(key) is None)
            raise ValueError(f"{missing['name']} has no {key}, but {named[0]['name']} has; name all of them, or none")
        return
    pattern = _compile(key, rule)
    for entry in entries:
        entry[key] = _folder_name(entry) if pattern is None else _group_in(entry["path"].stem, pattern, key)
        if not entry[key]:
            where = "it lies in no sub-folder" if pattern is None else f"its name does not match {rule!r}"
            raise ValueError(f"{entry['name']} has no {key}: {where}; change {key}={rule!r} or move the file away")


def _of_classes(entries: list[dict[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    if isinstance(classes, str) or not classes:
        raise ValueError(f"classes={classes!r}: a list of labels was expected, such as [zero, one]")
    wanted = {str(name) for name in classes}
    there = sorted({entry["label"] for entry in entries if entry.get("label") is not None})
    if missing := sorted(wanted - set(there)):
        known = ", ".join(there[:40]) or "none: no clip has a label (see label=…)"
        raise ValueError(f"classes: no clip is labelled {missing[0]!r}; the labels are {known}")
    return [entry for entry in entries if entry["label"] in wanted]


def _compile(key: str, rule: str) -> re.Pattern[str] | None:
    """None for the folder's name, else the pattern."""
    if rule == "folder":
        return None
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(f"{key}={rule!r} is not a regular expression: {error}") from None
    if pattern.groups < 1:
        raise ValueError(
            f"{key}={rule!r}: say auto, folder, null, or a regular expression with a group, such as '^([a-z]+)_'"
        )
    return pattern


def _folder_name(entry: dict[str, Any]) -> str | None:
    return entry["name"].split("/")[-2] if "/" in entry["name"] else None


def _group_in(stem: str, pattern: re.Pattern[str], key: str) -> str | None:
    match = pattern.search(stem)
    if match is None:
        return None
    return match[key] if key in pattern.groupindex else match[1]


# ------------------------------------------------------------------------------------------------------ manifests


def _entries_of_manifest(manifest: Path, folder: Path | None) -> list[dict[str, Any]]:
    if not manifest.is_file():
        raise FileNotFoundError(f"manifest={str(manifest)!r}: no such file")
    base = manifest.parent if folder is None else folder
    entries = []
    for line, row in _rows(manifest):
        path = row.get("path") or row.get("audio_filename")
        if not isinstance(path, str):
            raise ValueError(f'{manifest}:{line}: has no "path" (or "audio_filename"), which every line needs')
        entry: dict[str, Any] = {"path": base / Path(path).expanduser(), "name": Path(path).as_posix()}
        entry |= {key: str(row[key]) for key in ("label", "speaker") if row.get(key) not in (None, "")}
        entry["split"] = _split_name(row.get("split"), manifest, line)
        entry |= {"line": f"{manifest}:{line}", "stretch": _stretch(row, manifest, line)}
        if not entry["path"].is_file():
            raise FileNotFoundError(f"{manifest}:{line}: {entry['path']}: no such file")
        entries.append(entry)
    if not entries:
        raise ValueError(f"{manifest}: lists no file")
    _refuse_overlaps(entries)
    _refuse_partial_splits(entries, manifest)
    return sorted(entries, key=lambda entry: (natural_key(entry["name"]), entry["stretch"][0]))


def _rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    kind = manifest.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("jsonl", "json", "csv"):
        raise ValueError(f"{manifest}: a manifest ends in .jsonl or .csv (or either with .gz)")
    opened = gzip.open if manifest.suffix == ".gz" else open
    with opened(manifest, "rt", encoding="utf-8-sig", newline="") as lines:
        if kind == "csv":
            rows = csv.DictReader(lines)
            yield from ((rows.line_num, row) for row in rows)
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{manifest}:{number}: is not JSON: {error.msg} at column {error.colno}") from None
            if not isinstance(row, dict):
                raise ValueError(f'{manifest}:{number}: one object such as {{"path": "a.wav"}} was expected')
            yield number, row


def _stretch(row: Mapping[str, Any], manifest: Path, line: int) -> tuple[float, float | None]:
    """Where the line's clip begins and ends in its file, in seconds; (0, None) is the whole file."""
    key = next((key for key in ("start", "offset") if row.get(key) not in (None, "")), None)
    if key is None:
        return 0.0, None
    numbers = []
    for name in (key, "duration"):
        try:
            numbers.append(None if row.get(name) in (None, "") else float(row[name]))
        except (TypeError, ValueError):
            numbers.append(math.nan)
    start, duration = numbers
    assert start is not None
    if not (0 <= start < math.inf and (duration is None or 0 < duration < math.inf)):
        raise ValueError(
            f"{manifest}:{line}: {key} {row[key]!r}, duration {row.get('duration')!r}: seconds were expected, the "
            "first at least 0, the second (if given) above 0"
        )
    return start, None if duration is None else start + duration


def _refuse_overlaps(entries: list[dict[str, Any]]) -> None:
    """Sound that stands in two clips could fall into two splits."""
    stretches = defaultdict(list)
    for entry in entries:
        stretches[entry["path"]].append((*entry["stretch"], entry["line"]))
    for path, found in stretches.items():
        found.sort(key=lambda stretch: stretch[0])
        for (_, stop, line), (start, _, next_line) in itertools.pairwise(found):
            if stop is None or start < stop - 1e-9:
                raise ValueError(
                    f"{next_line}: lists sound of {path} more than once (so does {line}), and it could fall into two "
                    "splits; let each stretch end before the next one starts (start and duration in seconds)"
                )


def _split_name(split: Any, manifest: Path, line: int) -> str | None:
    if split in (None, ""):
        return None
    if str(split).lower() not in _SPLIT_SPELLINGS:
        raise ValueError(f"{manifest}:{line}: split {split!r} is not known; use {', '.join(SPLITS)}")
    return _SPLIT_SPELLINGS[str(split).lower()]


def _refuse_partial_splits(entries: list[dict[str, Any]], manifest: Path) -> None:
    without = [entry["name"] for entry in entries if entry["split"] is None]
    if without and len(without) < len(entries):
        raise ValueError(f"{manifest}: {without[0]} has no split, but others have; give all of them one, or none")
