"""What is particular to SSD's Triton kernels, beside the laws of test_ops.py and test_triton.py.

On a GPU: `pytest -m gpu tests/kernels/test_ssd_triton.py`. Without one, `test_ssd_interpreter.py` runs this file in a
process of its own with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import importlib.util
import os
import time

import pytest
import torch
from seqkernels import ssd
from seqkernels.spec import Sample
from seqkernels.ssd import gpu
from seqkernels.ssd.spec import ALL, NONE, sample
from torch import Tensor

from seqmodels.layers.mamba2 import Mamba2
from seqmodels.layers.state import updating_in_place

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
STATE = ALL | {"state"}

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed"),
    *([] if INTERPRETED else [pytest.mark.gpu]),
]
gpu_only = pytest.mark.skipif(INTERPRETED, reason="needs a GPU, not the interpreter")


def run(call: Sample, implementation: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Outputs and the gradient of every input, for fixed gradients of the outputs."""
    leaves = {
        name: (t if dtype is None else t.to(dtype)).detach().requires_grad_() if t.is_floating_point() else t
        for name, t in call.tensors.items()
    }
    outputs = ssd(**leaves, **call.options, implementation=implementation)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    above = [torch.randn(out.shape, generator=generator).to(out.device, out.dtype) for out in outputs]
    wanted = [name for name, t in leaves.items() if t.is_floating_point()]
    grads = torch.autograd.grad(outputs, [leaves[name] for name in wanted], above)
    results = {f"output{i}": out for i, out in enumerate(outputs)} | dict(zip(wanted, grads))
    return {name: value.detach().double() for name, value in results.items()}


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, value in expected.items():
        assert torch.isfinite(actual[name]).all(), name
        error = float((actual[name] - value).abs().max() / (value.abs().max() + 1e-30))
        assert error <= tolerance, f"{name}: off by {error:.2e}"


