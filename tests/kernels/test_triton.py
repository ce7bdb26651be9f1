"""The Triton kernels against float64, over every sample of every op that has them.

On a GPU: `pytest -m gpu tests/kernels/test_triton.py`. Without one, `test_triton_interpreter.py` runs this file in a
process of its own with TRITON_INTERPRET=1, on the small samples.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from seqkernels import causal_conv1d, mamba_step, rms_norm
from seqkernels.spec import OpSpec, Sample, specs
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
# The interpreter cuts fp32 to bf16 instead of rounding it, so bf16 needs a GPU.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
MOST_ELEMENTS = {torch.float32: 2_500, torch.float16: 900} if INTERPRETED else {}

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    *([] if INTERPRETED else [pytest.mark.gpu]),
]
gpu_only = pytest.mark.skipif(INTERPRETED, reason="needs a GPU, not the interpreter")


def cases() -> Iterator[Any]:
    """(spec, name of the sample, dtype) of everything that runs here."""
    for spec in specs():
        if "triton" not in spec.registry.modules:
            continue
        for dtype in DTYPES:
            for sample in spec.samples(torch.device("cpu"), dtype):
                if sum(t.numel() for t in sample.tensors.values()) <= MOST_ELEMENTS.get(dtype, 10**9):
                    yield pytest.param(spec, sample.id, dtype, id=f"{spec.name}-{sample.id}-{str(dtype)[6:]}")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an element that no kernel writes shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def run(function: Callable[..., Any], sample: Sample, convert: Callable[[Tensor], Tensor], grads: bool) -> list[Tensor]:
    """Outputs, then (if `grads`) the gradient of every floating-point input for fixed gradients of the outputs."""
    tensors = {n: convert(t).detach() if t.is_floating_point() else t for n, t in sample.tensors.items()}
    leaves = [t.requires_grad_() for t in tensors.values() if grads and t.is_floating_point()]
    outputs = function(**tensors, **sample.options)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if not grads:
        return outputs
    generator = torch.Generator().manual_seed(1)
    # rounded to the dtype under test first, so that the truth gets the very same gradients
    low = [next(iter(sample.tensors.values())).dtype, *[torch.float32] * (len(outputs) - 1)]
    d_outputs = [torch.randn(o.shape, generator=generator).to(dtype) for o, dtype in zip(outputs, low)]
    d_outputs = [d.to(o.device, o.dtype) for d, o in zip(d_outputs, outputs)]
    return [*outputs, *torch.autograd.grad(outputs, leaves, d_outputs)]


def assert_adds_little_error(
    actual: list[Tensor], plain: list[Tensor], truth: list[Tensor], slack: float = 0.0
) -> None:
    """At most twice the error of plain PyTorch in that dtype against float64 (and its last bit: plain may be lucky)."""
    assert len(actual) == len(plain) == len(truth)
    for index, (got, low, exact) in enumerate(zip(*([t.detach() for t in ts] for ts in (actual, plain, truth)))):
        assert got.dtype == low.dtype
        assert got.shape == exact.shape
        assert torch.isfinite(got).all(), f"tensor {index} is not finite"
        scale = float(exact.abs().max())
        floor = max(0.5 * torch.finfo(low.dtype).eps, 4 * torch.finfo(torch.float32).eps, slack) * scale
        error, allowed = float((got.double() - exact).abs().max()), 2 * float((low.double() - exact).abs().max())
        assert error <= allowed + floor, f"tensor {index}: error {error:.3g}, twice plain {allowed:.3g} + {floor:.3g}"


def on_device(sample: Sample) -> Sample:
    return Sample(sample.id, {name: keep_strides(t) for name, t in sample.tensors.items()}, dict(sample.options))


def keep_strides(t: Tensor) -> Tensor:
    """A copy on the device under test with the same strides: `.to` would make an expanded or sliced tensor dense."""
    storage = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).to(DEVICE)
    return storage.as_strided(t.shape, t.stride(), t.storage_offset())


@pytest.mark.parametrize(("spec", "name", "dtype"), list(cases()))
def test_every_sample_against_float64(spec: OpSpec, name: str, dtype: torch.dtype) -> None:
    sample = on_device(next(s for s in spec.samples(torch.device("cpu"), dtype) if s.id == name))
    grads = spec.name != "mamba_step"  # the decode step has none
    truth = run(lambda **kw: spec.op(**kw, implementation="reference"), sample, Tensor.double, grads)
    plain = run(lambda **kw: spec.op(**kw, implementation="reference"), sample, lambda t: t, grads)
    with torch.set_grad_enabled(grads):
        actual = run(lambda **kw: spec.op(**kw, implementation="triton"), sample, lambda t: t, grads)
    assert_adds_little_error(actual, plain, truth, spec.slack.get(dtype, 0.0))


def test_convolution_passes_gradients_of_the_final_state_alone() -> None:
    x, weight = torch.randn(2, 9, 8, device=DEVICE), torch.randn(8, 4, device=DEVICE)
    gradients = []
    for implementation in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        _, state = causal_conv1d(leaf, weight, return_final_state=True, implementation=implementation)
        gradients.append(torch.autograd.grad(state.square().sum(), leaf)[0])
    torch.testing.assert_close(*gradients, rtol=0, atol=0)
    assert gradients[0][:, -3:].abs().min() > 0
    assert gradients[0][:, :-3].abs().max() == 0


def test_convolution_in_pieces_equals_the_whole_bit_for_bit() -> None:
    """Every row sees the same taps in the same order, wherever the sequence is cut."""
    x, weight = torch.randn(1, 37, 8, device=DEVICE), torch.randn(8, 4, device=DEVICE)
    whole, last = causal_conv1d(x, weight, activation="silu", return_final_state=True, implementation="triton")
    pieces, state = [], None
    for piece in x.split([1, 2, 20, 14], dim=1):
        y, state = causal_conv1d(
            piece, weight, activation="silu", initial_state=state, return_final_state=True, implementation="triton"
        )
        pieces.append(y)
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(state, last)


def test_norm_without_using_the_sum_has_the_same_gradient() -> None:
    x, weight = torch.randn(5, 33, device=DEVICE), torch.rand(33, device=DEVICE)
    residual = torch.randn(5, 33, device=DEVICE)
    gradients = []
    for implementation in ("triton", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, weight, residual)]
        y, _ = rms_norm(leaves[0], leaves[1], residual=leaves[2], implementation=implementation)
        gradients.append(torch.autograd.grad(y.sin().sum(), leaves))
    for actual, expected in zip(*gradients):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def step_sample(B: int = 2, E: int = 40, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    spec = next(spec for spec in specs() if spec.name == "mamba_step")
    shape = {"B": B, "E": E, "N": 16, "R": 3, "W": 4}
    tensors = on_device(spec.bench_sample(shape, torch.device("cpu"), dtype)).tensors
    return {name: t.detach() for name, t in tensors.items()}


def test_step_in_place_writes_into_the_given_states_and_equals_the_functional_step() -> None:
    tensors = step_sample()
    y, conv_state, state = mamba_step(**tensors, implementation="triton")
    before = tensors["conv_state"].clone()
    y2, conv_state2, state2 = mamba_step(**tensors, inplace=True, implementation="triton")
    assert torch.equal(y, y2)
    assert conv_state2 is tensors["conv_state"]
    assert state2 is tensors["state_BEN"]
    assert torch.equal(conv_state, conv_state2)
    assert torch.equal(state, state2)
    assert torch.equal(conv_state[:, :-1], before[:, 1:])


def test_step_in_place_writes_into_strided_states() -> None:
    tensors = step_sample()
    expected = mamba_step(**tensors, implementation="triton")
    tensors["state_BEN"] = tensors["state_BEN"].transpose(1, 2).contiguous().transpose(1, 2)
    tensors["conv_state"] = torch.stack([tensors["conv_state"]] * 2, dim=1)[:, 1]
    mamba_step(**tensors, inplace=True, implementation="triton")
    assert torch.equal(tensors["conv_state"], expected[1])
    assert torch.equal(tensors["state_BEN"], expected[2])


def test_every_cut_of_the_step_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from seqkernels.mamba_step import gpu

    tensors = step_sample(B=5)
    expected = mamba_step(**tensors, implementation="reference")
    for cut in (gpu.Plan(1, 16, 1, 8), gpu.Plan(16, 32, 4, 32), gpu.Plan(2, 64, 2, 16)):
        monkeypatch.setattr(gpu, "plan", lambda *_, cut=cut: cut)
        for actual, exact in zip(mamba_step(**tensors, implementation="triton"), expected):
            torch.testing.assert_close(actual, exact, rtol=2e-5, atol=2e-5)


def test_step_refuses_gradients() -> None:
    tensors = step_sample()
    tensors["a_EN"].requires_grad_()
    with pytest.raises(ValueError, match="has no gradients"):
        mamba_step(**tensors, implementation="triton")


def test_wide_rows_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="D=20000 is more than 8192"):
        rms_norm(torch.ones(1, 20_000, device=DEVICE), torch.ones(20_000, device=DEVICE), implementation="triton")


def test_float64_is_refused_by_name() -> None:
    x = torch.ones(1, 3, 4, device=DEVICE, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"dtype torch\.float64 is not supported"):
        causal_conv1d(x, torch.ones(4, 2, device=DEVICE), implementation="triton")


def test_opcheck() -> None:
    """Schemas, fake tensors and autograd registration agree with what the ops do."""
    x, weight = torch.randn(1, 9, 8, device=DEVICE, requires_grad=True), torch.randn(8, 3, device=DEVICE)
    bounds = torch.tensor([0, 4, 9], device=DEVICE)
    state = torch.randn(2, 2, 8, device=DEVICE, requires_grad=True)
    ops = torch.ops.seqkernels
    mamba_step(**step_sample(), implementation="triton")  # registers the ops
    rms_norm(x, torch.ones(8, device=DEVICE), implementation="triton")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(ops.causal_conv1d_triton.default, (x, weight, None, True, state, bounds), test_utils=tests)
    torch.library.opcheck(
        ops.rms_norm_triton.default, (x, weight[:, 0].clone(), x.detach().clone(), 1e-5, True), test_utils=tests
    )
    order = ("xz_B2E", "conv_state", "state_BEN", "conv_weight_EW", "conv_bias_E", "x_proj_weight")
    order += ("dt_proj_weight_ER", "dt_bias_E", "a_EN", "d_E")
    arguments = tuple(step_sample()[name] for name in order)
    torch.library.opcheck(ops.mamba_step_triton.default, arguments, test_utils=tests)
    torch.library.opcheck(ops.mamba_step_triton_.default, arguments, test_utils=tests)


@gpu_only
def test_compiles_as_one_graph() -> None:
    def block(x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
        x, residual = rms_norm(x, scale, residual=residual, implementation="triton")
        y, state = causal_conv1d(x, weight, activation="silu", return_final_state=True, implementation="triton")
        return (y * residual).sum() + state.sum()

    leaves = [torch.randn(s, device=DEVICE, requires_grad=True) for s in ((2, 65, 32), (32, 4), (32,), (2, 65, 32))]
    eager = torch.autograd.grad(block(*leaves), leaves)
    compiled = torch.autograd.grad(torch.compile(block, fullgraph=True)(*leaves), leaves)
    for actual, expected in zip(compiled, eager):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@gpu_only
def test_step_in_a_cuda_graph_advances_the_state_at_every_replay() -> None:
    tensors = step_sample(3, 200, torch.bfloat16)
    expected_y, conv_state, state = [], tensors["conv_state"].clone(), tensors["state_BEN"].clone()
    weights = {n: t for n, t in tensors.items() if n not in ("conv_state", "state_BEN")}
    for _ in range(3):
        y, conv_state, state = mamba_step(conv_state=conv_state, state_BEN=state, **weights, implementation="triton")
        expected_y.append(y)
    warm = {n: t.clone() for n, t in tensors.items()}
    mamba_step(**warm, inplace=True, implementation="triton")  # compiles outside the capture
    torch.utils.deterministic.fill_uninitialized_memory = False
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _, _ = mamba_step(**tensors, inplace=True, implementation="triton")
    for expected in expected_y:
        graph.replay()
        assert torch.equal(y, expected)
    assert torch.equal(tensors["state_BEN"], state)
    assert torch.equal(tensors["conv_state"], conv_state)


@gpu_only
def test_the_same_bits_every_run() -> None:
    x = torch.randn(2, 5000, 520, device=DEVICE, dtype=torch.bfloat16)
    weight, scale = torch.randn(520, 4, device=DEVICE), torch.rand(520, device=DEVICE)

    def gradients() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, weight, scale)]
        y = rms_norm(leaves[0], leaves[2], implementation="triton")
        y = causal_conv1d(y, leaves[1], activation="silu", implementation="triton")
        return [y, *torch.autograd.grad(y.float().sin().sum(), leaves)]

    first = gradients()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients()))


@gpu_only
def test_convolution_past_two_to_the_31_elements() -> None:
    L, E, tail = (1 << 20) + 5, 2056, 40
    assert L * E > 1 << 31
    x = torch.randn(1, L, E, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    weight = torch.randn(E, 4, device=DEVICE)
    y = causal_conv1d(x, weight, activation="silu", implementation="triton")
    d_end = torch.randn(1, tail, E, device=DEVICE, dtype=torch.bfloat16)
    dy = torch.zeros_like(y)
    dy[:, -tail:] = d_end
    (dx,) = torch.autograd.grad(y, x, dy)
    end = x[:, -tail - 3 :].detach().requires_grad_()
    expected = causal_conv1d(end, weight, activation="silu", implementation="reference")
    (expected_dx,) = torch.autograd.grad(expected[:, 3:], end, d_end)
    torch.testing.assert_close(y[:, -tail:], expected[:, 3:], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(dx[:, -tail:], expected_dx[:, 3:], rtol=2e-2, atol=2e-2)
    assert dx[:, : -tail - 3].abs().max() == 0


@gpu_only
def test_norm_past_two_to_the_31_elements() -> None:
    M, D, tail = (1 << 23) + 3, 257, 40
    assert M * D > 1 << 31
    x = torch.randn(M, D, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    residual = torch.randn(M, D, device=DEVICE, dtype=torch.bfloat16)
    weight = torch.rand(D, device=DEVICE)
    y, total = rms_norm(x, weight, residual=residual, implementation="triton")
    (dx,) = torch.autograd.grad(y, x, y.detach())
    end = x[-tail:].detach().requires_grad_()
    expected, expected_total = rms_norm(end, weight, residual=residual[-tail:], implementation="reference")
    (expected_dx,) = torch.autograd.grad(expected, end, expected.detach())
    torch.testing.assert_close(y[-tail:], expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(total[-tail:], expected_total)
    torch.testing.assert_close(dx[-tail:], expected_dx, rtol=2e-2, atol=2e-2)
