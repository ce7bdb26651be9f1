"""The stream of batches: every sample once an epoch, the same from any start, rank and worker."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqmodels.data.sampler import BatchSampler, Share, epoch_permutation, in_order

sizes = st.integers(1, 40)


@given(num_samples=sizes, batch_size=st.integers(1, 12), seed=st.integers(-3, 2**70))
def test_every_sample_once_an_epoch_and_nothing_dropped(num_samples, batch_size, seed):
    batches = list(islice(BatchSampler(num_samples, batch_size, seed=seed), 3 * num_samples))
    keys = [key for batch in batches for key in batch]
    assert all(len(batch) == batch_size for batch in batches)
    for epoch in range(len(keys) // num_samples):
        of_epoch = [key.index for key in keys if key.epoch == epoch]
        assert Counter(of_epoch) == Counter(range(num_samples))
    assert [key.epoch for key in keys] == sorted(key.epoch for key in keys)


@given(num_samples=sizes, batch_size=st.integers(1, 12), start=st.integers(0, 200))
def test_starting_late_is_having_started_early(num_samples, batch_size, start):
    whole = list(islice(BatchSampler(num_samples, batch_size, seed=5), start + 4))
    assert list(islice(BatchSampler(num_samples, batch_size, seed=5, start=start), 4)) == whole[start:]


@given(num_samples=sizes, rows=st.integers(1, 4), world_size=st.integers(1, 5), position=st.integers(0, 50))
def test_ranks_share_the_batch_that_one_process_would_have(num_samples, rows, world_size, position):
    batch_size = rows * world_size
    alone = BatchSampler(num_samples, batch_size, seed=1).batch(position)
    shares = [BatchSampler(num_samples, batch_size, seed=1, share=Share(r, world_size)) for r in range(world_size)]
    assert [key for share in shares for key in share.batch(position)] == alone


def test_seeds_and_epochs_have_their_own_order_and_zero_is_a_seed():
    orders = {tuple(epoch_permutation(50, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    assert tuple(range(50)) not in orders


def test_the_order_is_written_in_stone():
    """Runs are resumed by later versions: a change here breaks every run that has not finished."""
    assert epoch_permutation(8, seed=0, epoch=0).tolist() == STONE


STONE = [5, 0, 6, 1, 7, 2, 4, 3]


def test_refusals():
    with pytest.raises(ValueError, match="no samples"):
        BatchSampler(0, 4)
    with pytest.raises(ValueError, match=r"batch_size=6 .*multiple of their number, 4"):
        BatchSampler(10, 6, share=Share(0, 4))


@given(num_samples=sizes, batch_size=st.integers(1, 12), world_size=st.integers(1, 4), limit=st.integers(1, 50))
def test_evaluation_sees_every_sample_once_or_a_spread_of_batches(num_samples, batch_size, world_size, limit):
    if num_samples < world_size:
        with pytest.raises(ValueError, match=f"{num_samples} sequences cannot be shared by {world_size} processes"):
            in_order(num_samples, batch_size, share=Share(0, world_size))
        return
    ranks = [in_order(num_samples, batch_size, share=Share(r, world_size)) for r in range(world_size)]
    seen = [key.index for batches in ranks for batch in batches for key in batch]
    assert sorted(seen) == list(range(num_samples))
    limited = in_order(num_samples, batch_size, limit=limit)
    assert len(limited) == min(limit, -(-num_samples // batch_size))
    assert all(key.epoch == 0 for batch in limited for key in batch)
    indices = [key.index for batch in limited for key in batch]
    assert len(set(indices)) == len(indices)


def test_a_limited_evaluation_is_spread_over_the_split():
    batches = [[key.index for key in batch] for batch in in_order(100, 2, limit=4)]
    assert batches == [[0, 12], [25, 37], [50, 62], [75, 87]]
