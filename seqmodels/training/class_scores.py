"""Scores of a confusion matrix that benchmarks report beside accuracy."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int
from torch import Tensor


def class_scores(confusion_OO: Int[Tensor, "O O"] | Int[np.ndarray, "O O"]) -> dict[str, float]:
    """What benchmarks of sequences report beside accuracy: macro_f1 and mcc.

    Args:
        confusion_OO: (true class, predicted class) counts.

    Returns:
        macro_f1: mean of the F1 of classes that occur or were predicted. mcc: Matthews' correlation coefficient for any
        number of classes (Gorodkin 2004, equation 8); 0 where all labels or all predictions are one class.
    """
    counts = np.asarray(confusion_OO, dtype=np.float64)
    right, true_O, predicted_O = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    seen_O = true_O + predicted_O > 0
    f1_O = 2 * right[seen_O] / (true_O + predicted_O)[seen_O]
    total = counts.sum()
    covariance = total * right.sum() - true_O @ predicted_O
    spread = (total**2 - true_O @ true_O) * (total**2 - predicted_O @ predicted_O)
    return {"macro_f1": float(f1_O.mean()), "mcc": float(covariance / spread**0.5) if spread > 0 else 0.0}
