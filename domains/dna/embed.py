"""DNA of any length to embeddings and log-likelihoods, a piece at a time: whole chromosomes in constant memory.

In: a FASTA (or 2bit), a trained model, and maybe the regions of a BED. Out:

- with regions: one embedding a region (`.parquet` or `.safetensors`), the mean or the last of its positions;
- without: every position, as numbered parts in a folder, each with its record and first position.

A causal model reads every record from its first base, so an embedding has seen all that lies before it, exactly as in
one pass; `context_bases` bounds that where regions are few. A model that reads from both ends sees `context_bases` on
either side of each piece and nothing beyond: that is said in the log and in the output's metadata. A killed run goes on
where it stopped: finished parts stay, and what the model carries is kept beside them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.dna.fasta import FastaSource, Genome
from domains.dna.fasta_scan import written_whole
from domains.dna.intervals import Interval, read_bed
from domains.dna.resume import ResumeFolder
from domains.dna.tokenizer import DnaTokenizer

log = logging.getLogger(__name__)

KEEP = ("hidden", "log_likelihood", "both")
POOLINGS = ("mean", "last")
FORMATS = ("safetensors", "parquet")
BOTH_WAYS_CONTEXT = 16_384  # bases on either side for models that read from both ends, unless asked otherwise

Progress = Callable[[int, int], None]  # (bases done, bases in all)


@dataclass(frozen=True)
class Span:
    """Bases to read of one record, and the regions inside that want an embedding (sorted by start)."""

    contig: str
    start: int
    end: int
    regions: tuple[tuple[int, Interval], ...] = ()  # (row of the output, region)


@dataclass
class Embedder:
    """Embeds DNA with a trained model.

    Args:
        piece_bases: bases in one forward pass: memory, not results, depend on it.
        context_bases: bases read before a region (None: all of its record, the exact answer); for models that read
            from both ends, bases on either side of a piece (None: 16,384).
        pool: of a region's positions: "mean" or "last".
        keep: of every position: "hidden", "log_likelihood" or "both".
        part_bases: positions in one part of the output, a multiple of `piece_bases`.
        file_format: of parts: "safetensors" or "parquet".
        half: store hidden states in fp16.
    """

    piece_bases: int = 65_536
    context_bases: int | None = None
    pool: str = "mean"
    keep: str = "both"
    part_bases: int = 262_144
    file_format: str = "safetensors"
    half: bool = True

    def __post_init__(self) -> None:
        if self.piece_bases < 1:
            raise ValueError(f"piece_bases={self.piece_bases} must be at least 1")
        if self.part_bases < 1 or self.part_bases % self.piece_bases:
            raise ValueError(
                f"part_bases={self.part_bases} must be a multiple of piece_bases={self.piece_bases}"
            )
        if self.context_bases is not None and self.context_bases < 0:
            raise ValueError(f"context_bases={self.context_bases} must be 0 or more, or null")
        for name, accepted in (("pool", POOLINGS), ("keep", KEEP), ("file_format", FORMATS)):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(accepted)}")

    def __call__(
        self, loaded_model: Any, fasta: FastaSource, output: str, *, regions: str | None = None,
        progress: Progress | None = None,
    ) -> dict[str, int]:  # fmt: skip
        """Embeds a genome, or the regions of a BED on it.

        Args:
            loaded_model: of `seqmodels.inference.load`.
            fasta: see `Genome`.
            output: with regions a `.parquet` or `.safetensors` file; without, a folder.
            regions: a BED; its fourth column names the rows.
            progress: called with (bases done, bases in all).

        Returns:
            Counts: bases read, regions or parts written, bases that an earlier run had done.
        """
        if not isinstance(loaded_model.tokenizer, DnaTokenizer):
            raise ValueError(f"DNA needs a DNA model; this one reads {type(loaded_model.tokenizer).__name__}")
        genome = Genome(fasta)
        reader = _Reader(loaded_model, genome, self)
        for note in reader.notes():
            log.info(note)
        if regions is None:
            return _Parts(self, reader, Path(output), progress).write()
        return _Regions(self, reader, regions, Path(output), progress).write()


class _Reader:
    """Spans of a genome to hidden states, by the way that fits the model."""

    def __init__(self, loaded: Any, genome: Genome, settings: Embedder):
        self.model, self.tokenizer, self.genome, self.settings = loaded.model, loaded.tokenizer, genome, settings
        self.causal = bool(self.model.backbone.is_causal)
        self.predicts = self.causal and self.model.head.objective == "next_token"
        self.model_folder = str(loaded.folder)
        if settings.keep != "hidden" and not self.predicts:
            log.info("no log-likelihoods: this model predicts no next bases")

    def notes(self) -> list[str]:
        if self.causal:
            return []
        return [
            f"this model reads from both ends: each {self.settings.piece_bases:,} bases are read with {self.context:,} "
            "on either side, and nothing beyond reaches them"
        ]

    @property
    def context(self) -> int:
        given = self.settings.context_bases
        return BOTH_WAYS_CONTEXT if given is None else given

    def fetch(self, contig: str, start: int, end: int) -> np.ndarray:
        end = min(end, self.genome.lengths[contig])
        return self.tokenizer.encode(self.genome.fetch(contig, start, end))

    def pieces(self, span: Span, carried: Mapping[str, Tensor] | None, first: int) -> Iterator[tuple[int, Any, Any]]:
        """(first base, piece, what to carry on from after it) from base `first` of the span on."""
        from seqmodels.inference.stream import Stream, windows

        step = self.settings.piece_bases
        if not self.causal:
            fetch = lambda start, end: self.fetch(span.contig, start, end)  # noqa: E731
            made = windows(self.model, fetch, first, span.end, piece=step, context=self.context)
            for start, piece in zip(range(first, span.end, step), made):
                yield start, piece, dict
            return
        stream = Stream(self.model, start_id=self.tokenizer.start_id)
        if carried is not None:
            stream.restore(carried)
        for start in range(first, span.end, step):
            yield start, stream.read(self.fetch(span.contig, start, min(start + step, span.end))), stream.tensors


def _identity(settings: Embedder, reader: _Reader, spans: Sequence[Span]) -> dict[str, Any]:
    """What must not differ between a run and the one that goes on with it."""
    chosen = {name: getattr(settings, name) for name in ("piece_bases", "context_bases", "pool", "keep", "half")}
    chosen |= {"part_bases": settings.part_bases, "file_format": settings.file_format}
    where = [[span.contig, span.start, span.end, len(span.regions)] for span in spans]
    return {**chosen, "model": reader.model_folder, "spans": where}


# ------------------------------------------------------------------------------------------------ every position


class _Parts:
    """Every position of every record, in numbered parts."""

    def __init__(self, settings: Embedder, reader: _Reader, folder: Path, progress: Progress | None):
        if folder.suffix:
            raise ValueError(f"output={str(folder)!r}: without regions it is a folder of parts; give it no suffix")
        if (folder / "manifest.json").exists():
            raise FileExistsError(f"{folder} is complete; name another output")
        self.settings, self.reader, self.folder, self.progress = settings, reader, folder, progress
        self.spans = [Span(name, 0, length) for name, length in reader.genome.lengths.items() if length]
        self.resume = ResumeFolder(folder / ".resume", _identity(settings, reader, self.spans))

    def write(self) -> dict[str, int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = self.resume.load()
        at, carried = found if found else ({"span": 0, "base": 0, "part": 0, "step": 0}, None)
        already, total = at["step"], sum(span.end for span in self.spans)
        for number in range(at["span"], len(self.spans)):
            span = self.spans[number]
            for start, end, pieces, carry in self._parts_of(span, carried, at["base"]):
                self._write_part(at["part"], span.contig, start, pieces)
                at = {"span": number, "base": end, "part": at["part"] + 1, "step": at["step"] + end - start}
                self.resume.save(at, carry())
                if self.progress:
                    self.progress(at["step"], total)
            carried, at = None, {**at, "span": number + 1, "base": 0}
        self._write_manifest(at["part"])
        self.resume.done()
        return {"bases": total - already, "parts": at["part"], "bases done before": already}

    def _parts_of(self, span: Span, carried: Any, first: int) -> Iterator[tuple[int, int, list[Any], Any]]:
        pieces: list[Any] = []
        start = first
        for base, piece, carry in self.reader.pieces(span, carried, first):
            log_likelihood_Q = piece.log_likelihood_Q
            pieces.append((piece.hidden_QD.cpu(), None if log_likelihood_Q is None else log_likelihood_Q.cpu()))
            end = base + len(piece.hidden_QD)
            if end - start >= self.settings.part_bases or end == span.end:
                yield start, end, pieces, carry
                pieces, start = [], end

    def _write_part(self, number: int, contig: str, start: int, pieces: list[Any]) -> None:
        tensors: dict[str, Tensor] = {}
        if self.settings.keep != "log_likelihood" or not self.reader.predicts:
            hidden = torch.cat([hidden for hidden, _ in pieces])
            tensors["hidden"] = hidden.half() if self.settings.half else hidden
        if self.settings.keep != "hidden" and self.reader.predicts:
            tensors["log_likelihood"] = torch.cat([logp for _, logp in pieces])
        path = self.folder / f"part-{number:06d}.{self.settings.file_format}"
        with written_whole(path) as partial:
            if self.settings.file_format == "safetensors":
                from safetensors.torch import save_file

                save_file(tensors, partial, metadata={"contig": contig, "start": str(start)})
            else:
                columns = {"contig": [contig] * len(next(iter(tensors.values()))), "position": start}
                _write_parquet(partial, columns, tensors)

    def _write_manifest(self, parts: int) -> None:
        with written_whole(self.folder / "manifest.json") as partial:
            about = {"model": self.reader.model_folder, "parts": parts, "notes": self.reader.notes()}
            about |= {"contigs": {span.contig: span.end for span in self.spans}}
            partial.write_text(json.dumps(about, indent=1))


# ------------------------------------------------------------------------------------------------------- regions


class _Regions:
    """One embedding a region."""

    def __init__(self, settings: Embedder, reader: _Reader, bed: str, output: Path, progress: Progress | None):
        if output.suffix not in (".parquet", ".safetensors"):
            raise ValueError(f"output={str(output)!r} must end in .parquet or .safetensors")
        self.settings, self.reader, self.output, self.progress = settings, reader, output, progress
        self.regions = read_bed(bed, reader.genome.lengths)
        self.spans = spans_of(self.regions, settings.context_bases if reader.causal else 0)
        self.resume = ResumeFolder(output.with_name(f".{output.name}.resume"), _identity(settings, reader, self.spans))

    def write(self) -> dict[str, int]:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        rows = len(self.regions)
        found = self.resume.load()
        at, kept = found if found else ({"span": 0, "base": -1, "step": 0}, {})
        carried = {name[8:]: tensor for name, tensor in kept.items() if name.startswith("carried.")} or None
        sums = kept.get("sums")
        already, total = at["step"], sum(span.end - span.start for span in self.spans)
        for number in range(at["span"], len(self.spans)):
            span = self.spans[number]
            first = span.start if at["base"] < 0 else at["base"]
            for start, piece, carry in self.reader.pieces(span, carried, first):
                if sums is None:
                    sums = torch.zeros(rows, piece.hidden_QD.shape[1], dtype=torch.float64)
                self._add(sums, span, start, piece.hidden_QD)
                end = start + len(piece.hidden_QD)
                at = {"span": number, "base": end, "step": at["step"] + end - start}
                self.resume.save(at, {"sums": sums} | {f"carried.{name}": t for name, t in carry().items()})
                if self.progress:
                    self.progress(at["step"], total)
            carried, at = None, {**at, "base": -1, "span": number + 1}
        assert sums is not None
        self._write_rows(sums)
        self.resume.done()
        return {"bases": total - already, "regions": rows, "bases done before": already}

    def _add(self, sums: Tensor, span: Span, start: int, hidden_QD: Tensor) -> None:
        end = start + len(hidden_QD)
        for row, region in span.regions:
            if region.start >= end:
                break
            low, high = max(region.start, start), min(region.end, end)
            if self.settings.pool == "last":
                low = max(low, region.end - 1)
            if low < high:
                weight = 1 if self.settings.pool == "last" else len(region)
                sums[row] += hidden_QD[low - start : high - start].sum(dim=0, dtype=torch.float64).cpu() / weight

    def _write_rows(self, sums: Tensor) -> None:
        embeddings = sums.float()
        with written_whole(self.output) as partial:
            if self.output.suffix == ".safetensors":
                from safetensors.torch import save_file

                regions = [[r.contig, r.start, r.end, r.name] for r in self.regions]
                about = {"regions": json.dumps(regions), "pool": self.settings.pool}
                about |= {"model": self.reader.model_folder, "notes": "; ".join(self.reader.notes())}
                save_file({"embeddings": embeddings}, partial, metadata=about)
            else:
                columns: dict[str, Any] = {"contig": [r.contig for r in self.regions]}
                columns |= {"start": [r.start for r in self.regions], "end": [r.end for r in self.regions]}
                _write_parquet(partial, columns | {"name": [r.name for r in self.regions]}, {"embedding": embeddings})


def spans_of(regions: Sequence[Interval], context_bases: int | None) -> list[Span]:
    """What to read for these regions: per record one span, or with a context as many as lie apart.

    Args:
        regions: in any order; rows of the output follow it.
        context_bases: bases before each region; None from the record's first base.
    """
    by_contig: dict[str, list[tuple[int, Interval]]] = {}
    for row, region in enumerate(regions):
        by_contig.setdefault(region.contig, []).append((row, region))
    spans: list[Span] = []
    for contig, rows in by_contig.items():
        rows.sort(key=lambda pair: (pair[1].start, pair[1].end))
        begins = [0 if context_bases is None else max(0, region.start - context_bases) for _, region in rows]
        together: list[tuple[int, Interval]] = []
        start, end = begins[0], 0
        for (row, region), begin in zip(rows, begins):
            # A region keeps its own context: reading on from an earlier one would give it more, never less.
            if together and begin > end:
                spans.append(Span(contig, start, end, tuple(together)))
                together, start, end = [], begin, 0
            together.append((row, region))
            end = max(end, region.end)
        spans.append(Span(contig, start, end, tuple(together)))
    return spans


def _write_parquet(path: os.PathLike, columns: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("parquet needs pyarrow (pip install pyarrow); or ask for safetensors") from None
    made: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values, int):  # the first of consecutive positions
            values = np.arange(values, values + len(next(iter(tensors.values()))))
        made[name] = pa.array(values)
    for name, tensor in tensors.items():
        array = tensor.numpy()
        flat = pa.array(array.reshape(-1))
        made[name] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    pq.write_table(pa.table(made), path)
