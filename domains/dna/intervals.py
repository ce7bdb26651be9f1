"""Where windows lie: intervals, BED files, train/valid/test regions, windows inside them, and the leak report.

All coordinates are 0-based half-open, as in BED: `chr1 0 100` is the first hundred bases.
In: record lengths (`Genome.lengths`). Out: `Interval` regions of each split, and a `WindowTable` of windows in them.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Int64

from domains.dna.names import close_names, find_contig, matches

SPLITS = ("train", "valid", "test")
EDGES = ("shift", "pad", "drop")


@dataclass(frozen=True, slots=True)
class Interval:
    """Bases start..end-1 of a record, 0-based half-open; `strand` "-" means their reverse complement.

    `name` is BED's fourth column: a label, often the split.
    """

    contig: str
    start: int
    end: int
    strand: str = "+"
    name: str = ""

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.contig}:{self.start}-{self.end}({self.strand})"


# ---------------------------------------------------------------------------------------------------------- BED


def read_bed(path: str | Path, lengths: Mapping[str, int]) -> list[Interval]:
    """Intervals of a BED file (3 to 12 columns, tab or space; `.gz` too) on records of these lengths.

    Header lines (`#`, `track`, `browser`) and blank lines are skipped. Chromosome aliases (20, chr20) are resolved.

    Raises:
        ValueError: file and line of an interval that is no interval, reversed, empty, past the end of its record, or on
            a record that is not there (names spelled alike are listed).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no BED file {path}")
    intervals = []
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or line.startswith(("#", "track", "browser")):
                continue
            try:
                intervals.append(_bed_row(line, lengths))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not intervals:
        raise ValueError(f"{path}: no interval in it")
    return intervals


def _bed_row(line: str, lengths: Mapping[str, int]) -> Interval:
    cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
    if len(cells) < 3 or not (cells[1].strip().isdigit() and cells[2].strip().isdigit()):
        raise ValueError(f"not a BED interval (chromosome, start, end): {line.strip()[:80]!r}")
    start, end = int(cells[1]), int(cells[2])
    contig = find_contig(cells[0], lengths)
    if contig is None:
        raise ValueError(f"there is no sequence {cells[0]!r}{close_names(cells[0], lengths)}")
    if start >= end:
        what = "is empty" if start == end else "is reversed (start after end)"
        raise ValueError(f"the interval {cells[0]}:{start}-{end} {what}; BED is 0-based half-open")
    if end > lengths[contig]:
        raise ValueError(f"{cells[0]}:{start}-{end} runs past the end of {contig} ({lengths[contig]} bases)")
    strand = cells[5] if len(cells) > 5 else "+"
    if strand not in ("+", "-", ".", ""):
        raise ValueError(f'the strand is {strand!r}; accepted: "+", "-", "."')
    return Interval(contig, start, end, "-" if strand == "-" else "+", cells[3] if len(cells) > 3 else "")


# ------------------------------------------------------------------------------------------------------- splits


class Splitter(Protocol):
    """Divides records into regions for "train", "valid" and "test"."""

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]: ...


