"""A classifier's answers about clips: its own softmax, and the features its last layer reads."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from domains.audio.metrics import accuracy, classifier_answers, frechet_distance, inception_score
from seqmodels.backbones.stack import Stack
from seqmodels.data.collate import classify
from seqmodels.data.record import Record
from seqmodels.heads.classification import ClassificationHead
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel

BACKBONE = partial(
    Stack, vocab_size=16, d_model=8, n_layers=1, layer=partial(Mamba, d_state=4, implementation="reference")
)


@pytest.fixture
def model() -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(BACKBONE(), ClassificationHead(d_model=8, num_classes=3)).train()


def batches(size: int):
    dice = np.random.default_rng(0)
    records = [Record(str(i), dice.integers(0, 16, 5 + i), label=i % 3) for i in range(7)]
    return [classify(records[first : first + size], pad_id=8) for first in range(0, 7, size)]


def test_answers_do_not_depend_on_the_batches_and_make_the_logits(model):
    answers, one_by_one = classifier_answers(model, batches(4)), classifier_answers(model, batches(1))
    np.testing.assert_allclose(answers.probabilities_NO, one_by_one.probabilities_NO, atol=1e-6)
    np.testing.assert_allclose(answers.features_NF, one_by_one.features_NF, rtol=1e-4, atol=1e-5)
    assert (answers.probabilities_NO.shape, answers.features_NF.shape) == ((7, 3), (7, 8))
    logits = model.head.classifier(torch.from_numpy(answers.features_NF)).detach()
    np.testing.assert_allclose(answers.probabilities_NO, torch.softmax(logits, -1).numpy(), atol=1e-6)
    assert model.training, "left in the mode it was in"


def test_scores_take_them(model):
    answers = classifier_answers(model, batches(4))
    assert 1 <= inception_score(answers.probabilities_NO) <= 3
    assert frechet_distance(answers.features_NF, answers.features_NF) == pytest.approx(0, abs=1e-6)
    assert accuracy(answers.probabilities_NO, answers.probabilities_NO.argmax(axis=1)) == 1


def test_what_is_no_classifier(model):
    with pytest.raises(ValueError, match="has a NextTokenHead"):
        classifier_answers(SequenceModel(BACKBONE(), NextTokenHead(d_model=8, vocab_size=16)), batches(4))
    with pytest.raises(ValueError, match="no clips"):
        classifier_answers(model, [])
