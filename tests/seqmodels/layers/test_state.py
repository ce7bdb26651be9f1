"""Handling of carried states: rows, joins, bytes."""

from __future__ import annotations

import pytest
import torch

from seqmodels.layers.mamba import MambaState
from seqmodels.layers.state import concat_states, detach_state, map_state, select_state, state_bytes, state_tensors

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
