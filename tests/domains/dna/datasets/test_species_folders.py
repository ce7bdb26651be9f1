"""Species folders as they are published: which file is which chromosome, which split it is in, what is missing."""

from __future__ import annotations

import gzip
import logging
import pickle

import pytest

from domains.dna.datasets import SpeciesFolders
from domains.dna.datasets.species_folders import chromosome_of, expand
from domains.dna.intervals import HeldOutChromosomes
from seqmodels.data.record import Corpus

# A file's stem -> the chromosome, by the names that NCBI, UCSC, HyenaDNA's README and the T2T apes use.
STEMS = [
    ("chr1", "1"),
    ("chr22", "22"),
    ("chrX", "X"),
    ("chr2A", "2A"),
    ("chr2b", "2B"),
    ("chrMT", "MT"),
    ("5", "5"),
    ("chromosome_7", "7"),
    ("chr1_mat_hsa1", "1"),
    ("chr2_pat_hsa3", "3"),
    ("chr10_mat_hsa12", "12"),
    ("chr11_mat_hsa2b", "2B"),
    ("chr12_pat_hsa2a", "2A"),
    ("chr23_hap1_hsa22", "22"),
    ("chrX_mat_hsaX", "X"),
    ("chr4_pat_hsa17x5", "17x5"),
    ("NC_073224", None),
    ("chr1_random", None),
    ("unplaced", None),
]


@pytest.mark.parametrize(("stem", "name"), STEMS)
def test_chromosome_of_a_file(stem, name):
    assert chromosome_of(stem, {}) == name
    assert chromosome_of(stem, {"NC_07*": "9", stem: "Z"}) == ("9" if stem.startswith("NC_07") else "Z")


def test_chromosome_lists():
    assert expand("1-3 2A,2B X") == ["1", "2", "3", "2A", "2B", "X"]
    assert expand("4") == ["4"]


@pytest.fixture
def folder(write_fasta, random_bases):
    """An old human layout, partly plain gzip; a T2T bonobo; files that are no chromosomes."""
    for number, name in enumerate(["1", "2", "5", "X"]):
        path = write_fasta({f"NC_{number}": random_bases(3000, number)}, f"species/human/chr{name}.fna")
        if name in "12":
            path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
            if name == "1":
                path.unlink()
    for number, stem in enumerate(["chr1_mat_hsa1", "chr2_pat_hsa3", "chr4_mat_hsa5", "chr11_mat_hsa2b"]):
        records = {f"own_{number}": random_bases(2000, 50 + number), "second": "N" * 50}
        write_fasta(records, f"species/bonobo/{stem}.fa", bgzip=number == 0)
    path = write_fasta({"alt": "ACGT" * 20}, "species/bonobo/unplaced.fa")
    return path.parents[1]


def test_labels_and_splits(folder, caplog):
    with caplog.at_level(logging.INFO):
        corpus = SpeciesFolders(str(folder), splits=HeldOutChromosomes(valid=["1"], test=["5"]), window_bases=64)
    assert isinstance(corpus, Corpus)
    assert corpus.class_names == ("bonobo", "human")
    chromosomes = {
        split: {corpus.split(split).window(i).contig for i in range(len(corpus.split(split)))}
        for split in ("train", "valid", "test")
    }
    assert chromosomes == {
        "train": {"human/2", "human/X", "bonobo/2B", "bonobo/3"},
        "valid": {"human/1", "bonobo/1"},
        "test": {"human/5", "bonobo/5"},
    }
    for split in chromosomes:
        dataset = corpus.split(split)
        for index in range(0, len(dataset), 7):
            record = dataset[index]
            assert corpus.class_names[record.label or 0] == record.id.partition("/")[0]
    assert "1 files are no chromosomes: unplaced.fa" in caplog.text
    assert "chr1.fna.gz: unpacking it into" in caplog.text
    assert "chr2.fna.gz" not in caplog.text, "chr2.fna is there unpacked"
    assert pickle.loads(pickle.dumps(corpus.split("train")))[3].ids.tolist() == corpus.split("train")[3].ids.tolist()


def test_unpacked_bases_are_those_of_the_file(folder, random_bases):
    corpus = SpeciesFolders(str(folder), splits=HeldOutChromosomes(valid=["1"]), window_bases=64)
    assert corpus.genome.fetch("human/1").tobytes().decode() == random_bases(3000, 0)
    assert corpus.genome.fetch("bonobo/1").tobytes().decode() == random_bases(2000, 50)


def test_every_missing_folder_and_chromosome_is_listed(folder):
    lists = {"human": "1-3 5 X Y", "bonobo": "1 2A 2B 3"}
    with pytest.raises(FileNotFoundError) as caught:
        SpeciesFolders(str(folder), species=["human", "bonobo", "gorilla"], chromosomes=lists)
    message = str(caught.value)
    assert "gorilla: no folder" in message
    assert "human: 3, Y\n" in message
    assert "bonobo: 2A\n" in message
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        SpeciesFolders(str(folder / "nowhere"))


