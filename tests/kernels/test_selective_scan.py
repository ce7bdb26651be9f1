"""The scan against numbers worked out by hand and against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from seqkernels import selective_scan

IMPLEMENTATIONS = ["reference", "cpu"]


def column(*values: float) -> torch.Tensor:
    """(1, L, 1)."""
    return torch.tensor(values)[None, :, None]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_two_steps_by_hand(implementation: str) -> None:
    """h1 = dt1 b1 x1, h2 = e**(dt2 a) h1 + dt2 b2 x2; y = (c h + d x) silu(z)."""
    x, dt, b, c, z = column(1.0, -2.0), column(0.5, 0.25), column(3.0, 1.0), column(2.0, -1.0), column(0.0, 1.5)
    a, d = torch.tensor([[-2.0]]), torch.tensor([10.0])
    h1 = 0.5 * 3 * 1
    h2 = math.exp(0.25 * -2) * h1 + 0.25 * 1 * -2
    y2 = (-1 * h2 + 10 * -2) * 1.5 / (1 + math.exp(-1.5))
    y, state = selective_scan(
        x, dt, a, b, c, d_E=d, z_BLE=z, return_final_state=True, implementation=implementation
    )
    torch.testing.assert_close(y, column(0.0, y2))
    torch.testing.assert_close(state, torch.tensor([[[h2]]]))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_constant_input_settles_where_the_geometric_series_does(implementation: str) -> None:
    """h -> dt b x / (1 - e**(dt a))."""
    ones = torch.ones(1, 400, 3)
    a = torch.tensor([[-1.0], [-2.0], [-4.0]])
    y = selective_scan(ones, 0.1 * ones, a, ones[..., :1], ones[..., :1], implementation=implementation)
    torch.testing.assert_close(y[0, -1], 0.1 / (1 - torch.exp(0.1 * a[:, 0])))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_softplus_and_bias_are_those_of_torch(implementation: str) -> None:
    dt = torch.linspace(-30, 30, 61)[None, :, None]
    bias, a, ones = torch.tensor([0.7]), torch.tensor([[-0.01]]), torch.ones(1, 61, 1)
    got = selective_scan(
        ones, dt, a, ones, ones, dt_bias_E=bias, dt_softplus=True, implementation=implementation
    )
    ready = selective_scan(ones, F.softplus(dt + bias), a, ones, ones, implementation=implementation)
    torch.testing.assert_close(got, ready)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_complex_state_is_a_damped_rotation(implementation: str) -> None:
    """With b x dt = 1 at the first step only, y_t = 2 Re(e**(t dt a)) = 2 e**(-t/20) cos(t/4)."""
    x = torch.zeros(1, 50, 1)
    x[0, 0] = 1
    ones = torch.ones(1, 50, 1, dtype=torch.complex64)
    a = torch.tensor([[-0.05 + 0.25j]])
    y = selective_scan(x, torch.ones(1, 50, 1), a, ones, ones, implementation=implementation)
    t = torch.arange(50.0)
    torch.testing.assert_close(y[0, :, 0], 2 * torch.exp(-t / 20) * torch.cos(t / 4))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_groups_serve_consecutive_channels(implementation: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dt = torch.randn(1, 9, 6, generator=generator), torch.rand(1, 9, 6, generator=generator)
    a = -torch.rand(6, 2, generator=generator)
    b, c = (torch.randn(1, 9, 3, 2, generator=generator) for _ in range(2))
    together = selective_scan(x, dt, a, b, c, implementation=implementation)
    for g in range(3):
        part = slice(2 * g, 2 * g + 2)
        alone = selective_scan(
            x[..., part], dt[..., part], a[part], b[:, :, g], c[:, :, g], implementation=implementation
        )
        torch.testing.assert_close(together[..., part], alone)


def test_the_final_state_comes_only_when_asked_for() -> None:
    x, bc = torch.ones(1, 3, 2), torch.ones(1, 3, 4)
    assert isinstance(selective_scan(x, x, -torch.ones(2, 4), bc, bc), torch.Tensor)


def test_half_precision_states_stay_fp32() -> None:
    ones = torch.ones(1, 3, 2, dtype=torch.bfloat16)
    bc = torch.ones(1, 3, 4, dtype=torch.bfloat16)
    y, state = selective_scan(ones, ones, -torch.ones(2, 4), bc, bc, return_final_state=True)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
