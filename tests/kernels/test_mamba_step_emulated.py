"""The CUDA kernels of a decode step on a CPU, a fibre per CUDA thread (cuda_on_cpu/), against the references."""

from __future__ import annotations

import ctypes
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from seqkernels import nvrtc
from seqkernels.mamba_step import reference
from seqkernels.mamba_step.cuda import launch
from seqkernels.mamba_step.cuda.launch import Convolve, Projection, Scan, Sizes
from torch import Tensor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("g++") is None, reason="needs g++ on Linux"),
]

# Every function of common.cuh that is written in PTX, in C++; a new one makes the compilation fail: asm() is refused.
PORTED = {
    "float exp2_fast(float x)": "return exp2f(x);",
    "float reciprocal(float x)": "return 1.f / x;",
    "uint4 load_here(const void* from)": "return *(const uint4*)from;",
    "float load_here(const float* from)": "return *from;",
    "u16 load_here(const u16* from)": "return *from;",
    "u32 load_here(const u32* from)": "return *from;",
    "void multiply_add(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2])": """
      static u32 lanes[1024][6];  // a, b of every thread; threads of a warp wait for one another
      u32* mine = lanes[cpu::thread.x];
      for (int i = 0; i < 4; i++) mine[i] = a[i];
      for (int i = 0; i < 2; i++) mine[4 + i] = b[i];
      __syncwarp();
      u32 (*warp)[6] = lanes + cpu::thread.x / 32 * 32;
      const int lane = cpu::thread.x % 32;
      for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, n = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
          const u32 x = warp[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], y = warp[n * 4 + k % 8 / 2][4 + k / 8];
          c[i] += to_float((u16)(k % 2 ? x >> 16 : x)) * to_float((u16)(k % 2 ? y >> 16 : y));
        }
      }
      __syncwarp();
    """,
    "void copy_async(void* to_shared, const void* from)": "cpu::copy(to_shared, from, 16, true);",
    "void copies_wait()": "cpu::close_group(); cpu::wait(0);",
    "void store_quad(float* to, const float* v)": "memcpy(to, v, 16);",
    "element from_float(float v)": "return cpu::bf16(v);",
}


def _ported(source: Path) -> str:
    common = (source.parent / "common.cuh").read_text()
    common = re.sub(r"#elif ELEMENT == 2\nDEVICE float.*?#endif", "#endif", common, flags=re.S)  # fp16: no C++ for it
    common = re.sub(r"#if __CUDA_ARCH__.*?#endif", "", common, flags=re.S)
    for declaration, body in PORTED.items():
        pattern = re.escape(f"DEVICE {declaration} {{") + r"(?:(?!\nDEVICE).)*?asm.*?\}(?=\n)"
        common, count = re.subn(pattern, f"DEVICE {declaration} {{ {body} }}", common, count=1, flags=re.S)
        assert count == 1, f"common.cuh has no {declaration}"
    text = common + source.read_text().replace('#include "common.cuh"', "")
    text = text.replace("__shared__ __align__(16)", "alignas(16) static").replace("__shared__", "static")
    text = text.replace("min(", "std::min(")
    assert "asm" not in re.sub(r"//.*", "", text)
    return text.replace("#pragma once", "")


class EmulatedKernel:
    """Like `nvrtc.Kernel`, on CPU tensors."""

    def __init__(self, compiled: Callable, source: Path, entry: str, args: str, defines: Mapping[str, int]):
        text = _ported(source)
        text += (
            f'extern "C" EXPORTED int run(const {args}* a, int x, int y, int threads) '
            f"{{ return cpu::launch({entry}, *a, x, y, threads, 16); }}\n"
        )
        macros = "".join(f"#define {name} {value}\n" for name, value in sorted(defines.items()))
        self._library = compiled(macros + text)
        self._args = nvrtc.struct_of(source, args)

    def launch(self, grid: int | tuple[int, int], threads: int, early: bool = False, /, **arguments) -> None:
        struct = self._args(**{n: v.data_ptr() if isinstance(v, Tensor) else v for n, v in arguments.items()})
        x, y = (grid, 1) if isinstance(grid, int) else grid
        waiting = self._library.run(ctypes.byref(struct), x, y, threads)
        assert not waiting, f"{waiting} threads wait at a barrier that the others never come to"


@pytest.fixture(scope="module", autouse=True)
def _emulation(compiled_for_cpu):
    kernels = {}

    def kernel(source: Path, entry: str, args: str, defines: Mapping[str, int], device: int) -> EmulatedKernel:
        key = (source, entry, *sorted(defines.items()))
        if key not in kernels:
            kernels[key] = EmulatedKernel(compiled_for_cpu, source, entry, args, defines)
        return kernels[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "kernel", kernel)
        yield


def block(size: Sizes, B: int, dtype: torch.dtype) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(size.E + B)
    D, E, N, R, W = size

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(*shape, generator=g)

    low = {
        "x": normal(B, D), "xz": normal(B, 2 * E), "in_proj": normal(2 * E, D, scale=D**-0.5), "in_bias": normal(2 * E),
        "x_proj": normal(R + 2 * N, E, scale=E**-0.5), "dt_proj": normal(E, R, scale=R**-0.5),
        "out_proj": normal(D, E, scale=E**-0.5), "out_bias": normal(D),
    }  # fmt: skip
    real = {
        "residual": normal(B, D), "norm_weight": 1 + 0.1 * normal(D), "conv_weight": normal(E, W, scale=0.5),
        "conv_bias": normal(E), "dt_bias": normal(E) - 2, "a": -1 - 3 * normal(E, N).abs(), "d": normal(E),
        "conv_state": normal(B, W - 1, E), "state": normal(B, E, N),
    }  # fmt: skip
    return {name: t.to(dtype) for name, t in low.items()} | real


