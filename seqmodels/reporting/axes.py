"""Arithmetic of plot axes: round tick values, their labels, and the map from data to SVG coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` multiples of 1, 2, 2.5 or 5 times a power of ten, all inside [low, high].

    >>> round_ticks(0, 100)
    [0.0, 25.0, 50.0, 75.0, 100.0]
    >>> round_ticks(1.87, 2.02, 4)
    [1.9, 1.95, 2.0]
    """
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        raise ValueError(f"an axis needs finite bounds with low < high, got {low} and {high}")
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(multiple * power for multiple in (1, 2, 2.5, 5, 10) if multiple * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_labels(ticks: list[float]) -> list[str]:
    """Labels with the same number of decimals for all: as many as the finest tick needs.

    >>> tick_labels([1.9, 1.95, 2.0]), tick_labels([0, 25000, 50000])
    (['1.90', '1.95', '2.00'], ['0', '25k', '50k'])
    """
    if ticks and max(abs(tick) for tick in ticks) >= 10_000 and all(tick % 100 == 0 for tick in ticks):
        return ["0" if tick == 0 else f"{tick / 1000:g}k" for tick in ticks]
    decimals = max((len(f"{tick:.6f}".rstrip("0").split(".")[1]) for tick in ticks), default=0)
    return [f"{tick:,.{decimals}f}" for tick in ticks]


@dataclass(frozen=True, slots=True)
class Scale:
    """A linear map from [low, high] in data to [start, end] in SVG units (start > end turns the axis round)."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)
