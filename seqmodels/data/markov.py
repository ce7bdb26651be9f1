"""Order-k Markov models of token ids: the honest baseline that a language model has to beat, in bits a symbol.

In: training sequences and held-out sequences of ids, any alphabet (DNA: 4 letters; mu-law sound: 256).
Out: held-out bits a symbol for every order k = 0..K.

    table = markov_bits(train, held_out, max_order=10)
    min(table, key=lambda row: row.bits)

An order-k model predicts a symbol from the k before it by counting:

    p_k(x | context) = (count(context, x) + s * p_{k-1}(x | shorter context)) / (count(context) + s)      interpolated
    p_k(x | context) = (count(context, x) + s) / (count(context) + s * V)                                 additive

with p_{-1} = 1/V. The smoothing (kind and strength s) is chosen for each order on the last tenth of the training data
(2^20 symbols at most), then counts are taken from all of it. Held-out data has no say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

DENSE_CELLS = 1 << 25  # counts with at most so many cells are a plain array (256 MiB); larger ones are sorted keys
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_TUNING_SHARE = 0.1
_TUNING_SYMBOLS = 1 << 20  # more of them would not choose better
_CHUNK = 1 << 22


@dataclass(frozen=True)
class MarkovRow:
    """The result of one order.

    Attributes:
        order: symbols of context, k.
        bits: held-out bits a symbol.
        smoothing: "interpolated" or "additive", as chosen on training data.
        strength: s of the formula.
        by_mark: held-out bits a symbol of each class of positions; without classes that hold none.
    """

    order: int
    bits: float
    smoothing: str
    strength: float
    by_mark: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Stream:
    """Sequences end to end as codes 0..V-1, -1 at breaks; `reach` counts the codes right before each position."""

    codes: Int64[np.ndarray, " n"]
    reach: Int64[np.ndarray, " n"]

    @classmethod
    def of(cls, sequences: Iterable[np.ndarray], code_of_id: np.ndarray) -> _Stream:
        parts: list[np.ndarray] = []
        for ids in sequences:
            parts += [_coded(np.asarray(ids), code_of_id), np.array([-1], dtype=np.int32)]
        codes = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
        positions = np.arange(len(codes), dtype=np.int64)
        last_break = np.maximum.accumulate(np.where(codes < 0, positions, -1)) if len(codes) else positions
        before = np.concatenate([[-1], last_break[:-1]]) if len(codes) else last_break
        return cls(codes, (positions - before - 1).astype(np.int32))

    def __len__(self) -> int:
        return len(self.codes)

    def cut(self, start: int, stop: int) -> _Stream:
        return _Stream(self.codes[start:stop], np.minimum(self.reach[start:stop], np.arange(stop - start)))

    def keys(self, order: int, vocab: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Where in [start, stop) a symbol with `order` symbols before it stands, and its (context, symbol) keys."""
        start = max(start, order)  # earlier positions cannot have `order` symbols before them
        keys = np.zeros(max(stop - start, 0), dtype=np.int64)
        for back in range(order, -1, -1):
            keys *= vocab
            keys += self.codes[start - back : stop - back]
        fits = (self.reach[start:stop] >= order) & (self.codes[start:stop] >= 0)
        return np.flatnonzero(fits) + start, keys[fits]


def _coded(ids: np.ndarray, code_of_id: np.ndarray) -> np.ndarray:
    """Codes of ids; -1 for ids that training never shows or that are ignored."""
    known = (ids >= 0) & (ids < len(code_of_id))
    return np.where(known, code_of_id[np.where(known, ids, 0)], -1).astype(np.int32)


