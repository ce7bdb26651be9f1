"""Variants to scores: how much likelier is the alternative than the reference, in the eyes of a DNA language model?

In: a VCF (`.vcf`, `.vcf.gz`; SNV, MNV, indel, several ALT alleles), the FASTA it was called against, a trained model.
Out: the same VCF with scores in INFO, every record kept in its place, and a table with one row for each ALT allele.

    score(ALT) = log p(window with ALT) - log p(window with REF)        in nats; above 0: the model prefers ALT

Both windows have `window_bases` bases around the variant. The alternative window is cut from the chromosome as it
would be with the variant in it, so after a deletion it takes more bases from the right and after an insertion fewer; at
the end of a chromosome both move inwards. N does not count. With both strands, the score is the mean of two readings.
What REF and ALT have in common before the variant is read once, and the state carried into both: three quarters of the
work. What cannot be scored is kept with a missing score and a status (`STATUSES`), and counted. A killed run goes on
where it stopped: no record is lost, none comes twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from domains.dna.fasta import FastaSource, Genome
from domains.dna.resume import identity_of_files, identity_of_model
from domains.dna.tokenizer import BASE_IDS, DnaTokenizer, reverse_complement_ids
from domains.dna.variants.output import Journal, check_outputs, encoded, table_writer, vcf_writer
from domains.dna.variants.vcf import Variant, check_vcf, chunks_of, header_with_scores, read_header, read_vcf
from domains.dna.variants.windows import VariantWindows
from seqmodels.inference.precision import check_precision, in_precision

T = TypeVar("T")
TokenLogLikelihood = Callable[[Tensor, Tensor], Tensor]  # (ids_BL, lengths_B) -> log-probability of every id, (B, L)
Progress = Callable[[int, int], None]  # (records done, records in all)

CHUNKS_AT_ONCE = 8  # batches of windows that are sorted by length together, and noted as done together
CHUNK_BASES = 2**25  # bases of windows in these batches at most: what a kill costs
PASS_BASES = 2**20  # bases in one forward pass at most, whatever batch_size says: long windows go in smaller batches


@dataclass
class _Job:
    """One window to be scored; `total` is filled in."""

    ids: np.ndarray
    total: float = math.nan


_Jobs = tuple[Variant, _Job, list[_Job | None]]  # of one variant: REF, and each ALT that can be scored


class VariantScorer:
    """Scores the variants of a VCF with a language model.

    Args:
        window_bases: bases of sequence around each variant, the variant included.
        both_strands: also read the reverse complement, and take the mean.
        batch_size: windows in one forward pass; fewer where they hold more than 1,048,576 bases.
        precision: "fp32", "tf32" or "bf16"; see `seqmodels.inference.precision`. Scores are small differences of
            large sums: bf16 blurs them.
    """

    def __init__(
        self, *, window_bases: int = 1024, both_strands: bool = True, batch_size: int = 32, precision: str = "fp32"
    ):
        if window_bases < 2:
            raise ValueError(f"window_bases={window_bases} must be at least 2")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        check_precision(precision)
        self.window_bases, self.both_strands, self.batch_size = window_bases, both_strands, batch_size
        self.precision = precision

    def __call__(
        self, loaded_model: Any, vcf: str, fasta: FastaSource, output: str, *, table: str | None = None,
        progress: Progress | None = None,
    ) -> dict[str, int]:  # fmt: skip
        """As `run`, with the model of `seqmodels.inference.load`."""
        tokenizer = loaded_model.tokenizer
        if not isinstance(tokenizer, DnaTokenizer):
            raise ValueError(f"variants need a DNA model; this one reads {type(tokenizer).__name__}")

        with in_precision(loaded_model.model, self.precision) as model:

            def log_likelihood(ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
                return _log_likelihood(model, ids_BL, lengths_B, tokenizer.start_id)

            return self.run(
                log_likelihood, tokenizer, vcf, fasta, output, table=table, progress=progress,
                model_identity=identity_of_model(loaded_model),
            )  # fmt: skip

    def run(
        self, token_log_likelihood: TokenLogLikelihood, tokenizer: DnaTokenizer, vcf: str, fasta: FastaSource,
        output: str, *, table: str | None = None, progress: Progress | None = None, model_identity: Sequence[str] = (),
    ) -> dict[str, int]:  # fmt: skip
        """Scores `vcf` against `fasta` and writes `output` (and `table`), each whole or not at all.

        What is scored is kept in a folder beside the output until everything is: a killed run goes on from there.

        Args:
            token_log_likelihood: (ids_BL int64, lengths_B int64) -> log-probability of every id, (B, L), in nats.
            tokenizer: the model's.
            vcf: input, `.vcf` or `.vcf.gz`.
            fasta: the reference; see `Genome`.
            output: scored VCF; `.gz` is written as bgzip.
            table: `.tsv`, `.csv` or `.parquet` (needs pyarrow); None writes none.
            progress: called with (records done, records in all).
            model_identity: tells models apart, so that a run is not gone on with by another.

        Returns:
            records, alleles, and how many alleles have each status.

        Raises:
            ValueError: an output that cannot be written, a VCF that is none (file and line), or a run to this output
                was stopped that had other settings, another model, VCF or FASTA.
        """
        records = check_vcf(vcf)
        check_outputs(vcf, output, table)
        genome = Genome(fasta)
        windows = VariantWindows(genome, tokenizer, self.window_bases)
        lines = (line for _, line in read_vcf(vcf))
        header = read_header(lines)
        journal = Journal(Path(output), self._identity(vcf, genome, model_identity), table=table)
        with journal:
            journal.skip(lines)
            chunks = chunks_of(lines, self._records_at_once())
            for variants, jobs in _made_ahead((variants, _jobs(variants, windows)) for variants in chunks):
                self._score(jobs, token_log_likelihood)
                journal.add(variants)
                if progress:
                    progress(journal.counts["records"], records)
            with vcf_writer(output) as out:
                out.write(encoded(header_with_scores(header)))
                journal.copy_lines(out)
            with table_writer(table) as add_rows:
                for rows in journal.rows():
                    add_rows(rows)
            journal.done()
        return dict(journal.counts)

    def _identity(self, vcf: str, genome: Genome, model: Sequence[str]) -> dict[str, Any]:
        """What must not differ between a run and the one that goes on with it."""
        settings = {name: getattr(self, name) for name in ("window_bases", "both_strands", "precision")}
        files = {"vcf": identity_of_files([vcf]), "fasta": identity_of_files(file.path for file in genome.files)}
        return {**settings, **files, "model": list(model)}

    def _records_at_once(self) -> int:
        return max(1, min(CHUNKS_AT_ONCE * self.batch_size, CHUNK_BASES // self.window_bases))

    def _score(self, jobs: list[_Jobs], log_likelihood: TokenLogLikelihood) -> None:
        """Fills in the scores of some variants."""
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
        size = max(1, min(self.batch_size, PASS_BASES // self.window_bases))
        for first in range(0, len(jobs), size):
            batch = jobs[first : first + size]
            totals = _window_totals([job.ids for job in batch], log_likelihood)
            if self.both_strands:
                totals += _window_totals([reverse_complement_ids(job.ids) for job in batch], log_likelihood)
                totals /= 2
            for job, total in zip(batch, totals.tolist()):
                job.total = total


def _jobs(variants: list[Variant], windows: VariantWindows) -> list[_Jobs]:
    """The windows of those variants that can be scored; the others are given their status."""
    jobs: list[_Jobs] = []
    for variant in variants:
        reference, alternatives = windows.of(variant)
        if reference is not None:
            jobs.append((variant, _Job(reference), [None if ids is None else _Job(ids) for ids in alternatives]))
    return jobs


def _made_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a thread while the one before it is in use: a GPU does not wait for the cutting."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _log_likelihood(model: Any, ids_BL: Tensor, lengths_B: Tensor, start_id: int) -> Tensor:
    """As `token_log_likelihood`; what a row has in common with the one above it, up to the variant, is read once."""
    from seqmodels.inference import token_log_likelihood
    from seqmodels.layers.state import select_state

    chunk_len = max(1, PASS_BASES // len(ids_BL))
    row_of, shared = shared_beginnings(ids_BL, lengths_B)
    heads, row_of_B = sorted(set(row_of)), torch.tensor(row_of)
    if not shared or len(heads) == len(row_of):
        return token_log_likelihood(
            model, ids_BL, start_id=start_id, lengths_B=lengths_B, chunk_len=chunk_len
        )[0]  # fmt: skip
    before_HP, state = token_log_likelihood(model, ids_BL[heads, :shared], start_id=start_id, chunk_len=chunk_len)
    place_B = torch.searchsorted(torch.tensor(heads), row_of_B)
    after_BQ, _ = token_log_likelihood(
        model, ids_BL[:, shared:], start_id=ids_BL[:, shared - 1].to(before_HP.device), lengths_B=lengths_B - shared,
        chunk_len=chunk_len, state=select_state(state, place_B.tolist()),
    )  # fmt: skip
    return torch.cat([before_HP[place_B.to(before_HP.device)], after_BQ], dim=1)


def shared_beginnings(ids_BL: Tensor, lengths_B: Tensor) -> tuple[list[int], int]:
    """Rows that begin as the row above: (the first row of those like it, for each row; how many symbols they share).

    Rows count as alike from a quarter of the window on; the number of symbols is one for all of them, the least.
    """
    L = ids_BL.shape[1]
    differs_BL = (ids_BL[1:] != ids_BL[:-1]).int()
    first_B = torch.where(differs_BL.any(dim=1), differs_BL.argmax(dim=1), L)
    most = int(lengths_B.min()) - 1  # a symbol of every row is left
    first_B = first_B.clamp(max=most)
    alike_B = first_B >= max(1, L // 4)
    shared = int(first_B[alike_B].min()) if alike_B.any() else 0
    row_of = [0]
    for row, alike in enumerate(alike_B.tolist(), start=1):
        row_of.append(row_of[-1] if alike else row)
    return row_of, shared


def _window_totals(windows: Sequence[np.ndarray], log_likelihood: TokenLogLikelihood) -> np.ndarray:
    """Sum of the log-probabilities of A, C, G, T in each window, in nats, added in float64."""
    lengths = [len(ids) for ids in windows]
    ids_BL = torch.full((len(windows), max(lengths)), DnaTokenizer.pad_id, dtype=torch.int64)
    for row, ids in enumerate(windows):
        ids_BL[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
    logp_BL = log_likelihood(ids_BL, torch.tensor(lengths)).double()
    counted_BL = ((ids_BL >= BASE_IDS[0]) & (ids_BL <= BASE_IDS[-1])).to(logp_BL.device)
    return torch.where(counted_BL, logp_BL, 0.0).sum(dim=1).cpu().numpy()
