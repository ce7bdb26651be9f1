"""Operations against formulas written out by hand."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from seqmodels.flops import FlopCount, attention_flops
from seqmodels.layers.attention import Attention
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.mamba2 import Mamba2
from seqmodels.layers.mlp import MLP

B, L, D = 2, 48, 32
POSITIONS = B * L


def counted(module: nn.Module) -> int:
    with torch.no_grad(), FlopCount({module: "it"}) as flops:
        module(torch.randn(B, L, D))
    assert set(flops.by_part) == {"it"}
    return flops.total


def test_mamba():
    N, W, R, E = 8, 4, 2, 64
    products = 2 * (D * 2 * E + E * (R + 2 * N) + R * E + E * D)
    scan = E * (7 * N + 1 + 2 + 1)
    assert counted(Mamba(D, d_state=N, d_conv=W, dt_rank=R)) == POSITIONS * (products + 2 * W * E + scan)


def test_mamba2():
    N, W, E, P, G = 16, 4, 64, 16, 2
    channels = E + 2 * G * N
    products = 2 * (D * (E + channels + E // P) + E * D)
    expected = POSITIONS * (products + 2 * W * channels + E * (5 * N + 1 + 2))
    assert counted(Mamba2(D, d_state=N, headdim=P, ngroups=G)) == expected


@pytest.mark.parametrize(("activation", "maps"), [("gelu", 2), ("swiglu", 3)])
def test_mlp(activation, maps):
    assert counted(MLP(D, hidden=96, activation=activation)) == POSITIONS * 2 * maps * D * 96


@pytest.mark.parametrize("causal", [True, False])
def test_attention(causal):
    pairs = L * (L + 1) // 2 if causal else L * L
    products = POSITIONS * 2 * (D * (D + 2 * 16) + D * D)
    layer = Attention(D, n_heads=4, n_kv_heads=2, causal=causal, rotary_dim=0)
    assert counted(layer) == products + 4 * B * D * pairs


def test_attention_that_goes_on_sees_what_came_before():
    q, k = torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 10, 8)
    assert attention_flops(q, k, is_causal=True) == 4 * 8 * (8 + 9 + 10)
    assert attention_flops(q, k, is_causal=False) == 4 * 8 * 30


def test_fft_and_convolution():
    with FlopCount({}) as flops:
        torch.fft.rfft(torch.zeros(3, 64))
    assert flops.total == 3 * 2.5 * 64 * 6
    with FlopCount({}) as flops:
        torch.fft.irfft(torch.zeros(3, 33, dtype=torch.complex64), n=64)
    assert flops.total == 3 * 2.5 * 64 * 6
    with FlopCount({}) as flops:
        nn.functional.conv1d(torch.zeros(1, 8, 20), torch.zeros(8, 1, 5), groups=8)
    assert flops.total == 2 * 8 * 16 * 5


def test_the_outermost_named_module_counts():
    inner, outer = nn.Linear(4, 4), nn.Linear(4, 4)
    model = nn.Sequential(inner, outer)
    with FlopCount({model: "all", inner: "inner"}) as flops:
        model(torch.zeros(1, 4))
    assert flops.by_part == {"all": 64}
    with FlopCount({inner: "inner"}) as flops:
        model(torch.zeros(1, 4))
    assert flops.by_part == {"inner": 32, "other": 32}
    assert not inner._forward_hooks


def test_other_state_sizes_scale_the_scan():
    layer = functools.partial(Mamba, D, dt_rank=2)
    more = counted(layer(d_state=16)) - counted(layer(d_state=8))
    assert more == POSITIONS * (8 * 7 * 64 + 2 * 64 * 16)
