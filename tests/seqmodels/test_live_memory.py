"""Live bytes: made, shared, freed, kept for backward; real tensors and fake ones."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from seqmodels.live_memory import LiveMemory

ROW = 4 * 256  # bytes of 256 floats


@pytest.fixture(params=["real", "fake"])
def anywhere(request):
    if request.param == "real":
        yield
    else:
        with FakeTensorMode():
            yield


def test_views_share_and_what_nobody_holds_is_gone(anywhere):
    with LiveMemory() as memory:
        x = torch.zeros(256)
        assert memory.live == ROW
        y = x[:10]
        assert memory.live == ROW
        z = x + 1
        assert memory.live == 2 * ROW
        del x
        assert memory.live == 2 * ROW, "a view keeps its storage"
        del y
        assert memory.live == ROW
        del z
        assert memory.live == 0
        assert memory.peak == 2 * ROW


def test_what_backward_needs_stays(anywhere):
    weight = torch.ones(256, requires_grad=True)
    with LiveMemory() as memory:
        memory.follow(weight)
        y = (weight * 2).exp()  # exp keeps its result; the product's input is not needed
        assert memory.live == 2 * ROW
        loss = y.sum()
        del y
        assert memory.live == 2 * ROW + 4
        loss.backward()
        assert weight.grad is not None
        assert memory.live == 2 * ROW + 4  # weight, its gradient, the loss
        assert memory.peak > 2 * ROW + 4


def test_a_tensor_followed_twice_counts_once():
    x = torch.zeros(256)
    memory = LiveMemory()
    memory.follow(x, x, x.view(16, 16))
    assert memory.live == ROW


def test_memory_that_is_used_again_is_counted_again():
    with LiveMemory() as memory:
        for _ in range(5):
            x = torch.zeros(1000)
            del x
        assert memory.live == 0
        assert memory.peak == 4000
