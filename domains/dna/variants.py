"""Variants to scores: how much likelier is the alternative than the reference, in the eyes of a DNA language model?

In: a VCF (`.vcf`, `.vcf.gz`; SNV, MNV, indel, several ALT alleles), the FASTA it was called against, a trained model.
Out: the same VCF with scores in INFO, every record kept in its place, and a table with one row for each ALT allele.

    score(ALT) = log p(window with ALT) - log p(window with REF)        in nats; above 0: the model prefers ALT

Both windows have `window_bases` bases around the variant. The alternative window is cut from the chromosome as it
would be with the variant in it, so after a deletion it takes more bases from the right and after an insertion fewer; at
the end of a chromosome both move inwards. N does not count. With both strands, the score is the mean of two readings.
What cannot be scored is kept with a missing score and a status (`STATUSES`), and counted.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.dna.fasta import FastaSource, Genome
from domains.dna.fasta_scan import written_whole
from domains.dna.intervals import find_contig
from domains.dna.tokenizer import BASE_IDS, DnaTokenizer, as_bytes, reverse_complement_ids

TokenLogLikelihood = Callable[[Tensor, Tensor], Tensor]  # (ids_BL, lengths_B) -> log-probability of every id, (B, L)
Progress = Callable[[int, int], None]  # (records done, records in all)
Row = tuple[Any, ...]  # one value for each of TABLE_COLUMNS

STATUSES = {
    "ok": "scored",
    "ref_mismatch": "REF differs from the FASTA at this place",
    "no_such_contig": "the FASTA has no sequence of this name, nor of an alias (20, chr20)",
    "past_end": "the position is not on the sequence",
    "symbolic": "a symbolic allele, breakend or spanning deletion (<DEL>, N[chr2:1[, *)",
    "not_acgt": "an allele with other letters than A, C, G, T",
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


# ------------------------------------------------------------------------------------------------- VCF as text


def read_vcf(path: str | Path) -> Iterator[tuple[int, str]]:
    """(line number, line without its end) of a VCF, plain or gzip."""
    opener = gzip.open if str(path).endswith((".gz", ".bgz")) else open
    try:
        with opener(path, "rt", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\r\n")
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged or cut off ({error})") from None


def check_vcf(path: str | Path) -> int:
    """Reads a VCF through and returns its number of records.

    Raises:
        FileNotFoundError: there is none.
        ValueError: file and line where there is no header, too few columns, or no position.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no VCF file {path}")
    columns, records = 0, 0
    for number, line in read_vcf(path):
        where = f"{path}, line {number}"
        if number == 1 and line.startswith(("BCF", "\x1f\x8b")):
            raise ValueError(f"{path}: not a text VCF; convert it (bcftools view X > Y.vcf), or name it .vcf.gz")
        if line.startswith("#CHROM"):
            columns = line.count("\t") + 1
        if line.startswith("#") or not line.strip():
            continue
        if not columns:
            raise ValueError(f"{where}: a record before the header line; a VCF needs #CHROM POS ID REF ALT …")
        cells = line.split("\t")
        if len(cells) < 8 or len(cells) != columns:
            raise ValueError(f"{where}: {len(cells)} tab-separated columns, the header line has {columns}")
        if not cells[1].isdigit() or not cells[3]:
            raise ValueError(f"{where}: POS {cells[1]!r} and REF {cells[3]!r} are not a position and an allele")
        records += 1
    if not columns:
        raise ValueError(f"{path}: no header line (#CHROM POS ID REF ALT QUAL FILTER INFO): not a VCF")
    return records


def _header_with_scores(lines: list[str]) -> list[str]:
    """The header with our INFO fields declared just before #CHROM (and declared once)."""
    kept = [line for line in lines if not any(line.startswith(f"##INFO=<ID={key},") for key in INFO_LINES)]
    return [*kept[:-1], *(f"##INFO=<ID={key},{text}>" for key, text in INFO_LINES.items()), kept[-1]]


