"""Windows in regions: side by side, or by one of the three published rules for HG38; N in them; the leak report.

In: regions (`Interval`). Out: a `WindowTable`, three arrays however many windows there are.

Three conventions exist under the same BED of 131,072-base intervals, and published perplexities can be compared only
under the same one. For a row [s, e) of the BED and a window of L bases:

| rule | windows of one row | edge |
|---|---|---|
| `hyenadna` | one: [s, s+L) where L <= e-s, else the row widened by L-(e-s), the odd base on the right | pad |
| `caduceus` | 2^20 / L side by side from s, whatever e is; L divides 2^20 | shift |
| `mamba` | (e-s) // L side by side from s; where L > e-s two: [s, s+L) and [e-L, e) (paper, appendix E.3) | shift |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Integer

from domains.dna.intervals import Interval

EDGES = ("shift", "pad", "drop")
CADUCEUS_SPAN = 2**20


@dataclass(frozen=True)
class WindowTable:
    """Many windows as three arrays: workers share them instead of copying a million objects.

    Attributes:
        contigs: names that `contig_index` points into.
        contig_index, starts, ends: of each window; 0-based half-open.
    """

    contigs: tuple[str, ...]
    contig_index: Integer[np.ndarray, " windows"]
    starts: Integer[np.ndarray, " windows"]
    ends: Integer[np.ndarray, " windows"]

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

    def compact(self) -> WindowTable:
        """The same windows in the smallest integers that hold them: what is kept, and copied to every worker."""
        longest = int(self.ends.max(initial=0))
        coordinate = np.int32 if longest < 2**31 else np.int64
        index = np.min_scalar_type(len(self.contigs))
        return WindowTable(
            self.contigs, self.contig_index.astype(index), self.starts.astype(coordinate), self.ends.astype(coordinate)
        )

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
    check_edge(edge)
    stride = window_bases if stride is None else stride
    if window_bases < 1 or stride < 1:
        raise ValueError(f"window_bases={window_bases} and stride={stride} must be at least 1")
    table = WindowTable.of(regions)
    fits = table.ends - table.starts >= window_bases
    whole = np.where(fits, (table.ends - table.starts - window_bases) // stride + 1, 0)
    reached = np.where(fits, table.starts + (whole - 1) * stride + window_bases, table.starts)
    short_start = table.starts + whole * stride  # of the shorter window that "pad" makes
    extra = {
        "shift": fits & (reached < table.ends),
        "pad": (reached < table.ends) & (short_start < table.ends),
        "drop": np.zeros(len(table), dtype=bool),
    }[edge]
    rows, number = _repeated(whole + extra)
    starts = table.starts[rows] + number * stride
    is_extra = number == whole[rows]
    if edge == "shift":
        starts = np.where(is_extra, table.ends[rows] - window_bases, starts)
    ends = np.where(is_extra, table.ends[rows], starts + window_bases)
    return WindowTable(table.contigs, table.contig_index[rows], starts, ends)


def _repeated(counts: np.ndarray) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Row i `counts[i]` times over, and the number 0.. of each repeat."""
    rows = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
    first = np.cumsum(counts) - counts
    return rows, np.arange(len(rows), dtype=np.int64) - first[rows]


def check_edge(edge: str) -> None:
    """ValueError unless `edge` is one of `EDGES`."""
    if edge not in EDGES:
        raise ValueError(f"edge={edge!r}; accepted: {', '.join(EDGES)}")


# ------------------------------------------------------------------------------------------- the published rules


def _hyenadna(rows: WindowTable, window_bases: int) -> WindowTable:
    missing = np.maximum(window_bases - (rows.ends - rows.starts), 0)
    starts = rows.starts - missing // 2
    return WindowTable(rows.contigs, rows.contig_index, starts, starts + window_bases)


