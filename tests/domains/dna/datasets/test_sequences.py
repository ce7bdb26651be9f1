"""Sequences with labels in every published layout, small ones made on the spot; and what is refused, with its line."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

from domains.dna.datasets import GenomicBenchmark, NucleotideTransformerTask, SequenceTable
from domains.dna.tokenizer import DnaTokenizer, reverse_complement
from seqmodels.data.record import Corpus, SampleKey, SequenceDataset

pa = pytest.importorskip("pyarrow")
DECODE = DnaTokenizer().decode


def contents(corpus, split: str) -> list[tuple[str, str]]:
    """(letters, class name) of a split."""
    dataset = corpus.split(split)
    records = [dataset[index] for index in range(len(dataset))]
    return [(DECODE(record.ids), corpus.class_names[record.label]) for record in records]


def write_parquet(path: Path, **columns) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


# -------------------------------------------------------------------------------------------------------- tables

ROWS = [("ACGTA", 0), ("CCGTA", 2), ("ggtta", 10), ("TTTTN", 0), ("AAC", 2), ("GATTACA", 10)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_one_table_with_a_split_column(tmp_path: Path, kind: str):
    path, splits = tmp_path / f"x.{kind}", ["train", "train", "training", "dev", "val", "test"]
    if kind == "parquet":
        letters, labels = zip(*ROWS)
        write_parquet(path, sequence=letters, label=labels, split=splits)
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = ["label,sequence,split,extra".replace(",", mark)]
        lines += [mark.join([str(label), letters, split, "?"]) for (letters, label), split in zip(ROWS, splits)]
        text = "\n".join(lines) + "\n"
        path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    corpus = SequenceTable(str(path))
    assert isinstance(corpus, Corpus)
    assert isinstance(corpus.split("train"), SequenceDataset)
    assert corpus.class_names == ("0", "2", "10"), "whole numbers sort as numbers"
    assert contents(corpus, "train") == [("ACGTA", "0"), ("CCGTA", "2"), ("GGTTA", "10")]
    assert contents(corpus, "valid") == [("TTTTN", "0"), ("AAC", "2")]
    assert contents(corpus, "test") == [("GATTACA", "10")]
    report = corpus.report()
    assert (report["sequences"], report["bases"], report["n"], report["lower_case"]) == (6, 30, 1, 5)
    where = corpus.split("valid")[0].id
    assert where == (f"{path}, row 4" if kind == "parquet" else f"{path}, line 5")


def test_gue_folder(tmp_path: Path):
    for name, rows in {"train": ROWS[:3], "dev": ROWS[3:5], "test": ROWS[5:]}.items():
        text = "sequence,label\n" + "".join(f"{letters},{label}\n" for letters, label in rows)
        (tmp_path / f"{name}.csv").write_text(text)
    corpus = SequenceTable(str(tmp_path))
    assert [len(corpus.split(split)) for split in ("train", "valid", "test")] == [3, 2, 1]


def test_a_hubs_parquet_folder_with_its_other_column_name(tmp_path: Path):
    write_parquet(tmp_path / "train-00000-of-00002.parquet", seq=["ACGT", "CCCC"], label=[0, 1])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", seq=["GGGT"], label=[1])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", seq=["TTTA"], label=[0])
    corpus = SequenceTable(str(tmp_path), valid_fraction=0)
    assert contents(corpus, "train") == [("ACGT", "0"), ("CCCC", "1"), ("GGGT", "1")]
    with pytest.raises(ValueError, match="the data has no valid sequences, and valid_fraction=0 takes none"):
        corpus.split("valid")


def table(tmp_path: Path, rows: list[tuple[str, object]], header: str = "sequence,label") -> str:
    path = tmp_path / "t.csv"
    path.write_text(header + "\n" + "".join(f"{letters},{label}\n" for letters, label in rows))
    return str(path)


def test_held_out_sequences_are_drawn_by_seed(tmp_path: Path, random_bases):
    path = table(tmp_path, [(random_bases(20, i), i % 2) for i in range(100)])
    make = lambda seed: SequenceTable(path, valid_fraction=0.2, test_fraction=0.1, seed=seed)  # noqa: E731
    one, same, other = make(0), make(0), make(1)
    assert [len(one.split(split)) for split in ("train", "valid", "test")] == [70, 20, 10]
    everything = [contents(one, split) for split in ("train", "valid", "test")]
    assert len({letters for part in everything for letters, _ in part}) == 100
    assert contents(same, "valid") == everything[1]
    assert contents(other, "valid") != everything[1]


def test_strands_are_drawn_in_training_alone(tmp_path: Path, random_bases):
    path = table(tmp_path, [(random_bases(20, i), i % 2) for i in range(40)])
    corpus = SequenceTable(path, valid_fraction=0.5, reverse_complement_augment=True)
    plain = SequenceTable(path, valid_fraction=0.5)
    strands = set()
    for index in range(20):
        given, drawn = plain.split("train")[index], [corpus.split("train")[SampleKey(e, index)] for e in range(20)]
        forward = DECODE(given.ids)
        found = {DECODE(record.ids) for record in drawn}
        assert found <= {forward, reverse_complement(forward).tobytes().decode()}
        strands |= {letters == forward for letters in found}
        assert DECODE(corpus.split("valid")[SampleKey(index, 3)].ids) == contents(plain, "valid")[3][0]
    assert strands == {True, False}


def test_long_sequences_and_cut_off_ones(tmp_path: Path):
    """Longer than the 131,072 letters that Python's csv reads of its own accord."""
    path = table(tmp_path, [("ACGT" * 100_000, 0), ("GG", 1)])
    corpus = SequenceTable(path, valid_fraction=0)
    assert [len(corpus.split("train")[i].ids) for i in (0, 1)] == [400_000, 2]
    cut = SequenceTable(path, valid_fraction=0, max_bases=6)
    assert contents(cut, "train") == [("ACGTAC", "0"), ("GG", "1")]
    assert cut.report()["train_cut_off"] == 1


