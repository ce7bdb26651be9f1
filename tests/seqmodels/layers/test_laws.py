"""The laws of sequence layers, for every YAML in conf/layer/: a new layer is tested by existing."""

from __future__ import annotations

import pathlib

import pytest
import torch

from seqmodels import testing
from seqmodels.instantiate import OWN_ROOTS, build
from seqmodels.layers.state import map_state, state_tensors

LAYERS = sorted(path.stem for path in (pathlib.Path(__file__).parents[3] / "conf/layer").glob("*.yaml"))
CAUSAL_LAWS = ["check_causality", "check_any_cut", "check_gradients_through_state"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LAWS = [*CAUSAL_LAWS, "check_batch_and_padding", "check_packing", "check_state_dtype"]


def build_layer(spec):
    """The layer at width 64; skips where an optional package is missing, whose message says so."""
    try:
        return build(spec)(64)
    except ImportError as error:
        if (error.name or "").split(".")[0] in OWN_ROOTS:
            raise
        pytest.skip(str(error))


@pytest.fixture
def layer(compose, request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # laws are stated for fp32
    monkeypatch.setenv("TRITON_F32_DEFAULT", "ieee")
    torch.manual_seed(0)
    layer = build_layer(compose("layer", request.param))
    if layer.needs_gpu and request.node.callspec.params.get("device") != "cuda":
        pytest.skip("its kernels need a CUDA GPU")
    with torch.no_grad():  # no parameter at a special value such as 0 or 1
        for parameter in layer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("layer", LAYERS, indirect=True)
def test_law(layer, law, device):
    if not layer.is_causal and law in CAUSAL_LAWS:
        pytest.skip("declared not causal")
    getattr(testing, law)(layer.to(device), torch.randn(3, 37, 64, device=device))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layer", LAYERS, indirect=True)
def test_bf16_autocast_stays_near_fp32(layer, device):
    x_BLD = torch.randn(2, 200, 64, device=device)
    layer.to(device)
    with torch.no_grad():
        exact, _ = layer(x_BLD)
        with torch.autocast(device, torch.bfloat16):
            rounded, _ = layer(x_BLD)
    error = (rounded.float() - exact).norm() / exact.norm()
    assert 1e-5 < error < 0.02, f"relative error {error:.2g}"


@pytest.mark.parametrize("layer", LAYERS, indirect=True)
def test_gradient_reaches_the_first_piece_through_the_state_alone(layer):
    if not layer.is_causal:
        pytest.skip("declared not causal")
    first_BLD, second_BLD = torch.randn(2, 9, 64, requires_grad=True), torch.randn(2, 5, 64)
    _, state = layer(first_BLD)
    if not list(state_tensors(state)):
        pytest.skip("no state; that none is needed is the law of any cut")
    attached = torch.autograd.grad(layer(second_BLD, state)[0].square().sum(), first_BLD, allow_unused=True)[0]
    detached = layer(second_BLD, map_state(torch.Tensor.detach, state))[0].square().sum()
    assert torch.autograd.grad(detached, first_BLD, allow_unused=True)[0] is None
    assert attached is not None
    assert attached.abs().max() > 0


@pytest.mark.parametrize("layer", LAYERS, indirect=True)
def test_every_parameter_gets_a_gradient(layer):
    layer(torch.randn(2, 19, 64))[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", LAYERS)
def test_builds_on_the_meta_device(compose, name):
    with torch.device("meta"):
        layer = build_layer(compose("layer", name))
    assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}


@pytest.mark.parametrize("layer", LAYERS, indirect=True)
def test_residual_projections_exist(layer):
    for name in layer.residual_projections:
        assert layer.get_submodule(name).weight.shape[0] == 64


def test_laws_catch_a_layer_that_looks_ahead():
    class Peek(torch.nn.Module):
        def forward(self, x_BLD, state=None, *, cu_seqlens=None):
            return x_BLD + x_BLD.roll(-1, dims=1), ()

    with pytest.raises(AssertionError, match="the future changes the past"):
        testing.check_laws(Peek(), torch.randn(2, 20, 8))


def test_laws_catch_a_layer_that_forgets_its_state():
    class Forgets(torch.nn.Module):
        def forward(self, x_BLD, state=None, *, cu_seqlens=None):
            return x_BLD.cumsum(dim=1), ()

    with pytest.raises(AssertionError, match="cut at"):
        testing.check_laws(Forgets(), torch.randn(2, 20, 8))


def test_laws_catch_a_layer_that_mixes_rows():
    class Mixes(torch.nn.Module):
        def forward(self, x_BLD, state=None, *, cu_seqlens=None):
            return x_BLD + x_BLD.mean(dim=0, keepdim=True), ()

    with pytest.raises(AssertionError, match="among others"):
        testing.check_batch_and_padding(Mixes(), torch.randn(2, 20, 8))


def test_laws_catch_a_layer_that_ignores_packing():
    class Runs(torch.nn.Module):
        def forward(self, x_BLD, state=None, *, cu_seqlens=None):
            start = 0 if state is None else state
            y_BLD = x_BLD.cumsum(dim=1) + start
            return y_BLD, y_BLD[:, -1:].expand(len(cu_seqlens) - 1, -1, -1) if cu_seqlens is not None else y_BLD[:, -1:]

    testing.check_any_cut(Runs(), torch.randn(2, 20, 8))
    with pytest.raises(AssertionError, match="packed"):
        testing.check_packing(Runs(), torch.randn(2, 20, 8))
