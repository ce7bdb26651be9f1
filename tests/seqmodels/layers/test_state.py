"""Handling of carried states: rows, joins, bytes."""

from __future__ import annotations

import pytest
import torch

from seqmodels.layers.kv_cache import KVCache, PaddedKVCache
from seqmodels.layers.mamba import MambaState
from seqmodels.layers.state import (
    concat_states,
    detach_state,
    map_state,
    recurrent_tensors,
    reserve_state,
    select_state,
    state_bytes,
    state_tensors,
)

STATE = (MambaState(torch.arange(12.0).view(2, 3, 2), torch.arange(4.0).view(2, 2, 1)), (), None)


def test_map_keeps_the_structure():
    doubled = map_state(lambda tensor: tensor * 2, STATE)
    assert isinstance(doubled[0], MambaState)
    assert doubled[1:] == ((), None)
    assert torch.equal(doubled[0].ssm, STATE[0].ssm * 2)
    with pytest.raises(TypeError, match="not dict"):
        map_state(lambda tensor: tensor, {"a": 1})


def test_rows_repeat_and_join():
    thrice = select_state(STATE, [1, 1, 0])
    assert thrice[0].conv.shape == (3, 3, 2)
    assert torch.equal(thrice[0].ssm[:, 0, 0], torch.tensor([2.0, 2.0, 0.0]))
    joined = concat_states([select_state(STATE, [0]), select_state(STATE, [1])])
    for mine, other in zip(state_tensors(joined), state_tensors(STATE), strict=True):
        assert torch.equal(mine, other)


def test_bytes_and_detach():
    assert state_bytes(STATE) == 4 * (12 + 4)
    leaf = torch.ones(1, 2, requires_grad=True)
    assert not detach_state((leaf * 2,))[0].requires_grad


def test_states_that_know_better_are_asked_wherever_they_are_nested():
    """A hybrid's state: a recurrence beside a cache whose rows differ in length."""

    def hybrid(length: int):
        cache = KVCache(torch.randn(1, length, 2, 4), torch.randn(1, length, 2, 4))
        return (MambaState(torch.randn(1, 3, 2), torch.randn(1, 2, 1)), ((), cache))

    long, short = hybrid(5), hybrid(2)
    joined = concat_states([long, short])
    assert isinstance(joined[1][1], PaddedKVCache)
    assert joined[1][1].length_B.tolist() == [5, 2]
    for row, alone in enumerate((long, short)):
        for mine, other in zip(state_tensors(select_state(joined, [row])), state_tensors(alone), strict=True):
            assert torch.equal(mine, other)
    room = reserve_state(joined, 3)
    assert torch.equal(room[0].ssm, joined[0].ssm)
    assert room[1][1].k_BTGP.shape == (2, 8, 2, 4)
    assert torch.equal(room[1][1].k_BTGP[0, :5], long[1][1].k_BTGP[0])
    assert len(list(recurrent_tensors(joined))) == 2
    assert len(list(state_tensors(joined))) == 5
