"""Windows as tables, the published rules by hand, and the leak report against a count of sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.datasets import GenomeWindows
from domains.dna.intervals import BedRegions, HeldOutRegions, Interval
from domains.dna.windows import (
    Coverage,
    WindowTable,
    leak_report,
    n_fractions,
    published_windows,
    tile,
    touching,
)


def pairs(windows: WindowTable) -> list[tuple[int, int]]:
    return list(zip(windows.starts.tolist(), windows.ends.tolist()))


# ---------------------------------------------------------------------------------------------------------- tiles

# A region, the window, the edge policy, the stride -> the windows.
TILES = [
    ((0, 10), 5, "shift", None, [(0, 5), (5, 10)]),
    ((0, 12), 5, "shift", None, [(0, 5), (5, 10), (7, 12)]),
    ((0, 12), 5, "pad", None, [(0, 5), (5, 10), (10, 12)]),
    ((0, 12), 5, "drop", None, [(0, 5), (5, 10)]),
    ((100, 104), 5, "shift", None, []),
    ((100, 104), 5, "pad", None, [(100, 104)]),
    ((100, 104), 5, "drop", None, []),
    ((0, 12), 6, "drop", 3, [(0, 6), (3, 9), (6, 12)]),
    ((0, 13), 6, "shift", 3, [(0, 6), (3, 9), (6, 12), (7, 13)]),
    ((3, 8), 5, "shift", None, [(3, 8)]),
]


@pytest.mark.parametrize(("region", "window", "edge", "stride", "expected"), TILES)
def test_tiles(region, window, edge, stride, expected):
    assert pairs(tile([Interval("chr1", *region)], window, edge=edge, stride=stride)) == expected


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 90)), min_size=1, max_size=6), st.integers(1, 40))
def test_tiles_cover_every_base_and_stay_inside(regions, window):
    intervals = [Interval(f"chr{row}", start, start + length) for row, (start, length) in enumerate(regions)]
    for edge in ("shift", "pad"):
        windows = tile(intervals, window, edge=edge)
        covered = {interval.contig: set() for interval in intervals}
        for row in range(len(windows)):
            covered[windows[row].contig] |= set(range(windows[row].start, windows[row].end))
        for interval in intervals:
            whole = set(range(interval.start, interval.end))
            assert covered[interval.contig] == (whole if edge == "pad" or len(interval) >= window else set())


def test_tile_arguments():
    with pytest.raises(ValueError, match="edge='wrap'; accepted: shift, pad, drop"):
        tile([Interval("chr1", 0, 9)], 3, edge="wrap")
    with pytest.raises(ValueError, match="window_bases=0"):
        tile([Interval("chr1", 0, 9)], 0)
    assert len(tile([], 3)) == 0


def test_compact_tables_hold_the_same():
    intervals = [Interval(f"c{i % 300}", 7 * i, 7 * i + 5) for i in range(1000)]
    table = WindowTable.of(intervals)
    small = table.compact()
    assert [small[row] for row in range(1000)] == intervals
    assert sum(x.nbytes for x in (small.contig_index, small.starts, small.ends)) == 1000 * (2 + 4 + 4)
    far = WindowTable.of([Interval("c", 2**31 - 2, 2**31 + 3)]).compact()
    assert far[0] == Interval("c", 2**31 - 2, 2**31 + 3)


def test_spread_takes_windows_evenly():
    windows = tile([Interval("chr1", 0, 1000)], 10)
    assert windows.spread(4).starts.tolist() == [0, 250, 500, 750]
    assert windows.spread(1000) is windows


# --------------------------------------------------------------------------------------------- the published rules

ROW = 131_072  # bases of a row of human-sequences.bed
HG38_ROWS = 34_021  # its training rows


@pytest.mark.parametrize(
    ("policy", "window", "items"),
    [
        ("hyenadna", 2**10, 34_021),
        ("hyenadna", 2**17, 34_021),
        ("hyenadna", 2**20, 34_021),
        ("caduceus", 2**10, 34_021 * 1024),
        ("caduceus", 2**17, 272_168),
        ("caduceus", 2**20, 34_021),
        ("mamba", 2**10, 34_021 * 128),
        ("mamba", 2**16, 68_042),
        ("mamba", 2**17, 34_021),
        ("mamba", 2**18, 68_042),
        ("mamba", 2**20, 68_042),
    ],
)
def test_item_counts_of_the_published_bed(policy: str, window: int, items: int):
    """The BED itself is not here; the counts follow from its number of rows, all of one length, and the rule."""
    rows = [Interval("chr1", 2**20 + 65_599 * i, 2**20 + 65_599 * i + ROW) for i in range(HG38_ROWS)]
    windows = published_windows(policy, rows, window, {"chr1": 65_599 * HG38_ROWS + 2**21})
    assert len(windows) == items
    assert (windows.ends - windows.starts == window).all()


# A row, the window, the edge -> its windows on a record of 100 bases; each by the rule in domains/dna/windows.py.
PUBLISHED_BY_HAND = [
    ("hyenadna", (20, 60), 10, None, [(20, 30)]),
    ("hyenadna", (20, 60), 40, None, [(20, 60)]),
    ("hyenadna", (20, 60), 45, None, [(18, 63)]),  # 5 more: 2 on the left, 3 on the right
    ("hyenadna", (0, 40), 60, None, [(0, 50)]),  # [-10, 50) cut off at 0: 50 bases
    ("hyenadna", (70, 100), 60, None, [(55, 100)]),
    ("hyenadna", (70, 100), 60, "shift", [(40, 100)]),
    ("hyenadna", (70, 100), 60, "drop", []),
    ("mamba", (20, 60), 10, None, [(20, 30), (30, 40), (40, 50), (50, 60)]),
    ("mamba", (20, 60), 15, None, [(20, 35), (35, 50)]),
    ("mamba", (20, 60), 40, None, [(20, 60)]),
    ("mamba", (20, 60), 50, None, [(20, 70), (10, 60)]),
    ("mamba", (60, 100), 60, None, [(40, 100), (40, 100)]),  # the first runs over the end and is shifted
    ("mamba", (60, 100), 60, "pad", [(60, 100), (40, 100)]),
    ("mamba", (60, 100), 60, "drop", [(40, 100)]),
    ("mamba", (60, 100), 101, "shift", []),
]


@pytest.mark.parametrize(("policy", "row", "window", "edge", "expected"), PUBLISHED_BY_HAND)
def test_published_windows_by_hand(policy, row, window, edge, expected):
    assert pairs(published_windows(policy, [Interval("c", *row)], window, {"c": 100}, edge=edge)) == expected


def test_caduceus_tiles_a_million_bases_from_the_start_of_each_row_and_shifts_at_the_end():
    million = 2**20
    lengths = {"c": million + 1000}
    rows = [Interval("c", 100, 400), Interval("c", 2000, 2300)]
    windows = published_windows("caduceus", rows, million // 2, lengths)
    assert pairs(windows) == [
        (100, 100 + million // 2), (100 + million // 2, 100 + million),
        (2000, 2000 + million // 2), (million + 1000 - million // 2, million + 1000),
    ]  # fmt: skip
    assert len(published_windows("caduceus", rows, million // 2, lengths, edge="drop")) == 3
    padded = published_windows("caduceus", rows, 2**10, {"c": 3000})
    assert len(padded) == 2 * 1024
    assert len(published_windows("caduceus", rows, 2**10, {"c": 3000}, edge="pad")) == 3 + 1  # the rest is all beyond
    with pytest.raises(ValueError, match="window_bases=1000 does not divide 1048576"):
        published_windows("caduceus", rows, 1000, lengths)


def test_a_corpus_by_a_published_rule(write_fasta, random_bases, tmp_path):
    path = write_fasta({"chr1": random_bases(900, 1) + "N" * 100, "chr2": random_bases(300, 2)})
    bed = tmp_path / "human-sequences.bed"
    bed.write_text("chr1\t0\t64\ttrain\nchr1\t900\t964\ttrain\nchr1\t32\t96\tvalid\nchr2\t10\t74\ttest\n")
    corpus = GenomeWindows(str(path), window_bases=16, policy="mamba", splits=BedRegions(str(bed)))
    assert {split: len(corpus.split(split)) for split in ("train", "valid", "test")} == {
        "train": 8, "valid": 4, "test": 4}  # fmt: skip
    assert corpus.report()["train_dropped_windows_n"] == 0  # the published runs leave out no window for its N
    assert (corpus.report()["valid_leak_share"], corpus.report()["test_leak_share"]) == (0.5, 0)
    fewer = GenomeWindows(str(path), window_bases=16, policy="mamba", splits=BedRegions(str(bed)), max_n_fraction=0.5)
    assert len(fewer.split("train")) == 4
    assert fewer.report()["train_dropped_windows_n"] == 4
    wide = GenomeWindows(str(path), window_bases=128, policy="hyenadna", splits=BedRegions(str(bed)))
    assert [len(wide.split("train")[index].ids) for index in (0, 1)] == [96, 128]
    assert pairs(wide.split("train").windows) == [(0, 96), (868, 996)]


def test_published_rules_need_a_bed(write_fasta, random_bases):
    path = str(write_fasta({"chr1": random_bases(500)}))
    for splits in (None, HeldOutRegions()):
        with pytest.raises(ValueError, match=r'policy="caduceus" takes windows from the rows of a BED.*BedRegions'):
            GenomeWindows(path, window_bases=64, policy="caduceus", splits=splits)


def test_train_at_gives_windows_of_another_length_by_the_same_rule(write_fasta, random_bases, tmp_path):
    path = str(write_fasta({"chr1": random_bases(4000, 1)}))
    bed = tmp_path / "x.bed"
    bed.write_text("chr1 0 256 train\nchr1 600 856 train\n")
    corpus = GenomeWindows(path, window_bases=128, policy="mamba", splits=BedRegions(str(bed)))
    assert corpus.train_at(128) is corpus.split("train")
    assert pairs(corpus.train_at(64).windows) == pairs(tile([Interval("c", 0, 256), Interval("c", 600, 856)], 64))
    random = GenomeWindows(path, window_bases=128, windows_per_epoch=10)
    short = random.train_at(32)
    assert len(short) == 40  # the same bases an epoch
    assert {len(short[index].ids) for index in range(40)} == {32}
    starts = [[dataset.window(index).start for index in range(10)] for dataset in (short, random.split("train"))]
    assert max(abs(a - b) for a, b in zip(*starts)) > 500, "a stage is no copy of the next one's places"


# ----------------------------------------------------------------------------------------------------------- leaks


def test_touching_by_hand():
    training = WindowTable.of([Interval("a", 10, 20), Interval("a", 18, 30), Interval("b", 0, 5)])
    held = WindowTable.of(
        [Interval("a", 0, 10), Interval("a", 0, 11), Interval("a", 29, 31), Interval("a", 30, 40), Interval("c", 0, 9)]
    )
    assert touching(held, training).tolist() == [False, True, True, False, False]
    report = leak_report(training, {"valid": held, "test": WindowTable.of([])})
    assert (report["valid"].windows, report["test"].windows) == (0.4, 0.0)
    assert report["valid"].bases == pytest.approx((0 + 1 + 1 + 0 + 0) / (10 + 11 + 2 + 10 + 9))


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=8)


@given(spans, spans)
def test_touching_agrees_with_sets(training, held):
    """On three records that lie end to end inside the count: nothing may leak from one into the next."""
    tables = [
        [Interval("abc"[start % 3], start // 3, start // 3 + length) for start, length in part]
        for part in (training, held)
    ]
    taken = {(w.contig, base) for w in tables[0] for base in range(w.start, w.end)}
    expected = [len(taken & {(w.contig, base) for base in range(w.start, w.end)}) for w in tables[1]]
    found = Coverage(WindowTable.of(tables[0])).bases_within(WindowTable.of(tables[1]))
    assert found.tolist() == expected
    assert touching(WindowTable.of(tables[1]), WindowTable.of(tables[0])).tolist() == [count > 0 for count in expected]


def test_n_fractions_over_contigs():
    windows = WindowTable.of([Interval("b", 0, 4), Interval("a", 0, 10), Interval("b", 4, 8)])
    counts = {"a": lambda s, e: 5 * np.ones(len(s)), "b": lambda s, e: np.where(s == 0, 1, 4)}
    assert n_fractions(windows, lambda name, s, e: counts[name](s, e)).tolist() == [0.25, 0.5, 1.0]
