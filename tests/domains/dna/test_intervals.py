"""Splits as tables, BED errors with their line, labels and chromosomes that choose the split."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from domains.dna.intervals import BedRegions, HeldOutChromosomes, HeldOutRegions, read_bed
from domains.dna.names import find_contig

LENGTHS = {"chr1": 1000, "chr2": 500, "chrM": 16}

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


@pytest.mark.parametrize("name", ["x.bed", "x.bed.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_bed_is_says_the_file_and_not_its_name(tmp_path, name, packed):
    text = b"\xef\xbb\xbfchr1\t0\t10\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if packed else text)
    assert [str(row) for row in read_bed(tmp_path / name, LENGTHS)] == ["chr1:0-10(+)"]


def test_a_bed_that_is_cut_off_is_named(tmp_path):
    (tmp_path / "x.bed.gz").write_bytes(gzip.compress(b"chr1\t0\t10\n" * 500)[:-20])
    with pytest.raises(ValueError, match=r"x\.bed\.gz: damaged or cut off"):
        read_bed(tmp_path / "x.bed.gz", LENGTHS)


def test_bed_regions_by_label(tmp_path):
    path = tmp_path / "x.bed"
    path.write_text("chr1 0 10 fold0\nchr1 10 30 fold1\nchr2 0 10 fold2\nchr2 10 20 fold9\n")
    regions = BedRegions(str(path), train=["fold0", "fold1"], valid="fold2").regions(LENGTHS)
    assert [len(regions[split]) for split in ("train", "valid", "test")] == [2, 1, 0]
    with pytest.raises(ValueError, match=r"no row is labelled \['train'\]; column 4 holds 'fold0'"):
        BedRegions(str(path)).regions(LENGTHS)
    with pytest.raises(FileNotFoundError, match=r"none\.bed"):
        BedRegions(str(tmp_path / "none.bed")).regions(LENGTHS)


def test_aliases():
    assert find_contig("20", {"chr20": 1}) == "chr20"
    assert find_contig("chr20", {"20": 1}) == "20"
    assert find_contig("chrM", {"MT": 1}) == "MT"
    assert find_contig("M", {"chrM": 1}) == "chrM"
    assert find_contig("21", {"chr20": 1}) is None


def test_bed_regions_by_globs_of_labels_in_another_column(tmp_path):
    path = tmp_path / "x.bed.gz"
    rows = [f"chr1 {10 * i} {10 * i + 10} row{i} 0 fold{i % 4}" for i in range(8)]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    splits = BedRegions(str(path), train="fold[01]", valid="fold2", test=["fold3"], label_column=6)
    regions = splits.regions(LENGTHS)
    assert [[region.start for region in regions[split]] for split in ("train", "valid", "test")] == [
        [0, 10, 40, 50], [20, 60], [30, 70]]  # fmt: skip
    with pytest.raises(ValueError, match=r"the label 'fold2' is in both train and valid"):
        BedRegions(str(path), train="fold*", valid="fold2", label_column=6).regions(LENGTHS)
    with pytest.raises(ValueError, match=r"no row is labelled .*; column 5 holds '0'"):
        BedRegions(str(path), label_column=5).regions(LENGTHS)
    with pytest.raises(ValueError, match="label_column=3"):
        BedRegions(str(path), label_column=3)


def test_rows_on_sequences_that_are_not_there_are_refused_or_skipped_and_counted(tmp_path, caplog):
    path = tmp_path / "x.bed"
    path.write_text("chr9 0 10 train\nchr1 0 10 train\nchr9 20 30 test\nchr8 5 9 valid\n")
    with pytest.raises(ValueError, match=r"x.bed, line 1: there is no sequence 'chr9'"):
        BedRegions(str(path)).regions(LENGTHS)
    assert len(BedRegions(str(path), on_missing="skip").regions(LENGTHS)["train"]) == 1
    assert "3 rows are on sequences that are not there: chr9, chr8" in caplog.text
    with pytest.raises(ValueError, match="no interval in it; 4 rows are on sequences that are not there"):
        BedRegions(str(path), on_missing="skip").regions({"scaffold": 100})
    with pytest.raises(ValueError, match="on_missing='no'"):
        BedRegions(str(path), on_missing="no")
