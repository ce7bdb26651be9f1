"""Records to one `Batch`: padding on the right, and the shift by one that makes a language model.

`next_token`: a window of L symbols gives L predictions. The model reads `[start, ids[0], ..., ids[L-2]]` and
predicts `ids[0], ..., ids[L-1]`. `classify`: the model reads the ids as they are and predicts one label a row.
`masked_token`: the model reads the ids as they are, some of them hidden before (see masking.py), and predicts
`target_ids` at the same positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch

from seqmodels.data.record import IGNORE_INDEX, Batch, Record, Tokenizer

Objective = Literal["next_token", "masked_token", "classify"]
Collate = Callable[[Sequence[Record]], Batch]


def collate_for(objective: str, tokenizer: Tokenizer) -> Collate:
    """The collate function of a head's `objective`, as a picklable callable.

    Raises:
        ValueError: there is no such objective.
    """
    start_id = tokenizer.start_id
    if objective == "next_token":
        return partial(next_token, start_id=start_id)
    if objective == "classify":
        return partial(classify, pad_id=start_id)
    if objective == "masked_token":
        return partial(masked_token, pad_id=getattr(tokenizer, "pad_id", start_id))
    raise ValueError(
        f"objective={objective!r} of the head is not known; a batch can be made for {', '.join(get_args(Objective))}"
    )


def next_token(records: Sequence[Record], *, start_id: int) -> Batch:
    """A batch for next-symbol prediction.

    Args:
        records: B records of 1..L ids of any integer dtype. Their `target_ids`, where given, are what is predicted
            (`IGNORE_INDEX` where nothing counts); otherwise the ids themselves.
        start_id: the id that stands before the first symbol of every row.

    Returns:
        input_ids_BL, target_ids_BL (both int64), weights_BL when a record has weights, labels_B when every record has a
        label (a model may be told it).

    Raises:
        ValueError: a record is empty, or its targets or weights have another length than its ids.
    """
    lengths = _lengths(records)
    shape = (len(records), max(lengths))
    input_ids_BL = np.full(shape, start_id, dtype=np.int64)
    target_ids_BL = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    labels = [record.label for record in records if record.label is not None]
    for row, (record, length) in enumerate(zip(records, lengths)):
        input_ids_BL[row, 1:length] = record.ids[:-1]
        target_ids_BL[row, :length] = record.ids if record.target_ids is None else _same_length(record, "target_ids")
    return Batch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        target_ids_BL=torch.from_numpy(target_ids_BL),
        weights_BL=_weights(records, shape),
        marks_BL=_marks(records, shape),
        labels_B=None if len(labels) < len(records) else torch.tensor(labels),
        lengths_B=torch.tensor(lengths),
        record_ids=tuple(record.id for record in records),
    )


def masked_token(records: Sequence[Record], *, pad_id: int) -> Batch:
    """A batch for the prediction of hidden symbols, from records of `seqmodels.data.masking.MaskedSamples`.

    Args:
        records: B records of 1..L ids, hidden ones included, with `target_ids`.
        pad_id: what stands behind the end of a shorter row; never a target.

    Returns:
        input_ids_BL, target_ids_BL (both int64), weights_BL when a record has weights.

    Raises:
        ValueError: a record is empty, hides nothing (has no `target_ids`), or has them in another number than ids.
    """
    lengths = _lengths(records)
    shape = (len(records), max(lengths))
    input_ids_BL = np.full(shape, pad_id, dtype=np.int64)
    target_ids_BL = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    for row, (record, length) in enumerate(zip(records, lengths)):
        if record.target_ids is None:
            raise ValueError(f"{record.id} hides no symbol: give its split to seqmodels.data.masking.MaskedSamples")
        input_ids_BL[row, :length] = record.ids
        target_ids_BL[row, :length] = _same_length(record, "target_ids")
    return Batch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        target_ids_BL=torch.from_numpy(target_ids_BL),
        weights_BL=_weights(records, shape),
        marks_BL=_marks(records, shape),
        lengths_B=torch.tensor(lengths),
        record_ids=tuple(record.id for record in records),
    )


def classify(records: Sequence[Record], *, pad_id: int) -> Batch:
    """A batch for one label a sequence: ids as they are, padded with `pad_id` on the right.

    Raises:
        ValueError: a record is empty or has no label.
    """
    lengths = _lengths(records)
    labels = [record.label for record in records if record.label is not None]
    if len(labels) < len(records):
        unlabeled = next(record for record in records if record.label is None)
        raise ValueError(
            f"{unlabeled.id} has no label, and a classification head needs one for every record;"
            " choose a data set with classes, or head=next_token"
        )
    input_ids_BL = np.full((len(records), max(lengths)), pad_id, dtype=np.int64)
    for row, (record, length) in enumerate(zip(records, lengths)):
        input_ids_BL[row, :length] = record.ids
    return Batch(
        input_ids_BL=torch.from_numpy(input_ids_BL),
        labels_B=torch.tensor(labels),
        lengths_B=torch.tensor(lengths),
        record_ids=tuple(record.id for record in records),
    )


def _marks(records: Sequence[Record], shape: tuple[int, int]) -> torch.Tensor | None:
    if all(record.marks is None for record in records):
        return None
    marks_BL = np.zeros(shape, dtype=np.int64)
    for row, record in enumerate(records):
        if record.marks is not None:
            marks_BL[row, : len(record.ids)] = _same_length(record, "marks")
    return torch.from_numpy(marks_BL)


def _lengths(records: Sequence[Record]) -> list[int]:
    lengths = [len(record.ids) for record in records]
    if 0 in lengths:
        raise ValueError(f"{records[lengths.index(0)].id} is empty: a sequence needs at least one symbol")
    return lengths


def _weights(records: Sequence[Record], shape: tuple[int, int]) -> torch.Tensor | None:
    if all(record.weights is None for record in records):
        return None
    weights_BL = np.zeros(shape, dtype=np.float32)
    for row, record in enumerate(records):
        weights_BL[row, : len(record.ids)] = 1.0 if record.weights is None else _same_length(record, "weights")
    return torch.from_numpy(weights_BL)


def _same_length(record: Record, name: str) -> np.ndarray:
    values = getattr(record, name)
    if len(values) != len(record.ids):
        raise ValueError(f"{record.id} has {len(record.ids)} ids but {len(values)} {name}: they must be equally many")
    return values
