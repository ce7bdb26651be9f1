"""What the PNG figures of experiments/ share: the report page's colours, quiet axes, one colour a model everywhere."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

INK, MUTED, RULE = "#15202b", "#5d6b78", "#dde3e8"
# The page's own series colours first, then ones that stay apart from them in print and for colour-blind readers.
COLOURS = {
    "mamba": "#1458c0", "mamba2": "#1f8a4c", "transformer": "#cc3340", "hybrid": "#b07800", "s4d": "#7a4fb5",
    "mamba_s4": "#0e8f9c", "hyena": "#b04a8f", "dilated_conv": "#4d5a66", "lstm": "#8a6d3b", "unet": "#5b8c1f",
    "caduceus_ph": "#3b7dd8", "caduceus_ps": "#0b3d91", "mamba_complex": "#5aa0f2",
}  # fmt: skip
MARKERS = {"mamba": "o", "mamba2": "s", "transformer": "^", "hybrid": "D", "s4d": "v", "mamba_s4": "P"}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file, in order; later rows of the same measurement are newer."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def newest(rows: Sequence[dict[str, str]], *keys: str) -> list[dict[str, str]]:
    """The last row of each combination of `keys`, in the order in which combinations first came."""
    found = {tuple(row[key] for key in keys): row for row in rows}
    return list(found.values())


def colour(model: str) -> str:
    """The model's colour; grey for one without."""
    return COLOURS.get(model, MUTED)


def panels(count: int, *, columns: int, width: float = 4.2, height: float = 3.1) -> tuple[Any, list[Any]]:
    """A figure with `count` axes in rows of `columns`; what is left over of the grid is empty."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: dict[Any, Any] = {
        "font.size": 9, "axes.edgecolor": RULE, "axes.labelcolor": MUTED, "text.color": INK, "xtick.color": MUTED,
        "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
        "grid.color": RULE, "grid.linewidth": 0.6, "axes.titlesize": 10, "axes.titleweight": "bold",
        "axes.titlelocation": "left", "lines.linewidth": 1.6, "lines.markersize": 4, "legend.frameon": False,
    }  # fmt: skip
    plt.rcParams.update(style)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def save(figure: Any, path: Path) -> None:
    """Writes the figure as PNG."""
    import matplotlib.pyplot as plt

    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight")  # with legends below the axes
    plt.close(figure)
