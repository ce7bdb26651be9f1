"""What a model expects, position by position, drawn like a sequencing trace: one coloured peak a symbol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqmodels.reporting.markup import escape

PEAK_PITCH = 13  # SVG units between positions
HEIGHT, BASELINE = 150, 118


@dataclass(frozen=True)
class PredictionTrace:
    """Peaks whose heights are the probabilities a model gave each symbol before it saw the true one.

    Args:
        probabilities_LV: (L, V) probabilities of the symbols at each position, at most a few hundred positions.
        symbols: V one-letter names, in the order of columns; the first four get the four colours.
        truth: the L true symbols, written under the trace in their own colour.
        first_position: number of the first position, for the ruler.
    """

    probabilities_LV: np.ndarray
    symbols: Sequence[str]
    truth: Sequence[str]
    first_position: int = 1

    def __post_init__(self) -> None:
        wanted = (len(self.truth), len(self.symbols))
        if self.probabilities_LV.shape != wanted:
            raise ValueError(f"probabilities have shape {self.probabilities_LV.shape}, truth and symbols need {wanted}")

    def html(self) -> str:
        width = PEAK_PITCH * (len(self.truth) + 1)
        paths = "".join(self._path(column, width) for column in range(len(self.symbols)))
        letters = "".join(self._letter(position, symbol) for position, symbol in enumerate(self.truth))
        ticks = "".join(
            f"<text class=axis x={PEAK_PITCH * (p + 1)} y={HEIGHT - 2} text-anchor=middle>"
            f"{self.first_position + p:,}</text>"
            for p in range(4, len(self.truth) - 4, 10)
        )
        return (
            f'<div class="scroll trace"><svg viewBox="0 0 {width} {HEIGHT}" style="min-width:{width * 0.75:.0f}px" '
            f'role="img" aria-label="probability of {escape(", ".join(self.symbols))} at {len(self.truth)} positions">'
            f"<line class=reference x1=0 x2={width} y1={BASELINE} y2={BASELINE} />{paths}{letters}{ticks}</svg></div>"
        )

    def _path(self, column: int, width: int) -> str:
        """The sum of one bell per position, as an area: neighbouring peaks run into each other as in a real trace."""
        grid = np.arange(0, width + 1, 2.0)
        centres = PEAK_PITCH * (1 + np.arange(len(self.truth)))
        bells = np.exp(-0.5 * ((grid[:, None] - centres[None, :]) / (0.34 * PEAK_PITCH)) ** 2)
        # Bells overlap a little; without the clip, a run of certain predictions would stand out of the figure.
        heights = np.minimum(bells @ self.probabilities_LV[:, column], 1.0)
        tops = " ".join(f"{x:.0f},{BASELINE - (BASELINE - 10) * h:.1f}" for x, h in zip(grid, heights))
        return f'<polygon class="base{column % 4}" points="0,{BASELINE} {tops} {width},{BASELINE}" />'

    def _letter(self, position: int, symbol: str) -> str:
        column = list(self.symbols).index(symbol) if symbol in self.symbols else None
        probability = f"{self.probabilities_LV[position, column]:.2f}" if column is not None else "not predicted"
        style = f"base{column % 4}" if column is not None else "muted"
        return (
            f'<text class="letter {style}" x={PEAK_PITCH * (position + 1)} y={BASELINE + 16} text-anchor=middle>'
            f"{escape(symbol)}<title>position {self.first_position + position:,}: {escape(symbol)}, p = {probability}"
            "</title></text>"
        )
