"""A result beside its baselines: a large number, a dot plot against every reference, and a sentence who wins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from seqmodels.reporting.markup import inline


@dataclass(frozen=True, slots=True)
class Reference:
    """A value to compare with: chance, a baseline model, a published figure."""

    name: str
    value: float


@dataclass(frozen=True)
class Score:
    """One headline number.

    Args:
        title: what was measured.
        value: the model's result.
        unit: printed behind the number, e.g. "bits/base".
        references: what to compare with; may be empty.
        better: "lower" or "higher".
        digits: decimals, for the value and the references alike.
        note: on what it was measured, in a few words.
        name: what the model's own dot is called.
    """

    title: str
    value: float
    unit: str = ""
    references: Sequence[Reference] = field(default_factory=tuple)
    better: str = "lower"
    digits: int = 3
    note: str = ""
    name: str = "this model"

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better={self.better!r}: say 'lower' or 'higher'")
        if not math.isfinite(self.value):
            raise ValueError(f"the score {self.title!r} is {self.value}; only finite results can be reported")

    def best_reference(self) -> Reference | None:
        """The strongest of the references, or None without any."""
        if not self.references:
            return None
        pick = min if self.better == "lower" else max
        return pick(self.references, key=lambda reference: reference.value)

    def verdict(self) -> str:
        """One sentence: against the strongest reference, who is better and by how much.

        >>> Score("LM", 1.93, references=[Reference("uniform", 2.0), Reference("Markov", 1.92)]).verdict()
        'Behind Markov by 0.010.'
        """
        best = self.best_reference()
        if best is None:
            return ""
        gap = round(best.value, self.digits) - round(self.value, self.digits)
        ahead = gap if self.better == "lower" else -gap
        if abs(ahead) < 0.5 * 10**-self.digits:
            return f"Level with {best.name}."
        return f"{'Ahead of' if ahead > 0 else 'Behind'} {best.name} by {abs(ahead):.{self.digits}f}."

    def html(self) -> str:
        note = f'<p class="muted">{inline(self.note)}</p>' if self.note else ""
        unit = f"<small>{inline(self.unit)}</small>" if self.unit else ""
        verdict = f'<p class="verdict">{inline(self.verdict())}</p>' if self.references else ""
        value = f"{self.value:.{self.digits}f}"
        return (
            f'<article class="score"><h3>{inline(self.title)}</h3><p class="value">{value} {unit}</p>{verdict}'
            f"{self._dots()}{note}</article>"
        )

    def _dots(self) -> str:
        """One row a value, best first, on a common axis that does not start at zero: dots, because bars would lie."""
        if not self.references:
            return ""
        rows = [(r.name, r.value, False) for r in self.references] + [(self.name, self.value, True)]
        rows.sort(key=lambda row: row[1], reverse=self.better == "higher")
        low, high = min(row[1] for row in rows), max(row[1] for row in rows)
        span = (high - low) or 1.0
        return (
            '<div class="dots">'
            + "".join(
                f'<div class="dot-row{" own" if own else ""}"><span>{inline(name)}</span>'
                f'<i><b style="left:{100 * (value - low) / span:.1f}%"></b></i>'
                f"<span>{value:.{self.digits}f}</span></div>"
                for name, value, own in rows
            )
            + "</div>"
        )


@dataclass(frozen=True)
class ScoreBoard:
    """Scores next to each other, the first thing on the page."""

    scores: Sequence[Score]

    def html(self) -> str:
        return f'<div class="scores">{"".join(score.html() for score in self.scores)}</div>'
