"""Genomes to samples: windows for language models (`GenomeWindows`), labelled windows (`SpeciesWindows`).

In: FASTA files in any of the spellings of `Genome`. Out: `Record`s of uint8 token ids; N (and IUPAC codes) are taken
out of the loss. Both are a `Corpus`: `split("train"|"valid"|"test")`, `report()`, `tokenizer`, `class_names`.

    corpus = GenomeWindows("genome.fa", window_bases=4096)
    corpus.split("train")[SampleKey(epoch=0, index=7)]

Training windows are drawn anew each epoch (`policy="random"`) or stand side by side (`policy="tile"`); validation and
test windows are a fixed list, the same in every epoch and run. A sample depends on (seed, epoch, index) alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains.dna import intervals
from domains.dna.augment import random_shift, random_strand
from domains.dna.fasta import FastaSource, Genome, find_fasta
from domains.dna.intervals import HeldOutRegions, Interval, Splitter, WindowTable
from domains.dna.tokenizer import BASE_IDS, DnaTokenizer, soft_mask
from seqmodels.data.record import IGNORE_INDEX, Record, SampleKey

log = logging.getLogger(__name__)

_TRIES = 64  # draws before a window with too many N is accepted all the same: regions are chosen to make this rare


class WindowReader:
    """An `Interval` of a genome to a `Record`: fetch, encode, mark N, weigh soft-masked bases.

    Args:
        genome: where bases come from.
        tokenizer: letters to ids.
        soft_mask_weight: loss weight of lower-case bases; None weighs all alike.
    """

    def __init__(self, genome: Genome, tokenizer: DnaTokenizer, soft_mask_weight: float | None):
        if soft_mask_weight is not None and not 0 <= soft_mask_weight <= 1:
            raise ValueError(f"soft_mask_weight={soft_mask_weight} must lie in 0..1, or be null for no weighting")
        self.genome, self.tokenizer, self.soft_mask_weight = genome, tokenizer, soft_mask_weight

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
        return Record(where, ids, label, None if label is not None else _targets(ids), weights)


def _targets(ids: np.ndarray) -> np.ndarray | None:
    """None where every base counts, else the ids with `IGNORE_INDEX` at everything but A, C, G, T."""
    if ids.max(initial=0) <= BASE_IDS[-1] and ids.min(initial=BASE_IDS[0]) >= BASE_IDS[0]:
        return None
    return np.where((ids >= BASE_IDS[0]) & (ids <= BASE_IDS[-1]), ids.astype(np.int64), IGNORE_INDEX)


class FixedWindows:
    """A list of windows, the same in every epoch; for training it may change strand and shift by the sample's own dice.

    Args:
        reader: makes records.
        windows: the list.
        labels: class of each window, or None.
        seed: of the dice.
        reverse_complement: draw the strand (training only).
        max_shift_bases: move by up to so many bases (training only), within `regions`.
        regions: region of each window; needed to shift.
    """

    def __init__(
        self, reader: WindowReader, windows: WindowTable, *, labels: np.ndarray | None = None, seed: int = 0,
        reverse_complement: bool = False, max_shift_bases: int = 0, regions: Sequence[Interval] = (),
    ):  # fmt: skip
        self.reader, self.windows, self.labels, self.seed = reader, windows, labels, seed
        self.reverse_complement, self.max_shift_bases = reverse_complement, max_shift_bases
        self.region_starts = _RegionLookup(regions)

    def __len__(self) -> int:
        return len(self.windows)

    def window(self, key: SampleKey | int) -> Interval:
        """Where sample `key` lies."""
        epoch, index = _epoch_and_index(key, len(self))
        window = self.windows[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        if self.max_shift_bases:
            inside = self.region_starts.around(window)
            window = random_shift(window, rng, max_bases=self.max_shift_bases, inside=inside)
        return random_strand(window, rng) if self.reverse_complement else window

    def __getitem__(self, key: SampleKey | int) -> Record:
        index = _epoch_and_index(key, len(self))[1]
        return self.reader.read(self.window(key), None if self.labels is None else int(self.labels[index]))


class _RegionLookup:
    def __init__(self, regions: Sequence[Interval]):
        self.by_contig: dict[str, list[Interval]] = {}
        for region in regions:
            self.by_contig.setdefault(region.contig, []).append(region)

    def around(self, window: Interval) -> Interval:
        for region in self.by_contig.get(window.contig, ()):
            if region.start <= window.start and window.end <= region.end:
                return region
        return window


@dataclass(frozen=True)
class _Group:
    """Regions among which a window is drawn, each position that a window can start at with the same chance."""

    regions: tuple[Interval, ...]
    cumulative_starts: np.ndarray
    label: int | None = None

    @classmethod
    def of(cls, regions: Sequence[Interval], window_bases: int, label: int | None = None) -> _Group | None:
        fitting = tuple(region for region in regions if len(region) >= window_bases)
        if not fitting:
            return None
        return cls(fitting, np.cumsum([len(region) - window_bases + 1 for region in fitting]), label)

    def draw(self, rng: np.random.Generator, window_bases: int) -> Interval:
        position = int(rng.integers(self.cumulative_starts[-1]))
        row = int(np.searchsorted(self.cumulative_starts, position, side="right"))
        before = int(self.cumulative_starts[row - 1]) if row else 0
        region = self.regions[row]
        start = region.start + position - before
        return Interval(region.contig, start, start + window_bases, region.strand)


class RandomWindows:
    """Windows drawn at random: first a class, then a group of regions (a chromosome), then a position.

    Args:
        reader: makes records.
        groups: for each class its groups; classes and groups are drawn with equal chance.
        window_bases: length of every window.
        length: windows an epoch.
        seed: of the dice.
        max_n_fraction: a window with a larger share of N is drawn again.
        reverse_complement: draw the strand as well.
    """

    def __init__(
        self, reader: WindowReader, groups: Sequence[Sequence[_Group]], *, window_bases: int, length: int, seed: int,
        max_n_fraction: float, reverse_complement: bool,
    ):  # fmt: skip
        self.reader, self.groups, self.window_bases, self.length = reader, groups, window_bases, length
        self.seed, self.max_n_fraction, self.reverse_complement = seed, max_n_fraction, reverse_complement

    def __len__(self) -> int:
        return self.length

    def _draw(self, key: SampleKey | int) -> tuple[Interval, int | None]:
        rng = np.random.default_rng([self.seed, *_epoch_and_index(key, len(self))])
        groups = self.groups[int(rng.integers(len(self.groups)))]
        group = groups[int(rng.integers(len(groups)))]
        window = group.draw(rng, self.window_bases)
        for _ in range(_TRIES):
            n = self.reader.genome.count_n(window.contig, np.array([window.start]), np.array([window.end]))[0]
            if n <= self.max_n_fraction * self.window_bases:
                break
            window = group.draw(rng, self.window_bases)
        return (random_strand(window, rng) if self.reverse_complement else window), group.label

    def window(self, key: SampleKey | int) -> Interval:
        """Where sample `key` lies."""
        return self._draw(key)[0]

    def __getitem__(self, key: SampleKey | int) -> Record:
        return self.reader.read(*self._draw(key))


def _epoch_and_index(key: SampleKey | int, length: int) -> tuple[int, int]:
    epoch, index = key if isinstance(key, tuple) else (0, int(key))
    if not 0 <= index < length:
        raise IndexError(f"index {index} is not in 0..{length - 1}")
    return epoch, index


# ------------------------------------------------------------------------------------------------------- corpora


class _GenomeCorpus:
    """What both corpora share: opening files, splitting, filtering by N, the leak report, the account."""

    def __init__(
        self, genome: Genome, *, window_bases: int, splits: Splitter | None, tokenizer: DnaTokenizer | None, seed: int,
        max_n_fraction: float, soft_mask_weight: float | None, on_leak: str,
    ):  # fmt: skip
        if window_bases < 1:
            raise ValueError(f"window_bases={window_bases} must be at least 1")
        if not 0 <= max_n_fraction <= 1:
            raise ValueError(f"max_n_fraction={max_n_fraction} must lie in 0..1")
        if on_leak not in ("warn", "error", "ignore"):
            raise ValueError(f'on_leak={on_leak!r}; accepted: "warn", "error", "ignore"')
        self.genome, self.window_bases, self.seed, self.max_n_fraction = genome, window_bases, seed, max_n_fraction
        self.on_leak = on_leak
        self.tokenizer = tokenizer or DnaTokenizer()
        self.reader = WindowReader(genome, self.tokenizer, soft_mask_weight)
        if self.tokenizer.iupac == "error" and (found := genome.counts()["iupac"]):
            raise ValueError(f'{found} IUPAC codes in {genome.files[0].path} …, and iupac="error" refuses them')
        self.splitter = splits or HeldOutRegions()
        self._refuse_long_windows()
        self.regions = self.splitter.regions(genome.lengths)
        self._report: dict[str, int | float | str] = dict(genome.counts())

    def _refuse_long_windows(self) -> None:
        lengths = sorted(((length, key) for key, length in self.genome.lengths.items()), reverse=True)
        if lengths[0][0] < self.window_bases:
            longest = ", ".join(f"{self.genome.describe(key)} ({length})" for length, key in lengths[:5])
            raise ValueError(f"window_bases={self.window_bases} is longer than every sequence; the longest: {longest}")

    def _no_windows(self, split: str, regions: Sequence[Interval]) -> ValueError:
        if not regions:
            return ValueError(f"no region of the data is in the split {split!r}; see the argument splits")
        longest = max(len(region) for region in regions)
        return ValueError(
            f"the split {split!r} has no window of window_bases={self.window_bases} with at most "
            f"{self.max_n_fraction:.0%} N; its longest region has {longest} bases. Take shorter windows, hold out "
            f"more, or raise max_n_fraction"
        )

    def _without_n(self, split: str, windows: WindowTable) -> WindowTable:
        """Leaves out windows with too many N, and counts them."""
        few = intervals.n_fractions(windows, self.genome.count_n) <= self.max_n_fraction
        self._report[f"{split}_dropped_windows_n"] = int(len(few) - few.sum())
        return windows.take(few)

    def _account_for(self, split: str, dataset: FixedWindows | RandomWindows) -> None:
        self._report[f"{split}_windows"] = len(dataset)
        self._report[f"{split}_bases"] = sum(len(region) for region in self.regions[split])
        short = [region for region in self.regions[split] if len(region) < self.window_bases]
        self._report[f"{split}_dropped_short_regions"] = len(short)

    def _check_leaks(self, training: WindowTable, held_out: Mapping[str, WindowTable]) -> None:
        shares = intervals.leak_report(training, held_out)
        self._report |= {f"{split}_leak_share": share for split, share in shares.items()}
        leaking = [f"{share:.1%} of the {split} windows" for split, share in shares.items() if share]
        if not leaking or self.on_leak == "ignore":
            return
        message = f"{' and '.join(leaking)} touch training bases: scores on them are too good"
        if self.on_leak == "error":
            raise ValueError(f'{message}; split by chromosome or region, or accept it with on_leak="warn"')
        log.warning("%s", message)

    def _one_of(self, name: str) -> FixedWindows | RandomWindows:
        if name not in intervals.SPLITS:
            raise ValueError(f"there is no split {name!r}; there are: {', '.join(intervals.SPLITS)}")
        if (dataset := self._datasets.get(name)) is None:
            raise self._no_windows(name, self.regions[name])
        return dataset

    _datasets: dict[str, FixedWindows | RandomWindows]

    def report(self) -> dict[str, int | float | str]:
        """Counts of what was read.

        Keys: files, sequences, bases, n, lower_case, iupac, uracil; for each split its windows, bases, windows dropped
        for N, regions shorter than a window, and the share of held-out windows that touch training bases.
        """
        return dict(self._report)

    def region_ids(self, split: str) -> Iterator[np.ndarray]:
        """Token ids of every whole region of a split, for baselines that read a sequence from end to end."""
        for region in self.regions[split]:
            yield self.tokenizer.encode(self.genome.fetch(region.contig, region.start, region.end, region.strand))


class GenomeWindows(_GenomeCorpus):
    """Unlabelled windows of one or more genomes, for language models.

    Args:
        fasta: a FASTA path, glob, folder, list or mapping, or `example:vertebrates`; see `Genome`.
        window_bases: bases in a window.
        policy: training windows: "random" positions, drawn anew in every epoch, or "tile", side by side.
        splits: `HeldOutRegions` (default: the last tenth of every record is test, the tenth before it validation),
            `HeldOutChromosomes` or `BedRegions`.
        tokenizer: default `DnaTokenizer()`.
        seed: of every draw.
        windows_per_epoch: length of a training epoch with "random"; None means training bases / window_bases.
        eval_windows: at most so many validation and so many test windows, evenly spaced; None keeps all.
        edge: the end of a region with tiles: "shift", "pad" or "drop"; see `intervals.tile`.
        max_n_fraction: windows with a larger share of N are left out (or drawn again).
        reverse_complement_augment: training windows come from either strand with equal chance.
        max_shift_bases: training tiles move by up to so many bases, another way in each epoch.
        soft_mask_weight: loss weight of lower-case bases (repeats); None weighs all alike.
        on_leak: "warn", "error" or "ignore" where held-out windows touch training bases.

    Raises:
        ValueError: an argument is out of range, or no window fits into any sequence (the longest are listed).
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self, fasta: FastaSource = "example:vertebrates", *, window_bases: int = 1024, policy: str = "random",
        splits: Splitter | None = None, tokenizer: DnaTokenizer | None = None, seed: int = 0,
        windows_per_epoch: int | None = None, eval_windows: int | None = None, edge: str = "shift",
        max_n_fraction: float = 0.5, reverse_complement_augment: bool = False, max_shift_bases: int = 0,
        soft_mask_weight: float | None = None, on_leak: str = "warn",
    ):  # fmt: skip
        if policy not in ("random", "tile"):
            raise ValueError(f'policy={policy!r}; accepted: "random", "tile"')
        if policy == "random" and max_shift_bases:
            raise ValueError('max_shift_bases moves tiles; with policy="random" leave it at 0')
        if policy == "tile" and windows_per_epoch is not None:
            raise ValueError('windows_per_epoch is for policy="random"; an epoch of tiles is all of them')
        super().__init__(
            Genome(fasta), window_bases=window_bases, splits=splits, tokenizer=tokenizer, seed=seed,
            max_n_fraction=max_n_fraction, soft_mask_weight=soft_mask_weight, on_leak=on_leak,
        )  # fmt: skip
        tiles = {
            split: self._without_n(split, intervals.tile(regions, window_bases, edge=edge))
            for split, regions in self.regions.items()
        }
        self._datasets = {}
        for split in ("valid", "test"):
            tiles[split] = tiles[split] if eval_windows is None else tiles[split].spread(eval_windows)
            if len(tiles[split]):
                self._datasets[split] = FixedWindows(self.reader, tiles[split])
        if len(tiles["train"]) and policy == "tile":
            self._datasets["train"] = FixedWindows(
                self.reader, tiles["train"], seed=seed, reverse_complement=reverse_complement_augment,
                max_shift_bases=max_shift_bases, regions=self.regions["train"],
            )  # fmt: skip
        elif len(tiles["train"]):
            group = _Group.of(self._regions_of(tiles["train"]), window_bases)
            if group:
                length = windows_per_epoch or max(1, sum(map(len, group.regions)) // window_bases)
                self._datasets["train"] = RandomWindows(
                    self.reader, [[group]], window_bases=window_bases, length=length, seed=seed,
                    max_n_fraction=max_n_fraction, reverse_complement=reverse_complement_augment,
                )  # fmt: skip
        for split, dataset in self._datasets.items():
            self._account_for(split, dataset)
        if policy == "random":
            del self._report["train_dropped_windows_n"]  # counted over tiles; a random window is drawn again instead
        training = WindowTable.of(self.regions["train"]) if policy == "random" else tiles["train"]
        self._check_leaks(training, {split: tiles[split] for split in ("valid", "test")})

    def _regions_of(self, tiles: WindowTable) -> list[Interval]:
        """Training regions with at least one window of few N, so that drawing again comes to an end."""
        usable = intervals.merge(tiles)
        regions = []
        for region in self.regions["train"]:
            starts, ends = usable.get(region.contig, (np.empty(0), np.empty(0)))
            if np.any((starts < region.end) & (ends > region.start)):
                regions.append(region)
        return regions

    def split(self, name: str) -> FixedWindows | RandomWindows:
        """The samples of "train", "valid" or "test"; ValueError where there is no such split or no window in it."""
        return self._one_of(name)


class SpeciesWindows(_GenomeCorpus):
    """Windows labelled with their species. Training draws a species, then a sequence of it, then a position.

    Validation and test windows are a fixed, seeded list with the same number of windows of each species, so that scores
    of two epochs and two runs compare.

    Args:
        species: from a species name to its FASTA path, glob, folder or list; or one string, where every file found is
            a species of its own named by its stem. Labels are the sorted names.
        window_bases: bases in a window.
        splits: as in `GenomeWindows`; applied to each species by itself.
        tokenizer: default `DnaTokenizer()`.
        seed: of every draw and of the evaluation lists.
        windows_per_epoch: length of a training epoch; None means training bases / window_bases.
        eval_windows_per_species: validation windows, and as many test windows, of each species.
        sequence_sampling: within a species: "uniform" over its sequences (the published protocol), or "bases", where
            every base has the same chance.
        max_n_fraction: windows with a larger share of N are left out.
        reverse_complement_augment: training windows come from either strand with equal chance.
        on_leak: "warn", "error" or "ignore" where held-out windows touch training bases.

    Raises:
        ValueError: an argument is out of range, a species has no window in a split, or fewer than two species.
    """

    def __init__(
        self, species: FastaSource = "example:vertebrates", *, window_bases: int = 1024, splits: Splitter | None = None,
        tokenizer: DnaTokenizer | None = None, seed: int = 0, windows_per_epoch: int | None = None,
        eval_windows_per_species: int = 64, sequence_sampling: str = "uniform", max_n_fraction: float = 0.05,
        reverse_complement_augment: bool = True, on_leak: str = "warn",
    ):  # fmt: skip
        if sequence_sampling not in ("uniform", "bases"):
            raise ValueError(f'sequence_sampling={sequence_sampling!r}; accepted: "uniform", "bases"')
        if eval_windows_per_species < 1:
            raise ValueError(f"eval_windows_per_species={eval_windows_per_species} must be at least 1")
        files = _files_of_species(species)
        if len(files) < 2:
            raise ValueError(f"species classification needs two species or more, got {sorted(files)}")
        super().__init__(
            Genome(files), window_bases=window_bases, splits=splits,
            tokenizer=tokenizer, seed=seed, max_n_fraction=max_n_fraction, soft_mask_weight=None, on_leak=on_leak,
        )  # fmt: skip
        self.class_names: tuple[str, ...] = tuple(sorted(files))
        self._species_of = self._label_records()
        self._by_sequence = sequence_sampling == "uniform"
        self._datasets = {}
        tables = {split: self._fixed_list(split, eval_windows_per_species) for split in ("valid", "test")}
        for split, (table, labels) in tables.items():
            if len(table):
                self._datasets[split] = FixedWindows(self.reader, table, labels=labels)
        if any(self.regions["train"]):
            self._datasets["train"] = self._training(windows_per_epoch, reverse_complement_augment)
        for split, dataset in self._datasets.items():
            self._account_for(split, dataset)
        self._report["species"] = len(self.class_names)
        training = WindowTable.of(self.regions["train"])
        self._check_leaks(training, {split: table for split, (table, _) in tables.items()})

    def split(self, name: str) -> FixedWindows | RandomWindows:
        """The samples of "train", "valid" or "test"; ValueError where there is no such split or no window in it."""
        return self._one_of(name)

    def _label_records(self) -> dict[str, int]:
        """From record key to class index."""
        return {key: self.class_names.index(self.genome.stem_of[key]) for key in self.genome.records}

    def _usable(self, split: str, label: int) -> tuple[list[Interval], WindowTable]:
        """Regions of one species in one split that hold a window of few N, and their good tiles."""
        regions = [region for region in self.regions[split] if self._species_of[region.contig] == label]
        tiles = intervals.tile(regions, self.window_bases, edge="shift")
        good = tiles.take(intervals.n_fractions(tiles, self.genome.count_n) <= self.max_n_fraction)
        if not len(good):
            raise ValueError(f"species {self.class_names[label]!r}: {self._no_windows(split, regions)}")
        names = {good.contigs[row] for row in np.unique(good.contig_index)}
        return [region for region in regions if region.contig in names], good

    def _training(self, windows_per_epoch: int | None, reverse_complement: bool) -> RandomWindows:
        classes: list[list[_Group]] = []
        for label in range(len(self.class_names)):
            regions, _ = self._usable("train", label)
            by_contig: dict[str, list[Interval]] = {}
            for region in regions:
                by_contig.setdefault(region.contig if self._by_sequence else "", []).append(region)
            groups = [_Group.of(members, self.window_bases, label) for members in by_contig.values()]
            classes.append([group for group in groups if group])
        bases = sum(len(region) for groups in classes for group in groups for region in group.regions)
        return RandomWindows(
            self.reader, classes, window_bases=self.window_bases,
            length=windows_per_epoch or max(1, bases // self.window_bases), seed=self.seed,
            max_n_fraction=self.max_n_fraction, reverse_complement=reverse_complement,
        )  # fmt: skip

    def _fixed_list(self, split: str, per_species: int) -> tuple[WindowTable, np.ndarray]:
        """The seeded evaluation list: `per_species` windows of each species, drawn once; tiles first, no two alike."""
        chosen: list[Interval] = []
        labels: list[int] = []
        if not any(self.regions[split]):
            return WindowTable.of([]), np.empty(0, dtype=np.int64)
        for label in range(len(self.class_names)):
            regions, tiles = self._usable(split, label)
            rng = np.random.default_rng([self.seed, intervals.SPLITS.index(split), label])
            picked = {tiles[int(row)]: None for row in rng.permutation(len(tiles))[:per_species]}
            group = _Group.of(regions, self.window_bases)
            assert group is not None  # _usable found a tile in them
            for _ in range(_TRIES * per_species):
                if len(picked) >= per_species:
                    break
                window = group.draw(rng, self.window_bases)
                n = self.genome.count_n(window.contig, np.array([window.start]), np.array([window.end]))[0]
                if n <= self.max_n_fraction * self.window_bases:
                    picked.setdefault(window)
            chosen += picked
            labels += [label] * len(picked)
        return WindowTable.of(chosen), np.array(labels, dtype=np.int64)


def _files_of_species(species: FastaSource) -> dict[str, list[Any]]:
    if isinstance(species, Mapping):
        return {str(name): [path for _, path in find_fasta(source)] for name, source in species.items()}
    found: dict[str, list[Any]] = {}
    for stem, path in find_fasta(species):
        found.setdefault(stem, []).append(path)
    return found