def test_without_labels_for_language_models(tmp_path: Path):
    corpus = SequenceTable(table(tmp_path, [("ACGNT", 1), ("GGG", 2)]), label_column=None, valid_fraction=0)
    assert corpus.class_names == ()
    record = corpus.split("train")[0]
    assert record.label is None
    assert record.target_ids is not None
    assert record.target_ids.tolist() == [7, 8, 9, -100, 10]


def test_sequences_in_two_splits_are_found_in_either_strand(tmp_path: Path, caplog):
    (tmp_path / "train.csv").write_text("sequence,label\nAACCA,0\nGGGTT,1\n")
    (tmp_path / "dev.csv").write_text("sequence,label\naacca,0\nACGTC,1\n")
    (tmp_path / "test.csv").write_text("sequence,label\nAACCC,1\nTTTTA,0\nTTTTC,0\nTTTTG,0\n")
    corpus = SequenceTable(str(tmp_path))
    assert (corpus.report()["valid_leak_share"], corpus.report()["test_leak_share"]) == (0.5, 0.25)
    assert "50.0% of the valid sequences and 25.0% of the test sequences are in training too" in caplog.text
    with pytest.raises(ValueError, match="remove the doubles"):
        SequenceTable(str(tmp_path), on_leak="error")
    assert "valid_leak_share" not in SequenceTable(str(tmp_path), on_leak="ignore").report()


def test_it_travels_to_workers(tmp_path: Path):
    dataset = SequenceTable(table(tmp_path, ROWS), valid_fraction=0).split("train")
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(np.array_equal(copy[i].ids, dataset[i].ids) for i in range(len(ROWS)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sequence,label\nACGT,0\nACXT,1\n", r"t.csv, line 3: 'X' at position 2 is not accepted as DNA"),
        ("sequence,label\nACGT,0\n,1\n", r"t.csv, line 3: the sequence is empty"),
        ("sequence,label\nACGT,0\nACGT,\n", r"t.csv, line 3: the column 'label' is empty"),
        ("sequence,label\nACGT,0\nACGT\n", r"t.csv, line 3: 1 cells, the first line has 2"),
        ("sequence,label\nACGT,0\nAÄGT,1\n", r"t.csv, line 3: the sequence holds 'Ä', which is not DNA"),
        ("seqence,label\nACGT,0\n", r"t.csv has no column 'sequence'; close: seqence"),
        ("sequence,class\nACGT,0\n", r"t.csv has no column 'label'"),
        ("sequence,label,split\nACGT,0,train\nACGT,1,fold3\n", r"t.csv, line 3: the split is 'fold3'; accepted: train"),
        ("sequence,label,split\nACGT,0,train\nACGG,1,train\nACGT,2,test\n",
         r"t.csv, line 4: the label '2' does not occur in training, where the labels are 0, 1"),
        ("sequence,label,split\nACGT,0,test\n", r"there is no training sequence"),
        ("sequence,label\nACGT,0\nACGA,0\n", r"two classes or more; all training sequences are '0'"),
        ("", r"t.csv: the file is empty"),
    ],
)  # fmt: skip
def test_broken_tables_are_named_with_their_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        SequenceTable(str(tmp_path / "t.csv"), valid_fraction=0)


