"""DNA of any length to embeddings and log-likelihoods, a piece at a time: whole chromosomes in constant memory.

In: a FASTA (or 2bit), a trained model, and maybe the regions of a BED. Out:

- with regions: one embedding a region (`.parquet` or `.safetensors`), the mean or the last of its positions;
- without: every position, as numbered parts in a folder, each with its record and first position.

A causal model reads every record from its first base, so an embedding has seen all that lies before it, exactly as in
one pass; `context_bases` bounds that where regions are few. Memory is constant where the state is: attention without a
window keeps all that it has read. A model that reads from both ends sees `context_bases` on either side of each piece
and nothing beyond: that is said in the log and in the output's metadata. A killed run goes on where it stopped:
finished parts stay, and what the model carries is kept beside them. Bases are read as the file has them: the strand of
a BED row is not heeded.
"""

from __future__ import annotations

import collections
import glob
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.dna.fasta import FastaSource, Genome
from domains.dna.fasta_scan import written_whole
from domains.dna.intervals import Interval, read_bed
from domains.dna.resume import (
    ResumeFolder,
    identity_of_files,
    identity_of_model,
    identity_of_rows,
    prepare_target,
    remove_leftovers,
)
from domains.dna.tokenizer import DnaTokenizer
from seqmodels.inference.precision import check_precision, in_precision

log = logging.getLogger(__name__)