# ----------------------------------------------------------------------------------------------------- windows


@dataclass
class _Job:
    """One window to be scored; `total` is filled in."""

    ids: np.ndarray
    total: float = math.nan


class VariantWindows:
    """The reference window and the alternative windows of a variant.

    Args:
        genome: the reference.
        tokenizer: letters to ids.
        window_bases: length of every window (shorter only where the whole sequence is).
    """

    def __init__(self, genome: Genome, tokenizer: DnaTokenizer, window_bases: int):
        self.genome, self.tokenizer, self.window_bases = genome, tokenizer, window_bases
        self.lengths = genome.lengths

    def of(self, variant: Variant) -> tuple[np.ndarray | None, list[np.ndarray | None]]:
        """Ids of the reference window and of each ALT's; None and a status in `variant` where there is none."""
        contig = find_contig(variant.cells[0], self.lengths)
        problem = self._problem(variant, contig)
        for row, alt in enumerate(variant.alts):
            variant.statuses[row] = problem or self._problem_of_allele(alt)
        if "ok" not in variant.statuses:
            return None, [None] * len(variant.alts)
        assert contig is not None  # else _problem had said so
        scored = [alt.upper() for alt, status in zip(variant.alts, variant.statuses) if status == "ok"]
        left = (self.window_bases - max(map(len, [variant.ref, *scored]))) // 2
        reference = self._haplotype_window(contig, variant.start, variant.ref, variant.ref, left)
        return reference, [
            self._haplotype_window(contig, variant.start, variant.ref, alt.upper(), left) if status == "ok" else None
            for alt, status in zip(variant.alts, variant.statuses)
        ]

    def _problem(self, variant: Variant, contig: str | None) -> str:
        """The status that keeps the whole record from being scored, or ""."""
        if contig is None:
            return "no_such_contig"
        start, ref = variant.start, variant.ref
        if start < 0 or start + len(ref) > self.lengths[contig]:
            return "past_end"
        if set(ref) - set("ACGTN"):
            return "not_acgt"
        if bytes(self.genome.fetch(contig, start, start + len(ref))).upper() != ref.encode():
            return "ref_mismatch"
        return "too_long" if len(ref) >= self.window_bases else ""

    def _problem_of_allele(self, alt: str) -> str:
        if alt == "*" or any(mark in alt for mark in "<>[]"):
            return "symbolic"
        if not alt or set(alt.upper()) - set("ACGT"):
            return "not_acgt"
        return "too_long" if len(alt) >= self.window_bases else "ok"

    def _haplotype_window(self, contig: str, start: int, ref: str, allele: str, left: int) -> np.ndarray:
        """`window_bases` of the sequence as it is with `allele` in place of `ref`, `left` bases before it."""
        total = self.lengths[contig] - len(ref) + len(allele)
        begin = max(0, min(start - left, total - self.window_bases))
        before = self.genome.fetch(contig, begin, start)
        room = self.window_bases - len(before) - len(allele)
        after_start = start + len(ref)
        after = self.genome.fetch(contig, after_start, min(after_start + room, self.lengths[contig]))
        return self.tokenizer.encode(np.concatenate([before, as_bytes(allele), after]))


# ------------------------------------------------------------------------------------------------------ scoring


