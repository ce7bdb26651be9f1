"""Markov baselines against closed forms: entropies that are known, counts by hand, breaks that contexts respect."""

from __future__ import annotations

import numpy as np
import pytest

from seqmodels.data import markov
from seqmodels.data.markov import markov_bits


def test_order_zero_by_hand():
    """Nine of one symbol and three of the other, smoothing 1: (9 + 1) / (12 + 2), or (9 + 1/2) / (12 + 1)."""
    train = [np.array([5, 5, 5, 8] * 3)]
    (row,) = markov_bits(train, [np.array([5, 8])], max_order=0, strengths=(1.0,))
    additive = -np.log2([10 / 14, 4 / 14]).mean()
    interpolated = -np.log2([9.5 / 13, 3.5 / 13]).mean()
    assert row.bits == pytest.approx({"additive": additive, "interpolated": interpolated}[row.smoothing])


def test_entropy_of_a_known_chain():
    """A chain that stays with probability 0.9 has 0.469 bits; order 0 sees a fair coin."""
    rng = np.random.default_rng(0)
    stays = rng.random(60_000) < 0.9
    ids = np.cumsum(~stays) % 2
    rows = markov_bits([ids[:50_000]], [ids[50_000:]], max_order=3)
    assert rows[0].bits == pytest.approx(1.0, abs=0.01)
    for row in rows[1:]:
        assert row.bits == pytest.approx(0.469, abs=0.015)


def test_uniform_symbols_cost_their_logarithm():
    ids = np.random.default_rng(1).integers(0, 16, 40_000)
    rows = markov_bits([ids[:30_000]], [ids[30_000:]], max_order=3)
    assert all(row.bits == pytest.approx(4.0, abs=0.03) for row in rows)


def test_deterministic_sequence_costs_nothing():
    ids = np.tile([3, 1, 4, 1, 5], 4000)
    rows = markov_bits([ids], [ids[:500]], max_order=2)
    assert rows[0].bits == pytest.approx(-(0.4 * np.log2(0.4) + 0.6 * np.log2(0.2)), abs=0.01)
    assert rows[2].bits < 0.02  # after "3 1" comes 4, after "4 1" comes 5; the first two symbols cost more


def test_sparse_counts_equal_dense_ones(monkeypatch: pytest.MonkeyPatch):
    ids = np.random.default_rng(2).integers(0, 7, 9000) ** 2 % 11
    dense = markov_bits([ids[:8000]], [ids[8000:]], max_order=4)
    monkeypatch.setattr(markov, "DENSE_CELLS", 50)
    assert markov_bits([ids[:8000]], [ids[8000:]], max_order=4) == dense


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    ids = np.random.default_rng(3).integers(0, 4, 5000)
    whole = markov_bits([ids[:4000]], [ids[4000:]], max_order=5)
    monkeypatch.setattr(markov, "_CHUNK", 97)
    assert markov_bits([ids[:4000]], [ids[4000:]], max_order=5) == whole


def test_contexts_do_not_cross_borders_or_ignored_ids():
    """In training 1 always follows 0 within a sequence; across a border or an ignored 9, nothing is learned."""
    train = [np.array([0, 1]), np.array([2, 3])] * 300
    joined = markov_bits(train, [np.array([0, 1])] * 50, max_order=1, ignore=[9])
    split = markov_bits(train, [np.array([0, 9, 1])] * 50, max_order=1, ignore=[9])
    assert joined[0].bits == pytest.approx(2.0, abs=0.01)
    assert joined[1].bits == pytest.approx(1.0, abs=0.05)  # the first symbol costs 2 bits, the second none
    assert split[1].bits == pytest.approx(2.0, abs=0.01)
    assert split[0].bits == joined[0].bits


def test_held_out_order_of_sequences_does_not_matter():
    rng = np.random.default_rng(4)
    train, held = [rng.integers(0, 4, 3000)], [rng.integers(0, 4, 50) for _ in range(5)]
    one, two = markov_bits(train, held, max_order=3), markov_bits(train, held[::-1], max_order=3)
    assert [row.bits for row in one] == pytest.approx([row.bits for row in two])


def test_unseen_symbols_are_left_out():
    train = [np.array([0, 1] * 50)]
    assert markov_bits(train, [np.array([0, 1, 7])], max_order=0) == markov_bits(train, [np.array([0, 1])], max_order=0)


def test_arguments_are_checked():
    ids = [np.arange(20) % 4]
    with pytest.raises(ValueError, match="max_order=-1"):
        markov_bits(ids, ids, max_order=-1)
    with pytest.raises(ValueError, match="ten training symbols"):
        markov_bits([], ids, max_order=0)
    with pytest.raises(ValueError, match="no symbol to predict"):
        markov_bits(ids, [], max_order=0)
    with pytest.raises(ValueError, match="do not fit 64 bits"):
        markov_bits([np.arange(256)], ids, max_order=8)


def test_classes_of_positions_add_up_to_the_whole():
    dice = np.random.default_rng(0)
    train, held = [dice.integers(0, 4, 2000)], [dice.integers(0, 4, 300), dice.integers(0, 4, 200)]
    odd = [np.arange(len(ids)) % 3 == 1 for ids in held]
    marks = {"odd": odd, "even": [~part for part in odd], "none": [np.zeros(len(part), bool) for part in odd]}
    plain = markov_bits(train, held, max_order=2)
    for row, same in zip(markov_bits(train, held, max_order=2, marks=marks), plain, strict=True):
        assert row.bits == same.bits, "the models are the same"
        assert row.by_mark.keys() == {"odd", "even"}
        share = sum(part.sum() for part in odd) / 500
        assert share * row.by_mark["odd"] + (1 - share) * row.by_mark["even"] == pytest.approx(row.bits)
    with pytest.raises(ValueError, match="one boolean for each symbol"):
        markov_bits(train, held, max_order=0, marks={"short": odd[:1]})
