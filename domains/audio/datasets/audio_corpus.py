"""A `Corpus` of sound from four small objects: where from, how cut, how split, how kept.

    corpus = AudioCorpus(Source("recordings"), tokenizer=MuLawTokenizer(sample_rate_hz=16000),
                         cutting=Cutting(segment_seconds=2.0), division=Division("speaker"))
    corpus.split("train")[SampleKey(epoch=0, index=7)]      Record("kim/a.wav:0-32000", ids, label=None)

Every clip is laid out in segments side by side (the grid); the last, and a clip shorter than a segment, keep their own
length. Validation and test are the grid. Training is the grid too, or with crop="random" sample i is a stretch of the
clip that grid segment i lies in, at a start drawn anew each epoch. A sample depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, UInt

from domains.audio.augment import WaveformAugment
from domains.audio.datasets.segments import Clips, Cropping, Segments, SegmentTable, filled, level_dbfs
from domains.audio.manifest import SPLITS, Clip, Listing, list_clips
from domains.audio.splits import Part, assign_splits, duplicates_across_splits
from domains.audio.store import SampleStore
from domains.audio.tokenizer import SampleTokenizer
from domains.audio.wav import RawFormat

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """Where sound comes from and what its names say; every field is explained at `list_clips`."""

    folder: str | os.PathLike[str] | None = None
    manifest: str | os.PathLike[str] | None = None
    label: str | None = "auto"
    speaker: str | None = None
    classes: Sequence[str] | None = None
    raw_format: RawFormat | Mapping[str, Any] | None = None
    on_bad_file: str = "raise"

    def clips(self) -> Listing:
        """Lists the files and reads every header."""
        raw = RawFormat(**self.raw_format) if isinstance(self.raw_format, Mapping) else self.raw_format
        how = {"label": self.label, "speaker": self.speaker, "classes": self.classes}
        return list_clips(self.folder, self.manifest, **how, raw=raw, on_bad_file=self.on_bad_file)


@dataclass(frozen=True, slots=True)
class Cutting:
    """Clips to segments.

    Attributes:
        segment_seconds: length of a segment, rounded to whole samples (and said so in the report).
        segment_samples: exact length of a segment in samples; where given it replaces `segment_seconds`.
        min_segment_samples: shorter segments are dropped and counted, 1 up to the segment's length.
        crop: training segments: "random" starts, or the "grid". "start" takes one segment a clip, its beginning, in
            every split: for clips that are one word or one note each. What lies behind it is dropped and counted.
        fill: segments shorter than the full length end in digital silence up to it: of "none", of "train", or of
            "all" splits. With "train", held-out clips are judged on their own samples alone.
        silence: "keep", or "drop" segments below `silence_dbfs`.
        silence_dbfs: RMS level in dB below full scale under which a segment counts as silent.
        augment: changes training waveforms, or None.
    """

    segment_seconds: float = 1.0
    segment_samples: int | None = None
    min_segment_samples: int = 1
    crop: str = "random"
    silence: str = "keep"
    silence_dbfs: float = -60.0
    augment: WaveformAugment | None = None
    fill: str = "none"

    def __post_init__(self) -> None:
        _one_of("crop", self.crop, ("random", "grid", "start"))
        _one_of("fill", self.fill, ("none", "train", "all"))
        _one_of("silence", self.silence, ("keep", "drop"))

    def at(self, rate_hz: int) -> tuple[Cutting, dict[str, str]]:
        """The same with its length in samples, and a note for the report where it had to be rounded."""
        length, rounded = _segment_length(self.segment_seconds, self.segment_samples, rate_hz)
        if not 1 <= self.min_segment_samples <= length:
            raise ValueError(f"min_segment_samples={self.min_segment_samples}: 1 to {length} are accepted")
        return replace(self, segment_samples=length), rounded


@dataclass(frozen=True, slots=True)
class Division:
    """Clips to train, valid and test; every field is explained at `assign_splits`."""

    split_by: str = "auto"
    valid_fraction: float | None = None
    test_fraction: float | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """Where samples are kept while training; both fields are explained at `SampleStore`."""

    memory_mib: int = 256
    cache_folder: str | os.PathLike[str] | None = None


@dataclass(slots=True)
class _Account:
    """What `report` says, in the order in which it was found out."""

    entries: dict[str, int | float | str] = field(default_factory=dict)

    def add(self, **entries: int | float | str) -> None:
        self.entries |= entries


class AudioCorpus:
    """Segments of sound files, labelled or not; a `Corpus`.

    Args:
        source: where the sound is.
        tokenizer: samples to ids; its rate is the rate that every file is brought to.
        cutting: how clips become segments.
        division: how clips become train, valid and test.
        storage: how samples are kept.
        seed: of the split and of every draw, 0 or more.

    Attributes:
        class_names: label names in sorted order, or empty.
        clips: files, or stretches of files, in natural order.
        segment_samples: the length of a full segment.

    Raises:
        FileNotFoundError: no such folder, manifest or file.
        ValueError: an argument out of range; no sound in the folder; a broken file; too few files for the split.
    """

    def __init__(
        self,
        source: Source,
        *,
        tokenizer: SampleTokenizer,
        cutting: Cutting | None = None,
        division: Division | None = None,
        storage: Storage | None = None,
        seed: int = 0,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed={seed} must be 0 or more")
        self.tokenizer, self._seed, self._account = tokenizer, seed, _Account()
        self._cutting, rounded = (cutting or Cutting()).at(tokenizer.sample_rate_hz)
        assert self._cutting.segment_samples is not None
        self.segment_samples = self._cutting.segment_samples
        listing = source.clips()
        self._clips = self._open(listing, storage or Storage(), source.on_bad_file)
        division = division or Division()
        fractions = {"valid_fraction": division.valid_fraction, "test_fraction": division.test_fraction}
        self._parts, rule = assign_splits(listing, division.split_by, **fractions, seed=seed)
        self._count_files(listing)
        self._account.add(split_rule=rule, segment_samples=self.segment_samples, **rounded)
        self._account.add(duplicates_across_splits=duplicates_across_splits(listing, self._parts))
        self._tables = self._grid()
        self._count_segments()
        self._warn()

    @property
    def sample_length(self) -> int:
        """Samples of a full training segment."""
        return self.segment_samples

    def split(self, name: str) -> Segments:
        """The segments of "train", "valid" or "test".

        Raises:
            ValueError: no such split, or nothing in it.
        """
        return Segments(self._clips, self._table(name), self.tokenizer, self._cropping(name, self.segment_samples))

    def as_held_out(self, name: str) -> Segments:
        """The segments of a split as held-out ones are read: of training, too, the grid, with no augmentation."""
        return Segments(self._clips, self._table(name), self.tokenizer, self._cropping("test", self.segment_samples))

    def _table(self, name: str) -> SegmentTable:
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; there are: {', '.join(SPLITS)}")
        table = self._tables[name]
        if len(table.clip_M) == 0:
            there = ", ".join(split for split in SPLITS if len(self._tables[split].clip_M)) or "none"
            raise ValueError(
                f"the split {name!r} is empty ({self._account.entries['split_rule']}); with segments: {there}. Change "
                "split_by, its fractions, min_segment_samples or silence"
            )
        return table

    def train_at(self, length: int) -> Segments:
        """Training segments of another length, for a length warm-up. Ends shorter than that are kept as they are, down
        to `min_segment_samples` or `length`, whichever is less.

        Raises:
            ValueError: no such segment exists.
        """
        if length == self.segment_samples:
            return self.split("train")
        table = self._long_enough(self._laid_out(length)["train"], min(length, self._cutting.min_segment_samples))
        if self._cutting.silence == "drop":
            table = table.take(self._loud_M(table))
        if len(table.clip_M) == 0:
            raise ValueError(f"no training segment of {length} samples can be cut; see min_segment_samples and silence")
        return Segments(self._clips, table, self.tokenizer, self._cropping("train", length))

    def report(self) -> Mapping[str, int | float | str]:
        """Counts of what was read and how it is split; samples and seconds are at the tokenizer's rate."""
        return dict(self._account.entries)

    def region_ids(self, split: str) -> Iterator[np.ndarray]:
        """Ids of every clip of a split from end to end, for baselines that read whole clips."""
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
        for part in self._parts:
            low, high = self._stretch(part)
            if part.split == split and high > low:
                yield self.tokenizer.encode(self._clips.read(part.clip, low, high))

    def ids_of(self, samples: Float[np.ndarray, " L"]) -> UInt[np.ndarray, " M"]:
        """Ids of a sound from elsewhere, as if it were a held-out clip: its first segment, filled as theirs are.

        Args:
            samples: in [-1, 1], at the tokenizer's rate, at least one.
        """
        beginning = samples[: self.segment_samples]
        return self.tokenizer.encode(
            filled(beginning, self.segment_samples) if self._cutting.fill == "all" else beginning
        )

    # ------------------------------------------------------------------------------------------------ files and clips

    def _open(self, listing: Listing, storage: Storage, on_bad_file: str) -> Clips:
        """Every file once, however many clips are stretches of it; clips of files that cannot be decoded go."""
        infos = list({clip.info.path: clip.info for clip in listing.clips}.values())
        kept = {"memory_mib": storage.memory_mib, "cache_folder": storage.cache_folder}
        store = SampleStore(infos, sample_rate_hz=self.tokenizer.sample_rate_hz, **kept, on_bad_file=on_bad_file)
        number_of = {info.path: number for number, info in enumerate(store.infos)}
        listing.clips = [clip for clip in listing.clips if clip.info.path in number_of]
        listing.skipped += store.skipped
        self.clips: list[Clip] = listing.clips
        self.class_names = tuple(sorted({clip.label for clip in self.clips if clip.label is not None}))
        class_of = {label: number for number, label in enumerate(self.class_names)}
        labels = [class_of[clip.label or ""] for clip in self.clips] if self.class_names else None
        files = [number_of[clip.info.path] for clip in self.clips]
        return Clips(store, files, [clip.name for clip in self.clips], labels)

    def _stretch(self, part: Part) -> tuple[int, int]:
        """First and last sample of a part, in its file at the tokenizer's rate."""
        clip, rate_hz = self.clips[part.clip], self.tokenizer.sample_rate_hz
        file_samples = self._clips.store.lengths[self._clips.file_of[part.clip]]
        first = min(round(clip.start_seconds * rate_hz), file_samples)
        last = file_samples if clip.stop_seconds is None else min(round(clip.stop_seconds * rate_hz), file_samples)
        return first + round(part.begin * (last - first)), first + round(part.end * (last - first))

    # --------------------------------------------------------------------------------------------------- segments

    def _cropping(self, split: str, length: int) -> Cropping:
        cutting, training = self._cutting, split == "train"
        return Cropping(
            length,
            random=training and cutting.crop == "random",
            fill=cutting.fill == "all" or (training and cutting.fill == "train"),
            silence_dbfs=cutting.silence_dbfs if cutting.silence == "drop" else None,
            augment=cutting.augment if training else None,
            seed=self._seed,
        )

    def _grid(self) -> dict[str, SegmentTable]:
        """The segments of every split; what is too short or silent is dropped and counted."""
        laid_out = self._laid_out(self.segment_samples)
        tables = {split: self._long_enough(t, self._cutting.min_segment_samples) for split, t in laid_out.items()}
        dropped = sum(len(laid_out[split].clip_M) - len(tables[split].clip_M) for split in SPLITS)
        self._account.add(dropped_short_segments=dropped)
        if self._cutting.crop == "start":
            behind = sum(int((t.high_M - t.stop_M).sum()) for t in laid_out.values())
            self._account.add(dropped_seconds_behind_the_start=round(behind / self.tokenizer.sample_rate_hz, 3))
        return self._without_silence(tables)

    def _laid_out(self, length: int) -> dict[str, SegmentTable]:
        rows: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        for part in self._parts:
            low, high = self._stretch(part)
            starts = np.arange(low, high, length, dtype=np.int64)
            starts = starts[:1] if self._cutting.crop == "start" else starts
            stops = np.minimum(starts + length, high)
            same = np.ones_like(starts)
            rows[part.split].append(np.stack([same * part.clip, starts, stops, same * low, same * high]))
        nothing = np.zeros((5, 0), dtype=np.int64)
        return {split: SegmentTable(*np.concatenate([nothing, *found], axis=1)) for split, found in rows.items()}

    def _long_enough(self, table: SegmentTable, least: int) -> SegmentTable:
        return table.take(table.stop_M - table.start_M >= least)

    def _without_silence(self, tables: dict[str, SegmentTable]) -> dict[str, SegmentTable]:
        """Counts silent segments where samples are at hand anyway, or are asked for; drops them if asked to."""
        drop = self._cutting.silence == "drop"
        if self._clips.store.mode == "files" and not drop:
            self._account.add(silent_segments="not counted: files are read as needed", dropped_silent_segments=0)
            return tables
        loud = {split: self._loud_M(table) for split, table in tables.items()}
        silent = int(sum((~kept).sum() for kept in loud.values()))
        self._account.add(silent_segments=silent, dropped_silent_segments=silent if drop else 0)
        return {split: table.take(loud[split]) for split, table in tables.items()} if drop else tables

    def _loud_M(self, table: SegmentTable) -> np.ndarray:
        rows = zip(*(column.tolist() for column in table[:3]))
        return np.array([level_dbfs(self._clips.read(*row)) >= self._cutting.silence_dbfs for row in rows], dtype=bool)

    # ---------------------------------------------------------------------------------------------------- account

    def _count_files(self, listing: Listing) -> None:
        store, rate_hz = self._clips.store, self.tokenizer.sample_rate_hz
        samples, clipped = sum(store.lengths), store.clipped_samples
        rates = Counter(info.sample_rate_hz for info in store.infos).most_common()
        self._account.add(layout=listing.layout)
        if listing.other_classes:
            self._account.add(left_out_other_classes=listing.other_classes)
        if len(self.clips) != len(store.infos):
            self._account.add(stretches=len(self.clips))
        self._account.add(
            files=len(store.infos),
            samples=samples,
            seconds=round(samples / rate_hz, 3),
            sample_rate_hz=rate_hz,
            source_rates_hz=", ".join(f"{rate} ({count} files)" for rate, count in rates),
            resampled_files=sum(info.sample_rate_hz != rate_hz for info in store.infos),
            mixed_down_files=sum(info.channels > 1 for info in store.infos),
            clipped_files=_NOT_COUNTED if clipped is None else sum(map(bool, clipped)),
            clipped_samples=_NOT_COUNTED if clipped is None else sum(clipped),
            skipped_files=len(listing.skipped),
            decoded=store.describe(),
        )

    def _count_segments(self) -> None:
        short = 0
        for split, table in self._tables.items():
            lengths = table.stop_M - table.start_M
            short += int((lengths < self.segment_samples).sum())
            seconds = round(float(lengths.sum()) / self.tokenizer.sample_rate_hz, 3)
            self._account.add(**{f"{split}_segments": len(lengths), f"{split}_seconds": seconds})
        self._account.add(short_segments=short)
        if self.class_names:
            self._account.add(classes=len(self.class_names))

    def _warn(self) -> None:
        entries = self._account.entries
        if entries["duplicates_across_splits"]:
            log.warning(
                "%s held-out files are copies of training files: scores on them are too good; remove the copies, or "
                "use split_by=file, which keeps copies together",
                entries["duplicates_across_splits"],
            )
        if "segment_rounded" in entries:
            log.warning("%s", entries["segment_rounded"])


_NOT_COUNTED = "not counted: files are read as needed"


def _segment_length(seconds: float, samples: int | None, rate_hz: int) -> tuple[int, dict[str, str]]:
    """The length in samples, and a note for the report where it had to be rounded."""
    if samples is not None:
        if not isinstance(samples, int) or samples < 1:
            raise ValueError(f"segment_samples={samples!r} must be a whole number from 1 on")
        return samples, {}
    exact = seconds * rate_hz
    if not (exact >= 1 and np.isfinite(exact)):
        raise ValueError(f"segment_seconds={seconds} is less than one sample at {rate_hz} Hz")
    whole = round(exact)
    if abs(exact - whole) < 1e-6 * exact:
        return whole, {}
    return whole, {"segment_rounded": f"segment_seconds={seconds} is {exact:.3f} samples at {rate_hz} Hz: took {whole}"}


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value!r}; accepted: {', '.join(accepted)}")
