"""2bit files give the same bases as the FASTA they were made from, in both byte orders."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from domains.dna.datasets import GenomeWindows
from domains.dna.fasta import Genome
from domains.dna.tokenizer import reverse_complement
from domains.dna.twobit import TwoBit

CODE = {"T": 0, "C": 1, "A": 2, "G": 3, "N": 0}


def runs(flags: list[bool]) -> list[tuple[int, int]]:
    """(start, size) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.array([0, *map(int, flags), 0])))
    return [(int(start), int(end - start)) for start, end in zip(edges[::2], edges[1::2])]


def two_bit(records: dict[str, str], order: str = "<", version: int = 0) -> bytes:
    """A 2bit file as UCSC's description of the format says, written letter by letter."""
    offset_format, bodies = "Q" if version else "I", []
    for letters in records.values():
        body = struct.pack(f"{order}I", len(letters))
        for blocks in (runs([x in "Nn" for x in letters]), runs([x.islower() for x in letters])):
            body += struct.pack(f"{order}I", len(blocks))
            body += struct.pack(f"{order}{len(blocks)}I", *(start for start, _ in blocks))
            body += struct.pack(f"{order}{len(blocks)}I", *(size for _, size in blocks))
        body += struct.pack(f"{order}I", 0)
        for i in range(0, len(letters), 4):
            four = (letters[i : i + 4].upper() + "TTT")[:4]
            body += bytes([sum(CODE[x] << shift for x, shift in zip(four, (6, 4, 2, 0)))])
        bodies.append(body)
    head = struct.pack(f"{order}IIII", 0x1A412743, version, len(records), 0)
    at = len(head) + sum(1 + len(name) + struct.calcsize(f"={offset_format}") for name in records)
    for name, body in zip(records, bodies):
        head += bytes([len(name)]) + name.encode() + struct.pack(f"{order}{offset_format}", at)
        at += len(body)
    return head + b"".join(bodies)


@pytest.fixture
def records(random_bases) -> dict[str, str]:
    mixed = random_bases(301, 1) + "NNNNN" + random_bases(97, 2, "acgtn") + "N" * 64 + random_bases(33, 3, "ACGTNacgt")
    return {"chr1": mixed, "chr2": "N" * 7, "chrM": random_bases(4, 4), "one": "g"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [0, 1])
def test_every_window_reads_as_the_letters_it_was_made_of(tmp_path: Path, records, order: str, version: int):
    path = tmp_path / "x.2bit"
    path.write_bytes(two_bit(records, order, version))
    genome = TwoBit(path)
    assert genome.lengths == {name: len(letters) for name, letters in records.items()}
    for name, letters in records.items():
        assert genome.fetch(name).tobytes().decode() == letters
    dice = np.random.default_rng(0)
    for _ in range(300):
        start, end = sorted(dice.integers(0, len(records["chr1"]) + 1, 2).tolist())
        assert genome.fetch("chr1", start, end).tobytes().decode() == records["chr1"][start:end]
        minus = genome.fetch("chr1", start, end, "-")
        assert minus.tobytes() == reverse_complement(records["chr1"][start:end]).tobytes()
        n = genome.count_n("chr1", np.array([start]), np.array([end]))[0]
        assert n == records["chr1"][start:end].upper().count("N")


def test_counts_are_those_of_the_fasta(tmp_path: Path, records, write_fasta):
    (tmp_path / "g.2bit").write_bytes(two_bit(records))
    bit, fasta = TwoBit(tmp_path / "g.2bit"), Genome(str(write_fasta(records, "g.fa"))).files[0]
    assert bit.counts() == fasta.counts()
    assert bit.counts("chr1") == fasta.counts("chr1")


def test_a_corpus_from_2bit_is_the_corpus_from_fasta(tmp_path: Path, random_bases, write_fasta):
    records = {"chr1": random_bases(5000, 1) + random_bases(3000, 2, "acgtN"), "chr2": random_bases(2000, 3)}
    (tmp_path / "b").mkdir()
    (tmp_path / "b/g.2bit").write_bytes(two_bit(records, ">"))
    sources = (str(write_fasta(records, "a/g.fa")), str(tmp_path / "b"))
    one, two = (GenomeWindows(source, window_bases=128, soft_mask_weight=0.1) for source in sources)
    assert one.report() == two.report()
    for split in ("train", "valid", "test"):
        for index in range(len(one.split(split))):
            first, second = one.split(split)[index], two.split(split)[index]
            assert first.ids.tolist() == second.ids.tolist()
            assert first.weights.tolist() == second.weights.tolist()  # type: ignore[union-attr]


def test_a_2bit_by_another_name_is_recognised(tmp_path: Path):
    (tmp_path / "g.fa").write_bytes(two_bit({"a": "ACGT"}))
    assert Genome(str(tmp_path / "g.fa")).fetch("a").tobytes() == b"ACGT"


def test_it_travels_as_a_path(tmp_path: Path, records):
    path = tmp_path / "x.2bit"
    path.write_bytes(two_bit(records))
    genome = TwoBit(path)
    genome.fetch("chr1")
    sent = pickle.dumps(genome)
    assert len(sent) < 1000
    assert pickle.loads(sent).fetch("chr1").tobytes().decode() == records["chr1"]
    path.write_bytes(two_bit({"chr1": "ACGT"}))
    with pytest.raises(ValueError, match="was changed after it was opened"):
        pickle.loads(sent).fetch("chr1")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "cut off: the header should end at byte 16, the file at 0"),
        (lambda data: b">chr1\nACGTACGTACGT\n", "not a 2bit file"),
        (lambda data: data[:4] + b"\x07" + data[5:], "2bit version 7; versions 0 and 1"),
        (lambda data: data[:20], "cut off in the index, at record 1 of 4"),
        (lambda data: data[:100], "cut off"),
        (lambda data: data[:-1], "cut off: the bases of one should end at byte"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, records, damage, message: str):
    path = tmp_path / "x.2bit"
    path.write_bytes(damage(two_bit(records)))
    with pytest.raises(ValueError, match=f"x.2bit: .*{message}"):
        TwoBit(path).counts()


def test_names_that_are_not_there(tmp_path: Path, records):
    path = tmp_path / "x.2bit"
    path.write_bytes(two_bit(records))
    with pytest.raises(ValueError, match=r"x.2bit has no record 'chr11'; close: chr1"):
        TwoBit(path).fetch("chr11")
    with pytest.raises(ValueError, match=r"chr1:0-1000 is not inside 0-"):
        TwoBit(path).fetch("chr1", 0, 1000)
    with pytest.raises(FileNotFoundError, match="no 2bit file"):
        TwoBit(tmp_path / "y.2bit")
