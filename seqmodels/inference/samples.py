"""Many new sequences to files: in groups that fit, written while they are made, ranked and put in a table.

prefix -> groups of rows -> drafts (`seqmodels.data.sequence_writer`) -> files, and `samples.tsv` beside them.

A row's ids are a function of (seed, its number) alone, so neither the size of the groups nor the order of the files
changes them. Memory holds the state of one group and `CHUNK_LEN` symbols of each row, whatever their length.
"""

from __future__ import annotations

import contextlib
import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqmodels.data.sequence_writer import SequenceWriter, writer_of
from seqmodels.inference.generate import Prefix, free_memory_bytes, generate_pieces, rows_that_fit
from seqmodels.inference.sampling import Sampling
from seqmodels.layers.base import require_positive
from seqmodels.model import SequenceModel

CHUNK_LEN = 1024  # symbols of a row between two writes
MOST_ROWS = 256  # of a group: each is an open file
ORDERS = (None, "likelihood")
TABLE_NAME = "samples.tsv"
OWN_COLUMNS = ("file", "sample", "seed", "log_likelihood_nats", "bits_per_symbol", "temperature", "top_k", "top_p")


@dataclass(frozen=True, slots=True)
class Sample:
    """One finished sequence.

    Attributes:
        number: which of the seed's it is.
        file: where it was written.
        log_likelihood: log p given the prompt, at temperature 1 over the whole vocabulary; nats.
        bits: the same as bits a symbol, without the sign.
    """

    number: int
    file: str
    log_likelihood: float
    bits: float


@dataclass(frozen=True)
class SamplesJob:
    """What to make, and where to put it.

    Args:
        output: path as the tokenizer's `writer` takes it.
        num_samples: sequences to make.
        num_tokens: symbols to make of each.
        first_sample: number of the first; the others follow.
        sampling: how symbols are drawn.
        written_prompt: ids to write in front of each, or None.
        sort_by: None writes in the order of numbers, each group when it is done; "likelihood" writes the likeliest
            first, when all are done.
        rows_at_a_time: rows of a group; None takes as many as fit into memory.
        facts: what is known of all of them, for the files' own metadata and the table: prompt, model, step.
        class_names: what the rows of the prefix are, where they are classes: sample n is of class n modulo their
            number.

    Raises:
        ValueError: a number below 1 (first_sample: below 0), or an order that is not known.
    """

    output: str
    num_samples: int
    num_tokens: int
    first_sample: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    written_prompt: np.ndarray | None = None
    sort_by: str | None = None
    rows_at_a_time: int | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    class_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        counts = {"num_samples": self.num_samples, "length": self.num_tokens}
        if self.rows_at_a_time is not None:
            counts["batch_size"] = self.rows_at_a_time
        for name, value in {**counts, "first_sample": self.first_sample}.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}={value}: must be a whole number")
        require_positive(**counts)
        if self.first_sample < 0:
            raise ValueError(f"first_sample={self.first_sample}: must be 0 or more")
        if self.sort_by not in ORDERS:
            raise ValueError(f"sort_by={self.sort_by!r}: likelihood puts the likeliest first; null keeps their numbers")


def make_samples(
    model: SequenceModel,
    tokenizer: Any,
    prefix: Prefix,
    job: SamplesJob,
    *,
    on_symbols: Callable[[int], None] = lambda count: None,
    picture: bool = False,
) -> tuple[list[Sample], list[str]]:
    """Makes the sequences and writes them.

    Args:
        model: a causal model with a next-token head.
        tokenizer: the one it was trained with.
        prefix: of `read_prefix`: one row, continued by all, or several that take turns (`Prefix.of`).
        job: what to make.
        on_symbols: told how many symbols were made since the last call.
        picture: also draw the files, where the format can be drawn (sound: spectrograms).

    Returns:
        The samples in the order of their files, and all files written, the table last.

    Raises:
        ValueError: `samples.tsv` beside the output is something else than a table of samples.
        OSError: the disk is full. Files that were finished before stay and are in the table; nothing else does.
    """
    table = SampleTable(Path(job.output).parent / TABLE_NAME, [*OWN_COLUMNS, *job.facts])
    ahead = 0 if job.written_prompt is None else len(job.written_prompt)
    writer = writer_of(tokenizer, job.output, [ahead + job.num_tokens] * job.num_samples)
    maker = _Maker(model, tokenizer.unit, prefix, job, writer, on_symbols)
    try:
        with writer:
            for rows in _groups(model, prefix, job):
                maker.make(rows)
                if job.sort_by is None:
                    maker.finish(rows)
            if job.sort_by is not None:
                maker.finish(sorted(maker.log_likelihoods, key=lambda row: -maker.log_likelihoods[row]))
    except BaseException:
        with contextlib.suppress(OSError):  # what ended it is the news, not that the table could not be written either
            whole = [sample for sample in maker.samples if sample.file in writer.paths]
            if whole:
                table.write([_row(sample, job) for sample in whole])
        raise
    table.write([_row(sample, job) for sample in maker.samples])
    drawn = []
    if picture and hasattr(writer, "picture"):
        captions = [f"{Path(sample.file).name}, {sample.bits:.3f} bits/{tokenizer.unit}" for sample in maker.samples]
        drawn.append(writer.picture(captions))  # type: ignore[attr-defined]
    return maker.samples, [*writer.paths, *drawn, str(table.path)]


