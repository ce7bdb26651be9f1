"""Stages of a length warm-up: equally many symbols a batch, any start, any rank; and what is refused."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmodels.data.collate import collate_for
from seqmodels.data.length_warmup import AnyLength, LengthWarmup, Stage, StagedSampler, plan_stages
from seqmodels.data.loader import DataSettings, staged_batches
from seqmodels.data.sampler import Share
from seqmodels.training.tiny import TinyCorpus, TinySplit


class AnyLengthCorpus(TinyCorpus):
    """96 symbols in all, cut at any length."""

    sample_length = 32

    def __init__(self):
        super().__init__(length=32)

    def train_at(self, length: int) -> TinySplit:
        return TinySplit(30 * 32 // length, seed=length, length=length)


WARMUP = LengthWarmup(start=4, steps_per_stage=3)


def plan(warmup: LengthWarmup = WARMUP, **how) -> list[Stage]:
    return plan_stages(AnyLengthCorpus(), warmup, **{"batch_size": 2, **how})


def test_the_stages_double_and_every_batch_has_equally_many_symbols():
    stages = plan()
    assert [(stage.length, stage.batch_size, stage.first) for stage in stages] == [
        (4, 16, 0), (8, 8, 3), (16, 4, 6), (32, 2, 9)]  # fmt: skip
    assert isinstance(AnyLengthCorpus(), AnyLength)
    assert not isinstance(TinyCorpus(), AnyLength)
    assert [stage.first for stage in plan(accumulate=5)] == [0, 15, 30, 45]


def test_stages_by_epochs_end_with_a_whole_step():
    # 240, 120, 60 samples of 4, 8, 16 symbols: 2 epochs are 30 batches of each stage, in steps of 4 batches: 8 steps.
    assert [stage.first for stage in plan(LengthWarmup(start=4, epochs_per_stage=2))] == [0, 30, 60, 90]
    by_four = plan(LengthWarmup(start=4, epochs_per_stage=2), accumulate=4)
    assert [stage.first for stage in by_four] == [0, 32, 64, 96]


@given(st.integers(0, 14), st.integers(1, 2), st.integers(0, 3))
def test_starting_late_is_having_started_early_on_any_rank(start: int, world_size: int, seed: int):
    whole = list(islice(StagedSampler(plan(), seed=seed), start + 3))
    assert list(islice(StagedSampler(plan(), seed=seed, start=start), 3)) == whole[start:]
    shares = [StagedSampler(plan(), seed=seed, share=Share(rank, world_size)) for rank in range(world_size)]
    number, keys = whole[start]
    parts = [sampler.batch(start) for sampler in shares]
    assert [part[0] for part in parts] == [number] * world_size
    assert [key for part in parts for key in part[1]] == keys


def test_every_stage_sees_every_sample_once_an_epoch():
    stages = plan(LengthWarmup(start=4, epochs_per_stage=1))
    keys = list(islice(StagedSampler(stages, seed=1), 60))
    for number in range(4):
        seen = Counter(key for stage, batch in keys for key in batch if stage == number)
        samples = len(stages[number].dataset)
        assert seen == Counter({(0, index): 1 for index in range(samples)})


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_cross_from_stage_to_stage_in_one_stream(workers: int):
    collate = collate_for("next_token", AnyLengthCorpus().tokenizer)
    settings = DataSettings(batch_size=2, num_workers=workers)
    batches = list(islice(staged_batches(plan(), collate, settings, seed=0, start=2), 9))
    assert [tuple(batch.input_ids_BL.shape) for batch in batches] == [
        (16, 4), (8, 8), (8, 8), (8, 8), (4, 16), (4, 16), (4, 16), (2, 32), (2, 32)]  # fmt: skip
    assert len({batch.target_ids_BL.numpy().tobytes() for batch in batches}) == 9


def test_refusals():
    with pytest.raises(ValueError, match=r"start=5: the full length, 32, must be start times a power of two"):
        plan(LengthWarmup(start=5))
    with pytest.raises(ValueError, match=r"start=64: the full length, 32"):
        plan(LengthWarmup(start=64))
    with pytest.raises(ValueError, match=r"TinyCorpus has samples of one length only.*domain=dna_windows"):
        plan_stages(TinyCorpus(), WARMUP, batch_size=2)
    for wrong in ({"start": 0}, {"start": 1.5}, {"start": True}, {"steps_per_stage": 0}, {"epochs_per_stage": 0}):
        with pytest.raises(ValueError, match=f"data.length_warmup.{next(iter(wrong))}="):
            LengthWarmup(**wrong)
