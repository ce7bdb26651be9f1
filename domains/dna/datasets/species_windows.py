"""`SpeciesWindows`: windows labelled with the species they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from domains.dna.datasets.genome_corpus import GenomeCorpus
from domains.dna.datasets.window_samples import TRIES, Draw, FixedWindows, Group, RandomWindows, WindowReader
from domains.dna.fasta import FastaSource, Genome, find_fasta
from domains.dna.intervals import SPLITS, Interval, Splitter
from domains.dna.tokenizer import DnaTokenizer
from domains.dna.windows import WindowTable, tile


class LabelledWindows(GenomeCorpus):
    """Windows of a genome whose records belong to classes: `genome.stem_of` names the class of each.

    Training draws a class, then a record of it (or a base), then a position. Validation and test windows are a fixed,
    seeded list with the same number of windows of each class, so that scores of two epochs and two runs compare.

    Args:
        reader: the genome, its tokenizer.
        sampling: how training draws, and how long an epoch is.
        eval_windows_per_species: validation windows, and as many test windows, of each class.
        **corpus: window_bases, splits, max_n_fraction, on_leak of `GenomeCorpus`.
    """

    def __init__(
        self, reader: WindowReader, sampling: SpeciesSampling, *, eval_windows_per_species: int, **corpus: Any
    ):
        if eval_windows_per_species < 1:
            raise ValueError(f"eval_windows_per_species={eval_windows_per_species} must be at least 1")
        self.class_names: tuple[str, ...] = tuple(sorted(set(reader.genome.stem_of.values())))
        if len(self.class_names) < 2:
            raise ValueError(f"species classification needs two species or more, got {list(self.class_names)}")
        super().__init__(reader, **corpus)
        self.sampling = sampling
        self._regions_by_label = {split: self._grouped(split) for split in SPLITS}
        self._refuse_absent_species()
        tables = {split: self._fixed_list(split, eval_windows_per_species) for split in ("valid", "test")}
        for split, (table, labels) in tables.items():
            if len(table):
                self._datasets[split] = FixedWindows(self.reader, table, labels=labels)
        if self.regions["train"]:
            self._datasets["train"] = self._training(self.window_bases)
        self._account()
        self._report["species"] = len(self.class_names)
        training = WindowTable.of(self.regions["train"])
        self._check_leaks(training, {split: table for split, (table, _) in tables.items()})

    def train_at(self, length: int) -> RandomWindows:
        """Training windows of another length, drawn in the same way, for a length warm-up."""
        return self._training(length)

    def _grouped(self, split: str) -> list[list[Interval]]:
        label_of = {name: label for label, name in enumerate(self.class_names)}
        regions: list[list[Interval]] = [[] for _ in self.class_names]
        for region in self.regions[split]:
            regions[label_of[self.genome.stem_of[region.contig]]].append(region)
        return regions

    def _refuse_absent_species(self) -> None:
        """Every species must be in every split that any species is in; those that are not are all listed."""
        absent = []
        for split, regions in self._regions_by_label.items():
            for name, of_species in zip(self.class_names, regions):
                if self.regions[split] and not of_species:
                    own = [key.rpartition("/")[2] for key, stem in self.genome.stem_of.items() if stem == name]
                    shown = ", ".join(own[:12]) + (" …" if len(own) > 12 else "")
                    absent.append(f"{name}: none of its sequences is in the split {split!r}; it has {shown}")
        if absent:
            raise ValueError(
                "species without sequences in a split:\n  " + "\n  ".join(absent) + "\nGet the missing chromosomes,"
                " change domain.dataset.splits, or leave the species out"
            )

    def _usable(self, split: str, label: int, window_bases: int) -> tuple[list[Interval], WindowTable]:
        """Regions of one class in one split that hold a window of few N, and their good tiles."""
        regions = self._regions_by_label[split][label]
        good = self._few_n(tile(regions, window_bases, edge="shift"))
        if not len(good):
            raise ValueError(f"species {self.class_names[label]!r}: {self._no_windows(split, regions)}")
        names = {good.contigs[row] for row in np.unique(good.contig_index)}
        return [region for region in regions if region.contig in names], good

    def _training(self, window_bases: int) -> RandomWindows:
        classes: list[list[Group]] = []
        for label in range(len(self.class_names)):
            by_contig: dict[str, list[Interval]] = {}
            for region in self._usable("train", label, window_bases)[0]:
                by_contig.setdefault(region.contig if self.sampling.by_sequence else "", []).append(region)
            groups = [Group.of(members, window_bases, label) for members in by_contig.values()]
            classes.append([group for group in groups if group])
        seed, full = self.sampling.seed, window_bases == self.window_bases
        entropy = (seed,) if full else (seed, window_bases)
        draw = Draw(window_bases, entropy, self.max_n_fraction, self.sampling.reverse_complement)
        length = self.sampling.windows_per_epoch
        return RandomWindows(
            self.reader, classes, draw, length=length and length * self.window_bases // window_bases
        )

    def _fixed_list(self, split: str, per_species: int) -> tuple[WindowTable, np.ndarray]:
        """The seeded evaluation list: `per_species` windows of each class, drawn once; tiles first, no two alike."""
        chosen: list[Interval] = []
        labels: list[int] = []
        if not self.regions[split]:
            return WindowTable.of([]), np.empty(0, dtype=np.int64)
        for label in range(len(self.class_names)):
            regions, tiles = self._usable(split, label, self.window_bases)
            rng = np.random.default_rng([self.sampling.seed, SPLITS.index(split), label])
            picked = {tiles[int(row)]: None for row in rng.permutation(len(tiles))[:per_species]}
            group = Group.of(regions, self.window_bases)
            assert group is not None  # _usable found a tile in them
            for _ in range(TRIES * per_species):
                if len(picked) >= per_species:
                    break
                window = group.draw(rng, self.window_bases)
                if self.reader.has_few_n(window, self.max_n_fraction):
                    picked.setdefault(window)
            chosen += picked
            labels += [label] * len(picked)
        return WindowTable.of(chosen), np.array(labels, dtype=np.int64)


class SpeciesSampling:
    """How labelled training windows are drawn.

    Args:
        seed: of every draw and of the evaluation lists.
        windows_per_epoch: length of a training epoch; None means training bases / window_bases.
        sequence_sampling: within a species: "uniform" over its sequences (the published protocol), or "bases", where
            every base has the same chance.
        reverse_complement: training windows come from either strand with equal chance.
    """

    def __init__(self, seed: int, windows_per_epoch: int | None, sequence_sampling: str, reverse_complement: bool):
        if sequence_sampling not in ("uniform", "bases"):
            raise ValueError(f'sequence_sampling={sequence_sampling!r}; accepted: "uniform", "bases"')
        self.seed, self.windows_per_epoch, self.reverse_complement = seed, windows_per_epoch, reverse_complement
        self.by_sequence = sequence_sampling == "uniform"


class SpeciesWindows(LabelledWindows):
    """Windows labelled with their species. Training draws a species, then a sequence of it, then a position.

    Args:
        species: from a species name to its FASTA or 2bit path, glob, folder or list; or one string, where every file
            found is a species of its own named by its stem. Labels are the sorted names.
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
        sampling = SpeciesSampling(seed, windows_per_epoch, sequence_sampling, reverse_complement_augment)
        files = _files_of_species(species)
        if len(files) < 2:
            raise ValueError(f"species classification needs two species or more, got {sorted(files)}")
        super().__init__(
            WindowReader(Genome(files), tokenizer), sampling, eval_windows_per_species=eval_windows_per_species,
            window_bases=window_bases, splits=splits, max_n_fraction=max_n_fraction, on_leak=on_leak,
        )  # fmt: skip


def _files_of_species(species: FastaSource) -> dict[str, list[Any]]:
    if isinstance(species, Mapping):
        return {str(name): [path for _, path in find_fasta(source)] for name, source in species.items()}
    found: dict[str, list[Any]] = {}
    for stem, path in find_fasta(species):
        found.setdefault(stem, []).append(path)
    return found