def test_a_list_chooses_and_a_map_names(folder):
    splits = HeldOutChromosomes(valid=["9"])
    corpus = SpeciesFolders(
        str(folder), splits=splits, window_bases=64, chromosomes={"human": "2 9"},
        chrom_map={"bonobo": {"unplaced": "9"}, "human": {"chr2": "2", "chr5": "9"}},
    )  # fmt: skip
    assert {key for key in corpus.genome.records if key.startswith("human")} == {"human/2", "human/9"}
    assert [region.contig for region in corpus.regions["valid"]] == ["bonobo/9", "human/9"]


def test_fused_chromosomes_are_left_out_and_not_missed(folder, write_fasta, random_bases, caplog):
    for stem in ("chr1_pat_hsa1", "chr2_pat_hsa3", "chr4_pat_hsa17x5", "chr19_pat_hsa5x17"):
        write_fasta({stem: random_bases(2000, len(stem))}, f"species/gorilla/{stem}.fa")
    corpus = SpeciesFolders(
        str(folder), species=["gorilla", "human"], chromosomes={"gorilla": "1 3 5 17"}, window_bases=64,
        splits=HeldOutChromosomes(valid=["1"]),
    )  # fmt: skip
    assert [key for key in corpus.genome.records if key.startswith("gorilla")] == ["gorilla/1", "gorilla/3"]
    assert "chr19_pat_hsa5x17.fa, chr4_pat_hsa17x5.fa" in caplog.text


def test_two_files_of_one_chromosome(folder, write_fasta):
    write_fasta({"x": "ACGT" * 100}, "species/bonobo/chr1_pat_hsa1.fa")
    with pytest.raises(ValueError, match=r"chr1_mat_hsa1.fa and chr1_pat_hsa1.fa are both chromosome 1; keep one"):
        SpeciesFolders(str(folder))
    left_out = SpeciesFolders(
        str(folder), chrom_map={"bonobo": {"*_pat_hsa1": None}}, window_bases=64, splits=HeldOutChromosomes(valid=["1"])
    )
    genome = left_out.genome
    assert genome.files[genome.records["bonobo/1"][0]].path.endswith("chr1_mat_hsa1.fa")


def test_a_cut_off_gzip_file_is_named(folder):
    packed = folder / "human/chr1.fna.gz"
    packed.write_bytes(packed.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"chr1.fna.gz: the gzip file is damaged or cut off"):
        SpeciesFolders(str(folder))


def test_the_published_split_is_the_default(write_fasta, random_bases):
    for species in ("human", "mouse"):
        for name in [*range(1, 15), "X"]:
            write_fasta({"x": random_bases(400, len(species) + 10 * len(str(name)))}, f"all/{species}/chr{name}.fa")
    folder = write_fasta({"x": "ACGT" * 100}, "all/human/chr2A.fa").parents[1]
    corpus = SpeciesFolders(str(folder), window_bases=32)
    held = {split: {r.contig.partition("/")[2] for r in corpus.regions[split]} for split in ("train", "valid", "test")}
    assert held["valid"] == {"1", "3", "12", "13"}
    assert held["test"] == {"5", "7", "9", "10", "11"}
    assert held["train"] == {"2", "4", "6", "8", "14", "X", "2A"}


@pytest.fixture
def two_species(tmp_path, random_bases, write_fasta):
    """Chromosomes 1, 2, 3 of a and b; b's second lies in a file of two records."""
    for seed, (species, name) in enumerate((s, n) for s in "ab" for n in "123"):
        records = {f"{species}{name}": random_bases(400, seed)} | ({"rest": "ACGT" * 50} if seed == 4 else {})
        write_fasta(records, f"few/{species}/chr{name}.fa")
    return tmp_path / "few"


SPLITS = HeldOutChromosomes(valid=["2"], test=["3"])


def test_records_behind_the_first_are_counted(two_species, caplog):
    SpeciesFolders(str(two_species), splits=SPLITS, window_bases=50)
    assert "1 others (200 bases) in 1 files are not read, as rest in" in caplog.text


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        (["a/chr2.fa"], r"a: none of its sequences is in the split 'valid'; it has 1, 3"),
        (["a/chr1.fa", "b/chr3.fa"], r"a: none .*'train'; it has 2, 3\n +b: none .*'test'; it has 1, 2"),
    ],
)
def test_species_that_lack_a_whole_split_are_all_listed(two_species, gone, message):
    for name in gone:
        (two_species / name).unlink()
    with pytest.raises(ValueError, match=message):
        SpeciesFolders(str(two_species), splits=SPLITS, window_bases=50)


def test_odd_folders_and_lists(two_species):
    (two_species / "a" / "chr9.fa").mkdir()  # a folder of that name is no chromosome
    assert "a/9" not in SpeciesFolders(str(two_species), splits=SPLITS, window_bases=50).genome.lengths
    with pytest.raises(FileNotFoundError, match=r"few/b holds no folders: it should hold one folder"):
        SpeciesFolders(str(two_species / "b"), splits=SPLITS)
    with pytest.raises(ValueError, match=r"chromosomes\.b is empty"):
        SpeciesFolders(str(two_species), chromosomes={"b": " "}, splits=SPLITS)
    with pytest.raises(FileNotFoundError, match=r"ab: no folder"):
        SpeciesFolders(str(two_species), species="ab", splits=SPLITS)