class HeldOutRegions:
    """Part of every record is held out: its end, or blocks spread over it.

    Args:
        valid: fraction of each record for validation, 0 <= valid < 1.
        test: fraction of each record for test; valid + test < 1.
        layout: "tail" takes `train | valid | test` from start to end; "blocks" cuts the record into blocks of
            `block_bases` and deals them out at random, so that every part of a record is represented.
        block_bases: length of a block; windows never cross from one split into another, so make it many windows long.
        seed: of the dealing.
    """

    def __init__(
        self,
        *,
        valid: float = 0.1,
        test: float = 0.1,
        layout: str = "tail",
        block_bases: int = 1_000_000,
        seed: int = 0,
    ):
        if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
            raise ValueError(f"valid={valid} and test={test} must be fractions with a sum below 1")
        if layout not in ("tail", "blocks"):
            raise ValueError(f'layout={layout!r}; accepted: "tail", "blocks"')
        if block_bases < 1:
            raise ValueError(f"block_bases={block_bases} must be at least 1")
        self.valid, self.test, self.layout, self.block_bases, self.seed = valid, test, layout, block_bases, seed

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]:
        found: dict[str, list[Interval]] = {split: [] for split in SPLITS}
        for order, (contig, length) in enumerate(lengths.items()):
            cut = self._tail if self.layout == "tail" else self._blocks
            for split, start, end in cut(length, order):
                if start < end:
                    found[split].append(Interval(contig, start, end))
        return found

    def _tail(self, length: int, order: int) -> Iterator[tuple[str, int, int]]:
        first = round(length * (1 - self.valid - self.test))
        second = round(length * (1 - self.test))
        yield from (("train", 0, first), ("valid", first, second), ("test", second, length))

    def _blocks(self, length: int, order: int) -> Iterator[tuple[str, int, int]]:
        count = max(1, round(length / self.block_bases))
        borders = [length * number // count for number in range(count + 1)]
        held = [round(count * self.valid), round(count * self.test)]
        names = ["valid"] * held[0] + ["test"] * held[1]
        names += ["train"] * (count - len(names))
        names = [names[i] for i in np.random.default_rng([self.seed, order]).permutation(count)]
        begin = 0
        for number in range(1, count + 1):  # neighbours of one split make one region
            if number == count or names[number] != names[begin]:
                yield names[begin], borders[begin], borders[number]
                begin = number


class HeldOutChromosomes:
    """Whole records are held out, by name or glob (`chr20`, `chr[57]`, `galGal4/*`); aliases (20, chr20) match.

    Args:
        valid: names or globs of the validation records.
        test: names or globs of the test records.
        train: names or globs of the training records, of those not held out.
    """

    def __init__(self, *, valid: Sequence[str] = (), test: Sequence[str] = (), train: Sequence[str] = ("*",)):
        self.patterns = {"valid": _as_list(valid), "test": _as_list(test), "train": _as_list(train)}

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]:
        found: dict[str, list[Interval]] = {split: [] for split in SPLITS}
        taken: dict[str, str] = {}
        for split, patterns in self.patterns.items():
            for pattern in patterns:
                matching = [contig for contig in lengths if matches(contig, pattern)]
                if not matching:
                    raise ValueError(f"{split}={pattern!r} matches no sequence{close_names(pattern, lengths)}")
                for contig in matching:
                    if split != "train" and taken.get(contig, split) != split:
                        raise ValueError(f"{contig} is in both {taken[contig]} and {split}")
                    taken.setdefault(contig, split)
        for contig, length in lengths.items():
            if contig in taken and length:
                found[taken[contig]].append(Interval(contig, 0, length))
        return found


class BedRegions:
    """Regions from a BED whose fourth column says the split (`chr1 0 131072 train`).

    Args:
        path: the BED file.
        train: labels of column four that are training regions; likewise `valid` and `test`. Rows with other labels are
            left out.
    """

    def __init__(
        self,
        path: str,
        *,
        train: Sequence[str] = ("train",),
        valid: Sequence[str] = ("valid", "val", "validation"),
        test: Sequence[str] = ("test",),
    ):
        self.path = path
        self.labels = {"train": _as_list(train), "valid": _as_list(valid), "test": _as_list(test)}

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]:
        rows = read_bed(self.path, lengths)
        found = {split: [row for row in rows if row.name in self.labels[split]] for split in SPLITS}
        if not found["train"]:
            seen = sorted({row.name for row in rows})[:8]
            raise ValueError(f"{self.path}: no row is labelled {self.labels['train']}; column four holds {seen}")
        return found


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]


# ------------------------------------------------------------------------------------------------------ windows


