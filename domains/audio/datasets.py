"""Sound files to samples of a model: `AudioSegments`, a `Corpus` of segments of one length.

    corpus = AudioSegments("example:digits", tokenizer=MuLawTokenizer(sample_rate_hz=8000), segment_seconds=0.5)
    corpus.split("train")[SampleKey(epoch=0, index=7)]      Record("7_it_IT_m_Carlo.wav:0-4000", ids, label=7)

Every clip is laid out in segments side by side (the grid); the last, and a clip shorter than a segment, keep their own
length. Validation and test are the grid. Training is the grid too, or with crop="random" sample i is a stretch of the
clip that grid segment i lies in, at a start drawn anew each epoch. A sample depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from domains.audio.augment import WaveformAugment
from domains.audio.manifest import SPLITS, Clip, list_clips
from domains.audio.splits import Part, assign_splits, duplicates_across_splits
from domains.audio.store import SampleStore
from domains.audio.tokenizer import SampleTokenizer
from domains.audio.wav import RawFormat
from seqmodels.data.record import Record, SampleKey

log = logging.getLogger(__name__)

_SILENT_DRAWS = 8  # random crops that may be silent before the last is taken all the same


class SegmentTable(NamedTuple):
    """The grid, one row a segment: clip number, [start, stop) and the clip's stretch [low, high) that crops stay in."""

    clip_M: Int[np.ndarray, " M"]
    start_M: Int[np.ndarray, " M"]
    stop_M: Int[np.ndarray, " M"]
    low_M: Int[np.ndarray, " M"]
    high_M: Int[np.ndarray, " M"]

    def take(self, rows: np.ndarray) -> SegmentTable:
        """The rows of a mask or an index."""
        return SegmentTable(*(column[rows] for column in self))


@dataclass(frozen=True, slots=True)
class Cropping:
    """How segments are cut.

    Attributes:
        segment_samples: the longest a segment may be.
        random: draw starts anew each epoch; else the grid.
        silence_dbfs: random crops with a lower RMS are drawn again, in dB below full scale; None takes any.
        augment: changes the waveform, or None.
        seed: of every draw.
    """

    segment_samples: int
    random: bool = False
    silence_dbfs: float | None = None
    augment: WaveformAugment | None = None
    seed: int = 0


