"""The classification head: pooling sees real positions only; its loss and accuracy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqmodels.data.record import Batch
from seqmodels.heads.classification import ClassificationHead, pool


def test_pooling_takes_real_positions():
    hidden_BLD = torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [4.0], [9.0]]])
    lengths_B = torch.tensor([2, 3])
    assert pool(hidden_BLD, lengths_B, "last").tolist() == [[3.0], [9.0]]
    assert pool(hidden_BLD, lengths_B, "mean").tolist() == [[2.0], [5.0]]
    assert pool(hidden_BLD, None, "last").tolist() == [[100.0], [9.0]]
    assert pool(hidden_BLD[1:], None, "mean").tolist() == [[5.0]]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_never_comes_through_not_even_nan(pooling):
    head = ClassificationHead(d_model=4, num_classes=3, pooling=pooling)
    hidden_BLD, lengths_B = torch.randn(2, 6, 4), torch.tensor([4, 6])
    clean = head(hidden_BLD, lengths_B)
    hidden_BLD[0, 4:] = float("nan")
    assert torch.equal(head(hidden_BLD, lengths_B), clean)
    torch.testing.assert_close(head(hidden_BLD[:1, :4]), clean[:1])


def test_mean_of_bf16_is_summed_in_fp32():
    hidden_BLD = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    hidden_BLD[:, ::2] = 1.0078125
    assert pool(hidden_BLD, None, "mean").item() == pytest.approx(1.0039, abs=0.004)
    assert pool(torch.ones(1, 4096, 1, dtype=torch.bfloat16), None, "mean").item() == 1.0


def test_loss_and_accuracy():
    logits_BO = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    batch = Batch(torch.zeros(3, 2).long(), torch.full((3,), 2), ("a", "b", "c"), labels_B=torch.tensor([0, 1, 1]))
    sums = ClassificationHead(d_model=4, num_classes=2).loss(logits_BO, batch)
    assert float(sums.loss_sum) == pytest.approx(float(F.cross_entropy(logits_BO, batch.labels_B, reduction="sum")))
    assert float(sums.count) == 3
    assert sums.metrics()["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_classes": 1}, "num_classes=1"), ({"num_classes": 3, "pooling": "max"}, "last, mean")],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassificationHead(d_model=4, **arguments)


def test_an_unlabeled_batch_is_refused():
    batch = Batch(torch.zeros(1, 3).long(), torch.tensor([3]), ("clip.wav:0-3",))
    with pytest.raises(ValueError, match=r"clip\.wav"):
        ClassificationHead(d_model=4, num_classes=2).loss(torch.zeros(1, 2), batch)