def test_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no table"):
        SequenceTable(str(tmp_path / "t.csv"))
    with pytest.raises(ValueError, match=r"a table is a folder or a file \*.csv"):
        SequenceTable(str(tmp_path / "t.xlsx"))
    (tmp_path / "test.csv").write_text("sequence,label\n")
    with pytest.raises(FileNotFoundError, match=r"no training file .* there is test.csv"):
        SequenceTable(str(tmp_path))
    (tmp_path / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"x.parquet: not a whole Parquet file"):
        SequenceTable(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize("wrong", [{"max_bases": 0}, {"valid_fraction": 1.0}, {"test_fraction": -1}, {"on_leak": "no"}])
def test_arguments_are_checked(tmp_path: Path, wrong: dict):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SequenceTable(table(tmp_path, ROWS), **wrong)


# --------------------------------------------------------------------------------------------- GenomicBenchmarks


@pytest.fixture
def benchmark(tmp_path: Path, random_bases, write_fasta) -> dict[str, Path]:
    """The same small data set in both published forms; the genome is called without "chr", the transcript versioned."""
    genome = {"1": random_bases(500, 1), "ENST7.3": random_bases(300, 2)}
    rows = {
        ("train", "positive"): [("chr1", 10, 40, "+"), ("chr1", 100, 130, "-"), ("chr1", 0, 2, "")],
        ("train", "negative"): [("ENST7", 0, 50, "+"), ("1", 200, 260, "-")],
        ("test", "positive"): [("ENST7.3", 100, 160, "-")],
        ("test", "negative"): [("chr1", 300, 330, "")],
    }
    for (split, name), intervals in rows.items():
        table = tmp_path / f"intervals/{split}/{name}.csv.gz"
        table.parent.mkdir(parents=True, exist_ok=True)
        lines = [f"{number},{region},{start},{end},{strand}" for number, (region, start, end, strand)
                 in enumerate(intervals)]  # fmt: skip
        table.write_bytes(gzip.compress(("id,region,start,end,strand\n" + "\n".join(lines) + "\n").encode()))
        for number, (region, start, end, strand) in enumerate(intervals):
            letters = genome["ENST7.3" if "ENST" in region else "1"][start:end]
            letters = reverse_complement(letters).tobytes().decode() if strand == "-" else letters
            text = tmp_path / f"sequences/{split}/{name}/{number}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(letters)
    (tmp_path / "intervals/metadata.yaml").write_text("version: 0\n")
    return {"intervals": tmp_path / "intervals", "sequences": tmp_path / "sequences", "genome": write_fasta(genome)}


def test_both_forms_hold_the_same(benchmark):
    sequences = GenomicBenchmark(str(benchmark["sequences"]), valid_fraction=0)
    intervals = GenomicBenchmark(str(benchmark["intervals"]), genome=str(benchmark["genome"]), valid_fraction=0)
    assert sequences.class_names == intervals.class_names == ("negative", "positive")
    for split, count in (("train", 5), ("test", 2)):
        assert contents(sequences, split) == contents(intervals, split)
        assert len(contents(sequences, split)) == count
    assert [record.label for record in (sequences.split("train")[i] for i in range(5))] == [0, 0, 1, 1, 1]


def test_benchmark_errors(benchmark, tmp_path: Path):
    with pytest.raises(ValueError, match=r"negative.csv.gz holds intervals: say which genome"):
        GenomicBenchmark(str(benchmark["intervals"]))
    with pytest.raises(FileNotFoundError, match="has no folder 'train'"):
        GenomicBenchmark(str(tmp_path))
    table = benchmark["intervals"] / "test/negative.csv.gz"
    for row, message in {
        "0,chr1,40,10,+": r"negative.csv.gz, line 2: the interval chr1:40-10 is reversed",
        "0,chr1,10,10,": r"chr1:10-10 is empty",
        "0,chr1,10,900,": r"chr1:10-900 runs past the end of 1 \(500 bases\)",
        "0,chr9,10,20,": r"the genome has no sequence 'chr9'",
        "0,chr1,a,20,": r"not an interval",
        "0,chr1,1,20,x": r"not an interval",
    }.items():
        table.write_bytes(gzip.compress(f"id,region,start,end,strand\n{row}\n".encode()))
        with pytest.raises(ValueError, match=message):
            GenomicBenchmark(str(benchmark["intervals"]), genome=str(benchmark["genome"]))
    (benchmark["sequences"] / "test/enhancer").mkdir()
    (benchmark["sequences"] / "test/enhancer/0.txt").write_text("ACGT")
    with pytest.raises(ValueError, match=r"enhancer.0.txt: the label 'enhancer' does not occur in training"):
        GenomicBenchmark(str(benchmark["sequences"]))


# --------------------------------------------------------------------------------------- Nucleotide Transformer


@pytest.mark.parametrize("suffix", ["fasta", "fna"])
def test_nucleotide_transformer_fasta(tmp_path: Path, suffix: str):
    task = tmp_path / "promoter_no_tata"
    task.mkdir()
    train = ">chr1:5-300|1\nACGT\nAC\n>same name|0\nGGGG\n>same name|1\nTTTT\n"
    (task / f"promoter_no_tata_train.{suffix}").write_text(train)
    (task / f"xtest.{suffix}").write_text(">a b c 0\nCCCC\n")
    for name in ("promoter_no_tata", "promoter_non_tata", "Promoter_No_TATA"):
        corpus = NucleotideTransformerTask(str(tmp_path), name, valid_fraction=0)
        assert contents(corpus, "train") == [("ACGTAC", "1"), ("GGGG", "0"), ("TTTT", "1")]
        assert contents(corpus, "test") == [("CCCC", "0")]


def test_nucleotide_transformer_tables(tmp_path: Path):
    write_parquet(tmp_path / "H3/train.parquet", sequence=["ACGT", "GGGT"], name=["a", "b"], label=[0, 1])
    write_parquet(tmp_path / "H3/test.parquet", sequence=["TTTT"], name=["c"], label=[1])
    by_folder = NucleotideTransformerTask(str(tmp_path), "H3", valid_fraction=0)
    revised = tmp_path / "revised"
    write_parquet(revised / "train.parquet", sequence=["ACGT", "CC", "GGGT"], label=[0, 1, 1], task=["H3", "H4", "H3"])
    write_parquet(revised / "test.parquet", sequence=["A", "TTTT"], label=[0, 1], task=["H4", "H3"])
    by_column = NucleotideTransformerTask(str(revised), "H3", valid_fraction=0)
    for split in ("train", "test"):
        assert contents(by_folder, split) == contents(by_column, split)
    with pytest.raises(FileNotFoundError, match=r"has no task 'H5'; there are: H3, H4"):
        NucleotideTransformerTask(str(revised), "H5")
    with pytest.raises(FileNotFoundError, match=r"has no task 'H4'; there are: h3, revised"):
        NucleotideTransformerTask(str(tmp_path), "H4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (">a|1\nACGT\n>b\nAC\n", r"train.fasta, line 3: the header '>b' does not end with a label"),
        ("ACGT\n", r"train.fasta, line 1: text before the first header"),
        (">a|1\nACGT\n>b|0\nACQ\n", r"train.fasta, line 3: 'Q' at position 2"),
        (">a|1\n>b|0\nACG\n", r"train.fasta, line 1: the sequence is empty"),
        ("", r"train.fasta: no record in it"),
    ],
)
def test_labelled_fasta_errors(tmp_path: Path, text: str, message: str):
    (tmp_path / "H3").mkdir()
    (tmp_path / "H3/train.fasta").write_text(text)
    with pytest.raises(ValueError, match=message):
        NucleotideTransformerTask(str(tmp_path), "H3", valid_fraction=0)


def test_a_class_without_files_is_named(tmp_path: Path):
    for name in ("train/neg", "train/pos", "test/neg"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "1.txt").write_text("ACGTACGT")
    (tmp_path / "set" / "test" / "pos").mkdir()
    with pytest.raises(ValueError, match=r"test/pos holds no \.txt file"):
        GenomicBenchmark(str(tmp_path / "set"))
