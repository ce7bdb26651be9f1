"""The CUDA scan's own sources on a CPU, a fibre per CUDA thread (cuda_on_cpu/), against the reference. Slow, small.

Takes the whole path of `launch.py`; only the compiler and the launch are replaced. What it cannot show is what the
hardware does: speed, approximate functions, races (compute-sanitizer looks for those on a GPU).
"""

from __future__ import annotations

import ctypes
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from seqkernels import nvrtc
from seqkernels.causal_conv1d import reference as conv_reference
from seqkernels.mamba_inner import InnerState, InnerWeights, fused
from seqkernels.mamba_inner.op import _block_behind_in_proj
from seqkernels.selective_scan import cuda, reference
from seqkernels.selective_scan.cuda import complex_launch, launch, plan
from torch import Tensor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ on Linux"),
]

# Every function of common.cuh that is written in PTX, in C++. A new one makes the compilation fail: asm() is refused.
PORTED = {
    r"DEVICE float exp2_fast\(.*": "DEVICE float exp2_fast(float x) { return exp2f(x); }",
    r"DEVICE float reciprocal\(.*": "DEVICE float reciprocal(float x) { return 1.f / x; }",
    r"u32 r; *asm\(\"cvt\.rn\.bf16x2[^\n]*": "return cpu::bf16(low) | (u32)cpu::bf16(high) << 16;",
    r"const u32 to = \(u32\)__cvta_generic_to_shared\(to_shared\);\n": "",
    r"const int count = valid[^\n]*\n(?:[^\n]*\n){4}": "  cpu::copy(to_shared, from_global, BYTES, valid);\n",
    r"asm volatile\(\"cp\.async\.commit_group[^\n]*": "cpu::close_group(); }",
    r"asm volatile\(\"cp\.async\.wait_group[^\n]*": "cpu::wait(PENDING); }",
    r"extern __shared__ __align__\(16\) char memory\[\];": "char* memory = cpu::current->shared;",
    r"__shared__ ": "static ",
}


def _ported(source: Path) -> str:
    common, text = (source.parent / "common.cuh").read_text(), source.read_text()
    # fp16 has no C++ counterpart here: only fp32 and bf16 are emulated
    common = re.sub(r"#elif ELEMENT == 2\n.*?#endif", "#endif", common, flags=re.S)
    text = text.replace('#include "complex.cuh"', (source.parent / "complex.cuh").read_text())
    text = text.replace('#include "common.cuh"', common)
    for pattern, replacement in PORTED.items():
        text = re.sub(pattern, lambda _match, new=replacement: new, text)
    assert "asm" not in text, re.findall(r".*asm.*", text)
    return text.replace("#pragma once", "")


class EmulatedKernel:
    """Like `nvrtc.Kernel`, on CPU tensors."""

    def __init__(self, compiled: Callable, source: Path, entry: str, args: str, defines: Mapping[str, int]):
        text = _ported(source)
        shared = "sizeof(Shared)" if "shared_units" in text else "0"
        text += (
            f'extern "C" EXPORTED int run(const {args}* a, int x, int y, int threads, int shared) '
            f"{{ return cpu::launch({entry}, *a, x, y, threads, shared); }}\n"
            f'extern "C" EXPORTED int shared_bytes() {{ return {shared}; }}\n'
        )
        macros = "".join(f"#define {name} {value}\n" for name, value in sorted(defines.items()))
        self._library = compiled(macros + text)
        self._args = nvrtc.struct_of(source, args)

    def launch(self, grid: int | tuple[int, int], threads: int, /, **arguments: Tensor | int | None) -> None:
        struct = self._args(**{n: v.data_ptr() if isinstance(v, Tensor) else v for n, v in arguments.items()})
        x, y = (grid, 1) if isinstance(grid, int) else grid
        waiting = self._library.run(ctypes.byref(struct), x, y, threads, self._library.shared_bytes())
        assert not waiting, f"{waiting} threads wait at a barrier that the others never come to"


@pytest.fixture(scope="module")
def emulation(compiled_for_cpu):
    kernels = {}

    def kernel(source: Path, entry: str, args: str, defines: Mapping[str, int], device: int) -> EmulatedKernel:
        key = (source, entry, *sorted(defines.items()))
        if key not in kernels:
            kernels[key] = EmulatedKernel(compiled_for_cpu, source, entry, args, defines)
        return kernels[key]

    properties = SimpleNamespace(multi_processor_count=132, shared_memory_per_multiprocessor=228 * 1024)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "kernel", kernel)
        patch.setattr(launch, "_device_properties", lambda index: properties)
        yield


