"""The same experiment with several seeds: mean and standard deviation of every metric.

    spreads([{"accuracy": 0.61}, {"accuracy": 0.65}])["accuracy"]  ->  0.6300 ± 0.0283
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """One metric over several runs.

    Attributes:
        mean: of the runs.
        sd: sample standard deviation (n - 1); None for a single run, which has none.
        runs: n.
    """

    mean: float
    sd: float | None
    runs: int

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if self.sd is None else f" ± {self.sd:.4f}")

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"mean": self.mean, "sd": self.sd, "runs": self.runs}


def spreads(rows: Sequence[Mapping[str, Any]]) -> dict[str, Spread]:
    """Mean and sd of the numbers that every row has, in the order of the first row.

    Args:
        rows: metrics of one run each, at least one.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("there are no runs to take the mean of")
    result = {}
    for name in rows[0]:
        values = [row.get(name) for row in rows]
        if all(isinstance(value, int | float) for value in values):
            numbers = [float(value) for value in values]  # type: ignore[arg-type]
            sd = statistics.stdev(numbers) if len(numbers) > 1 else None
            result[name] = Spread(statistics.fmean(numbers), sd, len(numbers))
    return result
