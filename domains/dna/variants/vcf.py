"""A VCF as text: its records with what became of each allele, its header with our INFO fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domains.dna.text_file import open_text

Row = tuple[Any, ...]  # one value for each of TABLE_COLUMNS

STATUSES = {
    "ok": "scored",
    "ref_mismatch": "REF differs from the FASTA at this place",
    "no_such_contig": "the FASTA has no sequence of this name, nor of an alias (20, chr20)",
    "past_end": "the position is not on the sequence",
    "symbolic": "a symbolic allele, breakend or spanning deletion (<DEL>, N[chr2:1[, *)",
    "not_acgt": "an allele, REF too, with other letters than A, C, G, T",
    "too_long": "an allele as long as the window or longer",
    "no_alt": "no alternative allele",
}
INFO_LINES = {
    "SM_LLR": "Number=A,Type=Float,Description=\"Log-likelihood of ALT minus that of REF, nats, model's window\"",
    "SM_REF_LL": 'Number=1,Type=Float,Description="Log-likelihood of the reference window, nats"',
    "SM_STATUS": f'Number=.,Type=String,Description="One for each ALT: {", ".join(STATUSES)}"',
}
TABLE_COLUMNS = ("chrom", "pos", "id", "ref", "alt", "score", "ref_log_likelihood", "alt_log_likelihood", "status")



@dataclass
class Variant:
    """One VCF record: its columns as text, and what became of each ALT allele.

    Attributes:
        cells: the tab-separated columns as they stand in the file.
        alts: the ALT alleles; empty where ALT is ".".
        statuses: a key of `STATUSES` for each ALT.
        scores, alt_log_likelihoods: nats for each ALT; NaN where not scored.
        ref_log_likelihood: nats, or NaN.
    """

    cells: list[str]
    alts: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    alt_log_likelihoods: list[float] = field(default_factory=list)
    ref_log_likelihood: float = math.nan

    @classmethod
    def of(cls, line: str) -> Variant:
        cells = line.split("\t")
        alts = [] if cells[4] in (".", "") else cells[4].split(",")
        missing = [math.nan] * len(alts)
        return cls(cells, alts, ["ok"] * len(alts), missing, list(missing))

    @property
    def start(self) -> int:
        """0-based position of the first REF base."""
        return int(self.cells[1]) - 1

    @property
    def ref(self) -> str:
        return self.cells[3].upper()

    def line(self) -> str:
        """The record with its scores in INFO."""
        kept = [item for item in self.cells[7].split(";") if item.split("=")[0] not in INFO_LINES and item != "."]
        if self.alts:
            kept.append("SM_LLR=" + ",".join(map(_number, self.scores)))
            kept.append(f"SM_REF_LL={_number(self.ref_log_likelihood)}")
        kept.append("SM_STATUS=" + ",".join(self.statuses or ["no_alt"]))
        return "\t".join([*self.cells[:7], ";".join(filter(None, kept)), *self.cells[8:]])

    def rows(self) -> Iterator[Row]:
        """One table row for each ALT, in the order of `TABLE_COLUMNS`."""
        name, pos, identifier, ref = self.cells[:4]
        for alt, score, log_likelihood, status in zip(
            self.alts or ["."], self.scores or [math.nan], self.alt_log_likelihoods or [math.nan],
            self.statuses or ["no_alt"],
        ):  # fmt: skip
            yield name, int(pos), identifier, ref, alt, score, self.ref_log_likelihood, log_likelihood, status


def _number(value: float) -> str:
    return "." if math.isnan(value) else f"{value:.6g}"


def read_vcf(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a VCF, plain or gzip, whatever its name ends in."""
    with open_text(path, errors="surrogateescape", newline="\n") as file:  # what is no UTF-8 comes out as it went in
        for number, line in enumerate(file, start=1):
            yield number, line.rstrip("\r\n")


def check_vcf(path: str | Path) -> int:
    """Reads a VCF through and returns its number of records.

    Raises:
        FileNotFoundError: there is none.
        ValueError: file and line where there is no header, a second one, too few columns, or no position.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no VCF file {path}")
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder, not a VCF file")
    columns, records = 0, 0
    for number, line in read_vcf(path):
        where = f"{path}, line {number}"
        if number == 1 and line.startswith("BCF"):
            raise ValueError(f"{path}: not a text VCF; convert it (bcftools view X > Y.vcf)")
        if line.startswith("#") and columns:
            raise ValueError(f"{where}: a header line after #CHROM; to join two files: bcftools concat X Y > Z.vcf")
        if line.startswith("#CHROM"):
            columns = line.count("\t") + 1
        if line.startswith("#") or not line.strip():
            continue
        if not columns:
            raise ValueError(f"{where}: a record before the header line; a VCF needs #CHROM POS ID REF ALT …")
        cells = line.split("\t")
        if len(cells) < 8 or len(cells) != columns:
            raise ValueError(f"{where}: {len(cells)} tab-separated columns, the header line has {columns}")
        if not (cells[1].isascii() and cells[1].isdigit() and len(cells[1]) < 19 and cells[3]):
            raise ValueError(f"{where}: POS {cells[1]!r} and REF {cells[3]!r} are not a position and an allele")
        records += 1
    if not columns:
        raise ValueError(f"{path}: no header line (#CHROM POS ID REF ALT QUAL FILTER INFO): not a VCF")
    return records


def header_with_scores(lines: list[str]) -> list[str]:
    """The header with our INFO fields declared just before #CHROM (and declared once)."""
    kept = [line for line in lines if not any(line.startswith(f"##INFO=<ID={key},") for key in INFO_LINES)]
    return [*kept[:-1], *(f"##INFO=<ID={key},{text}>" for key, text in INFO_LINES.items()), kept[-1]]


def read_header(lines: Iterator[str]) -> list[str]:
    """The lines up to #CHROM, taken off the iterator."""
    header: list[str] = []
    for line in lines:
        header.append(line)
        if line.startswith("#CHROM"):
            break
    return header


def chunks_of(lines: Iterator[str], size: int) -> Iterator[list[Variant]]:
    filled = (Variant.of(line) for line in lines if line.strip())
    while chunk := list(itertools.islice(filled, size)):
        yield chunk
