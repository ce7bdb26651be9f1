"""Scores of confusion matrices, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seqmodels.training.class_scores import class_scores


def test_two_classes_by_hand():
    """MCC of two classes is (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN))."""
    scores = class_scores(torch.tensor([[6, 2], [1, 3]]))
    assert scores["mcc"] == pytest.approx((6 * 3 - 2 * 1) / math.sqrt(7 * 8 * 5 * 4))
    assert scores["macro_f1"] == pytest.approx((12 / 15 + 6 / 9) / 2)


def test_right_wrong_and_one_sided():
    assert class_scores(np.diag([3, 4, 5])) == {"macro_f1": 1.0, "mcc": pytest.approx(1.0)}
    assert class_scores(np.array([[0, 5], [5, 0]]))["mcc"] == pytest.approx(-1.0)
    assert class_scores(np.array([[5, 0], [5, 0]]))["mcc"] == 0.0
    absent = class_scores(np.array([[5, 0, 0], [1, 4, 0], [0, 0, 0]]))  # a class that neither occurs nor is predicted
    assert absent["macro_f1"] == pytest.approx((10 / 11 + 8 / 9) / 2)
