"""Samples depend on (seed, epoch, index) alone, come from their split, and read as the file says."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from domains.dna.datasets import GenomeWindows
from domains.dna.intervals import BedRegions, HeldOutRegions
from domains.dna.tokenizer import DnaTokenizer, reverse_complement_ids
from seqmodels.data.record import IGNORE_INDEX, Corpus, SampleKey, SequenceDataset


@pytest.fixture
def genome(write_fasta, random_bases):
    """Two chromosomes, one with a long run of N and soft-masked bases."""
    first = random_bases(4000, 1) + "N" * 1000 + random_bases(5000, 2, "acgt")
    return str(write_fasta({"chr1": first, "chr2": random_bases(3000, 3)}, "genome.fa"))


@pytest.mark.parametrize("policy", ["random", "tile"])
def test_corpus_keeps_its_promises(genome, policy: str):
    corpus = GenomeWindows(genome, window_bases=100, policy=policy, reverse_complement_augment=True)
    assert isinstance(corpus, Corpus)
    assert corpus.class_names == ()
    regions = corpus.splitter.regions({"chr1": 10_000, "chr2": 3000})
    for split in ("train", "valid", "test"):
        dataset = corpus.split(split)
        assert isinstance(dataset, SequenceDataset)
        for index in range(len(dataset)):
            window = dataset.window(index)
            record = dataset[index]
            inside = [r for r in regions[split] if r.contig == window.contig and r.start <= window.start]
            assert any(window.end <= region.end for region in inside)
            assert record.ids.dtype == np.uint8
            assert len(record.ids) == 100
            assert (record.ids == 11).mean() <= 0.5
            assert record.id.startswith(f"genome.fa:{window.contig}:{window.start}-{window.end}(")
    with pytest.raises(ValueError, match="no split 'dev'; there are: train, valid, test"):
        corpus.split("dev")


def test_same_key_same_sample(genome):
    make = lambda seed: GenomeWindows(genome, window_bases=64, seed=seed, reverse_complement_augment=True)  # noqa: E731
    one, two, other = (make(seed).split("train") for seed in (0, 0, 1))
    windows = [one.window(SampleKey(epoch, index)) for epoch in (0, 1) for index in range(40)]
    assert windows == [two.window(SampleKey(epoch, index)) for epoch in (0, 1) for index in range(40)]
    assert windows[:40] != windows[40:]
    assert windows[:40] != [other.window(index) for index in range(40)]
    assert one.window(7) == one.window(SampleKey(0, 7))
    assert {window.strand for window in windows} == {"+", "-"}
    with pytest.raises(IndexError):
        one[len(one)]


def test_every_place_in_a_region_is_drawn_and_no_other(write_fasta, random_bases):
    path = write_fasta({"a": random_bases(52), "b": random_bases(50), "c": random_bases(49)})
    corpus = GenomeWindows(str(path), window_bases=50, splits=HeldOutRegions(valid=0, test=0), windows_per_epoch=400)
    drawn = [corpus.split("train").window(index) for index in range(400)]
    places = [(window.contig, window.start) for window in drawn]
    counts = {place: places.count(place) for place in set(places)}
    assert counts.keys() == {("a", 0), ("a", 1), ("a", 2), ("b", 0)}
    assert all(60 < count < 140 for count in counts.values())


def test_evaluation_windows_never_change(genome):
    corpus = GenomeWindows(genome, window_bases=64, reverse_complement_augment=True, eval_windows=5)
    valid = corpus.split("valid")
    assert len(valid) == 5
    for index in range(5):
        assert valid[SampleKey(0, index)].ids.tolist() == valid[SampleKey(9, index)].ids.tolist()
        assert valid.window(index).strand == "+"


def test_minus_strand_reads_the_reverse_complement(genome):
    corpus = GenomeWindows(genome, window_bases=200, reverse_complement_augment=True, max_n_fraction=0)
    train = corpus.split("train")
    index = next(i for i in range(100) if train.window(i).strand == "-")
    window = train.window(index)
    forward = DnaTokenizer().encode(corpus.genome.fetch(window.contig, window.start, window.end))
    assert train[index].ids.tolist() == reverse_complement_ids(forward).tolist()


def test_n_takes_no_part_in_the_loss(write_fasta, random_bases):
    path = write_fasta({"a": random_bases(40, 1) + "NNNNR" + random_bases(55, 2)})
    corpus = GenomeWindows(str(path), window_bases=50, policy="tile", splits=HeldOutRegions(valid=0, test=0))
    first, second = (corpus.split("train")[index] for index in (0, 1))
    assert first.target_ids is not None
    assert first.target_ids.dtype == np.int64
    assert np.flatnonzero(first.target_ids == IGNORE_INDEX).tolist() == [40, 41, 42, 43, 44]
    assert first.target_ids[:40].tolist() == first.ids[:40].tolist()
    assert second.target_ids is None
    with pytest.raises(ValueError, match="no region of the data is in the split 'valid'"):
        corpus.split("valid")


def test_windows_with_many_n_are_left_out_and_counted(genome):
    whole = HeldOutRegions(valid=0, test=0)
    corpus = GenomeWindows(genome, window_bases=100, policy="tile", splits=whole, max_n_fraction=0.5)
    report = corpus.report()
    assert report["train_dropped_windows_n"] == 10
    assert report["train_windows"] == len(corpus.split("train")) == 130 - 10
    assert (report["bases"], report["n"], report["lower_case"], report["sequences"]) == (13_000, 1000, 5000, 2)
    random = GenomeWindows(genome, window_bases=100, splits=whole, max_n_fraction=0.0, windows_per_epoch=500)
    assert all(random.split("train")[index].target_ids is None for index in range(500))


def test_soft_mask_weight(genome):
    splits = HeldOutRegions(valid=0, test=0)
    corpus = GenomeWindows(genome, window_bases=1000, policy="tile", splits=splits, soft_mask_weight=0.25)
    weights = [corpus.split("train")[index].weights for index in (0, 5)]
    assert [set(w.tolist()) for w in weights if w is not None] == [{1.0}, {0.25}]
    assert GenomeWindows(genome, window_bases=1000).split("train")[0].weights is None


def test_shift_moves_tiles_within_their_region(genome):
    splits = HeldOutRegions(valid=0.1, test=0.1)
    corpus = GenomeWindows(genome, window_bases=100, policy="tile", splits=splits, max_shift_bases=30)
    train = corpus.split("train")
    starts = {train.window(SampleKey(epoch, 10)).start for epoch in range(50)}
    assert len(starts) > 20
    assert min(starts) >= 1000 - 30
    assert max(starts) <= 1000 + 30
    assert min(train.window(SampleKey(epoch, 0)).start for epoch in range(50)) == 0


def test_edge_pad_makes_a_shorter_window(write_fasta, random_bases):
    path = write_fasta({"a": random_bases(250)})
    splits = HeldOutRegions(valid=0, test=0)
    corpus = GenomeWindows(str(path), window_bases=100, policy="tile", edge="pad", splits=splits)
    assert [len(corpus.split("train")[index].ids) for index in range(3)] == [100, 100, 50]


def test_leaks_are_reported_or_refused(genome, tmp_path, caplog):
    bed = tmp_path / "splits.bed"
    bed.write_text("chr1 0 2000 train\nchr1 1900 2500 valid\nchr2 0 1000 test\n")
    splits = BedRegions(str(bed))
    corpus = GenomeWindows(genome, window_bases=100, splits=splits)
    assert corpus.report()["valid_leak_share"] == pytest.approx(1 / 6)
    assert corpus.report()["test_leak_share"] == 0
    assert corpus.report()["valid_leak_base_share"] == pytest.approx(1 / 6)
    assert "16.7% of the valid windows (16.7% of their bases) touch training bases" in caplog.text
    with pytest.raises(ValueError, match="on_leak"):
        GenomeWindows(genome, window_bases=100, splits=splits, on_leak="error")
    assert GenomeWindows(genome, window_bases=100).report()["valid_leak_share"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_bases": 20_000}, r"longer than every sequence; .* genome.fa:chr1 \(10000\), .*chr2 \(3000\)"),
        ({"window_bases": 0}, "window_bases=0"),
        ({"policy": "all"}, "policy='all'"),
        ({"max_n_fraction": 2}, "max_n_fraction=2"),
        ({"soft_mask_weight": -1}, "soft_mask_weight=-1"),
        ({"on_leak": "no"}, "on_leak='no'"),
        ({"max_shift_bases": 5}, "max_shift_bases"),
        ({"policy": "tile", "windows_per_epoch": 5}, "windows_per_epoch"),
        ({"edge": "wrap"}, "edge='wrap'"),
    ],
)
def test_arguments_are_checked(genome, arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        GenomeWindows(genome, **arguments)


def test_split_too_short_for_the_window(genome):
    corpus = GenomeWindows(genome, window_bases=1024)
    with pytest.raises(ValueError, match=r"'valid' has no window of window_bases=1024.*longest region has 1000"):
        corpus.split("valid")
    assert len(corpus.split("train")) > 0


def test_iupac_error_refuses_at_the_start(write_fasta):
    path = write_fasta({"a": "ACGTRACGTT" * 10})
    with pytest.raises(ValueError, match="10 IUPAC codes"):
        GenomeWindows(str(path), window_bases=5, tokenizer=DnaTokenizer(iupac="error"))


def test_region_ids_are_whole_regions(genome):
    corpus = GenomeWindows(genome, window_bases=100)
    assert [len(ids) for ids in corpus.region_ids("test")] == [1000, 300]


# ------------------------------------------------------------------------------------------------------- workers

CORPUS: list[GenomeWindows] = []


def _digest(dataset, first: int) -> str:
    total = hashlib.sha256()
    for index in range(first, first + 50):
        record = dataset[SampleKey(1, index)]
        total.update(record.id.encode() + record.ids.tobytes())
    return total.hexdigest()


def _digest_shared(first: int) -> str:
    return _digest(CORPUS[-1].split("train"), first)


def _digest_pickled(work: tuple[bytes, int]) -> str:
    return _digest(pickle.loads(work[0]), work[1])


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_make_the_same_samples(method: str):
    corpus = GenomeWindows(window_bases=512, reverse_complement_augment=True)
    CORPUS.append(corpus)
    train = corpus.split("train")
    firsts = range(0, 800, 50)
    expected = [_digest(train, first) for first in firsts]
    workers = 6 if method == "fork" else 2
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
        if method == "fork":
            found = list(pool.map(_digest_shared, firsts))
        else:
            found = list(pool.map(_digest_pickled, [(pickle.dumps(train), first) for first in firsts]))
    assert found == expected


def test_defaults_read_the_embedded_genomes():
    report = GenomeWindows().report()
    assert (report["files"], report["bases"]) == (8, 1_740_469)
