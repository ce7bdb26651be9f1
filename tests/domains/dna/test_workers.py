"""The same bases from 1 worker and from 16, under fork, spawn and forkserver, from every kind of file.

A handle with a position that forked workers share returns wrong bases without an error; these tests hash what arrives.
"""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from domains.dna.fasta import Genome

OPENED: list[Genome] = []  # what forked workers inherit, already read from
READS = 40


def digest(genome: Genome, seed: int) -> str:
    total, dice = hashlib.sha256(), np.random.default_rng(seed)
    names = list(genome.lengths)
    for _ in range(READS):
        name = names[int(dice.integers(len(names)))]
        start, end = sorted(dice.integers(0, genome.lengths[name], 2).tolist())
        total.update(genome.fetch(name, start, end, "+-"[int(dice.integers(2))]).tobytes())
    return total.hexdigest()


def digest_inherited(seed: int) -> str:
    return digest(OPENED[-1], seed)


def digest_sent(work: tuple[Genome, int]) -> str:
    return digest(*work)


@pytest.fixture(params=["plain", "bgzip", "clean copy", "2bit"])
def genome(request, write_fasta, random_bases, tmp_path: Path) -> Genome:
    records = {f"chr{i}": random_bases(30_000, i, "ACGTacgtN") for i in range(3)}
    if request.param == "2bit":
        spec = importlib.util.spec_from_file_location("two_bit_writer", Path(__file__).with_name("test_twobit.py"))
        assert spec is not None
        assert spec.loader is not None
        writer = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(writer)
        path = tmp_path / "g.2bit"
        path.write_bytes(writer.two_bit(records))
    else:
        path = write_fasta(records, "g.fa", bgzip=request.param == "bgzip")
        if request.param == "clean copy":
            path.write_text("; a comment\n" + path.read_text())
    genome = Genome(str(path))
    assert genome.files[0].kind == request.param
    return genome


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_16_forked_workers_read_what_one_process_reads(genome: Genome):
    expected = [digest(genome, seed) for seed in range(64)]
    assert len(set(expected)) == 64
    OPENED.append(genome)
    for workers in (1, 16):
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
            assert list(pool.map(digest_inherited, range(64))) == expected


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_16_started_workers_read_what_one_process_reads(genome: Genome, method: str):
    expected = [digest(genome, seed) for seed in range(64)]
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    workers = 16 if method == "forkserver" or genome.files[0].kind == "plain" else 2  # a spawned one starts slowly
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        assert list(pool.map(digest_sent, [(genome, seed) for seed in range(64)])) == expected
