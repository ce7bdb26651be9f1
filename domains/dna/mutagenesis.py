"""In-silico mutagenesis: how much likelier or less likely does every single substitution make a stretch of DNA?

In: a window of sequence, a causal language model, the positions to change. Out: (positions, 4) scores in nats,

    score(position, base) = log p(window with that base there) - log p(window)

0 where the base is the reference's own, NaN where the reference has no A, C, G, T. What lies before a position is read
once for a block of positions: the state in front of the block is carried into all of its variants: half of the work.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from domains.dna.fasta import FastaSource, Genome
from domains.dna.fasta_scan import written_whole
from domains.dna.intervals import Interval
from domains.dna.names import close_names, find_contig
from domains.dna.resume import prepare_target
from domains.dna.tokenizer import BASE_IDS, DnaTokenizer, reverse_complement_ids
from seqmodels.inference.precision import check_precision, in_precision

BASES = "ACGT"
Progress = Callable[[int, int], None]  # (positions done, positions in all)


@dataclass(frozen=True)
class Mutagenesis:
    """Scores all substitutions of a region.

    Args:
        window_bases: bases read around the region, the region included; 0 reads the region alone.
        both_strands: also read the reverse complement, and take the mean.
        block_bases: positions that share one reading of what lies before them.
        batch_size: windows in one forward pass: 1 + 3 x block_bases of them make a block.
        precision: "fp32", "tf32" or "bf16"; see `seqmodels.inference.precision`.
    """

    window_bases: int = 2048
    both_strands: bool = True
    block_bases: int = 16
    batch_size: int = 64  # a whole block: the reference too, which would else be a pass of its own
    precision: str = "fp32"

    def __post_init__(self) -> None:
        check_precision(self.precision)
        for name, least in (("window_bases", 0), ("block_bases", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def __call__(
        self, loaded_model: Any, fasta: FastaSource, region: str, output: str, *, figure: str | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Writes the scores of a region as a table, and as a figure.

        Args:
            loaded_model: of `seqmodels.inference.load`; a causal DNA language model.
            fasta: see `Genome`.
            region: `chr1:1000-1200`, 1-based and both ends included, as genome browsers write it.
            output: `.tsv` or `.csv`: contig, pos (1-based), ref, A, C, G, T.
            figure: `.png`, `.svg` or `.pdf` with a heat map and a sequence logo; None draws none.
            progress: called with (positions done, positions in all).

        Returns:
            Counts: positions, how many were not A, C, G, T, and the most harmful substitution.
        """
        if not output.endswith((".tsv", ".csv")):
            raise ValueError(f"output={output!r} must end in .tsv or .csv")
        if figure and not figure.endswith((".png", ".svg", ".pdf")):
            raise ValueError(f"figure={figure!r} must end in .png, .svg or .pdf")
        tokenizer = loaded_model.tokenizer
        if not isinstance(tokenizer, DnaTokenizer):
            raise ValueError(f"mutagenesis needs a DNA model; this one reads {type(tokenizer).__name__}")
        for name, path in (("output", output), ("figure", figure)):
            if path:
                prepare_target(path, name=name)
        genome = Genome(fasta)
        interval = parse_region(region, genome)
        begin, end = _window(interval, genome.lengths[interval.contig], self.window_bases)
        ids = tokenizer.encode(genome.fetch(interval.contig, begin, end))
        first, last = interval.start - begin, interval.end - begin
        with in_precision(loaded_model.model, self.precision) as model:
            scores = self.scores(model, ids, first, last, progress=progress)
        _write_table(Path(output), interval, ids[first:last], scores)
        if figure:
            draw(scores, ids[first:last], interval, Path(figure))
        return _summary(interval, ids[first:last], scores)

    def scores(
        self, model: Any, ids: np.ndarray, first: int, last: int, *, progress: Progress | None = None
    ) -> Float[np.ndarray, "positions 4"]:
        """Scores of all substitutions at positions first..last-1 of a window of token ids."""
        total = (last - first) * (1 + self.both_strands)
        done = 0

        def step(positions: int) -> None:
            nonlocal done
            done += positions
            if progress:
                progress(done * (last - first) // total, last - first)

        scores = self._one_strand(model, ids, first, last, step)
        if self.both_strands:
            other = reverse_complement_ids(ids)
            mirrored = self._one_strand(model, other, len(ids) - last, len(ids) - first, step)
            scores = (scores + mirrored[::-1, ::-1]) / 2  # A, C, G, T backwards is their complement
        return scores

    def _one_strand(
        self, model: Any, ids: np.ndarray, first: int, last: int, step: Callable[[int], None]
    ) -> np.ndarray:
        from seqmodels.inference import token_log_likelihood

        ids_L = torch.from_numpy(ids.astype(np.int64))
        letters = ids.tolist()
        scores = np.full((last - first, 4), np.nan)
        state, previous, read = None, DnaTokenizer.start_id, 0
        for start in range(first, last, self.block_bases):
            if start > read:
                _, state = token_log_likelihood(model, ids_L[None, read:start], start_id=previous, state=state)
                previous, read = letters[start - 1], start
            positions = range(start, min(start + self.block_bases, last))
            changes = [
                (position - start, base)
                for position in positions
                if letters[position] in BASE_IDS
                for base in BASE_IDS
                if base != letters[position]
            ]
            totals = self._totals(model, ids_L[start:], [None, *changes], previous, state) if changes else [0.0]
            for position in positions:
                if letters[position] in BASE_IDS:
                    scores[position - first, BASE_IDS.index(letters[position])] = 0.0
            for (offset, base), likelihood in zip(changes, totals[1:], strict=True):
                scores[start - first + offset, BASE_IDS.index(base)] = likelihood - totals[0]
            step(len(positions))
        return scores

    def _totals(
        self, model: Any, ids_L: Tensor, changes: Sequence[tuple[int, int] | None], previous: int, state: Any
    ) -> list[float]:
        """log p of what follows, with each change (None: without)."""
        from seqmodels.inference import token_log_likelihood
        from seqmodels.layers.state import select_state

        counted_L = (ids_L >= BASE_IDS[0]) & (ids_L <= BASE_IDS[-1])
        totals: list[float] = []
        for begin in range(0, len(changes), self.batch_size):
            batch = changes[begin : begin + self.batch_size]
            rows_BL = ids_L.repeat(len(batch), 1)
            for row, change in enumerate(batch):
                if change is not None:
                    rows_BL[row, change[0]] = change[1]
            carried = None if state is None else select_state(state, [0] * len(batch))
            logp_BL, _ = token_log_likelihood(model, rows_BL, start_id=previous, state=carried)
            counted_L = counted_L.to(logp_BL.device)  # added up there: one number a row comes back, not every base
            totals += torch.where(counted_L, logp_BL.double(), 0.0).sum(dim=1).tolist()
        return totals


def parse_region(region: str, genome: Genome) -> Interval:
    """`chr1:1,000-1,200` (1-based, both ends included) as an interval.

    Raises:
        ValueError: not of that form, an unknown record, or positions that are not on it.
    """
    match = re.fullmatch(r"(.+):([\d,]+)-([\d,]+)", region.strip())
    if match is None:
        raise ValueError(f"region={region!r} must look like chr1:1000-1200 (1-based, both ends included)")
    contig = find_contig(match[1], genome.lengths)
    if contig is None:
        raise ValueError(f"region={region!r}: no record {match[1]!r}{close_names(match[1], tuple(genome.lengths))}")
    start, end = int(match[2].replace(",", "")) - 1, int(match[3].replace(",", ""))
    if not 0 <= start < end <= genome.lengths[contig]:
        raise ValueError(f"region={region!r}: {contig} has positions 1-{genome.lengths[contig]:,}")
    return Interval(contig, start, end)


def _window(interval: Interval, length: int, window_bases: int) -> tuple[int, int]:
    """Where the window around a region begins and ends; at the ends of the record it moves inwards."""
    size = min(max(window_bases, len(interval)), length)
    begin = min(max(0, interval.start - (size - len(interval)) // 2), length - size)
    return begin, begin + size


def _summary(interval: Interval, ids: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    known = np.isin(ids, BASE_IDS)
    counts: dict[str, Any] = {"positions": len(ids), "not A, C, G, T": int((~known).sum())}
    if known.any():
        row, column = np.unravel_index(np.nanargmin(scores), scores.shape)
        reference = BASES[BASE_IDS.index(int(ids[row]))]
        change = f"{interval.contig}:{interval.start + row + 1} {reference}>{BASES[column]}"
        counts["most harmful"] = f"{change} ({scores[row, column]:.3f} nats)"
    return counts


def _write_table(path: Path, interval: Interval, ids: np.ndarray, scores: np.ndarray) -> None:
    with written_whole(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t", lineterminator="\n")
        writer.writerow(("contig", "pos", "ref", *BASES))
        for offset, (token, row) in enumerate(zip(ids, scores)):
            cells = ["" if np.isnan(score) else f"{score:.6g}" for score in row]
            letter = DnaTokenizer().decode(np.array([token]))
            writer.writerow((interval.contig, interval.start + offset + 1, letter, *cells))


# -------------------------------------------------------------------------------------------------------- figure

_COLOURS = {"A": "#2a9d5c", "C": "#2a6fb0", "G": "#d99a1c", "T": "#c23b3b"}


def draw(scores: np.ndarray, ids: np.ndarray, interval: Interval, path: Path) -> None:
    """A sequence logo (how much the model minds a change) above a heat map of every substitution."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    positions = np.arange(interval.start + 1, interval.end + 1)
    importance = -np.where(np.isnan(scores), 0.0, scores).sum(axis=1) / 3
    width = min(40.0, max(6.0, 0.16 * len(positions)))
    figure, (above, below) = plt.subplots(2, 1, figsize=(width, 3.6), sharex=True, height_ratios=(2, 1.4))
    for position, token, height in zip(positions, ids, importance):
        if token in BASE_IDS:
            _letter(above, BASES[BASE_IDS.index(int(token))], float(position), float(height))
    above.axhline(0, color="0.6", linewidth=0.6)
    low, high = min(0.0, importance.min()), max(0.0, importance.max())
    above.set_ylim(low * 1.05 - 1e-9, high * 1.05 + 1e-9)
    above.set_ylabel("mean loss of\na change, nats")
    limit = float(np.nanmax(np.abs(scores))) if np.isfinite(scores).any() else 1.0
    extent = (positions[0] - 0.5, positions[-1] + 0.5, 3.5, -0.5)
    image = below.imshow(
        scores.T, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit, extent=extent, interpolation="none"
    )
    below.set_yticks(range(4), BASES)
    below.set_xlabel(f"{interval.contig}, position (1-based)")
    below.set_xlim(extent[0], extent[1])
    below.ticklabel_format(axis="x", style="plain", useOffset=False)
    figure.colorbar(image, ax=[above, below], label="log p change, nats", fraction=0.03, pad=0.01)
    with written_whole(path) as partial:
        figure.savefig(partial, format=path.suffix[1:], dpi=150, bbox_inches="tight")
    plt.close(figure)


def _letter(axes: Any, letter: str, position: float, height: float) -> None:
    """A letter that fills the box from 0 to `height`, one position wide."""
    from matplotlib.patches import PathPatch
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    outline = TextPath((0, 0), letter, size=1)
    box = outline.get_extents()
    to_box = Affine2D().translate(-box.x0, -box.y0).scale(0.92 / box.width, height / box.height)
    placed = to_box.translate(position - 0.46, 0)
    axes.add_patch(PathPatch(placed.transform_path(outline), facecolor=_COLOURS[letter], edgecolor="none"))
