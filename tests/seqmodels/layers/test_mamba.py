"""Mamba-1 against a loop written from the paper, against transformers, and its published initialisation."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import seqkernels.mamba_inner.op
import torch
import torch.nn.functional as F

import seqmodels.layers.mamba
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.norm import RMSNorm


def by_hand(layer: Mamba, x_LD: torch.Tensor) -> torch.Tensor:
    """One sequence, one position at a time, from eq. 2 and algorithm 2; float64."""
    p = {name: value.detach().double() for name, value in layer.named_parameters()}
    E, N, R, W = layer.d_inner, layer.d_state, layer.dt_rank, layer.conv1d.weight.shape[-1]
    a_EN, h_EN, window_WE, out = -p["A_log"].exp(), torch.zeros(E, N).double(), torch.zeros(W, E).double(), []
    for x_D in x_LD.double():
        x_E, z_E = (p["in_proj.weight"] @ x_D).split(E)
        window_WE = torch.cat([window_WE[1:], x_E[None]])
        u_E = F.silu((window_WE.T * p["conv1d.weight"][:, 0]).sum(1) + p["conv1d.bias"])
        dt_R, b_N, c_N = (p["x_proj.weight"] @ u_E).split([R, N, N])
        dt_E = F.softplus(p["dt_proj.weight"] @ dt_R + p["dt_proj.bias"])
        h_EN = torch.exp(dt_E[:, None] * a_EN) * h_EN + dt_E[:, None] * b_N * u_E[:, None]
        y_E = h_EN @ c_N + p["D"] * u_E
        out.append(p["out_proj.weight"] @ (y_E * F.silu(z_E)))
    return torch.stack(out)


@pytest.mark.parametrize("implementation", ["auto", "reference"])
@pytest.mark.parametrize("sizes", [{}, {"d_state": 5, "d_conv": 3, "expand": 3, "dt_rank": 2}], ids=["default", "odd"])
def test_is_the_papers_recurrence(sizes, implementation):
    torch.manual_seed(0)
    layer = Mamba(12, implementation=implementation, **sizes)
    x_LD = torch.randn(21, 12)
    y_BLD, state = layer(x_LD[None])
    torch.testing.assert_close(y_BLD[0].double(), by_hand(layer, x_LD), rtol=1e-4, atol=1e-6)
    E, N, W = layer.d_inner, layer.d_state, layer.conv1d.weight.shape[-1]
    assert (state.conv.shape, state.ssm.shape) == ((1, W - 1, E), (1, E, N))


def test_published_initialisation():
    torch.manual_seed(0)
    layer = Mamba(512, d_state=7, bias=True)
    dt_E = F.softplus(layer.dt_proj.bias.detach().double())
    assert dt_E.min() > 0.00099
    assert dt_E.max() < 0.101
    # log-uniform: the logarithm's mean and spread are those of a uniform on [log 0.001, log 0.1]
    low, high = math.log(0.001), math.log(0.1)
    assert dt_E.log().mean() == pytest.approx((low + high) / 2, abs=0.15)
    assert dt_E.log().std() == pytest.approx((high - low) / math.sqrt(12), rel=0.06)
    assert layer.dt_rank == 32
    bound = 32**-0.5
    assert bound * 0.99 < layer.dt_proj.weight.abs().max() <= bound
    torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 8.0).expand(1024, 7))
    assert torch.equal(layer.D, torch.ones(1024))
    assert not layer.in_proj.bias.any()
    assert not layer.out_proj.bias.any()
    assert layer.conv1d.bias.any()
    marked = {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D"}


def test_dt_floor_holds():
    layer = Mamba(64, dt_min=1e-6, dt_max=1e-5, dt_init_floor=1e-4)
    torch.testing.assert_close(F.softplus(layer.dt_proj.bias), torch.full((128,), 1e-4), rtol=1e-3, atol=0)


def test_scan_operands_stay_fp32_under_autocast(monkeypatch):
    seen = {}
    real = seqkernels.mamba_inner.op.selective_scan

    def spy(x_BLE, dt_BLE, a_EN, *args, **kwargs):
        seen.update(x=x_BLE.dtype, a=a_EN.dtype, d=kwargs["d_E"].dtype, dt_bias=kwargs["dt_bias_E"].dtype)
        y_BLE, state = real(x_BLE, dt_BLE, a_EN, *args, **kwargs)
        seen["state"] = state.dtype
        return y_BLE, state

    monkeypatch.setattr(seqkernels.mamba_inner.op, "selective_scan", spy)
    with torch.autocast("cpu", torch.bfloat16):
        Mamba(16)(torch.randn(1, 8, 16))
    assert seen.pop("x") is torch.bfloat16
    assert set(seen.values()) == {torch.float32}


def test_a_model_cast_to_bf16_by_hand_keeps_an_fp32_state():
    layer = Mamba(16).bfloat16()
    with torch.no_grad():
        y_BLD, state = layer(torch.randn(2, 9, 16, dtype=torch.bfloat16))
        y_B1D, state = layer(y_BLD[:, -1:], state)
    assert y_B1D.dtype is torch.bfloat16
    assert {tensor.dtype for tensor in state} == {torch.float32}


def test_stepping_takes_the_fused_op(monkeypatch):
    calls = []
    real = seqmodels.layers.mamba.mamba_step
    monkeypatch.setattr(seqmodels.layers.mamba, "mamba_step", lambda *a, **k: calls.append(1) or real(*a, **k))
    layer, x_BLD = Mamba(16), torch.randn(2, 1, 16)
    _, state = layer(x_BLD)
    layer(x_BLD, state)
    assert not calls, "with gradients the differentiable path runs"
    with torch.no_grad():
        layer(x_BLD, state)
    assert len(calls) == 1


@torch.no_grad()
@pytest.mark.parametrize("with_residual", [False, True])
def test_a_step_behind_a_norm_equals_norm_and_step(monkeypatch, with_residual):
    """The op's definition stands in for its kernels, which need a GPU."""
    monkeypatch.setattr(seqmodels.layers.mamba, "_on_gpu", lambda tensor: True)
    torch.manual_seed(0)
    layer, norm = Mamba(12, bias=True), RMSNorm(12, eps=1e-3)
    norm.weight.uniform_(0.5, 1.5)
    _, state = layer(torch.randn(2, 5, 12))
    x_B1D, residual_B1D = torch.randn(2, 1, 12), torch.randn(2, 1, 12) if with_residual else None
    assert layer.step_behind_norm(norm, x_B1D, residual_B1D, state) is None, "no kernels for a CPU"
    monkeypatch.setattr(seqmodels.layers.mamba, "block_step_fits", lambda *tensors: True)
    total_B1D = x_B1D if residual_B1D is None else x_B1D + residual_B1D
    expected = (*layer(norm(total_B1D), state)[:1], total_B1D, layer(norm(total_B1D), state)[1])
    made = layer.step_behind_norm(norm, x_B1D, residual_B1D, state)
    assert made is not None
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-6)
    layer.out_proj.register_forward_hook(lambda *_: None)
    assert layer.step_behind_norm(norm, x_B1D, residual_B1D, state) is None, "hooks would not run"


