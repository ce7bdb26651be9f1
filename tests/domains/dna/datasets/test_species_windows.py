"""Labels are sorted names, draws are even, evaluation lists are balanced and fixed."""

from __future__ import annotations

import numpy as np
import pytest

from domains.dna.datasets import SpeciesWindows
from domains.dna.intervals import HeldOutChromosomes
from domains.dna.tokenizer import DnaTokenizer
from seqmodels.data.record import Corpus, SampleKey

DECODE = DnaTokenizer().decode


@pytest.fixture
def species(write_fasta, random_bases):
    """Three species with one file a chromosome; both files of "ape" hold records of other names."""
    for name, letters in (("ape", "ACGT"), ("bat", "AACGT"), ("cow", "ACCGT")):
        for number in (1, 2):
            records = {f"chr{number}": random_bases(2000 * number, number, letters)}
            write_fasta(records, f"{name}/chr{number}.fa")
    folder = write_fasta({"chr3": "N" * 2000}, "bat/chr3.fa").parent.parent
    return {"cow": str(folder / "cow"), "ape": [str(folder / "ape/chr1.fa"), str(folder / "ape/chr2.fa")],
            "bat": str(folder / "bat/*.fa")}  # fmt: skip


def test_species_labels_are_sorted_names(species):
    corpus = SpeciesWindows(species, window_bases=50, eval_windows_per_species=8)
    assert isinstance(corpus, Corpus)
    assert corpus.class_names == ("ape", "bat", "cow")
    for split in ("train", "valid", "test"):
        dataset = corpus.split(split)
        for index in range(24):
            name = corpus.class_names[dataset[index].label or 0]
            assert dataset.window(index).contig.startswith(f"{name}/")
            assert dataset[index].target_ids is None
            assert "N" not in DECODE(dataset[index].ids)


def test_species_and_sequences_are_drawn_evenly(species):
    train = SpeciesWindows(species, window_bases=50, windows_per_epoch=3000).split("train")
    drawn = [train.window(index).contig for index in range(3000)]
    shares = {contig: drawn.count(contig) / 3000 for contig in set(drawn)}
    assert shares.keys() == {f"{name}/chr{number}" for name in ("ape", "bat", "cow") for number in (1, 2)}
    assert all(share == pytest.approx(1 / 6, abs=0.03) for share in shares.values())
    by_bases = SpeciesWindows(species, window_bases=50, windows_per_epoch=3000, sequence_sampling="bases")
    longer = sum(by_bases.split("train").window(index).contig.endswith("chr2") for index in range(3000)) / 3000
    assert longer == pytest.approx(2 / 3, abs=0.03)


def test_evaluation_list_is_balanced_fixed_and_free_of_doubles(species):
    one, two = (SpeciesWindows(species, window_bases=50, eval_windows_per_species=20) for _ in range(2))
    for split in ("valid", "test"):
        windows = [one.split(split).window(index) for index in range(60)]
        assert windows == [two.split(split).window(SampleKey(3, index)) for index in range(60)]
        assert len(set(windows)) == 60
        assert np.bincount([one.split(split)[index].label or 0 for index in range(60)]).tolist() == [20, 20, 20]
    assert one.report()["valid_leak_share"] == one.report()["test_leak_share"] == 0


def test_species_by_chromosome(species):
    corpus = SpeciesWindows(species, window_bases=50, splits=HeldOutChromosomes(valid=["chr1"], train=["chr2"]))
    assert all(corpus.split("valid").window(index).contig.endswith("chr1") for index in range(20))
    assert all(corpus.split("train").window(index).contig.endswith("chr2") for index in range(20))


def test_species_errors(species, write_fasta):
    with pytest.raises(ValueError, match=r"two species or more, got \['cow'\]"):
        SpeciesWindows({"cow": species["cow"]})
    only_n = HeldOutChromosomes(valid=["chr1", "bat/chr2"], train=["chr2", "chr3"])
    with pytest.raises(ValueError, match=r"species 'bat': the split 'train' has no window.*longest region has 2000"):
        SpeciesWindows(species, window_bases=50, splits=only_n)
    with pytest.raises(ValueError, match=r"ape: none of its .*'test'; it has chr1, chr2\n  cow: none of its .*'test'"):
        SpeciesWindows(species, window_bases=50, splits=HeldOutChromosomes(test=["bat/*"]))
    with pytest.raises(ValueError, match="sequence_sampling"):
        SpeciesWindows(species, sequence_sampling="none")
    with pytest.raises(FileNotFoundError, match="yak"):
        SpeciesWindows(species | {"yak": "yak.fa"})


def test_train_at_draws_shorter_windows_of_the_same_species(species):
    corpus = SpeciesWindows(species, window_bases=128, windows_per_epoch=50)
    short = corpus.train_at(32)
    assert len(short) == 200
    for index in range(0, 200, 9):
        record = short[index]
        assert len(record.ids) == 32
        assert short.window(index).contig.startswith(corpus.class_names[record.label or 0])


def test_defaults_read_the_embedded_genomes():
    corpus = SpeciesWindows()
    assert corpus.class_names == ("bosTau8", "canFam3", "galGal4", "hg38", "mm10", "monDom5", "rheMac3", "rn6")
    assert corpus.report()["test_windows"] == 8 * 64