def inputs(B: int, L: int, E: int, N: int, G: int, sequences: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(L + E)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    tensors = {
        "x": normal(B, L, E), "dt": normal(B, L, E) - 2, "a": -1 - 3 * normal(E, N).abs(), "b": normal(B, L, G, N),
        "c": normal(B, L, G, N), "d": normal(E), "z": normal(B, L, E), "dt_bias": 0.2 * normal(E),
        "initial": normal(sequences, E, N),
    }  # fmt: skip
    return {name: t.to(dtype) if name in ("x", "dt", "b", "c", "z") else t for name, t in tensors.items()}


# (B, L, E, N, G), packed bounds, chunks, dtype, saved every, forward layout, backward layout
CASES = {
    "bf16-every4-tail": ((1, 37, 64, 16, 1), None, 1, torch.bfloat16, 4, (1, 64, 8), (4, 2, 4)),
    "bf16-every8-tail": ((1, 37, 64, 16, 1), None, 1, torch.bfloat16, 8, (4, 64, 8), (4, 2, 4)),
    "fp32-every4-two_lanes": ((2, 18, 64, 16, 1), None, 1, torch.float32, 4, (2, 64, 8), (2, 4, 2)),
    "fp32-N32-groups": ((1, 20, 128, 32, 2), None, 1, torch.float32, 8, (1, 64, 8), (2, 4, 2)),
    "fp32-cut": ((1, 290, 64, 16, 1), None, 2, torch.float32, 4, (1, 64, 8), (2, 4, 2)),
    "fp32-packed-cut": ((1, 300, 64, 16, 1), [0, 1, 290, 300], 2, torch.float32, 8, (1, 64, 8), (2, 4, 2)),
}


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("case", CASES)
def test_kernels_equal_the_reference(case: str):
    (B, L, E, N, G), bounds, chunks, dtype, every, forward, backward = CASES[case]
    sequences = B if bounds is None else len(bounds) - 1
    t = inputs(B, L, E, N, G, sequences, dtype)
    cu = None if bounds is None else torch.tensor(bounds)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in t.items()}
    y, final = reference.scan(*list(leaves.values())[:8], True, leaves["initial"], cu)
    above = (torch.randn(y.shape).to(dtype), torch.randn(final.shape))
    torch.autograd.backward((y, final), above)

    p = launch.Problem.of(*list(t.values())[:8], True, t["initial"], cu)
    cut = plan.cut_into(p.size, chunks)
    result = launch.run_forward(p, every, plan.Forward(*forward, cut))
    grads = launch.run_backward(p, *above, result.y, result.states, plan.Backward(*backward, cut))
    pairs = {"y": (result.out, y), "final": (result.final, final)}
    pairs |= {f"gradient of {name}": (getattr(grads, name), leaf.grad) for name, leaf in leaves.items()}
    for name, (ours, expected) in pairs.items():
        assert expected is not None
        error = ((ours.float() - expected.float()).norm() / expected.float().norm()).item()
        assert error < (4e-3 if ours.dtype == torch.bfloat16 else 5e-6), name


