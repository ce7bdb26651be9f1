"""Metrics by class of positions, and Markov models beside them, on the symbols that the model was judged on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from domains.dna.datasets import GenomeWindows
from domains.dna.tokenizer import DnaTokenizer
from seqmodels.data.collate import collate_for
from seqmodels.data.loader import DataSettings, evaluation_batches
from seqmodels.data.masking import Masking, hidden_by
from seqmodels.training.baseline import Witness, markov_beside
from seqmodels.training.evaluate import evaluate


@pytest.fixture
def corpus(tmp_path):
    """Half repeats (lower case: always ACGT again), half dice; an N in the validation split."""
    dice = np.random.default_rng(0)
    blocks = ["acgt" * 5 if number % 2 else "".join(dice.choice(list("ACGT"), 20)) for number in range(200)]
    blocks[166] = "N" + blocks[166][1:]
    (tmp_path / "my.fa").write_text(">chr1\n" + "".join(blocks) + "\n")
    return GenomeWindows(str(tmp_path / "my.fa"), window_bases=50)


def test_by_class(corpus, small_model):
    model = small_model(vocab_size=12)
    collate, witness = collate_for("next_token", DnaTokenizer()), Witness(corpus.mark_names)
    results = []
    for batch_size in (1, 3):
        batches = evaluation_batches(corpus.marked("valid"), collate, DataSettings(batch_size))
        seen = witness.watch(batches) if batch_size == 1 else batches
        results.append(evaluate(model, seen, mark_names=corpus.mark_names))
    result = results[0]
    plain = evaluate(model, evaluation_batches(corpus.split("valid"), collate, DataSettings(2)))
    assert result.metrics("base") == pytest.approx(plain.metrics("base")), "the whole is as without classes"
    classes = result.metrics_by_mark("base")
    assert list(classes) == ["all", "repeat", "unique", "n_adjacent"]
    assert classes["all"]["loss"] == pytest.approx(result.metrics("base")["loss"])
    repeat, unique = classes["repeat"], classes["unique"]
    assert repeat["targets"] + unique["targets"] == classes["all"]["targets"] == 50 * 8 - 1
    total = repeat["targets"] * repeat["loss"] + unique["targets"] * unique["loss"]
    assert total == pytest.approx(classes["all"]["targets"] * classes["all"]["loss"])
    assert repeat["bits_per_base"] == pytest.approx(repeat["loss"] / math.log(2))
    assert classes == {name: pytest.approx(row) for name, row in results[1].metrics_by_mark("base").items()}

    beside = markov_beside(corpus, witness, max_order=3, max_symbols=10**6)
    assert [row["order"] for row in beside["orders"]] == [0, 1, 2, 3]
    assert beside["train_symbols"] == sum(map(len, corpus.region_ids("train")))
    best = beside["orders"][3]
    assert best["by_class"]["repeat"] < 1 < best["by_class"]["unique"], "it knows the repeats"
    assert beside["orders"][0]["by_class"]["unique"] == pytest.approx(2, abs=0.05)
    assert markov_beside(corpus, witness, max_order=0, max_symbols=100)["train_symbols"] == 100


def test_a_soft_mask_weight_does_not_weigh_classes(corpus, small_model):
    model, collate = small_model(vocab_size=12), collate_for("next_token", DnaTokenizer())
    plain = evaluate(
        model, evaluation_batches(corpus.marked("valid"), collate, DataSettings(2)), mark_names=corpus.mark_names
    )
    corpus.reader.soft_mask_weight = 0.0
    weighted = evaluate(
        model, evaluation_batches(corpus.marked("valid"), collate, DataSettings(2)), mark_names=corpus.mark_names
    )
    assert weighted.metrics_by_mark("base") == plain.metrics_by_mark("base")
    assert weighted.metrics("base")["loss"] == pytest.approx(plain.metrics_by_mark("base")["unique"]["loss"])


def test_masked_batches_show_what_was_there(corpus):
    tokenizer = DnaTokenizer()
    samples = hidden_by(Masking(rate=0.5), corpus.marked("valid"), tokenizer)
    witness = Witness(corpus.mark_names, tokenizer.mask_id)
    batches = list(witness.watch(evaluation_batches(samples, collate_for("masked_token", tokenizer), DataSettings(3))))
    for ids, index in zip(witness.ids, range(len(corpus.split("valid"))), strict=True):
        assert ids.tolist() == corpus.split("valid")[index].ids.tolist()
    assert witness.names[-1] == "behind_mask"
    behind = torch.cat([(batch.marks_BL >> 3 & 1).flatten() for batch in batches]).bool()
    inputs = torch.cat([batch.input_ids_BL.flatten() for batch in batches])
    assert torch.equal(behind, inputs == tokenizer.mask_id)
    assert 0 < behind.sum() < sum(int((batch.target_ids_BL >= 0).sum()) for batch in batches)