def _caduceus(rows: WindowTable, window_bases: int) -> WindowTable:
    if CADUCEUS_SPAN % window_bases:
        raise ValueError(
            f"window_bases={window_bases} does not divide {CADUCEUS_SPAN}, the span that policy=caduceus tiles from"
            " the start of each row; take a power of two up to it, or policy=mamba"
        )
    row, number = _repeated(np.full(len(rows), CADUCEUS_SPAN // window_bases))
    starts = rows.starts[row] + number * window_bases
    return WindowTable(rows.contigs, rows.contig_index[row], starts, starts + window_bases)


def _mamba(rows: WindowTable, window_bases: int) -> WindowTable:
    length = rows.ends - rows.starts
    wider = length < window_bases
    row, number = _repeated(np.where(wider, 2, length // window_bases))
    at_end = wider[row] & (number == 1)
    starts = np.where(at_end, rows.ends[row] - window_bases, rows.starts[row] + number * window_bases)
    return WindowTable(rows.contigs, rows.contig_index[row], starts, starts + window_bases)


@dataclass(frozen=True)
class PublishedPolicy:
    """How a publication takes windows from the rows of a BED.

    Attributes:
        place: rows and window length to windows, which may run over the ends of a record.
        edge: what the publication does with those ("mamba" does not say; shift keeps its count).
    """

    place: Callable[[WindowTable, int], WindowTable]
    edge: str


PUBLISHED = {
    "hyenadna": PublishedPolicy(_hyenadna, "pad"),
    "caduceus": PublishedPolicy(_caduceus, "shift"),
    "mamba": PublishedPolicy(_mamba, "shift"),
}


def published_windows(
    policy: str, rows: Sequence[Interval], window_bases: int, lengths: Mapping[str, int], *, edge: str | None = None
) -> WindowTable:
    """Windows of BED rows by a published rule (table in the module's text), in the order of the rows.

    Args:
        policy: "hyenadna", "caduceus" or "mamba".
        rows: the BED's intervals of one split.
        window_bases: L.
        lengths: bases of every record.
        edge: windows that run over an end of their record: "shift" moves them inside (those longer than the record are
            left out), "pad" cuts them off there (the batch pads on the right), "drop" leaves them out. None is the
            publication's own.
    """
    rule = PUBLISHED[policy]
    edge = rule.edge if edge is None else edge
    check_edge(edge)
    windows = rule.place(WindowTable.of(rows), window_bases)
    length = np.array([lengths[contig] for contig in windows.contigs], dtype=np.int64)[windows.contig_index]
    starts, ends = windows.starts, windows.ends
    if edge == "shift":
        starts = np.clip(starts, 0, np.maximum(length - window_bases, 0))
        ends = starts + window_bases
        keep = ends <= length
    elif edge == "pad":
        starts, ends = np.clip(starts, 0, length), np.clip(ends, 0, length)
        keep = starts < ends
    else:
        keep = (starts >= 0) & (ends <= length)
    return WindowTable(windows.contigs, windows.contig_index, starts, ends).take(keep)


# -------------------------------------------------------------------------------------------------------------- N


def n_fractions(windows: WindowTable, count_n: Callable[[str, np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    """Share of letters read as N in each window; `count_n` is `Genome.count_n`."""
    counts = np.zeros(len(windows), dtype=np.int64)
    for contig, here in windows.by_contig():
        counts[here] = count_n(contig, windows.starts[here], windows.ends[here])
    return counts / np.maximum(windows.ends - windows.starts, 1)


# -------------------------------------------------------------------------------------------------- leak report


class Coverage:
    """Everything that windows cover, for questions about many other windows at once.

    Records are laid end to end with a gap of one base between them, so that sorting once serves all of them.
    """

    def __init__(self, windows: WindowTable):
        covered = np.bincount(windows.contig_index, minlength=len(windows.contigs)) > 0
        last = np.zeros(len(windows.contigs), dtype=np.int64)
        np.maximum.at(last, windows.contig_index, windows.ends)
        offsets = np.cumsum(last + 1) - (last + 1)
        self.offset_of = {c: int(o) for c, o, any_here in zip(windows.contigs, offsets, covered) if any_here}
        self.room_of = {c: int(e) for c, e in zip(windows.contigs, last)}
        starts = windows.starts + offsets[windows.contig_index]
        order = np.argsort(starts, kind="stable")
        starts, ends = starts[order], (windows.ends + offsets[windows.contig_index])[order]
        reach = np.maximum.accumulate(ends) if len(ends) else ends
        new = np.concatenate([[True], starts[1:] > reach[:-1]])[: len(starts)]
        self.starts = starts[new]
        self.ends = reach[np.append(np.flatnonzero(new)[1:] - 1, len(starts) - 1)] if len(starts) else ends
        self._before = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        self.total = int(self._before[-1])

    def bases_within(self, windows: WindowTable) -> Int64[np.ndarray, " windows"]:
        """How many bases of each window are covered."""
        offset = np.array([self.offset_of.get(contig, -1) for contig in windows.contigs], dtype=np.int64)
        room = np.array([self.room_of.get(contig, 0) for contig in windows.contigs], dtype=np.int64)
        offset, room = offset[windows.contig_index], room[windows.contig_index]
        # Beyond the last covered base of a record comes the next record: do not look there.
        starts, ends = np.minimum(windows.starts, room) + offset, np.minimum(windows.ends, room) + offset
        return np.where(offset >= 0, self._up_to(ends) - self._up_to(starts), 0)

    def _up_to(self, position: np.ndarray) -> np.ndarray:
        """Covered bases before a position."""
        if not len(self.starts):
            return np.zeros(len(position), dtype=np.int64)
        begun = self.starts.searchsorted(position, side="right")
        beyond = np.maximum(self.ends[begun - 1] - position, 0)
        return self._before[begun] - np.where(begun > 0, beyond, 0)


def touching(windows: WindowTable, training: WindowTable) -> Bool[np.ndarray, " windows"]:
    """True for each window that shares at least one base with the training windows."""
    return Coverage(training).bases_within(windows) > 0


@dataclass(frozen=True)
class Leak:
    """What a held-out split shares with training.

    Attributes:
        windows: share of its windows that touch training bases, 0 to 1.
        bases: share of the bases in its windows that are training bases, 0 to 1.
    """

    windows: float
    bases: float


def leak_report(training: WindowTable, held_out: Mapping[str, WindowTable]) -> dict[str, Leak]:
    """For each held-out split what it shares with training, e.g. `{"valid": Leak(windows=0.9, bases=0.5)}`."""
    coverage, report = Coverage(training), {}
    for split, windows in held_out.items():
        shared = coverage.bases_within(windows)
        total = int((windows.ends - windows.starts).sum())
        report[split] = Leak(float((shared > 0).mean()) if len(windows) else 0.0, float(shared.sum() / max(total, 1)))
    return report
