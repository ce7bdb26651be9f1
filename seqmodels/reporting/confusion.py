"""A confusion matrix as a table: counts, shaded by the share of the true class, with recall and precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seqmodels.reporting.markup import escape, inline


def recall_per_class(counts_OO: np.ndarray) -> np.ndarray:
    """(O,) share of each true class (row) that was found; NaN for classes without samples."""
    counts = np.asarray(counts_OO, dtype=np.float64)
    totals = counts.sum(axis=1)
    return np.divide(np.diag(counts), totals, out=np.full(len(counts), np.nan), where=totals > 0)


def macro_recall(counts_OO: np.ndarray) -> float:
    """Mean recall over the classes that have samples (balanced accuracy)."""
    return float(np.nanmean(recall_per_class(counts_OO)))


@dataclass(frozen=True)
class ConfusionMatrix:
    """Rows are true classes, columns predicted ones.

    Args:
        counts_OO: (O, O) counts.
        class_names: O names, in the order of rows and columns.
    """

    counts_OO: Sequence[Sequence[int]] | np.ndarray
    class_names: Sequence[str]

    def __post_init__(self) -> None:
        shape, wanted = np.asarray(self.counts_OO).shape, (len(self.class_names),) * 2
        if shape != wanted:
            raise ValueError(f"counts have shape {shape}, {len(self.class_names)} class names need {wanted}")

    def html(self) -> str:
        counts = np.asarray(self.counts_OO)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        recall = recall_per_class(counts)
        head = "".join(f"<th scope=col><span>{escape(name)}</span></th>" for name in self.class_names)
        rows = "".join(
            f"<tr><th scope=row>{inline(name)}</th>"
            + "".join(self._cell(counts[i, j], shares[i, j], i, j) for j in range(len(self.class_names)))
            + f"<td class=recall>{'–' if np.isnan(recall[i]) else f'{recall[i]:.0%}'}</td></tr>"
            for i, name in enumerate(self.class_names)
        )
        return (
            '<div class="scroll"><table class="confusion"><thead>'
            f'<tr><td></td><td colspan={len(self.class_names)} class="muted">predicted</td><td></td></tr>'
            f'<tr><th class="muted corner">true</th>{head}<th scope=col><span>recall</span></th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )

    def _cell(self, count: float, share: float, i: int, j: int) -> str:
        kind = "hit" if i == j else "miss"
        label = f"{self.class_names[i]} taken for {self.class_names[j]}: {int(count)} ({share:.0%})"
        style = f"--share:{share * 100:.0f}%"
        strong = " strong" if share > 0.45 else ""
        return f'<td class="{kind}{strong}" style="{style}" title="{escape(label)}">{int(count) or ""}</td>'
