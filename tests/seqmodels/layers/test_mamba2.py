"""Mamba-2 against a loop written from the paper, against transformers, and its published initialisation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import seqmodels.layers.mamba2
from seqmodels.layers.mamba2 import Mamba2, Mamba2State
from seqmodels.layers.state import updating_in_place


def by_hand(layer: Mamba2, x_LD: torch.Tensor) -> torch.Tensor:
    """One sequence, one position at a time, head by head; float64."""
    p = {name: value.detach().double() for name, value in layer.named_parameters()}
    E, N, H, P, G = layer.d_inner, layer.d_state, layer.nheads, layer.headdim, layer.ngroups
    C, W = layer.conv_channels, layer.conv1d.weight.shape[-1]
    h_HPN, window_WC, out = torch.zeros(H, P, N).double(), torch.zeros(W, C).double(), []
    for x_D in x_LD.double():
        z_E, xbc_C, dt_H = (p["in_proj.weight"] @ x_D).split([E, C, H])
        window_WC = torch.cat([window_WC[1:], xbc_C[None]])
        u_C = F.silu((window_WC.T * p["conv1d.weight"][:, 0]).sum(1) + p["conv1d.bias"])
        x_E, b_GN, c_GN = u_C[:E], u_C[E : E + G * N].view(G, N), u_C[E + G * N :].view(G, N)
        y_E = torch.zeros(E).double()
        for head in range(H):
            here, group = slice(head * P, (head + 1) * P), head // (H // G)
            dt = F.softplus(dt_H[head] + p["dt_bias"][head])
            decay = torch.exp(-dt * p["A_log"][head].exp())
            h_HPN[head] = decay * h_HPN[head] + dt * torch.outer(x_E[here], b_GN[group])
            y_E[here] = h_HPN[head] @ c_GN[group] + p["D"][head] * x_E[here]
        gated_GE = (y_E * F.silu(z_E)).view(G, -1)
        normed_GE = gated_GE / (gated_GE.square().mean(1, keepdim=True) + 1e-5).sqrt()
        out.append(p["out_proj.weight"] @ (normed_GE.flatten() * p["norm.weight"]))
    return torch.stack(out)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"d_state": 16, "headdim": 8},
        {"d_state": 5, "d_conv": 3, "expand": 3, "headdim": 3, "ngroups": 4},
    ],
    ids=["plain", "odd"],
)
def test_is_the_papers_recurrence(sizes, implementation):
    torch.manual_seed(0)
    layer = Mamba2(12, implementation=implementation, **sizes)
    torch.nn.init.uniform_(layer.norm.weight, 0.5, 2)
    torch.nn.init.normal_(layer.D)
    x_LD = torch.randn(21, 12)
    y_BLD, state = layer(x_LD[None])
    torch.testing.assert_close(y_BLD[0].double(), by_hand(layer, x_LD), rtol=1e-4, atol=1e-5)
    W = layer.conv1d.weight.shape[-1]
    assert state.conv.shape == (1, W - 1, layer.conv_channels)
    assert state.ssm.shape == (1, layer.nheads, layer.headdim, layer.d_state)


def test_published_names_and_shapes():
    with torch.device("meta"):
        layer = Mamba2(768)
    shapes = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
    assert shapes == {
        "in_proj.weight": (3352, 768),
        "conv1d.weight": (1792, 1, 4),
        "conv1d.bias": (1792,),
        "dt_bias": (24,),
        "A_log": (24,),
        "D": (24,),
        "norm.weight": (1536,),
        "out_proj.weight": (768, 1536),
    }


def test_published_initialisation():
    torch.manual_seed(0)
    layer = Mamba2(4096, d_state=4, headdim=4, bias=True)
    dt_H = F.softplus(layer.dt_bias.detach().double())
    assert dt_H.min() > 0.00099
    assert dt_H.max() < 0.101
    low, high = math.log(0.001), math.log(0.1)  # log-uniform
    assert dt_H.log().mean() == pytest.approx((low + high) / 2, abs=0.1)
    assert dt_H.log().std() == pytest.approx((high - low) / math.sqrt(12), rel=0.05)
    a_H = layer.A_log.detach().exp()
    assert 1 <= a_H.min() < 1.1
    assert 15.9 < a_H.max() <= 16.0001
    assert a_H.mean() == pytest.approx(8.5, abs=0.4)
    assert torch.equal(layer.D, torch.ones(2048))
    assert torch.equal(layer.norm.weight, torch.ones(8192))
    assert not layer.in_proj.bias.any()
    assert not layer.out_proj.bias.any()
    marked = {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D", "dt_bias"}


def test_dt_floor_holds():
    layer = Mamba2(64, dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-4)
    torch.testing.assert_close(F.softplus(layer.dt_bias), torch.full((2,), 1e-4), rtol=1e-3, atol=0)


@pytest.mark.slow
def test_equals_transformers_on_random_weights():
    import domains.audio  # noqa: F401 - its guard lets transformers import beside a CPU torch

    pytest.importorskip("transformers")
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "expand": 2, "head_dim": 8, "num_heads": 8, "state_size": 16, "n_groups": 2}
    config = Mamba2Config(num_hidden_layers=1, chunk_size=16, layer_norm_epsilon=1e-5, **sizes)
    theirs = Mamba2Mixer(config, layer_idx=0)
    ours = Mamba2(32, headdim=8, d_state=16, ngroups=2)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    x_BLD = torch.randn(2, 37, 32)
    with torch.no_grad():
        expected = theirs(x_BLD)
        y_BLD, _ = ours(x_BLD)
    torch.testing.assert_close(y_BLD, expected[0] if isinstance(expected, tuple) else expected, rtol=1e-4, atol=1e-4)


def test_recurrence_keeps_fp32_parameters_and_state_under_autocast(monkeypatch):
    seen = {}
    real = seqmodels.layers.mamba2.ssd

    def spy(x_BLHP, dt_BLH, a_H, *args, **kwargs):
        seen.update(x=x_BLHP.dtype, a=a_H.dtype, d=kwargs["d_H"].dtype, dt_bias=kwargs["dt_bias_H"].dtype)
        y_BLHP, state = real(x_BLHP, dt_BLH, a_H, *args, **kwargs)
        seen["state"] = state.dtype
        return y_BLHP, state

    monkeypatch.setattr(seqmodels.layers.mamba2, "ssd", spy)
    with torch.autocast("cpu", torch.bfloat16):
        Mamba2(16, headdim=8, d_state=8)(torch.randn(1, 8, 16))
    assert seen.pop("x") is torch.bfloat16
    assert set(seen.values()) == {torch.float32}


def test_a_model_cast_to_bf16_by_hand_keeps_an_fp32_state():
    layer = Mamba2(16, headdim=8, d_state=8).bfloat16()
    with torch.no_grad():
        y_BLD, state = layer(torch.randn(2, 9, 16, dtype=torch.bfloat16))
        y_B1D, state = layer(y_BLD[:, -1:], state)
    assert y_B1D.dtype is torch.bfloat16
    assert {tensor.dtype for tensor in state} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize("sizes", [{}, {"ngroups": 2, "conv_bias": False, "bias": True}], ids=["plain", "groups"])
def test_light_steps_equal_the_scan(sizes, monkeypatch):
    torch.manual_seed(0)
    layer = Mamba2(16, headdim=8, d_state=8, **sizes)
    torch.nn.init.normal_(layer.D)
    x_BLD = torch.randn(3, 9, 16)
    _, state = layer(x_BLD[:, :8])
    calls = []
    monkeypatch.setattr(seqmodels.layers.mamba2, "ssd", lambda *a, **k: calls.append(1))
    step, after = layer(x_BLD[:, 8:], state)
    assert not calls, "a step takes the light path"
    monkeypatch.undo()
    with torch.enable_grad():
        whole, final = layer(x_BLD)
    torch.testing.assert_close(step, whole[:, 8:], rtol=1e-5, atol=1e-5)
    for mine, other in zip(after, final):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_a_step_writes_into_the_state_only_when_it_may():
    torch.manual_seed(0)
    layer = Mamba2(16, headdim=8, d_state=8)
    _, state = layer(torch.randn(2, 5, 16))
    before, x_B1D = Mamba2State(*(tensor.clone() for tensor in state)), torch.randn(2, 1, 16)
    y_B1D, after = layer(x_B1D, state)
    assert all(torch.equal(mine, other) for mine, other in zip(state, before))
    with updating_in_place():
        again, in_place = layer(x_B1D, state)
    assert in_place.ssm.data_ptr() == state.ssm.data_ptr()
    assert torch.equal(again, y_B1D)
    torch.testing.assert_close(in_place, after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_state": 0}, "d_state=0"),
        ({"d_conv": 1}, "d_conv=1"),
        ({"headdim": 5}, "headdim=5"),
        ({"ngroups": 3}, "ngroups=3"),
        ({"dt_min": 0.2}, "dt_min, dt_max = 0.2"),
        ({"A_init_range": (0.0, 1.0)}, "A_init_range = 0.0"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mamba2(16, **{"headdim": 8, **arguments})


def test_an_unknown_implementation_is_refused_by_name():
    with pytest.raises(ValueError, match="'cpuu'"):
        Mamba2(16, headdim=8, implementation="cpuu")(torch.randn(1, 4, 16))
