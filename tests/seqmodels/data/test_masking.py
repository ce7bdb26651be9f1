"""What is hidden from a masked model: rates, never N or padding, and always the same for (seed, epoch, sample)."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from domains.audio.tokenizer import MuLawTokenizer
from domains.dna.tokenizer import DnaTokenizer
from seqmodels.data.collate import collate_for
from seqmodels.data.datamodule import SequenceDataModule
from seqmodels.data.loader import DataSettings, evaluation_batches, training_batches
from seqmodels.data.masking import MaskedSamples, Masking, hidden_by
from seqmodels.data.record import IGNORE_INDEX, Record, SampleKey
from seqmodels.training.tiny import TinyCorpus, TinySplit, TinyTokenizer

TOKENIZER, PUBLISHED = DnaTokenizer(), Masking()


class Dna:
    """Sample `index` is the same in every epoch: 20,000 bases, then N, then padding."""

    def __len__(self):
        return 3

    def __getitem__(self, key):
        index = key[1] if isinstance(key, tuple) else key
        bases = np.random.default_rng(index).integers(7, 11, 20_000)
        ids = np.concatenate([bases, np.full(500, 11), np.full(500, 4)]).astype(np.uint8)
        return Record(f"sample {index}", ids)


def masked(key=0, masking=PUBLISHED, seed=0) -> tuple[np.ndarray, Record]:
    """What was there, and the record with symbols hidden."""
    return Dna()[key].ids, MaskedSamples(Dna(), masking, TOKENIZER, seed=seed)[key]


def test_the_published_shares_and_nothing_but_bases():
    true, record = masked()
    target = record.target_ids != IGNORE_INDEX
    assert not target[20_000:].any(), "N and padding are never hidden"
    assert np.array_equal(record.target_ids[target], true[target])
    assert np.array_equal(record.ids[~target], true[~target])
    count = target.sum()
    assert count / 20_000 == pytest.approx(0.15, abs=0.01)
    assert (record.ids[target] == DnaTokenizer.mask_id).sum() / count == pytest.approx(0.8, abs=0.03)
    # a tenth is drawn at random, of which a quarter is drawn as it was
    changed = (record.ids != true) & (record.ids != DnaTokenizer.mask_id)
    assert changed.sum() / count == pytest.approx(0.075, abs=0.02)
    assert set(record.ids[changed]) == {7, 8, 9, 10}, "random bases, no other ids"


def test_rates_are_options():
    true, record = masked(masking=Masking(rate=0.5, mask_share=0, random_share=0))
    assert np.array_equal(record.ids, true), "all kept"
    assert (record.target_ids != IGNORE_INDEX).sum() / 20_000 == pytest.approx(0.5, abs=0.02)
    true, record = masked(masking=Masking(rate=1, mask_share=1, random_share=0))
    assert (record.ids[:20_000] == DnaTokenizer.mask_id).all()
    for wrong in ({"rate": 0}, {"rate": 1.5}, {"mask_share": 0.8, "random_share": 0.3}, {"mask_share": -0.1}):
        with pytest.raises(ValueError, match=r"head.masking.*published"):
            Masking(**wrong)


def test_what_a_record_does_not_predict_is_not_hidden():
    class Half(Dna):
        def __getitem__(self, key):
            record = super().__getitem__(key)
            targets = record.ids.astype(np.int64)
            targets[:10_000] = IGNORE_INDEX
            return dataclasses.replace(record, target_ids=targets, weights=np.arange(21_000, dtype=np.float32))

    record = MaskedSamples(Half(), Masking(), TOKENIZER)[1]
    assert (record.target_ids[:10_000] == IGNORE_INDEX).all()
    assert (record.target_ids[10_000:] != IGNORE_INDEX).any()
    assert record.weights[7] == 7, "weights come through"


def test_masks_are_a_function_of_seed_epoch_and_sample():
    def mask(*key, seed=0):
        return masked(SampleKey(*key), seed=seed)[1]

    first = mask(0, 1)
    again = pickle.loads(pickle.dumps(MaskedSamples(Dna(), Masking(), TOKENIZER)))
    assert np.array_equal(MaskedSamples(Dna(), Masking(), TOKENIZER)[1].ids, again[SampleKey(0, 1)].ids)
    assert np.array_equal(first.ids, mask(0, 1).ids)
    for other in (mask(1, 1), mask(0, 2), mask(0, 1, seed=1)):
        assert not np.array_equal(first.target_ids, other.target_ids)


def test_data_without_a_mask_id_is_refused():
    with pytest.raises(ValueError, match=r"MuLawTokenizer has no mask_id.*head=next_token"):
        MaskedSamples(Dna(), Masking(), MuLawTokenizer(sample_rate_hz=16000))
    assert hidden_by(None, samples := Dna(), TOKENIZER) is samples


def batches_of(workers: int, count: int = 12) -> list[tuple[list, list, tuple]]:
    samples = MaskedSamples(TinySplit(10, seed=3, ragged=True), Masking(), TinyTokenizer(), seed=5)
    stream = training_batches(samples, collate_for("masked_token", TinyTokenizer()), DataSettings(4, None, workers))
    batches = [batch for batch, _ in zip(stream, range(count))]
    return [(batch.input_ids_BL.tolist(), batch.target_ids_BL.tolist(), batch.record_ids) for batch in batches]


def test_masks_do_not_depend_on_workers():
    """12 batches of 4 from 10 samples: more than one epoch, so that a sample is met with several masks."""
    alone = batches_of(0)
    assert batches_of(2) == alone
    hidden = {(name, str(row)) for _, targets, names in alone for name, row in zip(names, targets)}
    assert len(hidden) > 10, "another mask in another epoch"


def test_padding_is_no_target():
    batch = collate_for("masked_token", TinyTokenizer())(
        [Record("a", np.array([1, 5, 3]), target_ids=np.array([-100, 2, -100])),
         Record("b", np.array([4]), target_ids=np.array([4]))]
    )  # fmt: skip
    assert batch.input_ids_BL.tolist() == [[1, 5, 3], [4, 5, 5]]
    assert batch.target_ids_BL.tolist() == [[-100, 2, -100], [4, -100, -100]]
    assert batch.lengths_B.tolist() == [3, 1]
    assert collate_for("masked_token", TOKENIZER).keywords == {"pad_id": 4}
    with pytest.raises(ValueError, match="b hides no symbol"):
        collate_for("masked_token", TinyTokenizer())([Record("b", np.array([4]))])


def test_validation_masks_are_the_same_for_every_run_and_epoch():
    def masks(seed: int, position: int) -> list[torch.Tensor]:
        data = SequenceDataModule(
            TinyCorpus(), objective="masked_token", settings=DataSettings(4), masking=Masking(), seed=seed
        )
        data.position = position
        return [batch.target_ids_BL for batch in data.validation_batches(2)]

    first = masks(0, 0)
    assert any((targets != IGNORE_INDEX).any() for targets in first)
    assert all(map(torch.equal, first, masks(0, 1000)))
    assert all(map(torch.equal, first, masks(7, 0)))
    # ... and what `evaluate` sees of the split
    tokenizer = TinyTokenizer()
    samples = hidden_by(Masking(), TinyCorpus().split("valid"), tokenizer)
    evaluated = evaluation_batches(samples, collate_for("masked_token", tokenizer), DataSettings(4), max_batches=2)
    assert all(torch.equal(a, b.target_ids_BL) for a, b in zip(first, evaluated, strict=True))
