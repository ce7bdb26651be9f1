"""Tasks as a corpus: seeded samples, loss and accuracy on the answers alone, and a small model that learns one."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from domains.synthetic.datasets import SyntheticCorpus
from domains.synthetic.scoring import Score, score
from domains.synthetic.tasks import InductionHeads, SelectiveCopying
from domains.synthetic.tokenizer import SymbolTokenizer
from seqmodels.backbones.stack import Stack
from seqmodels.data.collate import collate_for
from seqmodels.data.record import IGNORE_INDEX, Corpus, SampleKey, SequenceDataset, Tokenizer
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.instantiate import build
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel


@pytest.fixture
def corpus() -> SyntheticCorpus:
    return SyntheticCorpus(InductionHeads(length=16), test_task=InductionHeads(length=64), train_samples=100, seed=3)


def test_protocols(corpus):
    assert isinstance(corpus, Corpus)
    assert isinstance(corpus.split("train"), SequenceDataset)
    assert isinstance(corpus.tokenizer, Tokenizer)


def test_a_sample_depends_on_seed_split_epoch_and_index_alone(corpus):
    train = corpus.split("train")
    keys = [SampleKey(0, 5), SampleKey(1, 5), SampleKey(0, 6)]
    ids = [train[key].ids.tolist() for key in keys]
    assert len({tuple(row) for row in ids}) == 3, "another epoch or index, another sample"
    copy = pickle.loads(pickle.dumps(train))
    assert [copy[key].ids.tolist() for key in reversed(keys)] == ids[::-1], "in a worker, in any order: the same"
    valid = corpus.split("valid")
    assert valid[5].ids.tolist() != ids[0]
    assert valid[SampleKey(7, 5)].ids.tolist() == valid[5].ids.tolist(), "validation is one fixed list"
    other = SyntheticCorpus(InductionHeads(length=16), seed=4).split("train")
    assert other[5].ids.tolist() != ids[0]


def test_splits_and_report(corpus):
    assert [len(corpus.split(name)) for name in ("train", "valid", "test")] == [100, 512, 512]
    assert len(corpus.split("test")[0].ids) == 64
    assert corpus.report()["test_symbols"] == 64
    with pytest.raises(ValueError, match="no split 'dev'"):
        corpus.split("dev")
    with pytest.raises(IndexError):
        corpus.split("train")[100]


def test_ids_are_small_and_targets_are_answers(corpus):
    record = corpus.split("train")[0]
    assert record.ids.dtype == np.uint8
    assert record.target_ids is not None
    assert (record.target_ids[:-1] == IGNORE_INDEX).all()
    assert record.target_ids[-1] == record.ids[-1]


def test_loss_and_accuracy_count_the_answers_alone():
    """A head that always says the true answer, and nonsense elsewhere, has loss 0 and accuracy 1."""
    corpus = SyntheticCorpus(SelectiveCopying(length=12, data_tokens=3))
    batch = collate_for("next_token", corpus.tokenizer)([corpus.split("train")[index] for index in range(4)])
    assert batch.target_ids_BL is not None
    assert batch.input_ids_BL[0].tolist() == [0, *corpus.split("train")[0].ids[:-1].tolist()]
    logits = torch.randn(4, 16, 16)
    asked = batch.target_ids_BL != IGNORE_INDEX
    logits[asked] = 100.0 * torch.nn.functional.one_hot(batch.target_ids_BL[asked], 16).float()
    sums = NextTokenHead(d_model=8, vocab_size=16).loss(logits, batch)
    assert sums.count.item() == 12
    assert sums.metrics()["accuracy"] == 1.0
    assert sums.metrics()["loss"] < 1e-6


def test_corpus_arguments_are_checked():
    with pytest.raises(ValueError, match="test_task has 8 symbols and task has 16"):
        SyntheticCorpus(InductionHeads(), test_task=InductionHeads(vocab_size=8))
    with pytest.raises(ValueError, match="eval_samples=0"):
        SyntheticCorpus(InductionHeads(), eval_samples=0)


def test_tokenizer_round_trip(tmp_path):
    tokenizer = SymbolTokenizer(vocab_size=300)
    ids = tokenizer.encode("0 299 17")
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == "0 299 17"
    assert build(tokenizer.spec()).spec() == tokenizer.spec()
    (path,) = tokenizer.write(str(tmp_path / "out"), [ids, ids[:1]], names=["a", "b"])
    assert Path(path).read_text() == "a\t0 299 17\nb\t0\n"
    with pytest.raises(ValueError, match=r"span 3\.\.300"):
        tokenizer.encode([3, 300])
    with pytest.raises(ValueError, match="whole numbers"):
        tokenizer.encode("3 x")


def test_score_counts_symbols_and_whole_sequences():
    targets = torch.tensor([[IGNORE_INDEX, 1, 2], [IGNORE_INDEX, 3, 4], [IGNORE_INDEX] * 3])
    predicted = torch.tensor([[9, 1, 2], [9, 3, 0], [0, 0, 0]])
    result = score(predicted, targets)
    assert result == Score(symbols=4, right_symbols=3, sequences=2, right_sequences=1)
    assert (result.accuracy, result.exact_match) == (0.75, 0.5)
    assert (result + result).right_symbols == 6


def test_a_tiny_mamba_learns_to_copy():
    """Two data symbols among eight places, in seconds; guessing gives 1/2."""
    torch.manual_seed(0)
    task = SelectiveCopying(length=8, data_tokens=2, vocab_size=4)
    stack = Stack(vocab_size=4, d_model=32, n_layers=2, layer=functools.partial(Mamba, d_state=8))
    model = SequenceModel(stack, NextTokenHead(d_model=32, vocab_size=4))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    corpus = SyntheticCorpus(task)
    collate = collate_for("next_token", corpus.tokenizer)
    train = corpus.split("train")

    def accuracy(batch):
        logits, _ = model(batch.input_ids_BL)
        return score(logits.argmax(-1), batch.target_ids_BL).accuracy

    for step in range(100):
        batch = collate([train[SampleKey(step, index)] for index in range(32)])
        logits, _ = model(batch.input_ids_BL)
        model.head.loss(logits, batch).mean_loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert accuracy(collate([corpus.split("valid")[index] for index in range(128)])) > 0.95
