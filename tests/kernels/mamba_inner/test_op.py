"""The memory-lean block: same numbers as the plain composition at every level, gradients everywhere, less kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from seqkernels import causal_conv1d, selective_scan
from seqkernels.mamba_inner import InnerState, InnerWeights, fused, mamba_block, mamba_inner, op
from torch import Tensor

B, L, D, E, N, R, W = 2, 19, 6, 8, 4, 3, 4
DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
OPTIONAL = ("conv_bias_E", "dt_bias_E", "d_E", "out_proj_bias_D")


@pytest.fixture(params=DEVICES, ids=str)
def device(request: pytest.FixtureRequest) -> torch.device:
    return request.param


def inputs(
    device: torch.device, absent: tuple[str, ...] = (), sequences: int = B, *, E: int = E, N: int = N
) -> dict[str, Tensor]:
    """Named leaves in float64: xz, the states, every weight that is not absent."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "xz": (B, L, 2 * E),
        "conv_state": (sequences, W - 1, E),
        "ssm_state": (sequences, E, N),
        "conv_weight_EW": (E, W),
        "conv_bias_E": (E,),
        "x_proj_weight": (R + 2 * N, E),
        "dt_proj_weight_ER": (E, R),
        "dt_bias_E": (E,),
        "a_EN": (E, N),
        "d_E": (E,),
        "out_proj_weight_DE": (D, E),
        "out_proj_bias_D": (D,),
    }
    leaves = {n: 0.7 * torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    leaves["a_EN"] = -leaves["a_EN"].abs() - 0.1
    return {n: t.to(device) for n, t in leaves.items() if n not in absent}


def weights_of(leaves: dict[str, Tensor]) -> InnerWeights:
    return InnerWeights(**{name: leaves.get(name) for name in InnerWeights._fields})  # type: ignore[arg-type]


def gradients(
    function: Callable[[dict[str, Tensor]], tuple[Tensor, InnerState]], leaves: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Outputs and gradients of a loss that weighs the output and both final states unevenly."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    out, state = function(leaves)
    assert state.conv is not None
    assert state.ssm is not None
    pieces = {"out": out, "conv": state.conv, "ssm": state.ssm}
    d_pieces = [torch.linspace(-1, 2, t.numel(), device=t.device).view_as(t).to(t.dtype) for t in pieces.values()]
    grads = torch.autograd.grad(list(pieces.values()), list(leaves.values()), d_pieces)
    return {**{n: t.detach() for n, t in pieces.items()}, **dict(zip((f"d_{n}" for n in leaves), grads))}


def inner(leaves: dict[str, Tensor], **options: Any) -> tuple[Tensor, InnerState]:
    return mamba_inner(
        leaves["xz"], weights_of(leaves), state=InnerState(leaves["conv_state"], leaves["ssm_state"]), **options
    )


def written_out(leaves: dict[str, Tensor], cu_seqlens: Tensor | None = None) -> tuple[Tensor, InnerState]:
    """The same block from the public ops, without any recomputation; float64 goes through the references."""
    w = weights_of(leaves)
    x, z = leaves["xz"].chunk(2, dim=-1)
    x, conv = causal_conv1d(
        x, w.conv_weight_EW, w.conv_bias_E, activation="silu", initial_state=leaves["conv_state"],
        cu_seqlens=cu_seqlens, return_final_state=True, implementation="reference",
    )  # fmt: skip
    N = w.a_EN.shape[1]
    dt, b, c = F.linear(x, w.x_proj_weight).split([R, N, N], dim=-1)
    y, ssm = selective_scan(
        x, F.linear(dt, w.dt_proj_weight_ER), w.a_EN, b, c, d_E=w.d_E, z_BLE=z, dt_bias_E=w.dt_bias_E, dt_softplus=True,
        initial_state_BEN=leaves["ssm_state"], cu_seqlens=cu_seqlens, return_final_state=True,
        implementation="reference",
    )  # fmt: skip
    return F.linear(y, w.out_proj_weight_DE, w.out_proj_bias_D), InnerState(conv, ssm)


def assert_close(actual: dict[str, Tensor], truth: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == truth.keys()
    for name, exact in truth.items():
        error, scale = float((actual[name].double() - exact).abs().max()), float(exact.abs().max())
        assert scale > 0, name
        assert error <= tolerance * scale, f"{name}: off by {error:.3g} where values reach {scale:.3g}"


@pytest.mark.parametrize("absent", [(), ("conv_bias_E",), ("dt_bias_E", "d_E"), OPTIONAL], ids=str)
@pytest.mark.parametrize("recompute", ["nothing", "inputs", "all"])
def test_outputs_and_every_gradient_against_float64(
    device: torch.device, recompute: str, absent: tuple[str, ...]
) -> None:
    leaves = inputs(device, absent)
    truth = gradients(written_out, leaves)
    single = {name: t.float() for name, t in leaves.items()}
    actual = gradients(lambda t: inner(t, recompute=recompute), single)
    assert_close(actual, truth, 3e-6)


@pytest.mark.parametrize("recompute", ["inputs", "all"])
def test_packed_sequences(device: torch.device, recompute: str) -> None:
    leaves = inputs(device, sequences=3)
    leaves["xz"] = leaves["xz"][:1]
    bounds = torch.tensor([0, 1, 7, L], device=device)
    truth = gradients(lambda t: written_out(t, bounds), leaves)
    single = {name: t.float() for name, t in leaves.items()}
    assert_close(gradients(lambda t: inner(t, recompute=recompute, cu_seqlens=bounds), single), truth, 3e-6)


def test_recomputation_changes_no_bit(device: torch.device) -> None:
    leaves = {name: t.float() for name, t in inputs(device).items()}
    kept = gradients(lambda t: inner(t, recompute="nothing"), leaves)
    for recompute in ("inputs", "all"):
        again = gradients(lambda t, level=recompute: inner(t, recompute=level), leaves)
        assert all(torch.equal(again[name], kept[name]) for name in kept), recompute


def test_the_whole_block_keeps_only_its_input_and_has_the_same_gradients(device: torch.device) -> None:
    leaves = inputs(device)
    del leaves["xz"]
    generator = torch.Generator().manual_seed(3)
    for name, shape in (("x", (B, L, D)), ("in_proj_weight", (2 * E, D)), ("in_proj_bias", (2 * E,))):
        leaves[name] = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)

    def plain(t: dict[str, Tensor]) -> tuple[Tensor, InnerState]:
        return written_out({**t, "xz": F.linear(t["x"], t["in_proj_weight"], t["in_proj_bias"])})

    def lean(t: dict[str, Tensor]) -> tuple[Tensor, InnerState]:
        state = InnerState(t["conv_state"], t["ssm_state"])
        return mamba_block(t["x"], t["in_proj_weight"], t["in_proj_bias"], weights_of(t), state=state)

    truth = gradients(plain, leaves)
    assert_close(gradients(lean, {name: t.float() for name, t in leaves.items()}), truth, 3e-6)


@pytest.mark.parametrize(("recompute", "kept"), [("nothing", True), ("inputs", False), ("all", False)])
def test_what_is_kept_for_backward(monkeypatch: pytest.MonkeyPatch, recompute: str, kept: bool) -> None:
    """After the forward pass the step sizes are gone, unless nothing is to be recomputed."""
    made: list[weakref.ref[Tensor]] = []
    step_sizes = op._step_sizes

    def watched(*arguments: Any) -> Tensor:
        dt = step_sizes(*arguments)
        made.append(weakref.ref(dt))  # a tensor that autograd keeps keeps its Python object
        return dt

    monkeypatch.setattr(op, "_step_sizes", watched)
    leaves = {name: t.float().requires_grad_() for name, t in inputs(torch.device("cpu")).items()}
    out, _ = inner(leaves, recompute=recompute)
    gc.collect()
    assert (made[0]() is not None) is kept
    out.sum().backward()
    assert len(made) == (1 if kept else 2), "dt is made once more, not once for every reader"
    gc.collect()
    assert made[-1]() is None, "nothing of it outlives the backward pass"


def test_a_graph_that_is_never_used_is_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cycle runs through the C++ graph, where Python's collector could not see it."""
    made: list[weakref.ref[Any]] = []

    class Watched(op._Again):
        def __init__(self, *arguments: Any):
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(op, "_Again", Watched)
    leaves = {name: t.float().requires_grad_() for name, t in inputs(torch.device("cpu")).items()}
    out, state = inner(leaves, recompute="inputs")
    assert made[0]() is not None
    del out, state
    gc.collect()
    assert made[0]() is None


def test_two_backward_passes_over_one_graph(device: torch.device) -> None:
    leaves = {name: t.float().requires_grad_() for name, t in inputs(device).items()}
    out, _ = inner(leaves, recompute="inputs")
    first = torch.autograd.grad(out.square().sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
    second = torch.autograd.grad(out.square().sum(), list(leaves.values()), allow_unused=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second) if a is not None)


def test_under_autocast_the_block_runs_in_the_dtype_of_xz() -> None:
    leaves = {name: t.float().requires_grad_() for name, t in inputs(torch.device("cpu")).items()}
    with torch.autocast("cpu", torch.bfloat16):
        out, state = mamba_inner(leaves["xz"].bfloat16(), weights_of(leaves))
    assert out.dtype == torch.bfloat16
    assert state.ssm is not None
    assert state.ssm.dtype == torch.float32
    out.float().sum().backward()
    assert leaves["x_proj_weight"].grad is not None
    assert leaves["x_proj_weight"].grad.dtype == torch.float32


def test_pieces_equal_the_whole() -> None:
    leaves = {name: t.float() for name, t in inputs(torch.device("cpu")).items()}
    weights = weights_of(leaves)
    whole, last = mamba_inner(leaves["xz"], weights)
    first, state = mamba_inner(leaves["xz"][:, :7], weights)
    second, state = mamba_inner(leaves["xz"][:, 7:], weights, state=state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-6)


def test_errors_say_what_is_accepted() -> None:
    leaves = {name: t.float() for name, t in inputs(torch.device("cpu")).items()}
    with pytest.raises(ValueError, match="recompute='some' is unknown; accepted: nothing, inputs, all"):
        inner(leaves, recompute="some")
    with pytest.raises(ValueError, match=r"xz_BLE2 has shape \(2, 19, 8\)"):
        mamba_inner(leaves["xz"][..., :E], weights_of(leaves))


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("recompute", ["nothing", "inputs", "all"])
def test_one_node_adds_no_error_to_the_composition(recompute: str, dtype: torch.dtype, packed: bool) -> None:
    """Sizes that the fused path takes; error against float64 at most twice that of the composed reference."""
    cuda = torch.device("cuda")
    leaves = inputs(cuda, sequences=2, E=128, N=16)
    bounds = torch.tensor([0, 7, L], device=cuda) if packed else None
    if packed:
        leaves["xz"] = leaves["xz"][:1]
    leaves = {n: t / 8 if n in ("x_proj_weight", "out_proj_weight_DE") else t for n, t in leaves.items()}
    low = {name: t.to(dtype if name == "xz" else torch.float32) for name, t in leaves.items()}
    truth = gradients(lambda t: written_out(t, bounds), {name: t.double() for name, t in low.items()})
    options = {"recompute": recompute, "cu_seqlens": bounds}
    assert fused.fits(low["xz"], low["conv_weight_EW"], low["a_EN"], packed, "auto")
    one_node = gradients(lambda t: inner(t, **options), low)
    composed = gradients(lambda t: inner(t, **options, implementation="reference"), low)
    for name, exact in truth.items():
        scale = exact.norm()
        error, plain = ((t[name].double() - exact).norm() / scale for t in (one_node, composed))
        assert error <= 2 * plain + 1e-6, f"{name}: {error:.2e}, composed of references {plain:.2e}"


@pytest.mark.gpu
def test_compiles_as_one_graph() -> None:
    leaves = {name: t.float() for name, t in inputs(torch.device("cuda")).items()}
    eager = gradients(inner, leaves)
    compiled = gradients(torch.compile(inner, fullgraph=True), leaves)
    assert_close(compiled, {n: t.double() for n, t in eager.items()}, 1e-4)


@pytest.mark.gpu
def test_memory_kept_a_position() -> None:
    """What stays allocated between forward and backward, in bytes a position and channel, at every level."""
    e, length = 512, 65536
    generator = torch.Generator("cuda").manual_seed(0)
    random = lambda *shape: torch.randn(*shape, device="cuda", generator=generator)  # noqa: E731
    weights = InnerWeights(
        random(e, 4), random(e), random(32 + 16, e) / 23, random(e, 16) / 4, random(e) - 4, -random(e, 16).abs(),
        random(e), random(256, e) / 23,
    )  # fmt: skip
    xz = random(1, length, 2 * e).bfloat16().requires_grad_()
    kept = {}
    for level in ("nothing", "nothing", "inputs", "all"):  # the first call also makes cuBLAS's workspace
        before = torch.cuda.memory_allocated()
        out, state = mamba_inner(xz, weights, recompute=level)
        kept[level] = (torch.cuda.memory_allocated() - before - out.nbytes) / (length * e)
        del out, state
    print(f"bytes kept beside xz a position and channel: {kept}")
    assert kept["all"] < 0.1
    assert kept["nothing"] - kept["inputs"] == pytest.approx(6, abs=0.2)  # u, dt and the gated output in bf16
