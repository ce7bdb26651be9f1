"""How values of some groups are spread: outlined histograms over one axis, each scaled to its group's size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from seqmodels.reporting.axes import Scale, round_ticks, tick_labels
from seqmodels.reporting.markup import escape

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 40


@dataclass(frozen=True)
class Histogram:
    """Shares of values by bin, one outline a group; a dashed line marks each group's mean.

    Args:
        groups: name of each group and its finite values, at most four groups.
        x_label: what the values are, with their unit.
        bins: number of bins of equal width over the range of all values.
    """

    groups: Mapping[str, Sequence[float] | np.ndarray]
    x_label: str
    bins: int = 24

    def __post_init__(self) -> None:
        for name, values in self.groups.items():
            if not len(values) or not np.isfinite(np.asarray(values)).all():
                raise ValueError(f"group {name!r} needs at least one value, all of them finite")

    def html(self) -> str:
        values = {name: np.asarray(group, dtype=np.float64) for name, group in self.groups.items()}
        everything = np.concatenate(list(values.values()))
        low, high = float(everything.min()), float(everything.max())
        edges = np.linspace(low, high if high > low else low + 1, self.bins + 1)
        shares = {name: np.histogram(group, edges)[0] / len(group) for name, group in values.items()}
        x = Scale(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
        y = Scale(0.0, max(float(share.max()) for share in shares.values()) * 1.06, HEIGHT - BOTTOM, TOP)
        outlines = "".join(_outline(share, edges, x, y, f"s{i % 4}") for i, share in enumerate(shares.values()))
        means = "".join(
            f'<line class="mean s{i % 4}" x1={at:.1f} x2={at:.1f} y1={TOP} y2={HEIGHT - BOTTOM} />'
            for i, at in enumerate(x(float(group.mean())) for group in values.values())
        )
        legend = "".join(
            f'<span class="key s{i % 4}">{escape(name)} ({len(group):,}, mean {group.mean():+.2f})</span>'
            for i, (name, group) in enumerate(values.items())
        )
        return (
            f'<div class="plot"><div class="legend"><em>share of each group</em>{legend}</div>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="histogram of {escape(self.x_label)}">'
            f"{_axes(x, y)}{outlines}{means}<text class=axis x={WIDTH - RIGHT} y={HEIGHT - 4} text-anchor=end>"
            f"{escape(self.x_label)}</text></svg></div>"
        )


def _outline(shares: np.ndarray, edges: np.ndarray, x: Scale, y: Scale, style: str) -> str:
    """The steps of one histogram, closed along the axis."""
    corners = [(edges[0], 0.0)]
    for index, share in enumerate(shares):
        corners += [(edges[index], share), (edges[index + 1], share)]
    corners.append((edges[-1], 0.0))
    points = " ".join(f"{x(float(px)):.1f},{y(float(py)):.1f}" for px, py in corners)
    return f'<polygon class="steps {style}" points="{points}" />'


def _axes(x: Scale, y: Scale) -> str:
    parts = []
    x_ticks, y_ticks = round_ticks(x.low, x.high, 6), round_ticks(0.0, y.high, 4)
    for tick in y_ticks:
        parts.append(f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y(tick):.1f} y2={y(tick):.1f} />")
        parts.append(f"<text class=axis x={LEFT - 8} y={y(tick) + 4:.1f} text-anchor=end>{tick:.0%}</text>")
    for tick, label in zip(x_ticks, tick_labels(x_ticks)):
        parts.append(f"<text class=axis x={x(tick):.1f} y={HEIGHT - BOTTOM + 18} text-anchor=middle>{label}</text>")
    return "".join(parts)
