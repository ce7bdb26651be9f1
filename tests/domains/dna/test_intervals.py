"""Windows and splits as tables, BED errors with their line, and the leak report against a count by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.dna.intervals import (
    BedRegions,
    HeldOutChromosomes,
    HeldOutRegions,
    Interval,
    WindowTable,
    find_contig,
    leak_report,
    n_fractions,
    read_bed,
    tile,
    touching,
)

LENGTHS = {"chr1": 1000, "chr2": 500, "chrM": 16}


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


def test_spread_takes_windows_evenly():
    windows = tile([Interval("chr1", 0, 1000)], 10)
    assert windows.spread(4).starts.tolist() == [0, 250, 500, 750]
    assert windows.spread(1000) is windows


# --------------------------------------------------------------------------------------------------------- splits


def test_tail_split_as_a_table():
    regions = HeldOutRegions(valid=0.1, test=0.2).regions(LENGTHS)
    assert [str(region) for region in regions["train"]] == ["chr1:0-700(+)", "chr2:0-350(+)", "chrM:0-11(+)"]
    assert [str(region) for region in regions["valid"]] == ["chr1:700-800(+)", "chr2:350-400(+)", "chrM:11-13(+)"]
    assert [str(region) for region in regions["test"]] == ["chr1:800-1000(+)", "chr2:400-500(+)", "chrM:13-16(+)"]


@pytest.mark.parametrize("layout", ["tail", "blocks"])
@pytest.mark.parametrize(("valid", "test"), [(0.1, 0.1), (0.25, 0.0), (0.0, 0.0)])
def test_splits_part_every_base_exactly_once(layout: str, valid: float, test: float):
    lengths = {"a": 10_007, "b": 123, "c": 0}
    regions = HeldOutRegions(valid=valid, test=test, layout=layout, block_bases=100, seed=3).regions(lengths)
    times = {name: np.zeros(length, dtype=int) for name, length in lengths.items()}
    for split in regions.values():
        for region in split:
            times[region.contig][region.start : region.end] += 1
    assert all((count == 1).all() for count in times.values())
    share = sum(len(region) for region in regions["valid"]) / sum(lengths.values())
    assert share == pytest.approx(valid, abs=0.02)


def test_blocks_depend_on_the_seed_alone():
    regions = [HeldOutRegions(layout="blocks", block_bases=10, seed=seed).regions(LENGTHS) for seed in (0, 0, 1)]
    assert regions[0] == regions[1] != regions[2]


def test_held_out_fractions_are_checked():
    for valid, test in ((0.5, 0.5), (-0.1, 0), (1.0, 0)):
        with pytest.raises(ValueError, match="sum below 1"):
            HeldOutRegions(valid=valid, test=test)
    with pytest.raises(ValueError, match="layout"):
        HeldOutRegions(layout="middle")


def test_held_out_chromosomes():
    lengths = {"chr1": 10, "chr2": 20, "chr20": 30, "hg38/chrX": 40}
    regions = HeldOutChromosomes(valid="20", test=["chrX"]).regions(lengths)
    assert {split: [region.contig for region in found] for split, found in regions.items()} == {
        "train": ["chr1", "chr2"], "valid": ["chr20"], "test": ["hg38/chrX"],
    }  # fmt: skip
    assert [r.contig for r in HeldOutChromosomes(test=["hg38/*"], train=["chr2*"]).regions(lengths)["train"]] == [
        "chr2", "chr20",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"valid='chr21' matches no sequence; close: chr2, chr1, chr20"):
        HeldOutChromosomes(valid=["chr21"]).regions(lengths)
    with pytest.raises(ValueError, match="chr2 is in both valid and test"):
        HeldOutChromosomes(valid=["chr2"], test=["chr2*"]).regions(lengths)


# ------------------------------------------------------------------------------------------------------------ BED


def test_bed_is_read(tmp_path):
    path = tmp_path / "x.bed"
    path.write_text("#comment\ntrack name=x\n1\t0\t10\ttrain\nchr2 5 500 valid 0 -\r\n\nMT\t0\t16\n")
    assert [str(row) + row.name for row in read_bed(path, LENGTHS)] == [
        "chr1:0-10(+)train", "chr2:5-500(-)valid", "chrM:0-16(+)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("chr2\t0\t501\tx", r"chr2:0-501 runs past the end of chr2 \(500 bases\)"),
        ("chr3\t0\t10\tx", r"no sequence 'chr3'; close: chr"),
        ("chr1\t10\t5\tx", "reversed"),
        ("chr1\t5\t5\tx", "is empty"),
        ("chr1\t-5\t5\tx", "not a BED interval"),
        ("chr1\tfive\tten", "not a BED interval"),
        ("chr1 7", "not a BED interval"),
        ("chr1\t0\t5\tx\t0\t?", "strand"),
    ],
)
def test_bed_errors_name_file_and_line(tmp_path, line: str, message: str):
    path = tmp_path / "x.bed"
    path.write_text(f"chr1\t0\t10\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_bed(path, LENGTHS)
    assert str(caught.value).startswith(f"{path}, line 2: ")


def test_bed_regions_by_label(tmp_path):
    path = tmp_path / "x.bed"
    path.write_text("chr1 0 10 fold0\nchr1 10 30 fold1\nchr2 0 10 fold2\nchr2 10 20 fold9\n")
    regions = BedRegions(str(path), train=["fold0", "fold1"], valid="fold2").regions(LENGTHS)
    assert [len(regions[split]) for split in ("train", "valid", "test")] == [2, 1, 0]
    with pytest.raises(ValueError, match=r"no row is labelled \['train'\]; column four holds \['fold0'"):
        BedRegions(str(path)).regions(LENGTHS)
    with pytest.raises(FileNotFoundError, match=r"none\.bed"):
        BedRegions(str(tmp_path / "none.bed")).regions(LENGTHS)


def test_aliases():
    assert find_contig("20", {"chr20": 1}) == "chr20"
    assert find_contig("chr20", {"20": 1}) == "20"
    assert find_contig("chrM", {"MT": 1}) == "MT"
    assert find_contig("M", {"chrM": 1}) == "chrM"
    assert find_contig("21", {"chr20": 1}) is None


# ----------------------------------------------------------------------------------------------------------- leaks


def test_touching_by_hand():
    training = WindowTable.of([Interval("a", 10, 20), Interval("a", 18, 30), Interval("b", 0, 5)])
    held = WindowTable.of(
        [Interval("a", 0, 10), Interval("a", 0, 11), Interval("a", 29, 31), Interval("a", 30, 40), Interval("c", 0, 9)]
    )
    assert touching(held, training).tolist() == [False, True, True, False, False]
    assert leak_report(training, {"valid": held, "test": WindowTable.of([])}) == {"valid": 0.4, "test": 0.0}


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=8)


@given(spans, spans)
def test_touching_agrees_with_sets(training, held):
    taken = {base for start, length in training for base in range(start, start + length)}
    found = touching(*(WindowTable.of([Interval("a", s, s + n) for s, n in part]) for part in (held, training)))
    assert found.tolist() == [bool(taken & set(range(start, start + length))) for start, length in held]


def test_n_fractions_over_contigs():
    windows = WindowTable.of([Interval("b", 0, 4), Interval("a", 0, 10), Interval("b", 4, 8)])
    counts = {"a": lambda s, e: 5 * np.ones(len(s)), "b": lambda s, e: np.where(s == 0, 1, 4)}
    assert n_fractions(windows, lambda name, s, e: counts[name](s, e)).tolist() == [0.25, 0.5, 1.0]