def complex_inputs(B: int, L: int, E: int, N: int, G: int, sequences: int, dtype: torch.dtype) -> list[Tensor]:
    """x, dt, a, b, c, d, z, dt_bias and the initial state."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    a = torch.complex(-0.3 - normal(E, N).abs(), 2 * normal(E, N))
    b, c = (torch.complex(normal(B, L, G, N), normal(B, L, G, N)) for _ in range(2))
    x, dt, z = normal(B, L, E).to(dtype), (normal(B, L, E) - 2).to(dtype), normal(B, L, E).to(dtype)
    initial = torch.complex(normal(sequences, E, N), normal(sequences, E, N))
    return [x, dt, a, b, c, normal(E), z, 0.2 * normal(E), initial]


def assert_complex_equal(got: list[Tensor], t: list[Tensor], above: list[Tensor], cu: Tensor | None) -> None:
    """Output, final state and gradients of all of `t`, against the reference."""
    leaves = [tensor.clone().requires_grad_() for tensor in t]
    outputs = reference.scan(*leaves[:8], True, leaves[8], cu)
    torch.autograd.backward(outputs, above)
    names = ("y", "final", "x", "dt", "a", "b", "c", "d", "z", "dt_bias", "initial")
    for name, ours, theirs in zip(names, got, (*outputs, *(leaf.grad for leaf in leaves)), strict=True):
        assert theirs is not None
        error = torch.linalg.vector_norm((ours - theirs).abs()) / torch.linalg.vector_norm(theirs.abs())
        assert error.item() < (4e-3 if ours.dtype == torch.bfloat16 else 2e-6), name


# (B, L, E, N, G), packed bounds, chunks, dtype, warps of the backward blocks
COMPLEX_CASES = {
    "bf16-wide-tail": ((1, 37, 64, 16, 1), None, 1, torch.bfloat16, 8),
    "fp32-N8-groups": ((2, 18, 64, 8, 2), None, 1, torch.float32, 4),
    "fp32-N32-packed-cut": ((1, 300, 16, 32, 1), [0, 1, 290, 300], 2, torch.float32, 4),
}


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("case", COMPLEX_CASES)
def test_complex_kernels_equal_the_reference(case: str):
    (B, L, E, N, G), bounds, chunks, dtype, warps = COMPLEX_CASES[case]
    sequences = B if bounds is None else len(bounds) - 1
    t, cu = complex_inputs(B, L, E, N, G, sequences, dtype), None if bounds is None else torch.tensor(bounds)
    g = torch.Generator().manual_seed(1)
    above = [torch.randn(B, L, E, generator=g).to(dtype), torch.randn(sequences, E, N, dtype=t[2].dtype, generator=g)]
    p = complex_launch.problem(*t[:8], True, t[8], cu)  # type: ignore[call-arg]
    forward = plan.complex_forward(p.size, N)._replace(cut=plan.cut_into(p.size, chunks))
    out, final, states = complex_launch.run_forward(p, True, forward)
    grads = complex_launch.run_backward(p, above[0], above[1], states, forward._replace(warps=warps))
    assert_complex_equal([out, final, *vars(grads).values()], t, above, cu)


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("N", [5, 33])
def test_complex_scans_of_odd_sizes_are_padded_or_go_to_the_kernel_for_any_size(N: int):
    B, L, E, G = 1, 21, 6, 2
    t = complex_inputs(B, L, E, N, G, B, torch.float32)
    g = torch.Generator().manual_seed(1)
    above = [torch.randn(B, L, E, generator=g), torch.randn(B, E, N, dtype=torch.complex64, generator=g)]
    leaves = [tensor.clone().requires_grad_() for tensor in t]
    outputs = cuda.scan(*leaves[:8], True, leaves[8], None)  # type: ignore[call-arg]
    torch.autograd.backward(outputs, above)
    grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert_complex_equal([*outputs, *grads], t, above, None)


def plain_conv(x, weight, bias, silu, initial, cu_seqlens):
    return conv_reference.conv(x, weight, bias, "silu" if silu else None, initial, cu_seqlens)


def plain_conv_backward(dy, dfinal, x, weight, bias, silu, initial, cu_seqlens, dx):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in (x, weight, bias, initial)]
    with torch.enable_grad():
        y, final = plain_conv(*leaves[:3], silu, leaves[3], cu_seqlens)
    torch.autograd.backward((y, final), (dy, torch.zeros_like(final) if dfinal is None else dfinal))
    dx.copy_(leaves[0].grad)  # type: ignore[union-attr]
    return tuple(torch.empty(0) if leaf is None else leaf.grad for leaf in leaves[1:])


@pytest.mark.usefixtures("emulation")
@pytest.mark.parametrize("bounds", [None, [0, 5, 37]], ids=["batch", "packed"])
@pytest.mark.parametrize("absent", [(), ("conv_bias", "dt_bias", "d", "out_bias", "states")], ids=["full", "bare"])
@pytest.mark.parametrize("recompute", ["nothing", "inputs", "all"])
def test_the_fused_block_equals_the_composition(monkeypatch, recompute, absent, bounds):
    """Every gradient of `MambaInner`, with the scan emulated and the convolution replaced by its reference."""
    monkeypatch.setattr(fused.conv_gpu, "run_forward", plain_conv)
    monkeypatch.setattr(fused.conv_gpu, "run_backward", plain_conv_backward)
    monkeypatch.setattr(fused.cuda, "memory_bytes", lambda index: 1 << 37)
    B, L, E, N, R, W, D = 1, 37, 64, 16, 3, 4, 5
    sequences, g = B if bounds is None else len(bounds) - 1, torch.Generator().manual_seed(0)
    shapes = {
        "xz": (B, L, 2 * E), "conv_state": (sequences, W - 1, E), "ssm_state": (sequences, E, N),
        "conv": (E, W), "conv_bias": (E,), "x_proj": (R + 2 * N, E), "dt_proj": (E, R), "dt_bias": (E,), "a": (E, N),
        "d": (E,), "out_proj": (D, E), "out_bias": (D,),
    }  # fmt: skip
    t = {name: 0.3 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    t["a"] = -1 - t["a"].abs()
    leaves = {name: tensor.requires_grad_() for name, tensor in t.items() if name not in absent}
    if "states" in absent:
        del leaves["conv_state"], leaves["ssm_state"]
    cu = None if bounds is None else torch.tensor(bounds)
    values = [leaves.get(name) for name in shapes]
    weights, states = InnerWeights(*values[3:]), InnerState(*values[1:3])  # type: ignore[arg-type]
    composed, state = _block_behind_in_proj(t["xz"], weights, states, cu, "reference")
    expected = (composed, state.conv, state.ssm)
    got = fused.MambaInner.apply(recompute, *values[:3], cu, *values[3:])
    above = [torch.randn(out.shape, generator=g) for out in expected]
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(outputs, list(leaves.values()), above) for outputs in (got, expected)]
    for name, ours, theirs in zip(leaves, *gradients, strict=True):
        assert ((ours - theirs).norm() / theirs.norm()).item() < 5e-6, name