KEEP = ("hidden", "log_likelihood", "both")
POOLINGS = ("mean", "last")
FORMATS = ("safetensors", "parquet")
SAVE_SECONDS = 5.0  # of work on regions that a kill may cost
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
            from both ends, bases on either side of a piece (None: 16,384). A causal model that keeps every position
            reads all of every record: there it must be None.
        pool: of a region's positions: "mean" or "last".
        keep: of every position: "hidden", "log_likelihood" or "both" (hidden states alone of a model that predicts no
            next bases).
        part_bases: positions in one part of the output, a multiple of `piece_bases`.
        file_format: of parts: "safetensors" or "parquet".
        half: store the hidden states of every position in fp16; embeddings of regions are fp32.
        precision: "fp32", "tf32" or "bf16"; see `seqmodels.inference.precision`.
    """

    piece_bases: int = 65_536
    context_bases: int | None = None
    pool: str = "mean"
    keep: str = "both"
    part_bases: int = 262_144
    file_format: str = "safetensors"
    half: bool = True
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if self.piece_bases < 1:
            raise ValueError(f"piece_bases={self.piece_bases} must be at least 1")
        if self.part_bases < 1 or self.part_bases % self.piece_bases:
            raise ValueError(
                f"part_bases={self.part_bases} must be a multiple of piece_bases={self.piece_bases}"
            )
        if self.context_bases is not None and self.context_bases < 0:
            raise ValueError(f"context_bases={self.context_bases} must be 0 or more, or null")
        check_precision(self.precision)
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
        with in_precision(loaded_model.model, self.precision) as model:
            reader = _Reader(loaded_model, model, genome, self)
            if regions is None:
                job: _Parts | _Regions = _Parts(self, reader, Path(output), progress)
            else:
                job = _Regions(self, reader, regions, Path(output), progress)
            for note in reader.notes():
                log.info(note)
            with job.resume:
                return job.write()


class _Reader:
    """Spans of a genome to hidden states, by the way that fits the model."""

    def __init__(self, loaded: Any, model: Any, genome: Genome, settings: Embedder):
        self.model, self.tokenizer, self.genome, self.settings = model, loaded.tokenizer, genome, settings
        self.lengths = genome.lengths
        self.causal = bool(self.model.backbone.is_causal)
        self.predicts = self.causal and self.model.head.objective == "next_token"
        self.model_identity = identity_of_model(loaded)

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
        end = min(end, self.lengths[contig])
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


def _identity(settings: Embedder, reader: _Reader, regions: Sequence[Interval] = ()) -> dict[str, Any]:
    """What must not differ between a run and the one that goes on with it."""
    fasta = identity_of_files(file.path for file in reader.genome.files)
    return {**asdict(settings), "model": reader.model_identity, "fasta": fasta, "regions": identity_of_rows(regions)}


# ------------------------------------------------------------------------------------------------ every position


class _Parts:
    """Every position of every record, in numbered parts."""

    def __init__(self, settings: Embedder, reader: _Reader, folder: Path, progress: Progress | None):
        if folder.suffix:
            raise ValueError(f"output={str(folder)!r}: without regions it is a folder of parts; give it no suffix")
        if (folder / "manifest.json").exists():
            raise FileExistsError(f"{folder} is complete; name another output")
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"output={str(folder)!r} is a file; without regions it is a folder of parts")
        if reader.causal and settings.context_bases is not None:
            raise ValueError(
                f"context_bases={settings.context_bases} is for regions, or for models that read from both ends; this "
                "one reads every record from its first base: leave it null"
            )
        if settings.keep == "log_likelihood" and not reader.predicts:
            raise ValueError("keep='log_likelihood': this model predicts no next bases, so there are none")
        if settings.keep == "both" and not reader.predicts:
            log.info("no log-likelihoods: this model predicts no next bases")
        self.hidden = settings.keep != "log_likelihood"
        self.log_likelihood = settings.keep != "hidden" and reader.predicts
        prepare_target(folder / "manifest.json")
        self.settings, self.reader, self.folder, self.progress = settings, reader, folder, progress
        self.spans = [Span(name, 0, length) for name, length in reader.lengths.items() if length]
        self.resume = ResumeFolder(folder / ".resume", _identity(settings, reader))

    def write(self) -> dict[str, int]:
        found = self.resume.load()
        remove_leftovers(self.folder, "part-*")
        if found is None and (strange := sorted(path.name for path in self.folder.glob("part-*"))):
            raise FileExistsError(f"{self.folder} has parts of another run ({strange[0]} …); name another output")
        at, carried = found if found else ({"span": 0, "base": 0, "part": 0, "step": 0}, None)
        if found is None:
            self.resume.save(at)  # so that the first part, if a kill leaves it alone, is known to be ours
        already, total = at["step"], sum(span.end for span in self.spans)
        for number in range(at["span"], len(self.spans)):
            span = self.spans[number]
            for start, end, pieces, carry in self._parts_of(span, carried or None, at["base"]):
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
            pieces.append(self._kept(piece))
            end = base + len(piece.hidden_QD)
            if end - start >= self.settings.part_bases or end == span.end:
                yield start, end, pieces, carry
                pieces, start = [], end

    def _kept(self, piece: Any) -> dict[str, Tensor]:
        """What goes to the file of a piece, on the CPU."""
        tensors: dict[str, Tensor] = {}
        if self.hidden:
            tensors["hidden"] = (piece.hidden_QD.half() if self.settings.half else piece.hidden_QD).cpu()
        if self.log_likelihood:
            tensors["log_likelihood"] = piece.log_likelihood_Q.cpu()
        return tensors

    def _write_part(self, number: int, contig: str, start: int, pieces: list[dict[str, Tensor]]) -> None:
        tensors = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
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
            about = {"model": self.reader.model_identity[0], "parts": parts, "notes": self.reader.notes()}
            about |= {"weights": self.reader.model_identity[1]}
            about |= {"contigs": {span.contig: span.end for span in self.spans}}
            partial.write_text(json.dumps(about, indent=1))


# ------------------------------------------------------------------------------------------------------- regions


class _Regions:
    """One embedding a region."""

    def __init__(self, settings: Embedder, reader: _Reader, bed: str, output: Path, progress: Progress | None):
        if output.suffix not in (".parquet", ".safetensors"):
            raise ValueError(f"output={str(output)!r} must end in .parquet or .safetensors")
        prepare_target(output)
        if output.suffix == ".parquet":
            _pyarrow()
        self.settings, self.reader, self.output, self.progress = settings, reader, output, progress
        self.regions = read_bed(bed, reader.lengths)
        self.spans = spans_of(self.regions, settings.context_bases if reader.causal else 0)
        identity = _identity(settings, reader, self.regions)
        self.resume = ResumeFolder(output.with_name(f".{output.name}.resume"), identity)

    def write(self) -> dict[str, int]:
        rows = len(self.regions)
        found = self.resume.load()
        remove_leftovers(self.output.parent, glob.escape(self.output.name))
        at, kept = found if found else ({"span": 0, "base": -1, "step": 0}, {})
        carried = {name[8:]: tensor for name, tensor in kept.items() if name.startswith("carried.")} or None
        sums = kept.get("sums")
        already, total = at["step"], sum(span.end - span.start for span in self.spans)
        saved = time.monotonic()
        for number in range(at["span"], len(self.spans)):
            span = self.spans[number]
            first = span.start if at["base"] < 0 else at["base"]
            waiting = collections.deque(span.regions)
            for start, piece, carry in self.reader.pieces(span, carried, first):
                if sums is None:
                    sums = torch.zeros(rows, piece.hidden_QD.shape[1], dtype=torch.float64)
                self._add(sums, waiting, start, piece.hidden_QD)
                end = start + len(piece.hidden_QD)
                at = {"span": number, "base": end, "step": at["step"] + end - start}
                if time.monotonic() - saved >= SAVE_SECONDS:
                    self.resume.save(at, {"sums": sums} | {f"carried.{name}": t for name, t in carry().items()})
                    saved = time.monotonic()
                if self.progress:
                    self.progress(at["step"], total)
            carried, at = None, {**at, "base": -1, "span": number + 1}
        assert sums is not None
        self._write_rows(sums)
        self.resume.done()
        return {"bases": total - already, "regions": rows, "bases done before": already}

    def _add(self, sums: Tensor, waiting: collections.deque, start: int, hidden_QD: Tensor) -> None:
        """Adds a piece to the regions it meets; those that end in it are taken off `waiting` where they come first."""
        end = start + len(hidden_QD)
        rows, parts = [], []
        for row, region in waiting:
            if region.start >= end:
                break
            low, high = max(region.start, start), min(region.end, end)
            if self.settings.pool == "last":
                low = max(low, region.end - 1)
            if low < high:
                weight = 1 if self.settings.pool == "last" else len(region)
                rows.append(row)
                parts.append(hidden_QD[low - start : high - start].sum(dim=0, dtype=torch.float64) / weight)
        if rows:
            sums[rows] += torch.stack(parts).cpu()  # together: one wait for the device
        while waiting and waiting[0][1].end <= end:
            waiting.popleft()

    def _write_rows(self, sums: Tensor) -> None:
        embeddings = sums.float()
        with written_whole(self.output) as partial:
            if self.output.suffix == ".safetensors":
                from safetensors.torch import save_file

                regions = [[r.contig, r.start, r.end, r.name] for r in self.regions]
                about = {"regions": json.dumps(regions), "pool": self.settings.pool}
                about |= {"model": self.reader.model_identity[0], "notes": "; ".join(self.reader.notes())}
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


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError("parquet needs pyarrow (pip install pyarrow); or ask for safetensors") from None
    return pa, pq


def _write_parquet(path: os.PathLike, columns: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    pa, pq = _pyarrow()
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