def assert_close(ours: Tensor, exact: Tensor, what: str) -> None:
    bound = 4e-3 if ours.dtype == torch.bfloat16 else 2e-6
    assert ((ours.double() - exact.double()).norm() / exact.double().norm()).item() < bound, what


def exact_step(t: dict[str, Tensor], xz: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    names = ("conv_state", "state", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "a", "d")
    arguments: Any = [t[name].double() for name in names]
    return reference.step(xz.double(), *arguments, inplace=False)


STEPS = {
    "rows": (Sizes(8, 64, 16, 3, 4), 5, Convolve(16, 4, 2), Scan(16, 4, 2), torch.float32),
    "one-lane-a-state": (Sizes(8, 48, 16, 5, 3), 2, Convolve(24, 1, 1), Scan(16, 16, 1), torch.float32),
    "pairs-of-a-thread": (Sizes(8, 64, 16, 8, 4), 11, Convolve(32, 8, 4), Scan(16, 4, 8), torch.bfloat16),
    "odd-ranks": (Sizes(8, 64, 16, 6, 4), 4, Convolve(32, 4, 2), Scan(32, 2, 4), torch.float32),
    "rows-below-lanes": (Sizes(8, 32, 8, 7, 4), 3, Convolve(8, 2, 1), Scan(8, 8, 2), torch.float32),
    "tensor-cores": (Sizes(8, 64, 16, 10, 4), 21, Convolve(32, 16, 1, True), Scan(16, 4, 4), torch.bfloat16),
    "tensor-cores-few-rows": (Sizes(8, 64, 16, 3, 3), 10, Convolve(16, 8, 1, True), Scan(16, 4, 4), torch.bfloat16),
    "fp32-many-rows": (Sizes(8, 64, 16, 10, 4), 9, Convolve(32, 8, 2), Scan(16, 4, 4), torch.float32),
    "bf16-wide-state": (Sizes(8, 32, 64, 6, 2), 3, Convolve(8, 2, 1), Scan(16, 4, 4), torch.bfloat16),
}


@pytest.mark.parametrize("case", STEPS)
def test_convolve_and_scan_equal_the_reference(case: str) -> None:
    size, B, convolve, scan, dtype = STEPS[case]
    t = block(size, B, dtype)
    expected = exact_step(t, t["xz"])
    conv_state, state = t["conv_state"].clone(), t["state"].clone()
    convolution = (conv_state, conv_state, t["conv_weight"], t["conv_bias"], t["x_proj"])
    signal, partial = launch.convolve(t["xz"], *convolution, size, convolve)
    z = t["xz"][:, size.E :]
    weights: Any = [t[name] for name in ("dt_proj", "dt_bias", "a", "d")]
    y = launch.scan(signal, z, partial, state, state, *weights, size=size, cut=scan, settled=True)
    for ours, exact, what in zip((y, conv_state, state), expected, ("y", "conv_state", "state"), strict=True):
        assert_close(ours, exact, what)


BLOCKS = {
    "one-row": (Sizes(40, 64, 16, 3, 4), 1, Projection(8, 2), Scan(16, 16, 1), Projection(3, 2), torch.float32),
    "rows-bf16": (Sizes(264, 48, 16, 2, 4), 3, Projection(4, 2), Scan(8, 4, 2), Projection(8, 1), torch.bfloat16),
}


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("case", BLOCKS)
def test_a_whole_block_equals_the_reference(case: str, bare: bool) -> None:
    size, B, cut_in, cut_scan, cut_out, dtype = BLOCKS[case]
    t = block(size, B, dtype)
    optional: dict[str, Tensor | None] = {**t}
    if bare:
        optional |= dict.fromkeys(("residual", "in_bias", "conv_bias", "out_bias"))
        t["conv_bias"] = torch.zeros(size.E)
    exact = {name: tensor.double() for name, tensor in t.items()}
    total = exact["x"] if bare else exact["x"] + exact["residual"]
    normed = F.rms_norm(total, (size.D,), exact["norm_weight"], 1e-5)
    xz = F.linear(normed, exact["in_proj"], None if bare else exact["in_bias"])
    y, *states = exact_step(t, xz)
    expected = (F.linear(y, exact["out_proj"], None if bare else exact["out_bias"]), total, *states)

    conv_state, state = t["conv_state"].clone(), t["state"].clone()
    made = launch.project_in(
        t["x"], optional["residual"], t["norm_weight"], 1e-5, t["in_proj"], optional["in_bias"], t["conv_weight"],
        optional["conv_bias"], t["x_proj"], conv_state, conv_state, size, cut_in, True,
    )  # fmt: skip
    weights: Any = [t[name] for name in ("dt_proj", "dt_bias", "a", "d")]
    signal, gate, partial = made.signal, made.gate, made.partial
    y = launch.scan(signal, gate, partial, state, state, *weights, size=size, cut=cut_scan, settled=False)
    out = launch.project_out(y, t["out_proj"], optional["out_bias"], size, cut_out)
    names = ("out", "residual", "conv_state", "state")
    for ours, target, what in zip((out, made.residual, conv_state, state), expected, names, strict=True):
        assert_close(ours, target, what)


def test_weights_are_unchanged_once_a_step_has_seen_them_as_they_are() -> None:
    first, second = torch.ones(3), torch.ones(3)
    assert not launch.unchanged((first, None, second))
    assert launch.unchanged((first, None, second))
    second.add_(1)
    assert not launch.unchanged((first, second)), "the kernel that changed it may still run"
    assert launch.unchanged((first, second))
    assert not launch.unchanged((first, second.clone()))
    with torch.inference_mode():
        untracked = torch.ones(3)
    assert not launch.unchanged((untracked,))
    assert not launch.unchanged((untracked,))
