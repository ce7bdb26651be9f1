"""Hyena: its sum written out in float64, its filter, its past. The laws are in test_laws.py too."""

from __future__ import annotations

import math

import pytest
import torch

from seqmodels import testing
from seqmodels.layers.hyena import Hyena
from seqmodels.layers.state import concat_states, reserve_state, select_state, state_bytes


def make(max_len: int = 8, d_model: int = 6, **arguments) -> Hyena:
    torch.manual_seed(0)
    return Hyena(d_model, max_len=max_len, filter_width=8, **arguments)


def by_hand(layer: Hyena, x_BLD: torch.Tensor) -> torch.Tensor:
    """Tap by tap, feature by feature."""
    filter_fn, K, D = layer.filter_fn, layer.max_len, x_BLD.shape[-1]
    decay = torch.linspace(-math.log(0.01) / 1.5, -math.log(0.01) / 0.3, D, dtype=torch.float64)
    taps = []
    for k in range(K):
        bands = (filter_fn.features - 1) // 2
        angles = [f * 2 * math.pi * k / K for f in torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64).tolist()]
        h = torch.tensor([k / (K - 1), *map(math.cos, angles), *(-math.sin(a) for a in angles)], dtype=torch.float64)
        *hidden, last = filter_fn.implicit_filter
        for linear, sine in zip(hidden[::2], hidden[1::2]):
            h = torch.sin(sine.freq[0] * (linear.weight @ h + linear.bias))
        taps.append(last.weight @ h * torch.exp(-decay * k / (K - 1)))
    width = layer.short_filter.weight.shape[-1]
    padded = torch.nn.functional.pad(layer.in_proj(x_BLD).mT, (width - 1, 0))
    short = torch.nn.functional.conv1d(padded, layer.short_filter.weight, layer.short_filter.bias, groups=3 * D).mT
    x0, x1, v = short.chunk(3, dim=-1)
    u = x1 * v
    y = u * filter_fn.bias
    for t in range(x_BLD.shape[1]):
        y[:, t] += sum(taps[k] * u[:, t - k] for k in range(min(K, t + 1)))
    return layer.out_proj(x0 * y)


@pytest.mark.parametrize("length", [1, 5, 8, 23])
@pytest.mark.parametrize("arguments", [{}, {"short_conv": 4, "filter_features": 9}], ids=str)
def test_formula(arguments, length):
    layer = make(**arguments).double()
    x_BLD = torch.randn(2, length, 6, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(layer(x_BLD)[0], by_hand(layer, x_BLD), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("max_len", [2, 5, 19, 20, 21])
def test_laws_with_filters_shorter_and_longer_than_the_sequence(max_len):
    testing.check_laws(make(max_len, d_model=8), torch.randn(3, 20, 8))


def test_sees_max_len_positions_back():
    layer, x_BLD = make(max_len=5), torch.randn(1, 30, 6, requires_grad=True)
    layer(x_BLD)[0][0, 20].sum().backward()
    assert x_BLD.grad is not None
    size = x_BLD.grad[0].abs().amax(-1)
    assert size[14:21].min() > 1e-6  # 5 taps behind a convolution of 3
    assert size[:14].max() < 1e-6  # the rounding of an FFT
    assert size[21:].max() < 1e-6


def test_filters_decay_to_one_percent_where_they_should():
    layer = Hyena(4, max_len=301)
    with torch.no_grad():
        h_KD = layer.filter_fn(301)
        layer.filter_fn.implicit_filter[-1].weight.mul_(2.0)
        testing.assert_same(layer.filter_fn(301), 2 * h_KD, "filters kept between calls follow their weights")
        time = torch.arange(301)[:, None] / 300
        fastest, slowest = h_KD[90, 3].abs(), h_KD[:, 0].abs()
    plain = h_KD / torch.exp(-time * torch.linspace(-math.log(0.01) / 1.5, -math.log(0.01) / 0.3, 4))
    assert fastest <= 0.0101 * plain[90, 3].abs()
    assert slowest[300] >= 0.04 * plain[300, 0].abs()


def test_rows_of_unequal_past_continue_together():
    layer = make(max_len=7)
    first = [torch.randn(1, length, 6) for length in (20, 3)]
    with torch.no_grad():
        states = [layer(x)[1] for x in first]
        joined = concat_states(states)
        testing.assert_same_state(select_state(joined, [1]), states[1], "a short row")
        for length in (1, 4):
            more = torch.randn(2, length, 6)
            y, joined = layer(more, joined)
            alone = [layer(more[[row]], states[row]) for row in range(2)]
            states = [state for _, state in alone]
            testing.assert_same(y, torch.cat([own for own, _ in alone]), f"{length} more")


def test_reserved_state_keeps_its_size():
    layer, x_BLD = make(max_len=9), torch.randn(2, 14, 6)
    with torch.no_grad():
        whole, _ = layer(x_BLD)
        _, state = layer(x_BLD[:, :3])
        assert state_bytes(state) == 4 * 2 * (3 * 6 + 2 * 18)
        state = reserve_state(state, 1)
        for t in range(3, 14):
            assert state.u_BTD.shape == (2, 8, 6)
            y, state = layer(x_BLD[:, t : t + 1], state)
            testing.assert_same(y, whole[:, t : t + 1], f"position {t}")


def test_the_state_of_a_long_piece_does_not_keep_the_piece():
    _, state = make(max_len=5)(torch.randn(1, 100, 6))
    assert state.u_BTD.untyped_storage().nbytes() == 4 * 4 * 6


def test_filters_are_fp32_in_a_bf16_copy_and_not_decayed():
    for parameter in make().filter_fn.parameters():
        assert parameter._keep_fp32
        assert parameter._no_weight_decay


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_len": 1}, "max_len=1: must be at least 2"),
        ({"short_conv": 9}, "short_conv=9: must be from 2 to 8"),
        ({"filter_features": 4}, "filter_features=4: must be odd and at least 3"),
        ({"filter_width": 0}, "filter_width=0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        Hyena(8, **arguments)
