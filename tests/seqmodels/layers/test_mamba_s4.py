"""Mamba-S4 against a loop written from its equations, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from seqmodels.layers.mamba import Mamba
from seqmodels.layers.mamba_s4 import MambaS4


def by_hand(layer: MambaS4, x_LD: torch.Tensor) -> torch.Tensor:
    """One sequence, one position at a time; complex modes, zero-order hold; float64."""
    p = {name: value.detach().double() for name, value in layer.named_parameters()}
    E, W = layer.d_inner, layer.conv1d.weight.shape[-1]
    dt_E1 = p["kernel.log_dt"].exp()[:, None]
    a_EN = torch.complex(-p["kernel.log_A_real"].exp(), p["kernel.A_imag"])
    c_EN = torch.view_as_complex(p["kernel.C"])
    h_EN, window_WE, out = torch.zeros_like(a_EN), torch.zeros(W, E).double(), []
    for x_D in x_LD.double():
        x_E, z_E = (p["in_proj.weight"] @ x_D).split(E)
        window_WE = torch.cat([window_WE[1:], x_E[None]])
        u_E = F.silu((window_WE.T * p["conv1d.weight"][:, 0]).sum(1) + p["conv1d.bias"])
        h_EN = torch.exp(dt_E1 * a_EN) * h_EN + (torch.exp(dt_E1 * a_EN) - 1) / a_EN * u_E[:, None]
        y_E = 2 * (c_EN * h_EN).sum(1).real + p["D"] * u_E
        out.append(p["out_proj.weight"] @ (y_E * F.silu(z_E)))
    return torch.stack(out)


@pytest.mark.parametrize("sizes", [{}, {"d_state": 6, "d_conv": 3, "expand": 3}], ids=["default", "odd"])
def test_is_its_equations(sizes):
    torch.manual_seed(0)
    layer, x_LD = MambaS4(12, **sizes), torch.randn(21, 12)
    with torch.no_grad():
        layer.D.uniform_(-1, 1)
    y_BLD, state = layer(x_LD[None])
    torch.testing.assert_close(y_BLD[0].double(), by_hand(layer, x_LD), rtol=1e-4, atol=1e-6)
    E, W, N = layer.d_inner, layer.conv1d.weight.shape[-1], layer.kernel.d_state
    assert (state.conv.shape, state.ssm.shape) == ((1, W - 1, E), (1, E, N // 2, 2))


def test_shares_its_names_with_mamba_outside_the_core():
    ours, mamba = MambaS4(16, bias=True).state_dict(), Mamba(16, bias=True).state_dict()
    shared = {name for name in ours if not name.startswith("kernel.")}
    core = ("x_proj.", "dt_proj.", "A_log")
    assert shared == {name for name in mamba if not name.startswith(core)}
    assert all(ours[name].shape == mamba[name].shape for name in shared)
    assert torch.equal(ours["D"], torch.ones(32))
    assert not ours["in_proj.bias"].any()
    assert not ours["out_proj.bias"].any()


def test_real_modes_and_bilinear_reach_the_core():
    layer = MambaS4(8, init="real", discretisation="bilinear", d_state=5, rate=2.0)
    assert (layer.kernel.init, layer.kernel.discretisation, layer.kernel.rate) == ("real", "bilinear", 2.0)
    _, state = layer(torch.randn(2, 7, 8))
    assert state.ssm.shape == (2, 16, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_conv": 1}, "d_conv=1"),
        ({"expand": 0}, "expand=0"),
        ({"d_state": 7}, "d_state=7: complex modes"),
        ({"init": "x"}, "init='x'"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MambaS4(16, **arguments)
