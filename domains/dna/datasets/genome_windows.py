"""`GenomeWindows`: windows of one or more genomes without labels, for language models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from domains.dna.datasets.genome_corpus import GenomeCorpus
from domains.dna.datasets.window_samples import Changes, Draw, FixedWindows, Group, RandomWindows, WindowReader
from domains.dna.fasta import FastaSource, Genome
from domains.dna.intervals import SPLITS, BedRegions, Interval, Splitter
from domains.dna.tokenizer import DnaTokenizer
from domains.dna.windows import PUBLISHED, Coverage, WindowTable, check_edge, published_windows, tile

POLICIES = ("random", "tile", *PUBLISHED)


class GenomeWindows(GenomeCorpus):
    """Unlabelled windows of one or more genomes.

    Args:
        fasta: a FASTA or 2bit path, glob, folder, list or mapping, or `example:vertebrates`; see `Genome`.
        window_bases: bases in a window.
        policy: where windows lie. "random": training windows at random positions, drawn anew in every epoch; "tile":
            side by side. "hyenadna", "caduceus", "mamba": the three published rules for the rows of a BED (the table in
            domains/dna/windows.py), for training and held-out windows alike.
        splits: `HeldOutRegions` (default: the last tenth of every record is test, the tenth before it validation),
            `HeldOutChromosomes` or `BedRegions`. The published policies need `BedRegions`.
        tokenizer: default `DnaTokenizer()`.
        seed: of every draw.
        windows_per_epoch: length of a training epoch with "random"; None means training bases / window_bases.
        eval_windows: at most so many validation and so many test windows, evenly spaced; None keeps all.
        edge: the end of a region (published policies: of a record): "shift", "pad" or "drop", see `windows.tile` and
            `windows.published_windows`. None is shift, or what the published policy does.
        max_n_fraction: windows with a larger share of N are left out (or drawn again). None is 0.5, and 1 for the
            published policies, which leave none out. N is never predicted.
        reverse_complement_augment: training windows come from either strand with equal chance.
        max_shift_bases: training tiles move by up to so many bases, another way in each epoch.
        soft_mask_weight: loss weight of lower-case bases (repeats); None weighs all alike.
        on_leak: "warn", "error" or "ignore" where held-out windows touch training bases.

    Raises:
        ValueError: an argument is out of range, or no window fits into any sequence (the longest are listed).
    """

    # So many keywords because each is a key of the YAML that a user sets; below, they travel as a few objects.

    class_names: tuple[str, ...] = ()

    def __init__(
        self, fasta: FastaSource = "example:vertebrates", *, window_bases: int = 1024, policy: str = "random",
        splits: Splitter | None = None, tokenizer: DnaTokenizer | None = None, seed: int = 0,
        windows_per_epoch: int | None = None, eval_windows: int | None = None, edge: str | None = None,
        max_n_fraction: float | None = None, reverse_complement_augment: bool = False, max_shift_bases: int = 0,
        soft_mask_weight: float | None = None, on_leak: str = "warn",
    ):  # fmt: skip
        _check_policy(policy, splits, max_shift_bases=max_shift_bases, windows_per_epoch=windows_per_epoch)
        if edge is not None:
            check_edge(edge)
        if max_n_fraction is None:
            max_n_fraction = 1.0 if policy in PUBLISHED else 0.5
        reader = WindowReader(Genome(fasta), tokenizer, soft_mask_weight)
        super().__init__(
            reader, window_bases=window_bases, splits=splits, max_n_fraction=max_n_fraction, on_leak=on_leak
        )
        self.policy, self.edge, self.seed, self.windows_per_epoch = policy, edge, seed, windows_per_epoch
        self.changes = Changes(seed, reverse_complement_augment, max_shift_bases, self.regions["train"])
        tables: dict[str, WindowTable] = {}
        for split in SPLITS:
            placed = self._placed(split, window_bases)
            tables[split] = self._few_n(placed)
            self._report[f"{split}_dropped_windows_n"] = len(placed) - len(tables[split])
            if split != "train" and eval_windows is not None:
                tables[split] = tables[split].spread(eval_windows)
            if split != "train" and len(tables[split]):
                self._datasets[split] = FixedWindows(reader, tables[split])
        if (training := self._training(tables["train"], window_bases)) is not None:
            self._datasets["train"] = training
        self._account(short_regions=policy not in PUBLISHED)
        if policy == "random":
            del self._report["train_dropped_windows_n"]  # counted over tiles; a random window is drawn again instead
        training_bases = WindowTable.of(self.regions["train"]) if policy == "random" else tables["train"]
        self._check_leaks(training_bases, {split: tables[split] for split in ("valid", "test")})

    def train_at(self, length: int) -> FixedWindows | RandomWindows:
        """Training windows of another length by the same policy, for a length warm-up.

        Raises:
            ValueError: no such window exists, or the policy has none of this length.
        """
        if length == self.window_bases:
            return self.split("train")
        if (dataset := self._training(self._few_n(self._placed("train", length)), length)) is None:
            raise ValueError(f"no training window of {length} bases has at most {self.max_n_fraction:.0%} N")
        return dataset

    def _placed(self, split: str, window_bases: int) -> WindowTable:
        """All windows of a split by the policy ("random": tiles, which tell where windows with few N are)."""
        if self.policy in PUBLISHED:
            rows = self.regions[split]
            return published_windows(self.policy, rows, window_bases, self.genome.lengths, edge=self.edge)
        return tile(self.regions[split], window_bases, edge=self.edge or "shift")

    def _training(self, windows: WindowTable, window_bases: int) -> FixedWindows | RandomWindows | None:
        if not len(windows):
            return None
        if self.policy != "random":
            return FixedWindows(self.reader, windows, changes=self.changes)
        group = Group.of(self._regions_with(windows), window_bases)
        if group is None:
            return None
        other = window_bases != self.window_bases
        entropy = (self.seed, window_bases) if other else (self.seed,)  # a stage is no enlarged copy of the one before
        length = self.windows_per_epoch and self.windows_per_epoch * self.window_bases // window_bases
        draw = Draw(window_bases, entropy, self.max_n_fraction, self.changes.reverse_complement)
        return RandomWindows(self.reader, [[group]], draw, length=length)

    def _regions_with(self, windows: WindowTable) -> Sequence[Interval]:
        """Training regions with at least one window of few N, so that drawing again comes to an end."""
        regions = self.regions["train"]
        usable = Coverage(windows).bases_within(WindowTable.of(regions)) > 0
        return [regions[int(row)] for row in np.flatnonzero(usable)]


def _check_policy(
    policy: str, splits: Splitter | None, *, max_shift_bases: int, windows_per_epoch: int | None
) -> None:
    if policy not in POLICIES:
        raise ValueError(f"policy={policy!r}; accepted: {', '.join(POLICIES)}")
    if policy != "tile" and max_shift_bases:
        raise ValueError(f'max_shift_bases moves tiles; with policy="{policy}" leave it at 0')
    if policy != "random" and windows_per_epoch is not None:
        raise ValueError(
            f'windows_per_epoch is for policy="random"; an epoch of policy="{policy}" is all of its windows'
        )
    if policy in PUBLISHED and not isinstance(splits, BedRegions):
        raise ValueError(
            f'policy="{policy}" takes windows from the rows of a BED: domain=dna_hg38, or splits=BedRegions'
            " with the path of, for HG38, human-sequences.bed"
        )