@dataclass(frozen=True)
class WindowTable:
    """Many windows as three arrays: workers share them instead of copying a million objects.

    Attributes:
        contigs: names that `contig_index` points into.
        contig_index, starts, ends: of each window; 0-based half-open.
    """

    contigs: tuple[str, ...]
    contig_index: Int64[np.ndarray, " windows"]
    starts: Int64[np.ndarray, " windows"]
    ends: Int64[np.ndarray, " windows"]

    @classmethod
    def of(cls, intervals: Sequence[Interval]) -> WindowTable:
        contigs = tuple(dict.fromkeys(interval.contig for interval in intervals))
        row_of = {contig: row for row, contig in enumerate(contigs)}
        columns = [(row_of[interval.contig], interval.start, interval.end) for interval in intervals]
        index, starts, ends = np.array(columns, dtype=np.int64).reshape(-1, 3).T
        return cls(contigs, index, starts, ends)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> Interval:
        return Interval(self.contigs[self.contig_index[row]], int(self.starts[row]), int(self.ends[row]))

    def take(self, rows: np.ndarray) -> WindowTable:
        """The windows `rows` (indices or a mask)."""
        return WindowTable(self.contigs, self.contig_index[rows], self.starts[rows], self.ends[rows])

    def by_contig(self) -> Iterator[tuple[str, Int64[np.ndarray, " rows"]]]:
        """Each record that has windows, with their row numbers; linear also where there are many records."""
        order = np.argsort(self.contig_index, kind="stable")
        present, first = np.unique(self.contig_index[order], return_index=True)
        for row, rows in zip(present.tolist(), np.split(order, first[1:])):
            yield self.contigs[row], rows

    def spread(self, count: int) -> WindowTable:
        """At most `count` of the windows, evenly spaced through the table."""
        if count >= len(self):
            return self
        return self.take(np.arange(count) * len(self) // count)


def tile(
    regions: Sequence[Interval], window_bases: int, *, edge: str = "shift", stride: int | None = None
) -> WindowTable:
    """Windows side by side in every region; none crosses the border of its region.

    Args:
        regions: where windows may lie.
        window_bases: length of a window.
        edge: what becomes of the bases at the end of a region that fill no window: "shift" moves the last window back
            so that it ends with the region (it overlaps the one before), "pad" makes a shorter window (the batch pads
            it on the right), "drop" leaves them out. A region shorter than a window gives one shorter window with "pad"
            and none otherwise.
        stride: distance from one window's start to the next; None means `window_bases`.
    """
    if edge not in EDGES:
        raise ValueError(f"edge={edge!r}; accepted: {', '.join(EDGES)}")
    stride = window_bases if stride is None else stride
    if window_bases < 1 or stride < 1:
        raise ValueError(f"window_bases={window_bases} and stride={stride} must be at least 1")
    regions = list(regions)
    table = WindowTable.of(regions)
    pieces = [_tile_one(r.start, r.end, window_bases, stride, edge) for r in regions]
    counts = np.array([len(starts) for starts, _ in pieces], dtype=np.int64)
    empty = np.empty(0, dtype=np.int64)
    starts = np.concatenate([empty, *(starts for starts, _ in pieces)])
    ends = np.concatenate([empty, *(ends for _, ends in pieces)])
    return WindowTable(table.contigs, np.repeat(table.contig_index, counts), starts, ends)


def _tile_one(start: int, end: int, window: int, stride: int, edge: str) -> tuple[np.ndarray, np.ndarray]:
    whole = np.arange(start, max(end - window + 1, start), stride, dtype=np.int64)
    if end - start < window:
        whole = whole[:0]
    ends = whole + window
    reached = int(ends[-1]) if len(ends) else start
    if reached < end and edge == "shift" and end - start >= window:
        whole, ends = np.append(whole, end - window), np.append(ends, end)
    elif reached < end and edge == "pad":
        first = int(whole[-1]) + stride if len(whole) else start
        if first < end:
            whole, ends = np.append(whole, first), np.append(ends, end)
    return whole, ends


def n_fractions(windows: WindowTable, count_n: Callable[[str, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Share of letters read as N in each window; `count_n` is `Genome.count_n`."""
    counts = np.zeros(len(windows), dtype=np.int64)
    for contig, here in windows.by_contig():
        counts[here] = count_n(contig, windows.starts[here], windows.ends[here])
    return counts / np.maximum(windows.ends - windows.starts, 1)


# -------------------------------------------------------------------------------------------------- leak report


def merge(windows: WindowTable) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sorted, disjoint (starts, ends) of everything the windows cover, by record."""
    merged = {}
    for contig, here in windows.by_contig():
        order = np.argsort(windows.starts[here], kind="stable")
        starts, ends = windows.starts[here][order], windows.ends[here][order]
        reach = np.maximum.accumulate(ends)
        new = np.concatenate([[True], starts[1:] > reach[:-1]])
        last = np.concatenate([np.flatnonzero(new)[1:] - 1, [len(starts) - 1]])
        merged[contig] = (starts[new], reach[last])
    return merged


def touching(windows: WindowTable, training: WindowTable) -> np.ndarray:
    """True for each window that shares at least one base with the training windows."""
    touched = np.zeros(len(windows), dtype=bool)
    covered = merge(training)
    for contig, here in windows.by_contig():
        if contig not in covered:
            continue
        starts, ends = covered[contig]
        before_end = np.searchsorted(starts, windows.ends[here], side="left")  # training stretches that start before
        over_start = np.searchsorted(ends, windows.starts[here], side="right")  # those that end at or before its start
        touched[here] = before_end > over_start
    return touched


def leak_report(training: WindowTable, held_out: Mapping[str, WindowTable]) -> dict[str, float]:
    """Share of each held-out split's windows that touch training bases, 0 to 1: `{"valid": 0.0, "test": 0.93}`."""
    return {
        split: float(touching(windows, training).mean()) if len(windows) else 0.0 for split, windows in held_out.items()
    }
