"""Windows of a genome as samples: `FixedWindows` (a list) and `RandomWindows` (drawn anew in every epoch).

A sample depends on (seed, epoch, index) alone, on any worker and any rank. N, and IUPAC codes read as N, are taken out
of the loss of a language model; soft-masked bases may weigh less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from domains.dna.augment import random_shift, random_strand
from domains.dna.fasta import Genome
from domains.dna.intervals import Interval
from domains.dna.marks import position_marks
from domains.dna.tokenizer import BASE_IDS, DnaTokenizer, soft_mask
from domains.dna.windows import WindowTable
from seqmodels.data.record import IGNORE_INDEX, Record, SampleKey

TRIES = 64  # draws before a window with too many N is accepted all the same: regions are chosen to make this rare


class WindowReader:
    """An `Interval` of a genome to a `Record`: fetch, encode, mark N, weigh soft-masked bases.

    Args:
        genome: where bases come from.
        tokenizer: letters to ids.
        soft_mask_weight: loss weight of lower-case bases; None weighs all alike.
    """

    def __init__(self, genome: Genome, tokenizer: DnaTokenizer | None = None, soft_mask_weight: float | None = None):
        if soft_mask_weight is not None and not 0 <= soft_mask_weight <= 1:
            raise ValueError(f"soft_mask_weight={soft_mask_weight} must lie in 0..1, or be null for no weighting")
        self.genome, self.tokenizer, self.soft_mask_weight = genome, tokenizer or DnaTokenizer(), soft_mask_weight
        self.marks = False  # whether records tell repeats and neighbours of N (`GenomeCorpus.marked`)

    def read(self, window: Interval, label: int | None = None) -> Record:
        """The record of one window; its id is `hg38.fa.gz:chr16:0-1024(+)`."""
        raw = self.genome.fetch(window.contig, window.start, window.end, window.strand)
        where = f"{self.genome.describe(window.contig)}:{window.start}-{window.end}({window.strand})"
        try:
            ids = self.tokenizer.encode(raw)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        weights = None
        if self.soft_mask_weight is not None:
            weights = np.where(soft_mask(raw), np.float32(self.soft_mask_weight), np.float32(1))
        marks = position_marks(raw, ids) if self.marks else None
        return Record(where, ids, label, base_targets(ids), weights, marks)

    def has_few_n(self, window: Interval, max_n_fraction: float) -> bool:
        """Whether at most this share of a window is read as N."""
        n = self.genome.count_n(window.contig, np.array([window.start]), np.array([window.end]))[0]
        return bool(n <= max_n_fraction * len(window))


def base_targets(ids: np.ndarray) -> np.ndarray | None:
    """None where every base counts, else the ids with `IGNORE_INDEX` at everything but A, C, G, T."""
    if ids.max(initial=0) <= BASE_IDS[-1] and ids.min(initial=BASE_IDS[0]) >= BASE_IDS[0]:
        return None
    return np.where((ids >= BASE_IDS[0]) & (ids <= BASE_IDS[-1]), ids.astype(np.int64), IGNORE_INDEX)


def epoch_and_index(key: SampleKey | int, length: int) -> tuple[int, int]:
    """The two parts of a key; IndexError unless 0 <= index < length."""
    epoch, index = key if isinstance(key, tuple) else (0, int(key))
    if not 0 <= index < length:
        raise IndexError(f"index {index} is not in 0..{length - 1}")
    return epoch, index


@dataclass(frozen=True)
class Changes:
    """What training changes about a fixed window, drawn for each (seed, epoch, index).

    Attributes:
        seed: of the dice.
        reverse_complement: draw the strand.
        max_shift_bases: move by up to so many bases, within the region the window lies in.
        regions: those regions; needed to shift.
    """

    seed: int = 0
    reverse_complement: bool = False
    max_shift_bases: int = 0
    regions: Sequence[Interval] = ()


class FixedWindows:
    """A list of windows, the same in every epoch but for what `changes` does to them.

    Args:
        reader: makes records.
        windows: the list.
        labels: class of each window, or None.
        changes: for training.
    """

    def __init__(
        self,
        reader: WindowReader,
        windows: WindowTable,
        *,
        labels: np.ndarray | None = None,
        changes: Changes | None = None,
    ):
        self.reader, self.windows, self.labels = reader, windows.compact(), labels
        self.changes = changes or Changes()
        self._regions_of: dict[str, list[Interval]] = {}
        for region in self.changes.regions if self.changes.max_shift_bases else ():
            self._regions_of.setdefault(region.contig, []).append(region)

    def __len__(self) -> int:
        return len(self.windows)

    def window(self, key: SampleKey | int) -> Interval:
        """Where sample `key` lies."""
        epoch, index = epoch_and_index(key, len(self))
        window, changes = self.windows[index], self.changes
        rng = np.random.default_rng([changes.seed, epoch, index])
        if changes.max_shift_bases:
            window = random_shift(window, rng, max_bases=changes.max_shift_bases, inside=self._region_around(window))
        return random_strand(window, rng) if changes.reverse_complement else window

    def __getitem__(self, key: SampleKey | int) -> Record:
        index = epoch_and_index(key, len(self))[1]
        return self.reader.read(self.window(key), None if self.labels is None else int(self.labels[index]))

    def _region_around(self, window: Interval) -> Interval:
        for region in self._regions_of.get(window.contig, ()):
            if region.start <= window.start and window.end <= region.end:
                return region
        return window


@dataclass(frozen=True)
class Group:
    """Regions among which a window is drawn, each position that a window can start at with the same chance."""

    regions: tuple[Interval, ...]
    cumulative_starts: np.ndarray
    label: int | None = None

    @classmethod
    def of(cls, regions: Sequence[Interval], window_bases: int, label: int | None = None) -> Group | None:
        """None where no region has room for a window."""
        fitting = tuple(region for region in regions if len(region) >= window_bases)
        if not fitting:
            return None
        return cls(fitting, np.cumsum([len(region) - window_bases + 1 for region in fitting]), label)

    @property
    def bases(self) -> int:
        """Bases of all regions."""
        return sum(map(len, self.regions))

    def draw(self, rng: np.random.Generator, window_bases: int) -> Interval:
        """A window at random."""
        position = int(rng.integers(self.cumulative_starts[-1]))
        row = int(np.searchsorted(self.cumulative_starts, position, side="right"))
        before = int(self.cumulative_starts[row - 1]) if row else 0
        region = self.regions[row]
        start = region.start + position - before
        return Interval(region.contig, start, start + window_bases, region.strand)


@dataclass(frozen=True)
class Draw:
    """How `RandomWindows` draws.

    Attributes:
        window_bases: length of every window.
        entropy: what the dice are made of besides epoch and index: the seed, and the length of a shorter stage.
        max_n_fraction: a window with a larger share of N is drawn again.
        reverse_complement: draw the strand as well.
    """

    window_bases: int
    entropy: tuple[int, ...]
    max_n_fraction: float
    reverse_complement: bool


class RandomWindows:
    """Windows drawn at random: first a class, then a group of regions (a chromosome), then a position.

    Args:
        reader: makes records.
        groups: for each class its groups; classes and groups are drawn with equal chance.
        draw: how.
        length: windows an epoch; None means as many as fit into the groups' bases.
    """

    def __init__(
        self, reader: WindowReader, groups: Sequence[Sequence[Group]], draw: Draw, *, length: int | None = None
    ):
        bases = sum(group.bases for members in groups for group in members)
        self.reader, self.groups, self.draw = reader, groups, draw
        self.length = length or max(1, bases // draw.window_bases)

    def __len__(self) -> int:
        return self.length

    def _drawn(self, key: SampleKey | int) -> tuple[Interval, int | None]:
        draw = self.draw
        rng = np.random.default_rng([*draw.entropy, *epoch_and_index(key, len(self))])
        groups = self.groups[int(rng.integers(len(self.groups)))]
        group = groups[int(rng.integers(len(groups)))]
        window = group.draw(rng, draw.window_bases)
        for _ in range(TRIES):
            if self.reader.has_few_n(window, draw.max_n_fraction):
                break
            window = group.draw(rng, draw.window_bases)
        return (random_strand(window, rng) if draw.reverse_complement else window), group.label

    def window(self, key: SampleKey | int) -> Interval:
        """Where sample `key` lies."""
        return self._drawn(key)[0]

    def __getitem__(self, key: SampleKey | int) -> Record:
        return self.reader.read(*self._drawn(key))