class VariantScorer:
    """Scores the variants of a VCF with a language model.

    Args:
        window_bases: bases of sequence around each variant, the variant included.
        both_strands: also read the reverse complement, and take the mean.
        batch_size: windows in one forward pass.
    """

    def __init__(self, *, window_bases: int = 1024, both_strands: bool = True, batch_size: int = 32):
        if window_bases < 2:
            raise ValueError(f"window_bases={window_bases} must be at least 2")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.window_bases, self.both_strands, self.batch_size = window_bases, both_strands, batch_size

    def __call__(
        self, loaded_model: Any, vcf: str, fasta: FastaSource, output: str, *, table: str | None = None,
        progress: Progress | None = None,
    ) -> dict[str, int]:  # fmt: skip
        """As `run`, with the model of `seqmodels.inference.load`."""
        from seqmodels.inference import token_log_likelihood

        model, tokenizer = loaded_model.model, loaded_model.tokenizer
        if not isinstance(tokenizer, DnaTokenizer):
            raise ValueError(f"variants need a DNA model; this one reads {type(tokenizer).__name__}")

        def log_likelihood(ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
            return token_log_likelihood(model, ids_BL, start_id=tokenizer.start_id, lengths_B=lengths_B)[0]

        return self.run(log_likelihood, tokenizer, vcf, fasta, output, table=table, progress=progress)

    def run(
        self, token_log_likelihood: TokenLogLikelihood, tokenizer: DnaTokenizer, vcf: str, fasta: FastaSource,
        output: str, *, table: str | None = None, progress: Progress | None = None,
    ) -> dict[str, int]:  # fmt: skip
        """Scores `vcf` against `fasta` and writes `output` (and `table`), each whole or not at all.

        Args:
            token_log_likelihood: (ids_BL int64, lengths_B int64) -> log-probability of every id, (B, L), in nats.
            tokenizer: the model's.
            vcf: input, `.vcf` or `.vcf.gz`.
            fasta: the reference; see `Genome`.
            output: scored VCF; `.gz` is written as bgzip.
            table: `.tsv`, `.csv` or `.parquet` (needs pyarrow); None writes none.
            progress: called with (records done, records in all).

        Returns:
            records, alleles, and how many alleles have each status.
        """
        records = check_vcf(vcf)
        _check_outputs(vcf, output, table)
        windows = VariantWindows(Genome(fasta), tokenizer, self.window_bases)
        counts: Counter[str] = Counter(records=0, alleles=0)
        lines = (line for _, line in read_vcf(vcf))
        with ExitStack() as stack:
            out = stack.enter_context(_vcf_writer(output))
            add_rows = stack.enter_context(_table_writer(table))
            header: list[str] = []
            for line in lines:
                header.append(line)
                if line.startswith("#CHROM"):
                    break
            out.write(_encoded(_header_with_scores(header)))
            for variants in _chunks(lines, self.batch_size):
                self._score(variants, windows, token_log_likelihood)
                out.write(_encoded([variant.line() for variant in variants]))
                add_rows([row for variant in variants for row in variant.rows()])
                counts["records"] += len(variants)
                for variant in variants:
                    counts["alleles"] += len(variant.alts)
                    counts.update(variant.statuses or ["no_alt"])
                if progress:
                    progress(counts["records"], records)
        return dict(counts)

    def _score(self, variants: list[Variant], windows: VariantWindows, log_likelihood: TokenLogLikelihood) -> None:
        """Fills in the scores of some variants."""
        jobs: list[tuple[Variant, _Job, list[_Job | None]]] = []
        for variant in variants:
            reference, alternatives = windows.of(variant)
            if reference is not None:
                made = [None if ids is None else _Job(ids) for ids in alternatives]
                jobs.append((variant, _Job(reference), made))
        everything = [job for _, reference, made in jobs for job in (reference, *made) if job is not None]
        self._fill(everything, log_likelihood)
        for variant, reference, made in jobs:
            variant.ref_log_likelihood = reference.total
            for row, job in enumerate(made):
                if job is not None:
                    variant.alt_log_likelihoods[row] = job.total
                    variant.scores[row] = job.total - reference.total

    def _fill(self, jobs: list[_Job], log_likelihood: TokenLogLikelihood) -> None:
        """Log-likelihood of every window, batches of like length together."""
        jobs = sorted(jobs, key=lambda job: len(job.ids))
        for first in range(0, len(jobs), self.batch_size):
            batch = jobs[first : first + self.batch_size]
            totals = _window_totals([job.ids for job in batch], log_likelihood)
            if self.both_strands:
                totals += _window_totals([reverse_complement_ids(job.ids) for job in batch], log_likelihood)
                totals /= 2
            for job, total in zip(batch, totals.tolist()):
                job.total = total


def _window_totals(windows: Sequence[np.ndarray], log_likelihood: TokenLogLikelihood) -> np.ndarray:
    """Sum of the log-probabilities of A, C, G, T in each window, in nats, added in float64."""
    lengths = [len(ids) for ids in windows]
    ids_BL = torch.full((len(windows), max(lengths)), DnaTokenizer.pad_id, dtype=torch.int64)
    for row, ids in enumerate(windows):
        ids_BL[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    logp_BL = log_likelihood(ids_BL, torch.tensor(lengths)).to("cpu", torch.float64)
    counted_BL = (ids_BL >= BASE_IDS[0]) & (ids_BL <= BASE_IDS[-1])
    return torch.where(counted_BL, logp_BL, 0.0).sum(dim=1).numpy()


def _chunks(lines: Iterator[str], size: int) -> Iterator[list[Variant]]:
    filled = (Variant.of(line) for line in lines if line.strip())
    while chunk := list(itertools.islice(filled, size)):
        yield chunk


# ------------------------------------------------------------------------------------------------------ writing


def _check_outputs(vcf: str, output: str, table: str | None) -> None:
    for path in filter(None, (output, table)):
        if Path(path).resolve() == Path(vcf).resolve():
            raise ValueError(f"{path} is the input; name another output")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not output.endswith((".vcf", ".vcf.gz")):
        raise ValueError(f"output={output!r} must end in .vcf or .vcf.gz")
    if table and not table.endswith((".tsv", ".csv", ".parquet")):
        raise ValueError(f"table={table!r} must end in .tsv, .csv or .parquet")


def _encoded(lines: Sequence[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8", errors="surrogateescape")


@contextmanager
def _vcf_writer(path: str) -> Iterator[Any]:
    """A binary file that becomes `path` when all went well; bgzip for .gz."""
    with written_whole(Path(path)) as partial:
        if path.endswith(".gz"):
            import pysam

            with pysam.BGZFile(str(partial), "wb", None) as file:
                yield file
        else:
            with open(partial, "wb") as file:
                yield file


@contextmanager
def _table_writer(path: str | None) -> Iterator[Callable[[list[Row]], None]]:
    """A function that adds rows of `TABLE_COLUMNS` to a table, which becomes `path` when all went well."""
    if path is None:
        yield lambda rows: None
        return
    with written_whole(Path(path)) as partial, ExitStack() as stack:
        if path.endswith(".parquet"):
            yield _parquet_rows(stack, partial, path)
        else:
            file = stack.enter_context(open(partial, "w", newline="", encoding="utf-8"))
            writer = csv.writer(file, delimiter="," if path.endswith(".csv") else "\t", lineterminator="\n")
            writer.writerow(TABLE_COLUMNS)
            yield lambda rows: writer.writerows([[_cell(value) for value in row] for row in rows])


def _parquet_rows(stack: ExitStack, partial: Path, path: str) -> Callable[[list[Row]], None]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"table={path!r} needs pyarrow (pip install pyarrow); or name it .tsv") from None
    numbers = {"score", "ref_log_likelihood", "alt_log_likelihood"}
    kinds = {name: pa.float64() if name in numbers else pa.string() for name in TABLE_COLUMNS} | {"pos": pa.int64()}
    schema = pa.schema(list(kinds.items()))
    writer = stack.enter_context(pq.ParquetWriter(str(partial), schema))

    def add(rows: list[Row]) -> None:
        columns = [list(column) for column in zip(*rows)]
        arrays = [pa.array(column, type=kind, from_pandas=True) for column, kind in zip(columns, kinds.values())]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

    return add


def _cell(value: Any) -> Any:
    return ("" if math.isnan(value) else repr(value)) if isinstance(value, float) else value