CASES = {
    "slices_of_heads": ((1, 66, 3, 4, 4), {"options": STATE}),
    "groups_of_uneven_slices": ((1, 40, 6, 4, 4), {"options": STATE, "groups": 2}),
    "wide_heads": ((1, 36, 2, 40, 20), {"options": STATE}),
    "wide_state": ((1, 36, 1, 4, 70), {"options": NONE}),
    "packed": ((1, 72, 3, 4, 4), {"options": STATE, "bounds": [0, 1, 2, 71, 72]}),
}


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_heads_may_share_a_program(name: str, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few positions a program takes one head; on many it loops over several and adds their gradients of b and c."""
    monkeypatch.setattr(gpu, "heads_of_a_program", lambda *sizes: heads)
    shape, options = CASES[name]
    call = sample(name, shape, DEVICE, torch.float32, **options)
    assert_near(run(call, "triton"), run(call, "torch", torch.float64), 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, *([] if INTERPRETED else [torch.bfloat16])], ids=str)
def test_narrow_dtypes_in_chunks_of_128(dtype: torch.dtype) -> None:
    """Half-precision tiles are cut in blocks of positions; the interpreter cuts bf16 instead of rounding it."""
    call = sample("narrow", (1, 140, 2, 4, 4), DEVICE, dtype, options=STATE)
    assert gpu.plan(140, 4, 4, dtype).q == 128
    assert_near(run(call, "triton"), run(call, "torch", torch.float64), 4 * torch.finfo(dtype).eps)


def test_gradients_of_the_final_state_alone() -> None:
    call = sample("final", (1, 70, 2, 4, 4), DEVICE, torch.float32, options=STATE)
    gradients = []
    for implementation in ("triton", "torch"):
        leaves = {name: t.detach().requires_grad_() for name, t in call.tensors.items()}
        _, state = ssd(**leaves, **call.options, implementation=implementation)
        wanted = [leaf for name, leaf in leaves.items() if name not in ("c_BLGN", "d_H")]
        gradients.append(torch.autograd.grad(state.square().sum(), wanted))
    for mine, other in zip(*gradients):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_decays_that_vanish_leave_exact_gradients() -> None:
    """dt a near -20 at every step: the gradient of a is of the size of exp(-20), and still right."""
    call = sample("vanishing", (1, 70, 2, 4, 4), DEVICE, torch.float32, options=NONE)
    call.tensors["dt_BLH"] = 1 + 0.1 * call.tensors["dt_BLH"]
    call.tensors["a_H"] = -20 + 0.5 * call.tensors["a_H"].tanh()
    expected = run(call, "torch", torch.float64)
    assert float(expected["a_H"].abs().max()) < 1e-6
    assert_near(run(call, "triton"), expected, 1e-4)


def test_chunk_tables_cut_every_sequence_by_itself() -> None:
    bounds = torch.tensor([0, 1, 64, 100, 300], dtype=torch.int32)
    chunks = gpu.chunks_of(1, 300, bounds, 64, bounds.device)
    assert chunks.first.tolist() == [0, 1, 2, 3, 7]
    table = chunks.table.tolist()
    assert table[:7] == [[0, 1], [1, 63], [64, 36], [100, 64], [164, 64], [228, 64], [292, 8]]
    assert len(table) == chunks.count
    assert all(count == 0 for _, count in table[7:])
    bounds[1] = 2  # the same tensor with other values
    assert gpu.chunks_of(1, 300, bounds, 64, bounds.device).table[0].tolist() == [0, 2]


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes", [{}, {"ngroups": 2, "conv_bias": False, "d_conv": 3}, {"headdim": 4, "d_state": 5}], ids=str
)
def test_the_fused_decode_step_is_the_layers_step(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    layer = Mamba2(16, **{"headdim": 8, "d_state": 8, **sizes}).to(DEVICE)
    torch.nn.init.normal_(layer.D)
    x_BLD = torch.randn(3, 9, 16, device=DEVICE)
    _, state = layer(x_BLD[:, :8])
    before = [tensor.clone() for tensor in state]
    y_B1D, after = layer(x_BLD[:, 8:], state)
    assert all(torch.equal(mine, other) for mine, other in zip(state, before))
    layer.implementation = "torch"  # steps by plain products
    expected, expected_after = layer(x_BLD[:, 8:], state)
    torch.testing.assert_close(y_B1D, expected, rtol=1e-5, atol=1e-5)
    for mine, other in zip(after, expected_after):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    layer.implementation = "auto"
    with updating_in_place():
        again, in_place = layer(x_BLD[:, 8:], state)
    assert in_place.ssm.data_ptr() == state.ssm.data_ptr()
    assert torch.equal(again, y_B1D)
    assert torch.equal(in_place.ssm, after.ssm)


@gpu_only
def test_fp32_is_not_rounded_to_tf32() -> None:
    call = sample("tf32", (1, 256, 4, 64, 128), DEVICE, torch.float32, options=STATE)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        actual = run(call, "triton")
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert_near(actual, run(call, "torch", torch.float64), 3e-6)


@gpu_only
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 1000, 24, 64, 128), {}),
        ((1, 5000, 8, 64, 128), {"bounds": [0, 1, 129, 130, 2000, 5000]}),
        ((1, 700, 4, 128, 256), {}),
        ((1, 700, 8, 64, 64), {"groups": 4}),
        ((1, 40_000, 8, 64, 128), {}),
    ],
    ids=["block", "packed", "large_state", "groups", "long"],
)
def test_blocks_of_real_size_against_float64(shape, options, dtype) -> None:
    call = sample("real", shape, DEVICE, dtype, options=STATE, **options)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert_near(run(call, "triton"), run(call, "torch", torch.float64), tolerance)


@gpu_only
def test_repeats_bit_for_bit() -> None:
    call = sample("repeat", (2, 3000, 16, 64, 128), DEVICE, torch.bfloat16, options=STATE)
    first = run(call, "triton")
    for _ in range(3):
        again = run(call, "triton")
        assert all(torch.equal(first[name], again[name]) for name in first)


@gpu_only
def test_past_two_to_the_31_elements() -> None:
    """The end of a sequence whose x has more than 2^31 elements, against the same end run alone from its state."""
    L, H, P, N, tail = 4_200_000, 8, 64, 64, 1000
    assert L * H * P > 1 << 31
    call = sample("huge", (1, L, H, P, N), DEVICE, torch.bfloat16, large=True)
    tensors = {name: t.requires_grad_() for name, t in call.tensors.items()}
    y, final = ssd(**tensors, dt_softplus=True, return_final_state=True, implementation="triton")
    dy = torch.zeros_like(y)
    dy[:, -tail:] = torch.randn(1, tail, H, P, device=DEVICE, dtype=torch.bfloat16)
    per_position = ("x_BLHP", "dt_BLH", "b_BLGN", "c_BLGN")
    grads = torch.autograd.grad(y, [tensors[name] for name in per_position], dy)
    cut = L - tail - 4096  # what is older has decayed
    piece = {n: (t[:, cut:] if n in per_position else t).detach().requires_grad_() for n, t in tensors.items()}
    expected, expected_final = ssd(**piece, dt_softplus=True, return_final_state=True, implementation="torch")
    expected_grads = torch.autograd.grad(expected, [piece[name] for name in per_position], dy[:, cut:])
    torch.testing.assert_close(y[:, -tail:], expected[:, -tail:], rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(final, expected_final, rtol=3e-2, atol=3e-2)
    for name, grad, other in zip(per_position, grads, expected_grads):
        scale = float(other.abs().max())
        torch.testing.assert_close(grad[:, -tail:], other[:, -tail:], rtol=3e-2, atol=1e-2 * scale, msg=name)


@gpu_only
def test_first_call_takes_seconds_not_minutes(tmp_path, monkeypatch) -> None:
    """Nothing is tuned: compiling forward and backward of a new configuration is all that a first call pays."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    call = sample("first", (1, 500, 8, 32, 32), DEVICE, torch.float16, options=STATE)
    begin = time.perf_counter()
    run(call, "triton")
    torch.cuda.synchronize()
    assert time.perf_counter() - begin < 30
