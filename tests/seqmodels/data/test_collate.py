"""Records to batches: the shift by one, padding on the right, refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from seqmodels.data.collate import classify, collate_for, next_token
from seqmodels.data.record import IGNORE_INDEX, Record
from seqmodels.training.tiny import TinyTokenizer


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_a_window_of_l_symbols_gives_l_predictions(dtype):
    batch = next_token([Record("a", np.array([7, 8, 9], dtype)), Record("b", np.array([4], dtype))], start_id=2)
    assert batch.input_ids_BL.tolist() == [[2, 7, 8], [2, 2, 2]]
    assert batch.target_ids_BL is not None
    assert batch.target_ids_BL.tolist() == [[7, 8, 9], [4, IGNORE_INDEX, IGNORE_INDEX]]
    assert batch.lengths_B.tolist() == [3, 1]
    assert batch.record_ids == ("a", "b")
    assert batch.weights_BL is None
    assert {t.dtype for t in (batch.input_ids_BL, batch.target_ids_BL, batch.lengths_B)} == {torch.int64}


def test_own_targets_and_weights_stand_where_the_ids_stand():
    record = Record(
        "a", np.array([7, 11, 9], np.uint8), target_ids=np.array([7, IGNORE_INDEX, 9]), weights=np.array([1, 0.5, 0.25])
    )
    batch = next_token([record, Record("b", np.array([3, 4], np.uint8))], start_id=2)
    assert batch.input_ids_BL.tolist() == [[2, 7, 11], [2, 3, 2]]
    assert batch.target_ids_BL is not None
    assert batch.target_ids_BL.tolist() == [[7, IGNORE_INDEX, 9], [3, 4, IGNORE_INDEX]]
    assert batch.weights_BL is not None
    assert batch.weights_BL.tolist() == [[1, 0.5, 0.25], [1, 1, 0]]


def test_classes_get_their_ids_unshifted():
    records = [Record("a", np.array([7, 8], np.uint8), label=1), Record("b", np.array([9], np.uint8), label=0)]
    batch = classify(records, pad_id=4)
    assert batch.input_ids_BL.tolist() == [[7, 8], [9, 4]]
    assert batch.labels_B is not None
    assert batch.labels_B.tolist() == [1, 0]
    assert batch.target_ids_BL is None


def test_refusals_name_the_record():
    with pytest.raises(ValueError, match=r"chr1:5-5 is empty"):
        next_token([Record("chr1:5-5", np.array([], np.uint8))], start_id=0)
    with pytest.raises(ValueError, match=r"b has no label.*head=next_token"):
        classify([Record("a", np.array([1]), label=0), Record("b", np.array([1]))], pad_id=0)
    with pytest.raises(ValueError, match=r"a has 2 ids but 3 target_ids"):
        next_token([Record("a", np.array([1, 2]), target_ids=np.array([1, 2, 3]))], start_id=0)


def test_collate_for_an_objective_travels_to_workers():
    collate = pickle.loads(pickle.dumps(collate_for("next_token", TinyTokenizer())))
    assert collate([Record("a", np.array([1, 2], np.uint8))]).input_ids_BL.tolist() == [[5, 1]]
    with pytest.raises(ValueError, match=r"objective='masked'.*next_token, masked_token, classify"):
        collate_for("masked", TinyTokenizer())
