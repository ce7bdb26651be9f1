"""One split as a list of samples: which clip, which stretch of it, and the record that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from domains.audio.augment import WaveformAugment
from domains.audio.store import SampleStore
from domains.audio.tokenizer import SampleTokenizer
from seqmodels.data.record import Record, SampleKey

_SILENT_DRAWS = 8  # random crops that may be silent before the last is taken all the same


class SegmentTable(NamedTuple):
    """The grid, one row a segment: clip number, [start, stop) and the clip's stretch [low, high) that crops stay in.

    Places are samples of the clip's file at the tokenizer's rate.
    """

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
    """How segments are cut out of the table's stretches.

    Attributes:
        segment_samples: the longest a segment may be.
        random: draw starts anew each epoch; else the grid.
        fill: shorter segments end in digital silence, up to the full length.
        silence_dbfs: random crops with a lower RMS are drawn again, in dB below full scale; None takes any.
        augment: changes the waveform, or None.
        seed: of every draw.
    """

    segment_samples: int
    random: bool = False
    fill: bool = False
    silence_dbfs: float | None = None
    augment: WaveformAugment | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Clips:
    """Where the samples of every clip are, and what the clip is called.

    Attributes:
        store: samples of the files.
        file_of: the store's file of each clip: several clips may be stretches of one file.
        names: one a clip.
        labels: class of each clip, or None.
    """

    store: SampleStore
    file_of: list[int]
    names: list[str]
    labels: list[int] | None

    def read(self, clip: int, start: int, stop: int) -> Float[np.ndarray, " L"]:
        """Samples [start, stop) of the clip's file."""
        return self.store.read(self.file_of[clip], start, stop)


class Segments:
    """One split of an `AudioCorpus`; a `SequenceDataset`."""

    def __init__(self, clips: Clips, table: SegmentTable, tokenizer: SampleTokenizer, cropping: Cropping) -> None:
        self.clips, self.table, self.tokenizer, self.cropping = clips, table, tokenizer, cropping

    def __len__(self) -> int:
        return len(self.table.clip_M)

    def __getitem__(self, key: SampleKey | int) -> Record:
        """The record of a sample; its id is `name:start-stop` in samples at the tokenizer's rate, filling included."""
        clip, start, samples = self._samples(key)
        name = f"{self.clips.names[clip]}:{start}-{start + len(samples)}"
        labels = self.clips.labels
        return Record(name, self.tokenizer.encode(samples), None if labels is None else labels[clip])

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
            samples = self.clips.read(clip, start, stop)
        if self.cropping.augment is not None:
            samples = self.cropping.augment(samples, rng)
        return clip, start, filled(samples, self.cropping.segment_samples) if self.cropping.fill else samples

    def _draw(self, clip: int, low: int, high: int, rng: np.random.Generator) -> tuple[int, np.ndarray]:
        length = min(self.cropping.segment_samples, high - low)
        start, samples = low, np.empty(0, np.float32)
        for _ in range(_SILENT_DRAWS):
            start = int(rng.integers(low, high - length + 1))
            samples = self.clips.read(clip, start, start + length)
            if self.cropping.silence_dbfs is None or level_dbfs(samples) >= self.cropping.silence_dbfs:
                break
        return start, samples


def filled(samples: Float[np.ndarray, " L"], length: int) -> Float[np.ndarray, " M"]:
    """The samples with digital silence behind them, `length` in all; as they are where they are as many or more."""
    return np.pad(samples, (0, max(0, length - len(samples))))


def level_dbfs(samples: Float[np.ndarray, " L"]) -> float:
    """RMS level in dB below full scale (a square wave of ±1 has 0); -inf for digital silence."""
    power = float(np.mean(np.square(samples, dtype=np.float64))) if len(samples) else 0.0
    return 10 * float(np.log10(power)) if power > 0 else -float("inf")
