"""`gated_rms_norm` on the GPU: Triton kernels behind `torch.library` ops.

In: x and z (..., E), dense in the last dimension (z is a slice of in_proj's output). Out: y, dense.
Bound by memory: forward reads x and z and writes y, backward reads x, z and dy and writes dx and dz, once each. The
weight gradient is summed over fixed shares of the rows and the shares in a fixed order: the same bits every run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqkernels import triton_runtime
from seqkernels.library import register

#: The widest group that one program holds in registers.
WIDEST = 8_192

#: Programs of the backward kernel at most (a group each); each leaves one row of weight-gradient shares.
_BACKWARD_PROGRAMS = 2112


def unavailable(x: Tensor, weight: Tensor, *, groups: int = 1, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    if x.shape[-1] // groups > WIDEST:
        return f"a group of {x.shape[-1] // groups} channels is more than {WIDEST}, the widest that fits one program"
    return triton_runtime.unavailable(x)


def norm(x: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
    """Gate and normalise; see `seqkernels.gated_rms_norm.op` for the arguments."""
    return forward_op(x, z, weight, groups, eps)[0]


class Plan(NamedTuple):
    """A tile: `rows` rows of `block` columns."""

    rows: int
    block: int
    num_warps: int


def plan(width: int) -> Plan:
    """Tiles of at least 1024 elements, 8 elements a thread up to 16 warps."""
    block = 1 << (width - 1).bit_length()
    rows = max(1, 1024 // block)
    return Plan(rows, block, min(16, max(1, rows * block // 256)))


def _forward(x: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """y, and 1 / rms of each group."""
    kernels = triton_runtime.kernels("gated_rms_norm")
    y, inverse_rms = _forward_fake(x, z, weight, groups, eps)
    x, z = triton_runtime.rows(x), triton_runtime.rows(z)
    width, n_rows = x.shape[1] // groups, inverse_rms.numel()
    cut = plan(width)
    with torch.cuda.device_of(x):
        kernels.forward[(-(-n_rows // cut.rows),)](
            x, z, weight.contiguous(), y, inverse_rms, x.stride(0), z.stride(0), n_rows, groups, width, eps,
            ROWS=cut.rows, BLOCK=cut.block, PRECISE=x.dtype == torch.float32, num_warps=cut.num_warps,
        )  # fmt: skip
    return y, inverse_rms


def _forward_fake(x: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, torch.empty((*x.shape[:-1], groups), dtype=torch.float32, device=x.device)


def _backward(
    dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, inverse_rms: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, z and the weight."""
    kernels = triton_runtime.kernels("gated_rms_norm")
    dx, dz, dweight = _backward_fake(dy, x, z, weight, inverse_rms, groups)
    x, z, dy = triton_runtime.rows(x), triton_runtime.rows(z), triton_runtime.rows(dy)
    positions, width = x.shape[0], x.shape[1] // groups
    cut = plan(width)
    most = max(1, _BACKWARD_PROGRAMS // groups)
    tiles = -(-positions // (cut.rows * most))
    programs = -(-positions // (cut.rows * tiles))
    partial = torch.empty(programs, weight.shape[0], dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        kernels.backward[(programs, groups)](
            x, z, weight.contiguous(), inverse_rms, dy, dx, dz, partial,
            x.stride(0), z.stride(0), dy.stride(0), positions, groups, width, tiles,
            ROWS=cut.rows, BLOCK=cut.block, PRECISE=x.dtype == torch.float32, num_warps=cut.num_warps,
        )  # fmt: skip
    torch.sum(partial, 0, out=dweight)  # torch sums a dimension in a fixed order
    return dx, dz, dweight


def _backward_fake(
    dy: Tensor, x: Tensor, z: Tensor, weight: Tensor, inverse_rms: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dz = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    return dx, dz, torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _save(ctx, inputs, output):
    x, z, weight, ctx.groups, _ = inputs
    ctx.save_for_backward(x, z, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, dy, _):
    x, z, weight, inverse_rms = ctx.saved_tensors
    dx, dz, dweight = backward_op(dy, x, z, weight, inverse_rms, ctx.groups)
    return dx, dz, dweight, None, None


_DEVICES = ("CUDA", "CPU")  # CPU: Triton's interpreter
backward_op = register("gated_rms_norm_triton_backward", _backward, _backward_fake, devices=_DEVICES)
forward_op = register("gated_rms_norm_triton", _forward, _forward_fake, _save, _gradients, devices=_DEVICES)