@torch.no_grad()
def test_steps_follow_weights_that_are_changed_replaced_or_parametrised():
    """What a layer keeps between steps (A, a view of the filter) must never be that of other weights."""
    torch.manual_seed(0)
    layer, x_B1D = Mamba(12).eval(), torch.randn(2, 1, 12)
    _, state = layer(torch.randn(2, 5, 12))

    def step_equals_reference() -> torch.Tensor:
        y_B1D, _ = layer(x_B1D, state)
        layer.implementation = "reference"
        expected, _ = layer(x_B1D, state)
        layer.implementation = "auto"
        torch.testing.assert_close(y_B1D, expected, rtol=1e-5, atol=1e-6)
        return y_B1D

    outputs = [step_equals_reference()]
    layer.conv1d.weight.mul_(2)
    outputs.append(step_equals_reference())
    layer.A_log.add_(1)
    outputs.append(step_equals_reference())
    layer.conv1d.weight = torch.nn.Parameter(-layer.conv1d.weight)
    layer.D = torch.nn.Parameter(layer.D * 3)
    outputs.append(step_equals_reference())
    torch.nn.utils.parametrizations.weight_norm(layer.conv1d, "weight")
    layer.conv1d.parametrizations.weight.original0.mul_(2)  # type: ignore[union-attr]
    outputs.append(step_equals_reference())
    assert all(not torch.allclose(before, after) for before, after in pairwise(outputs))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("recompute", ["inputs", "all"])
def test_keeping_less_for_backward_changes_nothing(monkeypatch, recompute, bias):
    levels = []
    real = seqmodels.layers.mamba.mamba_inner
    spy = lambda *args, **kwargs: levels.append(kwargs["recompute"]) or real(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(seqmodels.layers.mamba, "mamba_inner", spy)
    results = []
    for level in ("nothing", recompute):
        torch.manual_seed(0)
        layer = Mamba(16, recompute=level, bias=bias)
        x_BLD = torch.randn(2, 33, 16, requires_grad=True)
        first_BLD, state = layer(x_BLD[:, :20])
        second_BLD, _ = layer(x_BLD[:, 20:], state)
        y_BLD = torch.cat([first_BLD, second_BLD], dim=1)
        grads = torch.autograd.grad(y_BLD.square().sum(), [x_BLD, *layer.parameters()])
        results.append((y_BLD, *grads))
    assert levels == ["nothing", "nothing", recompute, recompute]
    for plain, lean in zip(*results, strict=True):
        torch.testing.assert_close(lean, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_state": 0}, "d_state=0"),
        ({"d_conv": 1}, "d_conv=1"),
        ({"dt_rank": 0}, "dt_rank=0"),
        ({"dt_rank": "automatic"}, "dt_rank='automatic'"),
        ({"dt_min": 0.2}, "dt_min=0.2"),
        ({"dt_min": 0.0}, "dt_min=0.0"),
        ({"recompute": "some"}, "nothing, inputs, all"),
    ],
)
def test_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Mamba(16, **arguments)


def test_an_unknown_implementation_is_refused_by_name():
    with pytest.raises(ValueError, match="'cpuu'"):
        Mamba(16, implementation="cpuu")(torch.randn(1, 4, 16))
