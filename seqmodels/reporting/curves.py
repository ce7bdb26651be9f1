"""Training curves as inline SVG: thin noisy series with a smoothed line, validation points, reference levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from seqmodels.reporting.axes import Scale, round_ticks, tick_labels
from seqmodels.reporting.markup import escape
from seqmodels.reporting.scores import Reference

WIDTH, HEIGHT = 520, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 12, 40
MOST_POINTS = 400  # more than the page has pixels for; longer series are averaged in bins


@dataclass(frozen=True)
class Curve:
    """One series.

    Args:
        name: for the legend.
        steps: x values, ascending.
        values: y values; non-finite ones are left out.
        smooth: draw the raw series faintly and an exponential average over it.
        dots: mark every point (few points, e.g. validation).
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    smooth: bool = False
    dots: bool = False

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(f"curve {self.name!r}: {len(self.steps)} steps but {len(self.values)} values")

    def points(self) -> list[tuple[float, float]]:
        """Finite (step, value) pairs, averaged in bins when there are more than the plot can show."""
        pairs = [(float(x), float(y)) for x, y in zip(self.steps, self.values) if math.isfinite(x) and math.isfinite(y)]
        size = math.ceil(len(pairs) / MOST_POINTS)
        if size <= 1:
            return pairs
        bins = [pairs[start : start + size] for start in range(0, len(pairs), size)]
        return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins]


@dataclass(frozen=True)
class Curves:
    """A line plot of some curves and horizontal reference levels, all in one unit."""

    curves: Sequence[Curve]
    y_label: str
    x_label: str = "step"
    references: Sequence[Reference] = field(default_factory=tuple)

    def html(self) -> str:
        points = [curve.points() for curve in self.curves]
        if not any(points):
            return '<p class="muted">No finite values to draw.</p>'
        x = _x_scale(points)
        y = self._y_scale(points)
        body = [_grid(x, y), *self._reference_lines(y)]
        for index, (curve, pairs) in enumerate(zip(self.curves, points)):
            body.append(_draw(curve, pairs, x, y, f"s{index % 4}"))
        legend = "".join(f'<span class="key s{i % 4}">{escape(c.name)}</span>' for i, c in enumerate(self.curves))
        return (
            f'<div class="plot"><div class="legend"><em>{escape(self.y_label)}</em>{legend}</div>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self._spoken(points))}">'
            f"{''.join(body)}<text class=axis x={WIDTH - RIGHT} y={HEIGHT - 4} text-anchor=end>"
            f"{escape(self.x_label)}</text></svg></div>"
        )

    def _y_scale(self, points: list[list[tuple[float, float]]]) -> Scale:
        """Bounds that hold every curve but its first steep fall, and the references."""
        levels = [reference.value for reference in self.references]
        low = min([y for pairs in points for _, y in pairs] + levels)
        settled = [y for pairs in points for _, y in pairs[len(pairs) // 10 :]]
        high = max(settled + levels)
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        return Scale(low - room, high + room, HEIGHT - BOTTOM, TOP)

    def _reference_lines(self, y: Scale) -> list[str]:
        lines, taken = [], []
        for reference in sorted(self.references, key=lambda r: r.value):
            height = y(reference.value)
            above = height - 5
            if any(abs(above - other) < 13 for other in taken):
                above = height + 13
            taken.append(above)
            lines.append(
                f"<line class=reference x1={LEFT} x2={WIDTH - RIGHT} y1={height:.1f} y2={height:.1f} />"
                f"<text class=reference x={WIDTH - RIGHT - 2} y={above:.1f} text-anchor=end>"
                f"{escape(reference.name)} {reference.value:.3f}</text>"
            )
        return lines

    def _spoken(self, points: list[list[tuple[float, float]]]) -> str:
        ends = [f"{c.name} ends at {pairs[-1][1]:.3f}" for c, pairs in zip(self.curves, points) if pairs]
        return f"{self.y_label} by {self.x_label}: " + ", ".join(ends)


def _x_scale(points: list[list[tuple[float, float]]]) -> Scale:
    low = min(pairs[0][0] for pairs in points if pairs)
    high = max(pairs[-1][0] for pairs in points if pairs)
    return Scale(low, high if high > low else low + 1, LEFT, WIDTH - RIGHT)


def _grid(x: Scale, y: Scale) -> str:
    parts = []
    y_ticks, x_ticks = round_ticks(y.low, y.high, 6), round_ticks(x.low, x.high, 6)
    for tick, label in zip(y_ticks, tick_labels(y_ticks)):
        parts.append(f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y(tick):.1f} y2={y(tick):.1f} />")
        parts.append(f"<text class=axis x={LEFT - 8} y={y(tick) + 4:.1f} text-anchor=end>{label}</text>")
    for tick, label in zip(x_ticks, tick_labels(x_ticks)):
        parts.append(f"<text class=axis x={x(tick):.1f} y={HEIGHT - BOTTOM + 18} text-anchor=middle>{label}</text>")
    return "".join(parts)


def _draw(curve: Curve, pairs: list[tuple[float, float]], x: Scale, y: Scale, style: str) -> str:
    if not pairs:
        return ""
    parts, line = [], pairs
    if curve.smooth and len(pairs) > 8:
        parts.append(_line(_below(pairs, y.high), x, y, f"{style} raw"))
        line = _smoothed(pairs)
    parts.append(_line(_below(line, y.high), x, y, style))
    if curve.dots:
        parts += [
            f'<circle class="{style}" cx={x(px):.1f} cy={y(min(py, y.high)):.1f} r=3.2>'
            f"<title>{escape(curve.name)}: {py:.4f} at {px:g}</title></circle>"
            for px, py in pairs
        ]
    return "".join(parts)


def _below(pairs: list[tuple[float, float]], high: float) -> list[tuple[float, float]]:
    """The line from where it first comes under `high`: a steep start enters at the top edge, later peaks are cut."""
    first = next((i for i, (_, value) in enumerate(pairs) if value <= high), 0)
    entry = []
    if first > 0:
        (x0, y0), (x1, y1) = pairs[first - 1], pairs[first]
        entry = [(x0 + (x1 - x0) * (y0 - high) / (y0 - y1), high)]
    return entry + [(px, min(py, high)) for px, py in pairs[first:]]


def _line(pairs: list[tuple[float, float]], x: Scale, y: Scale, style: str) -> str:
    return f'<polyline class="{style}" points="{" ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in pairs)}" />'


def _smoothed(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Exponential average over about a fortieth of the series, corrected for its empty start."""
    decay = 1 - 1 / max(2.0, len(pairs) / 40)
    total, weight, out = 0.0, 0.0, []
    for px, py in pairs:
        total, weight = decay * total + py, decay * weight + 1
        out.append((px, total / weight))
    return out
