"""How many answers are right: symbol by symbol, and whole sequences."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from seqmodels.data.record import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Score:
    """Counts, which add up over batches.

    Attributes:
        symbols: answer positions seen.
        right_symbols: of these, predicted correctly.
        sequences: sequences with at least one answer.
        right_sequences: of these, with every answer correct (exact match).
    """

    symbols: int
    right_symbols: int
    sequences: int
    right_sequences: int

    @property
    def accuracy(self) -> float:
        """Share of answer symbols that are right."""
        return self.right_symbols / max(self.symbols, 1)

    @property
    def exact_match(self) -> float:
        """Share of sequences without a wrong answer."""
        return self.right_sequences / max(self.sequences, 1)

    def __add__(self, other: Score) -> Score:
        return Score(
            self.symbols + other.symbols,
            self.right_symbols + other.right_symbols,
            self.sequences + other.sequences,
            self.right_sequences + other.right_sequences,
        )


def score(predicted_BL: Int[Tensor, "B L"], target_ids_BL: Int[Tensor, "B L"]) -> Score:
    """Compares predictions with targets; positions with `IGNORE_INDEX` do not count."""
    asked_BL = target_ids_BL != IGNORE_INDEX
    wrong_BL = asked_BL & (predicted_BL != target_ids_BL)
    asked, wrong = int(asked_BL.sum()), int(wrong_BL.sum())
    has_answers_B, has_errors_B = asked_BL.any(dim=-1), wrong_BL.any(dim=-1)
    return Score(asked, asked - wrong, int(has_answers_B.sum()), int((has_answers_B & ~has_errors_B).sum()))
