"""`GenomicBenchmark`: one data set of GenomicBenchmarks, as sequences or as intervals of a genome."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from domains.dna.datasets.sequence_corpus import SequenceCorpus, SequenceOptions
from domains.dna.fasta import FastaSource, Genome
from domains.dna.names import close_names, find_contig
from domains.dna.tables import Example, read_rows
from domains.dna.tokenizer import DnaTokenizer

COLUMNS = ("id", "region", "start", "end", "strand")
INTERVAL_SUFFIXES = (".csv.gz", ".csv")


class GenomicBenchmark(SequenceCorpus):
    """A data set of GenomicBenchmarks in either published form.

    Sequences: `<name>/{train,test}/<class>/<id>.txt`, one sequence a file. Intervals: `{train,test}/<class>.csv.gz`
    with the columns id, region, start, end, strand (0-based half-open; an empty strand is "+"), read from `genome`.
    Labels are the sorted class names: negative 0, positive 1. The data has no validation sequences: the published
    protocol draws a tenth of the training ones, by seed.

    Args:
        folder: the data set's own folder.
        genome: for intervals: the genome or genomes that the regions name, FASTA or 2bit (see `Genome`). Names match
            with and without "chr", and transcripts without their version.
        tokenizer: default `DnaTokenizer()`.
        max_bases: longer sequences are cut off there and counted; None keeps them whole.
        valid_fraction: share of the training sequences for validation.
        seed: of that draw and of the strands.
        reverse_complement_augment: training sequences come from either strand with equal chance.
        on_leak: "warn", "error" or "ignore" where test sequences are in training too.

    Raises:
        FileNotFoundError: no such folder, or none of the two forms in it.
        ValueError: see `SequenceCorpus`; intervals without a genome, or that are none (file and line).
    """

    def __init__(
        self, folder: str, *, genome: FastaSource | None = None, tokenizer: DnaTokenizer | None = None,
        max_bases: int | None = None, valid_fraction: float = 0.1, seed: int = 0,
        reverse_complement_augment: bool = False, on_leak: str = "warn",
    ):  # fmt: skip
        options = SequenceOptions(
            tokenizer, max_bases, valid_fraction, seed=seed, on_leak=on_leak,
            reverse_complement_augment=reverse_complement_augment,
        )  # fmt: skip
        place = Path(folder).expanduser()
        for split in ("train", "test"):
            if not (place / split).is_dir():
                raise FileNotFoundError(
                    f"{place} has no folder {split!r}: a data set of GenomicBenchmarks has train and test, each with"
                    " one folder of .txt files (sequences) or one .csv.gz (intervals) a class"
                )
        opened = _Regions(Genome(genome)) if genome is not None else None
        super().__init__({split: _examples(place / split, opened) for split in ("train", "test")}, options)


class _Regions:
    """A genome whose records are found as the benchmark names them."""

    def __init__(self, genome: Genome):
        self.genome, self.lengths = genome, genome.lengths
        self.by_unversioned = {key.rpartition("/")[2].partition(".")[0]: key for key in self.lengths}

    def read(self, region: str, start: int, end: int, strand: str) -> bytes:
        """Bases of an interval; ValueError says what is wrong with it."""
        contig = find_contig(region, self.lengths) or self.by_unversioned.get(region.partition(".")[0])
        if contig is None:
            raise ValueError(f"the genome has no sequence {region!r}{close_names(region, self.lengths)}")
        if start >= end:
            raise ValueError(f"the interval {region}:{start}-{end} is {'empty' if start == end else 'reversed'}")
        if end > self.lengths[contig]:
            raise ValueError(f"{region}:{start}-{end} runs past the end of {contig} ({self.lengths[contig]} bases)")
        return self.genome.fetch(contig, start, end, strand).tobytes()


def _examples(folder: Path, genome: _Regions | None) -> Iterator[Example]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    tables = sorted(entry for entry in folder.iterdir() if entry.name.endswith(INTERVAL_SUFFIXES))
    if not classes and not tables:
        raise FileNotFoundError(f"{folder} has neither folders of .txt files nor .csv.gz tables, one a class")
    for one in classes:
        files = sorted(one.glob("*.txt"), key=lambda path: (len(path.name), path.name))
        if not files:
            raise ValueError(f"{one} holds no .txt file: a class has one file a sequence")
        for path in files:
            yield Example(str(path), path.read_bytes().strip(), one.name)
    for table in tables if not classes else ():
        if genome is None:
            raise ValueError(
                f"{table} holds intervals: say which genome they are of, domain.dataset.genome=<FASTA or 2bit>"
            )
        label = table.name.removesuffix(".gz").removesuffix(".csv")
        for where, row in read_rows(table, COLUMNS):
            if not (row["start"].isdigit() and row["end"].isdigit() and row["strand"].strip() in ("+", "-", "")):
                raise ValueError(f'{where}: not an interval (start, end, strand "+", "-" or empty): {row}')
            try:
                letters = genome.read(row["region"], int(row["start"]), int(row["end"]), row["strand"].strip() or "+")
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
            yield Example(where, letters, label)