class Segments:
    """One split of an `AudioSegments`; a `SequenceDataset`."""

    def __init__(
        self,
        store: SampleStore,
        table: SegmentTable,
        tokenizer: SampleTokenizer,
        *,
        names: list[str],
        labels: list[int] | None,
        cropping: Cropping,
    ) -> None:
        self.store, self.table, self.tokenizer = store, table, tokenizer
        self.names, self.labels, self.cropping = names, labels, cropping

    def __len__(self) -> int:
        return len(self.table.clip_M)

    def __getitem__(self, key: SampleKey | int) -> Record:
        """The record of a sample; its id is `name:start-stop` in samples at the tokenizer's rate."""
        clip, start, samples = self._samples(key)
        name = f"{self.names[clip]}:{start}-{start + len(samples)}"
        return Record(name, self.tokenizer.encode(samples), None if self.labels is None else self.labels[clip])

    def waveform(self, key: SampleKey | int) -> Float[np.ndarray, " L"]:
        """The samples behind a record, before they become ids."""
        return self._samples(key)[2]

    def _samples(self, key: SampleKey | int) -> tuple[int, int, Float[np.ndarray, " L"]]:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        clip, start, stop, low, high = (int(column[index]) for column in self.table)
        rng = np.random.default_rng([self.cropping.seed, epoch, index])
        if self.cropping.random:
            start, samples = self._draw(clip, low, high, rng)
        else:
            samples = self.store.read(clip, start, stop)
        if self.cropping.augment is not None:
            samples = self.cropping.augment(samples, rng)
        return clip, start, samples

    def _draw(self, clip: int, low: int, high: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        length = min(self.cropping.segment_samples, high - low)
        start, samples = low, np.empty(0, np.float32)
        for _ in range(_SILENT_DRAWS):
            start = int(rng.integers(low, high - length + 1))
            samples = self.store.read(clip, start, start + length)
            if self.cropping.silence_dbfs is None or level_dbfs(samples) >= self.cropping.silence_dbfs:
                break
        return start, samples


class AudioSegments:
    """Segments of sound files, labelled or not; a `Corpus`.

    Args:
        folder: a folder of sound files, searched through all its sub-folders, or `example:digits`, `example:loops`.
        manifest: a `.jsonl` or `.csv` list of files instead; see `list_clips`.
        tokenizer: samples to ids; its rate is the rate that every file is brought to.
        segment_seconds: length of a segment, rounded to whole samples (and said so in `report`).
        segment_samples: exact length of a segment in samples; where given it replaces `segment_seconds`.
        min_segment_samples: shorter segments (ends of clips, short clips) are dropped and counted; 1 keeps all.
        split_by: "auto", "official", "file", "speaker", "order", "time" or "balanced"; see `assign_splits`.
        valid_fraction: share held out for validation; None is the rule's own.
        test_fraction: share held out for test; None is the rule's own.
        label: "auto", "folder", None or a regular expression on file names; see `list_clips`.
        speaker: "folder", None or a regular expression on file names.
        crop: training segments: "random" starts, or the "grid".
        silence: "keep", or "drop" segments below `silence_dbfs`: on the grid they are left out, random crops are drawn
            again (up to 8 times).
        silence_dbfs: RMS level in dB below full scale under which a segment counts as silent.
        augment: changes training waveforms, or None.
        memory_mib: decode the whole corpus into memory if it takes at most so many MiB (about 70 minutes at 16 kHz
            for 256); larger ones are read from the files by seeking.
        cache_folder: decode once into memory-mapped files here instead.
        raw_format: for headerless .raw and .pcm files: `RawFormat` or its fields as a mapping.
        on_bad_file: "raise", or "skip" files that cannot be used, counted in `report`.
        seed: of the split and of every draw.

    Attributes:
        class_names: label names in sorted order, or empty.
        clips: the files, in natural order.
        segment_samples: the length of a full segment.

    Raises:
        FileNotFoundError: no such folder, manifest or file.
        ValueError: an argument out of range; no sound in the folder; a broken file; too few files for the split.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        tokenizer: SampleTokenizer,
        manifest: str | os.PathLike[str] | None = None,
        segment_seconds: float = 1.0,
        segment_samples: int | None = None,
        min_segment_samples: int = 1,
        split_by: str = "auto",
        valid_fraction: float | None = None,
        test_fraction: float | None = None,
        label: str | None = "auto",
        speaker: str | None = None,
        crop: str = "random",
        silence: str = "keep",
        silence_dbfs: float = -60.0,
        augment: WaveformAugment | None = None,
        memory_mib: int = 256,
        cache_folder: str | os.PathLike[str] | None = None,
        raw_format: RawFormat | Mapping[str, Any] | None = None,
        on_bad_file: str = "raise",
        seed: int = 0,
    ) -> None:
        _one_of("crop", crop, ("random", "grid"))
        _one_of("silence", silence, ("keep", "drop"))
        self.tokenizer, self._crop, self._silence, self._silence_dbfs = tokenizer, crop, silence, silence_dbfs
        self._augment, self._seed = augment, _checked_seed(seed)
        self.segment_samples, rounded = _segment_length(segment_seconds, segment_samples, tokenizer.sample_rate_hz)
        if not 1 <= min_segment_samples <= self.segment_samples:
            raise ValueError(f"min_segment_samples={min_segment_samples}: 1 to {self.segment_samples} are accepted")

        raw = RawFormat(**raw_format) if isinstance(raw_format, Mapping) else raw_format
        listing = list_clips(folder, manifest, label=label, speaker=speaker, raw=raw, on_bad_file=on_bad_file)
        self._store = SampleStore(
            [clip.info for clip in listing.clips],
            sample_rate_hz=tokenizer.sample_rate_hz,
            memory_mib=memory_mib,
            cache_folder=cache_folder,
            on_bad_file=on_bad_file,
        )
        readable = {info.path for info in self._store.infos}
        listing.clips = [clip for clip in listing.clips if clip.info.path in readable]
        listing.skipped += self._store.skipped
        self.clips: list[Clip] = listing.clips
        self.class_names = tuple(sorted({clip.label for clip in self.clips if clip.label is not None}))

        fractions = {"valid_fraction": valid_fraction, "test_fraction": test_fraction}
        self._parts, rule = assign_splits(listing, split_by, **fractions, seed=seed)
        self._report: dict[str, int | float | str] = {"layout": listing.layout}
        self._count_files(len(listing.skipped))
        self._report |= {"split_rule": rule, "segment_samples": self.segment_samples} | rounded
        self._report["duplicates_across_splits"] = duplicates_across_splits(listing, self._parts)
        self._tables = self._grid(min_segment_samples)
        self._count_segments()
        self._warn()

    def split(self, name: str) -> Segments:
        """The segments of "train", "valid" or "test".

        Raises:
            ValueError: no such split, or nothing in it.
        """
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; there are: {', '.join(SPLITS)}")
        table = self._tables[name]
        if len(table.clip_M) == 0:
            there = ", ".join(split for split in SPLITS if len(self._tables[split].clip_M)) or "none"
            raise ValueError(
                f"the split {name!r} is empty ({self._report['split_rule']}); with segments: {there}. Change split_by, "
                "its fractions, min_segment_samples or silence"
            )
        training = name == "train"
        cropping = Cropping(
            self.segment_samples,
            random=training and self._crop == "random",
            silence_dbfs=self._silence_dbfs if self._silence == "drop" else None,
            augment=self._augment if training else None,
            seed=self._seed,
        )
        class_of = {label: number for number, label in enumerate(self.class_names)}
        labels = [class_of[clip.label or ""] for clip in self.clips] if self.class_names else None
        names = [clip.name for clip in self.clips]
        return Segments(self._store, table, self.tokenizer, names=names, labels=labels, cropping=cropping)

    def report(self) -> Mapping[str, int | float | str]:
        """Counts of what was read and how it is split; samples and seconds are at the tokenizer's rate."""
        return dict(self._report)

    def region_ids(self, split: str) -> Iterator[np.ndarray]:
        """Ids of every clip of a split from end to end, for baselines that read whole clips."""
        if split not in SPLITS:
            raise ValueError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
        for part in self._parts:
            low, high = self._stretch(part)
            if part.split == split and high > low:
                yield self.tokenizer.encode(self._store.read(part.clip, low, high))

    def _stretch(self, part: Part) -> tuple[int, int]:
        length = self._store.lengths[part.clip]
        return round(part.begin * length), round(part.end * length)

    def _grid(self, min_segment_samples: int) -> dict[str, SegmentTable]:
        """The segments of every split; what is too short or silent is dropped and counted."""
        rows: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        for part in self._parts:
            low, high = self._stretch(part)
            starts = np.arange(low, high, self.segment_samples, dtype=np.int64)
            stops = np.minimum(starts + self.segment_samples, high)
            same = np.ones_like(starts)
            rows[part.split].append(np.stack([same * part.clip, starts, stops, same * low, same * high]))
        nothing = np.zeros((5, 0), dtype=np.int64)
        tables = {split: SegmentTable(*np.concatenate([nothing, *found], axis=1)) for split, found in rows.items()}
        long_enough = {s: t.stop_M - t.start_M >= min_segment_samples for s, t in tables.items()}
        self._report["dropped_short_segments"] = int(sum((~kept).sum() for kept in long_enough.values()))
        return self._without_silence({split: tables[split].take(kept) for split, kept in long_enough.items()})

    def _without_silence(self, tables: dict[str, SegmentTable]) -> dict[str, SegmentTable]:
        """Counts silent segments where samples are at hand anyway, or are asked for; drops them if asked to."""
        if self._store.mode == "files" and self._silence == "keep":
            self._report |= {"silent_segments": "not counted: files are read as needed", "dropped_silent_segments": 0}
            return tables
        loud = {split: self._loud_M(table) for split, table in tables.items()}
        silent = int(sum((~kept).sum() for kept in loud.values()))
        drop = self._silence == "drop"
        self._report |= {"silent_segments": silent, "dropped_silent_segments": silent if drop else 0}
        return {split: table.take(loud[split]) for split, table in tables.items()} if drop else tables

    def _loud_M(self, table: SegmentTable) -> np.ndarray:
        rows = zip(*(column.tolist() for column in table[:3]))
        return np.array([level_dbfs(self._store.read(*row)) >= self._silence_dbfs for row in rows], dtype=bool)

    def _count_files(self, skipped: int) -> None:
        rate_hz, infos = self.tokenizer.sample_rate_hz, self._store.infos
        samples, clipped = sum(self._store.lengths), self._store.clipped_samples
        rates = Counter(info.sample_rate_hz for info in infos).most_common()
        self._report |= {
            "files": len(infos),
            "samples": samples,
            "seconds": round(samples / rate_hz, 3),
            "sample_rate_hz": rate_hz,
            "source_rates_hz": ", ".join(f"{rate} ({count} files)" for rate, count in rates),
            "resampled_files": sum(info.sample_rate_hz != rate_hz for info in infos),
            "mixed_down_files": sum(info.channels > 1 for info in infos),
            "clipped_files": "not counted: files are read as needed" if clipped is None else sum(map(bool, clipped)),
            "clipped_samples": "not counted: files are read as needed" if clipped is None else sum(clipped),
            "skipped_files": skipped,
            "decoded": self._store.describe(),
        }

    def _count_segments(self) -> None:
        short = 0
        for split, table in self._tables.items():
            lengths = table.stop_M - table.start_M
            short += int((lengths < self.segment_samples).sum())
            self._report[f"{split}_segments"] = len(lengths)
            self._report[f"{split}_seconds"] = round(float(lengths.sum()) / self.tokenizer.sample_rate_hz, 3)
        self._report["short_segments"] = short
        if self.class_names:
            self._report["classes"] = len(self.class_names)

    def _warn(self) -> None:
        if self._report["duplicates_across_splits"]:
            log.warning(
                "%s held-out files are copies of training files: scores on them are too good; remove the copies, or "
                "use split_by=file, which keeps copies together",
                self._report["duplicates_across_splits"],
            )
        if "segment_rounded" in self._report:
            log.warning("%s", self._report["segment_rounded"])


def level_dbfs(samples: Float[np.ndarray, " L"]) -> float:
    """RMS level in dB below full scale (a square wave of ±1 has 0); -inf for digital silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return 10 * float(np.log10(power)) if power > 0 else -float("inf")


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


def _checked_seed(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"seed={seed} must be 0 or more")
    return seed
