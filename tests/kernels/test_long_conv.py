"""The long convolution: kernels made when needed, blocks of channels, and its Triton moves without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from seqkernels import long_conv
from seqkernels.long_conv import sizes
from seqkernels.long_conv.op import implicit_long_conv
from torch import Tensor

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def decaying(rate_E1: Tensor, scale_E1: Tensor) -> Tensor:
    return scale_E1 * torch.exp(-rate_E1 * torch.arange(40.0))


def test_kernels_made_when_needed_equal_given_ones() -> None:
    torch.manual_seed(0)
    u_BLE, rate, scale = (torch.rand(*shape).requires_grad_() for shape in ((2, 40, 7), (7, 1), (7, 1)))
    implicit, given = implicit_long_conv(u_BLE, decaying, (rate, scale)), long_conv(u_BLE, decaying(rate, scale))
    torch.testing.assert_close(implicit, given, rtol=0, atol=0)
    above = torch.randn_like(given)
    for mine, other in zip(*(torch.autograd.grad(y, (u_BLE, rate, scale), above) for y in (implicit, given))):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_for_is_differentiated() -> None:
    u_BLE, rate, scale = torch.rand(2, 40, 3), torch.rand(3, 1).requires_grad_(), torch.rand(3, 1)
    (grad,) = torch.autograd.grad(implicit_long_conv(u_BLE, decaying, (rate, scale)).sum(), (rate,))
    (expected,) = torch.autograd.grad(long_conv(u_BLE, decaying(rate, scale)).sum(), (rate,))
    torch.testing.assert_close(grad, expected)


def test_blocks_of_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    u_BLE, rate, scale = (torch.rand(*shape).requires_grad_() for shape in ((2, 40, 7), (7, 1), (7, 1)))
    results = []
    for elements in (2**26, 3 * 2 * sizes.fft_size(79)):
        monkeypatch.setattr(sizes, "BLOCK_ELEMENTS", elements)
        y_BLE = implicit_long_conv(u_BLE, decaying, (rate, scale))
        results.append((y_BLE, *torch.autograd.grad(y_BLE.square().sum(), (u_BLE, rate, scale))))
        plain = long_conv(u_BLE, decaying(rate, scale).detach())
        results[-1] += (plain, *torch.autograd.grad(plain.sum(), u_BLE))
    assert len(sizes.channel_blocks(u_BLE)) == 3
    for one, many in zip(*results, strict=True):
        torch.testing.assert_close(one, many, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("implementation", ["torch", "reference"])
def test_autocast_changes_nothing(implementation: str) -> None:
    u_BLE, kernel_EK = torch.randn(2, 40, 3), torch.randn(3, 40)
    expected = long_conv(u_BLE, kernel_EK, implementation=implementation)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(long_conv(u_BLE, kernel_EK, implementation=implementation), expected)


IN_THE_INTERPRETER = """
import torch
from seqkernels.long_conv import fft, gpu

torch.manual_seed(0)
for B, L, E, K, dtype in ((2, 70, 33, 70, torch.float32), (1, 1, 1, 1, torch.float32), (2, 65, 5, 90, torch.float16)):
    u = torch.randn(B, L, 2 * E).to(dtype)[..., :E]
    kernel, dy = torch.randn(E, K), torch.randn(B, L, E)
    for mirrored in (False, True):
        assert torch.equal(gpu._channels_first(u, 2 * L, mirrored), fft.channels_first(u, 2 * L, mirrored))
    assert torch.equal(gpu.conv(u, kernel), fft.conv(u, kernel))
    for mine, other in zip(gpu.gradients(dy, u, kernel, True, True), fft.gradients(dy, u, kernel, True, True)):
        assert torch.equal(mine, other)
print("equal")
"""


@needs_triton
def test_triton_moves_equal_torchs_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", IN_THE_INTERPRETER]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=root, check=False)
    assert result.stdout.strip() == "equal", result.stderr[-3000:]


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
def test_triton_moves_compile_without_a_gpu(capability: int) -> None:
    from seqkernels.long_conv import triton_kernels
    from seqkernels.triton_runtime import compile_for

    sizes = dict.fromkeys(("L", "E", "size", "stride_b", "stride_l", "length"), "i32")
    tile = {"POSITIONS": 64, "CHANNELS": 32, "MIRRORED": True}
    u = {"u": torch.bfloat16, "out": torch.float32, "y": torch.float32}
    for kernel in (triton_kernels.channels_first, triton_kernels.channels_last):
        compiled = compile_for(kernel, {**sizes, **tile, **u}, capability, num_warps=4)
        assert compiled.asm["cubin"]