class _Counts:
    """Counts of (context, symbol) pairs of one order, and of contexts."""

    def __init__(self, stream: _Stream, order: int, vocab: int):
        self.vocab = vocab
        self.dense = vocab ** (order + 1) <= DENSE_CELLS
        starts = range(0, max(len(stream), 1), _CHUNK)
        pieces = (stream.keys(order, vocab, first, min(first + _CHUNK, len(stream)))[1] for first in starts)
        if self.dense:
            self.pairs = np.zeros(vocab ** (order + 1), dtype=np.int64)
            for keys in pieces:
                self.pairs += np.bincount(keys, minlength=len(self.pairs))
            self.contexts = self.pairs.reshape(-1, vocab).sum(axis=1)
            return
        keys = np.concatenate(list(pieces))
        self.pair_keys, self.pairs = np.unique(keys, return_counts=True)
        owners = self.pair_keys // vocab
        first = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]])) if len(owners) else owners
        self.context_keys = owners[first]
        self.contexts = np.add.reduceat(self.pairs, first) if len(first) else self.pairs

    def look_up(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(count of context and symbol, count of context) for each key."""
        if self.dense:
            return self.pairs[keys], self.contexts[keys // self.vocab]
        return _found(self.pair_keys, self.pairs, keys), _found(self.context_keys, self.contexts, keys // self.vocab)


def _found(known: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    if not len(known):
        return np.zeros(len(keys), dtype=np.int64)
    ascending = np.argsort(keys)  # neighbours in a table of gigabytes are found in the cache
    place = np.empty(len(keys), dtype=np.int64)
    place[ascending] = np.minimum(np.searchsorted(known, keys[ascending]), len(known) - 1)
    return np.where(known[place] == keys, counts[place], 0)


@dataclass(frozen=True)
class _Evidence:
    """What the counts of one order say about some targets: everything that a smoothing needs."""

    here: Int64[np.ndarray, " m"]  # positions with a full context
    pairs: Int64[np.ndarray, " m"]
    contexts: Int64[np.ndarray, " m"]
    lower: Float64[np.ndarray, " n"]  # p_{k-1} of every position
    vocab: int

    @classmethod
    def of(cls, target: _Stream, counts: _Counts, order: int, lower: np.ndarray) -> _Evidence:
        parts = []
        for first in range(0, max(len(target), 1), _CHUNK):
            here, keys = target.keys(order, counts.vocab, first, min(first + _CHUNK, len(target)))
            parts.append((here, *counts.look_up(keys)))
        return cls(*(np.concatenate(column) for column in zip(*parts)), lower=lower, vocab=counts.vocab)

    def probabilities(self, smoothing: str, strength: float) -> Float64[np.ndarray, " n"]:
        """p_k of all targets; those with fewer than k symbols before them keep p_{k-1}."""
        result = self.lower.copy()
        if smoothing == "additive":
            result[self.here] = (self.pairs + strength) / (self.contexts + strength * self.vocab)
        else:
            result[self.here] = (self.pairs + strength * self.lower[self.here]) / (self.contexts + strength)
        return result


def _bits(probabilities: np.ndarray, target: _Stream, here: np.ndarray | None = None) -> float:
    return float(-np.log2(probabilities[target.codes >= 0 if here is None else here]).mean())


def _end_to_end(arrays: Sequence[np.ndarray], target: _Stream) -> np.ndarray:
    """Where in the stream of the held-out sequences a symbol of a class stands."""
    parts = [part for array in arrays for part in (np.asarray(array, dtype=bool), np.zeros(1, dtype=bool))]
    joined = np.concatenate(parts) if parts else np.zeros(0, dtype=bool)
    if len(joined) != len(target):
        raise ValueError("marks need one boolean for each symbol of each held-out sequence")
    return joined & (target.codes >= 0)


def markov_bits(
    train: Iterable[np.ndarray],
    held_out: Iterable[np.ndarray],
    *,
    max_order: int,
    ignore: Sequence[int] = (),
    strengths: Sequence[float] = STRENGTHS,
    marks: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> list[MarkovRow]:
    """Held-out bits a symbol of Markov models of order 0..max_order.

    Contexts never reach over the border of a sequence or over an ignored id; there the longest context that fits is
    used, so that every order is judged on the same symbols. Symbols that training never shows are left out.

    Args:
        train: sequences of ids; the alphabet is the ids that occur in them.
        held_out: sequences of ids to be predicted.
        max_order: largest k, at least 0.
        ignore: ids that are neither predicted nor used as context (N, padding).
        strengths: candidates for s.
        marks: classes of held-out positions: for each name, a boolean array for each held-out sequence. The models
            are the same; only what they cost is told class by class.

    Raises:
        ValueError: max_order is negative, there is too little training data, or nothing to predict.
    """
    return list(
        markov_orders(train, held_out, max_order=max_order, ignore=ignore, strengths=strengths, marks=marks)
    )


def markov_orders(
    train: Iterable[np.ndarray],
    held_out: Iterable[np.ndarray],
    *,
    max_order: int,
    ignore: Sequence[int] = (),
    strengths: Sequence[float] = STRENGTHS,
    marks: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Iterator[MarkovRow]:
    """`markov_bits`, order after order as they are known: high orders of a whole chromosome take minutes."""
    if max_order < 0:
        raise ValueError(f"max_order={max_order} must be at least 0")
    train, held_out = [np.asarray(ids) for ids in train], list(held_out)
    code_of_id, vocab = _alphabet(train, ignore)
    if vocab ** (max_order + 1) > 2**62:
        raise ValueError(f"max_order={max_order} with {vocab} symbols: contexts do not fit 64 bits; take a lower order")
    whole, target = _Stream.of(train, code_of_id), _Stream.of(held_out, code_of_id)
    if (target.codes >= 0).sum() == 0:
        raise ValueError("the held-out sequences have no symbol to predict")
    classes = {name: _end_to_end(arrays, target) for name, arrays in (marks or {}).items()}
    symbols = np.flatnonzero(whole.codes >= 0)
    border = int(symbols[-min(int(np.ceil(len(symbols) * _TUNING_SHARE)), _TUNING_SYMBOLS)])
    fit, tune = whole.cut(0, border), whole.cut(border, len(whole))
    uniform = 1.0 / vocab
    candidates = [(kind, strength) for kind in ("interpolated", "additive") for strength in strengths]
    tune_lower, target_lower = np.full(len(tune), uniform), np.full(len(target), uniform)
    for order in range(max_order + 1):
        evidence = _Evidence.of(tune, _Counts(fit, order, vocab), order, tune_lower)
        tuned = {candidate: _bits(evidence.probabilities(*candidate), tune) for candidate in candidates}
        best = min(candidates, key=tuned.__getitem__)
        # Only the interpolated chain goes down to the next order: additive counts of order k+1 do not use it.
        chain = min((c for c in candidates if c[0] == "interpolated"), key=tuned.__getitem__)
        tune_lower = evidence.probabilities(*chain)
        evidence = _Evidence.of(target, _Counts(whole, order, vocab), order, target_lower)
        found = evidence.probabilities(*best)
        by_mark = {name: _bits(found, target, here) for name, here in classes.items() if here.any()}
        yield MarkovRow(order, _bits(found, target), *best, by_mark)
        target_lower = evidence.probabilities(*chain)


def _alphabet(train: Sequence[np.ndarray], ignore: Sequence[int]) -> tuple[np.ndarray, int]:
    """A table from id to code 0..V-1 (-1: not in the alphabet), and V."""
    seen = np.unique(np.concatenate([np.unique(ids) for ids in train])) if train else np.empty(0, dtype=np.int64)
    seen = seen[(seen >= 0) & ~np.isin(seen, list(ignore))].astype(np.int64)
    if sum(len(ids) for ids in train) < 10 or not len(seen):
        raise ValueError("a Markov model needs at least ten training symbols")
    code_of_id = np.full(int(seen.max()) + 1, -1, dtype=np.int64)
    code_of_id[seen] = np.arange(len(seen))
    return code_of_id, len(seen)
