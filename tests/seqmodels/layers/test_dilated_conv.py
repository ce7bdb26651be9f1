"""Dilated convolutions: torch's conv1d in float64, reach, state size, initialisation. The laws are in test_laws.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqmodels import testing
from seqmodels.layers.dilated_conv import DilatedConv
from seqmodels.layers.state import state_bytes


def with_conv1d(layer: DilatedConv, x_BLD: torch.Tensor) -> torch.Tensor:
    """The same with torch's dilated convolution and weights in its layout (out, in, taps)."""
    start = x_BLD
    for block in layer.blocks:
        weight = block.in_proj.weight.unflatten(1, (block.kernel_size, -1)).transpose(1, 2)
        padded = F.pad(x_BLD.mT, (block.reach, 0))
        filtered, gate = F.conv1d(padded, weight, block.in_proj.bias, dilation=block.dilation).mT.chunk(2, dim=-1)
        x_BLD = x_BLD + F.linear(filtered.tanh() * gate.sigmoid(), block.out_proj.weight, block.out_proj.bias)
    return x_BLD - start


@pytest.mark.parametrize("arguments", [{}, {"kernel_size": 3, "expand": 2}, {"bias": False}], ids=str)
def test_equals_torchs_convolution(arguments):
    torch.manual_seed(0)
    layer = DilatedConv(6, dilations=[1, 3, 2], **arguments).double()
    x_BLD = torch.randn(2, 17, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x_BLD)[0], with_conv1d(layer, x_BLD), rtol=1e-12, atol=1e-12)


def test_sees_its_receptive_field_and_no_more():
    torch.manual_seed(0)
    layer = DilatedConv(4, dilations=[1, 2, 4], kernel_size=3)
    assert layer.receptive_field == 15
    x_BLD = torch.randn(1, 30, 4, requires_grad=True)
    layer(x_BLD)[0][0, 20].sum().backward()
    assert x_BLD.grad is not None
    touched = x_BLD.grad[0].abs().sum(-1).nonzero().flatten()
    assert (touched.min(), touched.max()) == (6, 20)
    assert len(touched) == 15


def test_state_size_is_the_reach():
    _, state = DilatedConv(8)(torch.randn(3, 2, 8))
    assert state_bytes(state) == 3 * 1023 * 8 * 4


@pytest.mark.parametrize("arguments", [{"dilations": [3]}, {"dilations": [1, 2], "kernel_size": 4}], ids=str)
def test_laws(arguments):
    torch.manual_seed(0)
    testing.check_laws(DilatedConv(8, **arguments), torch.randn(3, 20, 8))


def test_a_cycle_starts_no_louder_than_one_block():
    torch.manual_seed(0)
    x_BLD = torch.randn(4, 200, 64)
    with torch.no_grad():
        one, ten = (DilatedConv(64, dilations=[1] * count)(x_BLD)[0].std() for count in (1, 10))
    assert 0.7 < ten / one < 1.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 1}, "kernel_size=1: must be at least 2"),
        ({"dilations": []}, "give at least one"),
        ({"dilations": [1, 0]}, r"dilations=\[1, 0\]"),
        ({"expand": 0}, "expand=0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        DilatedConv(8, **arguments)
