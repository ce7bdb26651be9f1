"""The language-model head: what counts in its loss, and what its loss costs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from seqmodels.data.record import IGNORE_INDEX, Batch
from seqmodels.heads import next_token
from seqmodels.heads.next_token import NextTokenHead


def batch_of(targets_BL: torch.Tensor, **fields) -> Batch:
    B, L = targets_BL.shape
    ids = torch.zeros(B, L, dtype=torch.int64)
    return Batch(ids, torch.full((B,), L), tuple(f"r{b}" for b in range(B)), target_ids_BL=targets_BL, **fields)


def test_loss_counts_targets_and_weights_only():
    logits_BLV = torch.randn(2, 3, 5)
    targets_BL = torch.tensor([[1, 2, IGNORE_INDEX], [0, IGNORE_INDEX, 4]])
    weights_BL = torch.tensor([[1.0, 0.5, 9.0], [0.0, 9.0, 2.0]])
    counted = [(0, 0), (0, 1), (1, 0), (1, 2)]
    nats = {at: -float(logits_BLV[at].log_softmax(-1)[targets_BL[at]]) for at in counted}
    head = NextTokenHead(d_model=4, vocab_size=5)

    plain = head.loss(logits_BLV, batch_of(targets_BL))
    assert float(plain.loss_sum) == pytest.approx(sum(nats.values()), rel=1e-5)
    assert float(plain.count) == 4

    weighted = head.loss(logits_BLV, batch_of(targets_BL, weights_BL=weights_BL))
    expected = nats[0, 0] + 0.5 * nats[0, 1] + 2 * nats[1, 2]
    assert float(weighted.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert float(weighted.count) == 3.5
    assert weighted.metrics()["bits"] == pytest.approx(expected / 3.5 / math.log(2), rel=1e-5)


def test_accuracy_is_weighted_like_the_loss():
    logits_BLV = F.one_hot(torch.tensor([[1, 2, 3, 0]]), 4).float()
    targets_BL = torch.tensor([[1, 0, 3, IGNORE_INDEX]])
    sums = NextTokenHead(d_model=4, vocab_size=4).loss(logits_BLV, batch_of(targets_BL))
    assert sums.metrics()["accuracy"] == pytest.approx(2 / 3)


def test_uniform_logits_cost_log2_of_the_vocabulary():
    sums = NextTokenHead(d_model=4, vocab_size=4).loss(torch.zeros(1, 10, 4), batch_of(torch.ones(1, 10).long()))
    assert sums.metrics()["bits"] == pytest.approx(2.0)


def test_a_batch_without_targets_gives_zero_gradient_not_nan():
    logits_BLV = torch.randn(1, 3, 4, requires_grad=True)
    sums = NextTokenHead(d_model=4, vocab_size=4).loss(logits_BLV, batch_of(torch.full((1, 3), IGNORE_INDEX)))
    sums.mean_loss().backward()
    assert logits_BLV.grad is not None
    assert not logits_BLV.grad.any()
    assert math.isnan(sums.metrics()["loss"])


def test_chunked_loss_is_the_whole_loss(monkeypatch):
    targets_BL = torch.randint(0, 7, (2, 101))
    targets_BL[0, ::5] = IGNORE_INDEX
    head, results = NextTokenHead(d_model=4, vocab_size=7), []
    values_BLV = torch.randn(2, 101, 7)
    for elements in (2**24, 7 * 16):
        monkeypatch.setattr(next_token, "LOSS_CHUNK_ELEMENTS", elements)
        logits_BLV = values_BLV.clone().requires_grad_()
        sums = head.loss(logits_BLV, batch_of(targets_BL))
        sums.mean_loss().backward()
        results.append((sums.loss_sum, sums.metric_sums["accuracy"], logits_BLV.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_loss_is_fp32_for_bf16_logits():
    logits_BLV = torch.randn(1, 2000, 5).bfloat16()
    targets_BL = torch.randint(0, 5, (1, 2000))
    sums = NextTokenHead(d_model=4, vocab_size=5).loss(logits_BLV, batch_of(targets_BL))
    exact = F.cross_entropy(logits_BLV[0].double(), targets_BL[0], reduction="sum")
    assert sums.loss_sum.dtype is torch.float32
    assert float(sums.loss_sum) == pytest.approx(float(exact), rel=1e-6)


def test_sums_of_batches_are_the_big_batch():
    head, logits_BLV, targets_BL = NextTokenHead(d_model=4, vocab_size=5), torch.randn(4, 6, 5), torch.ones(4, 6).long()
    whole = head.loss(logits_BLV, batch_of(targets_BL)).metrics()
    parts = [head.loss(logits_BLV[b : b + 2], batch_of(targets_BL[b : b + 2])).detach() for b in (0, 2)]
    assert (parts[0] + parts[1]).metrics() == pytest.approx(whole, rel=1e-6)


def test_padding_rows_of_the_table_are_not_logits():
    head = NextTokenHead(d_model=4, vocab_size=5, pad_vocab_to=8)
    assert head.weight.shape == (8, 4)
    assert head(torch.randn(2, 3, 4)).shape == (2, 3, 5)


def test_tying_tables_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"head.tied=false"):
        NextTokenHead(d_model=4, vocab_size=5).tie(torch.nn.Embedding(16, 4))


def test_a_labeled_batch_is_refused():
    batch = Batch(torch.zeros(1, 3).long(), torch.tensor([3]), ("chr1:0-3",), labels_B=torch.tensor([0]))
    with pytest.raises(ValueError, match="chr1:0-3"):
        NextTokenHead(d_model=4, vocab_size=5).loss(torch.zeros(1, 3, 5), batch)
