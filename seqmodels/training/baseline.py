"""Markov models beside a language model: judged on the very symbols that it was judged on, class by class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from seqmodels.data.markov import markov_bits
from seqmodels.data.record import IGNORE_INDEX, Batch, MarkedCorpus


class Witness:
    """Passes batches on and keeps what stood in them: the true ids and the marks of every row.

    Args:
        mark_names: of the corpus.
        mask_id: what stands for a hidden symbol, where some are hidden. Adds a class of positions, "behind_mask": the
            targets that the model does not see at all, neither kept nor replaced by another symbol.

    Attributes:
        names: of all classes, in the order of the bits of the marks.
    """

    def __init__(self, mark_names: Sequence[str], mask_id: int | None = None) -> None:
        self.names = tuple(mark_names) if mask_id is None else (*mark_names, "behind_mask")
        self.mask_id = mask_id
        self.ids: list[np.ndarray] = []
        self.marks: list[np.ndarray] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, with the marks of all classes."""
        for batch in batches:
            assert batch.target_ids_BL is not None, "a language model's"
            assert batch.marks_BL is not None, "of MarkedCorpus.marked"
            true_BL = batch.target_ids_BL.numpy()
            marks_BL = batch.marks_BL
            if self.mask_id is not None:  # what is no target stands there as it was
                true_BL = np.where(true_BL == IGNORE_INDEX, batch.input_ids_BL.numpy(), true_BL)
                marks_BL = marks_BL | (batch.input_ids_BL == self.mask_id).long() << len(self.names) - 1
            for row, length in enumerate(batch.lengths_B.tolist()):
                self.ids.append(true_BL[row, :length].astype(np.int16))
                self.marks.append(marks_BL[row, :length].numpy().astype(np.uint8))
            yield replace(batch, marks_BL=marks_BL)


def markov_beside(training: MarkedCorpus, witness: Witness, *, max_order: int, max_symbols: int) -> dict[str, Any]:
    """Bits a symbol of Markov models that learnt from the model's training split, on what the witness saw.

    To a masked model they are a generous baseline: they see every symbol before the one to predict, hidden ones too.

    Args:
        training: the corpus that the model was trained on.
        witness: of a whole evaluation.
        max_order: largest order.
        max_symbols: learn from at most so many symbols, from the beginning of the split.

    Returns:
        {"train_symbols": n, "orders": [{"order", "smoothing", "bits", "by_class": {name: bits}}, ...]}
    """
    symbols = set(getattr(training.tokenizer, "drawn_ids", range(training.tokenizer.vocab_size)))
    others = [i for i in range(training.tokenizer.vocab_size) if i not in symbols]
    learn_from = list(_first(training.region_ids("train"), max_symbols))
    marks = {
        name: [(mark >> bit & 1).astype(bool) for mark in witness.marks]
        for bit, name in enumerate(witness.names)
    }
    rows = markov_bits(learn_from, witness.ids, max_order=max_order, ignore=others, marks=marks)
    orders = [
        {"order": row.order, "smoothing": row.smoothing, "bits": row.bits, "by_class": dict(row.by_mark)}
        for row in rows
    ]
    return {"train_symbols": sum(map(len, learn_from)), "orders": orders}


def _first(sequences: Iterable[Sequence[int] | np.ndarray], count: int) -> Iterator[np.ndarray]:
    """So many ids from the beginning."""
    for ids in sequences:
        if count <= 0:
            return
        yield np.asarray(ids)[:count]
        count -= len(ids)
