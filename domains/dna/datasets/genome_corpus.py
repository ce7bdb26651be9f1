"""What the window data sets share: opening, splitting, filtering by N, the leak report, the account of it all."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from domains.dna.datasets.window_samples import FixedWindows, RandomWindows, WindowReader
from domains.dna.intervals import SPLITS, HeldOutRegions, Interval, Splitter
from domains.dna.marks import MARK_NAMES
from domains.dna.windows import Coverage, WindowTable, leak_report, n_fractions

log = logging.getLogger(__name__)

WindowSamples = FixedWindows | RandomWindows
ON_LEAK = ("warn", "error", "ignore")


class GenomeCorpus:
    """A genome divided into splits.

    Args:
        reader: the genome, its tokenizer and weights.
        window_bases: bases in a window.
        splits: divides records; None holds out the ends of all of them (`HeldOutRegions`).
        max_n_fraction: windows with a larger share of N are left out.
        on_leak: "warn", "error" or "ignore" where held-out windows touch training bases.

    Attributes:
        regions: of each split.
        mark_names: classes of positions that `marked` tells.
    """

    mark_names = MARK_NAMES

    def __init__(
        self, reader: WindowReader, *, window_bases: int, splits: Splitter | None, max_n_fraction: float, on_leak: str
    ):
        if window_bases < 1:
            raise ValueError(f"window_bases={window_bases} must be at least 1")
        if not 0 <= max_n_fraction <= 1:
            raise ValueError(f"max_n_fraction={max_n_fraction} must lie in 0..1")
        check_on_leak(on_leak)
        self.reader, self.genome, self.tokenizer = reader, reader.genome, reader.tokenizer
        self.window_bases, self.max_n_fraction, self.on_leak = window_bases, max_n_fraction, on_leak
        self.splitter = splits or HeldOutRegions()
        self._datasets: dict[str, WindowSamples] = {}
        counts = self.genome.counts()
        if self.tokenizer.iupac == "error" and counts["iupac"]:
            raise ValueError(
                f'{counts["iupac"]} IUPAC codes in {self.genome.files[0].path} …, and iupac="error" refuses them'
            )
        self._refuse_long_windows()
        self.regions = self.splitter.regions(self.genome.lengths)
        self._report: dict[str, int | float | str] = dict(counts)

    @property
    def sample_length(self) -> int:
        """Symbols of a training sample; `train_at` makes shorter ones."""
        return self.window_bases

    def split(self, name: str) -> WindowSamples:
        """The samples of "train", "valid" or "test"; ValueError where there is no such split or no window in it."""
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; there are: {', '.join(SPLITS)}")
        if (dataset := self._datasets.get(name)) is None:
            raise self._no_windows(name, self.regions[name])
        return dataset

    def marked(self, name: str) -> WindowSamples:
        """The samples of a split, their records with `marks`: repeats, and neighbours of N (domains/dna/marks.py)."""
        dataset = copy.copy(self.split(name))
        dataset.reader = copy.copy(dataset.reader)
        dataset.reader.marks = True
        return dataset

    def report(self) -> dict[str, int | float | str]:
        """Counts of what was read.

        Keys: files, sequences, bases, n, lower_case, iupac, uracil; for each split its windows, bases, windows dropped
        for N, regions shorter than a window, and what held-out windows share with training: the share of windows that
        touch training bases, and the share of their bases.
        """
        return dict(self._report)

    def region_ids(self, split: str) -> Iterator[np.ndarray]:
        """Token ids of every whole region of a split, for baselines that read a sequence from end to end."""
        for region in self.regions[split]:
            yield self.tokenizer.encode(self.genome.fetch(region.contig, region.start, region.end, region.strand))

    # ------------------------------------------------------------------------------------- for the data sets below

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

    def _few_n(self, windows: WindowTable) -> WindowTable:
        """Windows that do not have too many N."""
        if self.max_n_fraction == 1:
            return windows
        return windows.take(n_fractions(windows, self.genome.count_n) <= self.max_n_fraction)

    def _account(self, *, short_regions: bool = True) -> None:
        for split, dataset in self._datasets.items():
            self._report[f"{split}_windows"] = len(dataset)
            regions = WindowTable.of(self.regions[split])
            self._report[f"{split}_bases"] = Coverage(regions).total
            if short_regions:
                short = int((regions.ends - regions.starts < self.window_bases).sum())
                self._report[f"{split}_dropped_short_regions"] = short

    def _check_leaks(self, training: WindowTable, held_out: Mapping[str, WindowTable]) -> None:
        leaks = leak_report(training, held_out)
        self._report |= {f"{split}_leak_share": leak.windows for split, leak in leaks.items()}
        self._report |= {f"{split}_leak_base_share": leak.bases for split, leak in leaks.items()}
        leaking = [
            f"{leak.windows:.1%} of the {split} windows ({leak.bases:.1%} of their bases)"
            for split, leak in leaks.items() if leak.windows
        ]  # fmt: skip
        if not leaking and any(map(len, held_out.values())):
            log.info("leaks       none: no validation or test window touches training bases")
        if leaking:
            say_leak(self.on_leak, f"{' and '.join(leaking)} touch training bases", "split by chromosome or region")


def check_on_leak(on_leak: str) -> None:
    """ValueError unless it is one of `ON_LEAK`."""
    if on_leak not in ON_LEAK:
        raise ValueError(f'on_leak={on_leak!r}; accepted: "warn", "error", "ignore"')


def say_leak(on_leak: str, what: str, remedy: str) -> None:
    """Warns of a leak, raises, or keeps silent, as `on_leak` says."""
    if on_leak == "error":
        raise ValueError(f'{what}: scores on them are too good; {remedy}, or accept it with on_leak="warn"')
    if on_leak == "warn":
        log.warning("%s: scores on them are too good", what)
