"""The species study and the benchmarks of sequences: their data scripts on small files, and a smoke run of each."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from domains.dna.fasta import Genome

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(experiment):
    return experiment("dna.species.data")


@pytest.fixture
def benchmark_data(experiment):
    return experiment("dna.benchmarks.data")


def test_twobit_holds_what_the_fasta_held(tmp_path, data):
    """Odd lengths, N at both ends and inside, IUPAC codes as N."""
    named = {"one": b"NNACGTTGCANNNACGTAN", "two": b"ACGTACGTACGTA", "three": b"RACGT"}
    data.write_twobit(tmp_path / "x.2bit", named)
    genome = Genome({"x": str(tmp_path / "x.2bit")})
    assert genome.lengths == {name: len(letters) for name, letters in named.items()}
    for name, letters in named.items():
        assert genome.fetch(name, 0, len(letters), "+").tobytes() == letters.replace(b"R", b"N")


def test_apes_are_folders_that_the_product_reads(tmp_path, data, ape_pieces):
    from domains.dna.datasets import SpeciesFolders
    from domains.dna.intervals import HeldOutChromosomes

    data.collect_apes(ape_pieces, tmp_path / "apes", range(1, 4))
    splits = HeldOutChromosomes(valid=["2"], test=["3"])
    corpus = SpeciesFolders(str(tmp_path / "apes"), window_bases=16, splits=splits, eval_windows_per_species=2)
    assert corpus.class_names == data.APES
    assert len(corpus.split("test")) == 8


@pytest.fixture
def ape_pieces(tmp_path, data):
    import gzip

    rng = np.random.default_rng(0)
    folder = tmp_path / "source"
    folder.mkdir()
    for species in data.APES:
        text = "".join(f">chr22_seg0{n} x\n{''.join(rng.choice(list('acgT'), size=100))}\n" for n in range(1, 4))
        (folder / f"{species}.fa.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def test_every_tenth_is_test_once_and_touches_nothing_else(tmp_path, experiment):
    """Train, validation and test of a split cover every contig, none twice, a tenth each for the last two."""
    run = experiment("dna.species.run")
    run.write_tenths(tmp_path)
    lengths = Genome("example:vertebrates").lengths
    for split in run.SPLITS["vertebrates"][1:]:
        rows = [line.split("\t") for line in (tmp_path / f"{split}.bed").read_text().splitlines()]
        for contig, length in lengths.items():
            parts = sorted((int(start), int(end), name) for name_, start, end, name in rows if name_ == contig)
            assert [parts[0][0], parts[-1][1]] == [0, length]
            assert all(one[1] == two[0] for one, two in pairwise(parts))
            for name in ("valid", "test"):
                assert sum(end - start for start, end, of in parts if of == name) == pytest.approx(length / 10, abs=1)


def test_shuffling_keeps_dinucleotides(benchmark_data):
    rng = np.random.default_rng(0)
    for seed in range(20):
        own = np.random.default_rng(seed)
        letters = "".join(own.choice(list("ACGT"), size=int(own.integers(2, 60)), p=[0.4, 0.3, 0.2, 0.1]))
        mixed = benchmark_data.shuffle(letters, rng)
        pairs = [sorted(one[i : i + 2] for i in range(len(one) - 1)) for one in (letters, mixed)]
        assert pairs[0] == pairs[1]
    assert len({benchmark_data.shuffle("ACGTTGCAACGGTTAC", rng) for _ in range(20)}) > 3


def test_genes_of_genbank_are_read_on_their_strand(tmp_path, benchmark_data):
    """The same gene on either strand: donors GT, acceptors AG."""
    bases = "ccatgaagtaaaacagtttcc"  # exons cc atgaa | taaaac -> donor gt at 7, acceptor ag at 14
    other = bases[::-1].translate(str.maketrans("acgt", "tgca"))
    text = ""
    for letters, where in ((bases, "join(3..7,17..19)"), (other, "complement(join(3..5,15..19))")):
        body = f"        1 {letters[:10]} {letters[10:]}\n"
        head = f"LOCUS       x   21 bp  DNA\n     CDS             {where}\n"
        text += f"{head}                     /gene=1\nORIGIN\n{body}//\n"
    (tmp_path / "g.gb").write_text(text)
    genes = list(benchmark_data.read_genbank(tmp_path / "g.gb"))
    assert genes == [(bases, [(2, 7), (16, 19)])] * 2
    assert [bases[7:9], bases[14:16]] == ["gt", "ag"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["species", "benchmarks"])
def test_smoke_run_leaves_rows(name, tmp_path):
    script = ROOT / "experiments" / "dna" / name / "run.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(script), "--smoke", "--out", str(tmp_path / "out"), "--commit", "x"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    with open(tmp_path / "out" / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == {"species": 6, "benchmarks": 4}[name]
    assert all(0 <= float(row["test_accuracy"]) <= 1 and row["commit"] == "x" for row in rows)
    assert not any(str(tmp_path) in row["words"] for row in rows)  # no machine's paths


def test_letters_by_position_find_what_stands_in_one_place(experiment):
    """A letter in the middle tells the class; everything else is random, N included."""
    from types import SimpleNamespace

    rng = np.random.default_rng(0)

    def records(count: int) -> list[SimpleNamespace]:
        made = []
        for number in range(count):
            ids = rng.integers(7, 12, size=9)
            ids[4] = (9, 10)[number % 2]
            made.append(SimpleNamespace(ids=ids.astype(np.uint8), label=number % 2))
        return made

    splits = {"train": records(80), "valid": records(20), "test": records(30)}
    corpus = SimpleNamespace(class_names=("g", "t"), split=splits.__getitem__)
    result = experiment("dna.benchmarks.run").position_baseline(corpus, "test")
    np.testing.assert_array_equal(result.confusion, [[15, 0], [0, 15]])