class SampleTable:
    """`samples.tsv`: one row a sample, of all commands that wrote into a folder.

    Args:
        path: of the table.
        columns: of the rows to come.

    Raises:
        ValueError: the file is there and is no such table.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self._columns = path, list(columns)
        self._read()

    def write(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Adds rows; older ones of the same files go. The table is whole at every moment."""
        columns, kept = self._read()
        files = {row["file"] for row in rows}
        columns += [name for name in self._columns if name not in columns]
        partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
        try:
            with open(partial, "w", newline="", encoding="utf-8") as file:
                table = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
                table.writeheader()
                table.writerows([*(row for row in kept if row["file"] not in files), *rows])
            os.replace(partial, self.path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        if not self.path.exists():
            return list(self._columns), []
        with open(self.path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file, delimiter="\t")
            columns = list(table.fieldnames or [])
            if columns[: len(OWN_COLUMNS)] != list(OWN_COLUMNS):
                raise ValueError(
                    f"{self.path} is there and is no table of samples (its columns: {', '.join(columns)}); "
                    "move it, or write to another folder"
                )
            return columns, list(table)


class _Maker:
    """Makes rows, notes how likely they are, and finishes them."""

    def __init__(
        self,
        model: SequenceModel,
        unit: str,
        prefix: Prefix,
        job: SamplesJob,
        writer: SequenceWriter,
        on_symbols: Callable[[int], None],
    ) -> None:
        self._model, self._unit, self._prefix, self._job = model, unit, prefix, job
        self._writer, self._on_symbols = writer, on_symbols
        self.log_likelihoods: dict[int, float] = {}
        self.samples: list[Sample] = []

    def make(self, rows: range) -> None:
        """Draws all symbols of some rows, each piece on its way to its file before the next is drawn."""
        job = self._job
        if job.written_prompt is not None:
            for row in rows:
                self._writer.append(row, job.written_prompt)
        totals_B = np.zeros(len(rows))
        numbers = range(job.first_sample + rows.start, job.first_sample + rows.stop)
        pieces = generate_pieces(
            self._model, job.num_tokens, prefix=self._prefix.of(numbers), rows=numbers, sampling=job.sampling,
            chunk_len=CHUNK_LEN,
        )  # fmt: skip
        for piece in pieces:
            totals_B += piece.log_likelihood_B.cpu().numpy()
            for row, ids in zip(rows, piece.ids_BL.cpu().numpy()):
                self._writer.append(row, ids)
            self._on_symbols(piece.ids_BL.numel())
        self.log_likelihoods |= dict(zip(rows, totals_B.tolist()))

    def finish(self, rows: Sequence[int]) -> None:
        """Gives rows their files, in this order."""
        for row in rows:
            number, nats = self._job.first_sample + row, self.log_likelihoods[row]
            bits = -nats / self._job.num_tokens / math.log(2)
            facts = _facts(self._job, number, nats, **{f"bits_per_{self._unit}": f"{bits:.6f}"})
            file = self._writer.finish(row, name=f"generated_{number}", facts=facts)
            self.samples.append(Sample(number, file, nats, bits))


def _groups(model: SequenceModel, prefix: Prefix, job: SamplesJob) -> list[range]:
    size = job.rows_at_a_time or rows_that_fit(
        model,
        prefix.of([0]),
        job.num_tokens,
        most=min(MOST_ROWS, job.num_samples),
        free_bytes=free_memory_bytes(prefix.logits_BV.device),
    )
    return [range(first, min(first + size, job.num_samples)) for first in range(0, job.num_samples, size)]


def _facts(job: SamplesJob, number: int, nats: float, **bits: str) -> dict[str, str]:
    """All that is known of a sample, as text; "none" for what was not asked for."""
    drawing = job.sampling
    return {
        "sample": str(number),
        "seed": str(drawing.seed),
        "log_likelihood_nats": f"{nats:.6f}",
        **bits,
        "temperature": f"{drawing.temperature:g}",
        "top_k": "none" if drawing.top_k is None else str(drawing.top_k),
        "top_p": "none" if drawing.top_p is None else f"{drawing.top_p:g}",
        **job.facts,
        **({"class_name": job.class_names[number % len(job.class_names)]} if job.class_names else {}),
    }


def _row(sample: Sample, job: SamplesJob) -> dict[str, str]:
    facts = _facts(job, sample.number, sample.log_likelihood, bits_per_symbol=f"{sample.bits:.6f}")
    return {"file": Path(sample.file).name, **facts}
