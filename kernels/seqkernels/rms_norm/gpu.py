"""`rms_norm` on the GPU: Triton kernels behind `torch.library` ops.

In: x and residual (..., D), dense in the last dimension. Out: y, and x + residual.
Bound by memory: forward reads x and the residual and writes y and the sum, once each; backward reads dy, the sum and
its gradient and writes dx and the residual's gradient. The weight gradient is summed over fixed shares of the rows and
the shares in a fixed order: the same bits every run, no atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqkernels import triton_runtime
from seqkernels.library import register

#: The widest row that one program holds in registers.
WIDEST = 8_192

#: Programs of the backward kernel at most; each leaves one row of weight-gradient shares.
_BACKWARD_PROGRAMS = 2112


def unavailable(x: Tensor, weight: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    if x.shape[-1] > WIDEST:
        return f"D={x.shape[-1]} is more than {WIDEST}, the widest row that fits one program"
    return triton_runtime.unavailable(x)


def norm(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """Add the residual and normalise; see `seqkernels.rms_norm.op` for the arguments.

    Returns:
        y in x's dtype, and the sum in fp32 or x's dtype; without a residual the sum is x itself.
    """
    y, total, _ = forward_op(x, weight, residual, eps, residual_in_fp32)
    return y, x if residual is None else total


class Plan(NamedTuple):
    """A tile: `rows` rows of `block_d` columns."""

    rows: int
    block_d: int
    num_warps: int


def plan(D: int) -> Plan:
    """Tiles of at least 512 elements, 8 elements a thread up to 16 warps."""
    block_d = 1 << (D - 1).bit_length()
    rows = max(1, 512 // block_d)
    return Plan(rows, block_d, min(16, max(1, rows * block_d // 256)))


def _forward(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_in_fp32: bool
) -> tuple[Tensor, Tensor, Tensor]:
    triton_kernels = triton_runtime.kernels("rms_norm")
    y, total, inverse_rms = _empty_outputs(x, residual, residual_in_fp32)
    x, residual = triton_runtime.rows(x), None if residual is None else triton_runtime.rows(residual)
    M, D = x.shape
    cut = plan(D)
    with torch.cuda.device_of(x):
        triton_kernels.forward[(-(-M // cut.rows),)](
            x,
            x if residual is None else residual,
            weight.contiguous(),
            y,
            total,
            inverse_rms,
            x.stride(0),
            0 if residual is None else residual.stride(0),
            M,
            D,
            eps,
            HAS_RESIDUAL=residual is not None,
            ROWS=cut.rows,
            BLOCK_D=cut.block_d,
            num_warps=cut.num_warps,
        )
    return y, total, inverse_rms


def _forward_fake(x, weight, residual, eps, residual_in_fp32):
    return _empty_outputs(x, residual, residual_in_fp32)


def _empty_outputs(x: Tensor, residual: Tensor | None, residual_in_fp32: bool) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total_dtype = torch.float32 if residual_in_fp32 else x.dtype
    total = torch.empty((0,) if residual is None else x.shape, dtype=total_dtype, device=x.device)
    return y, total, torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)


def _backward(
    dy: Tensor | None,
    dtotal: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    inverse_rms: Tensor,
    dx_dtype: torch.dtype,
    dresidual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the residual (empty unless it has a dtype of its own) and the weight, for r = x + residual."""
    triton_kernels = triton_runtime.kernels("rms_norm")
    dx, dresidual, _ = _empty_gradients(x, weight, dx_dtype, dresidual_dtype)
    x = triton_runtime.rows(x)
    residual = None if residual is None else triton_runtime.rows(residual)
    dy = torch.zeros_like(x) if dy is None else triton_runtime.rows(dy)
    # empty where there was no residual
    dtotal = None if dtotal is None or not dtotal.numel() else triton_runtime.rows(dtotal)
    M, D = x.shape
    cut = plan(D)
    tiles = -(-M // (cut.rows * _BACKWARD_PROGRAMS))
    programs = -(-M // (cut.rows * tiles))
    partial = torch.empty(programs, D, dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):
        triton_kernels.backward[(programs,)](
            dy,
            x if dtotal is None else dtotal,
            x,
            x if residual is None else residual,
            weight.contiguous(),
            inverse_rms,
            dx,
            dresidual,
            partial,
            dy.stride(0),
            0 if dtotal is None else dtotal.stride(0),
            x.stride(0),
            0 if residual is None else residual.stride(0),
            M,
            D,
            tiles,
            HAS_DTOTAL=dtotal is not None,
            HAS_RESIDUAL=residual is not None,
            HAS_DRESIDUAL=dresidual_dtype is not None,
            ROWS=cut.rows,
            BLOCK_D=cut.block_d,
            num_warps=cut.num_warps,
        )
    return dx, dresidual, partial.sum(0).to(weight.dtype)  # torch sums a dimension in a fixed order


def _backward_fake(dy, dtotal, x, residual, weight, inverse_rms, dx_dtype, dresidual_dtype):
    return _empty_gradients(x, weight, dx_dtype, dresidual_dtype)


def _empty_gradients(
    x: Tensor, weight: Tensor, dx_dtype: torch.dtype, dresidual_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=dx_dtype, device=x.device)
    own = dresidual_dtype is not None
    dresidual = torch.empty(x.shape if own else (0,), dtype=dresidual_dtype or dx_dtype, device=x.device)
    return dx, dresidual, torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)


def _save(ctx, inputs, output):
    x, weight, residual, _, _ = inputs
    _, total, inverse_rms = output
    ctx.dx_dtype, ctx.dresidual_dtype = x.dtype, None
    if residual is not None and residual.dtype != x.dtype:
        ctx.dresidual_dtype = residual.dtype
    if residual is not None and total.dtype == torch.float32:
        x, residual = total, None  # the sum itself, exact: x and the residual may be freed
    ctx.has_residual = inputs[2] is not None
    ctx.save_for_backward(x, weight, residual, inverse_rms)
    ctx.mark_non_differentiable(inverse_rms)
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy, dtotal, _):
    x, weight, residual, inverse_rms = ctx.saved_tensors
    dx, dresidual, dweight = backward_op(
        dy, dtotal, x, residual, weight, inverse_rms, ctx.dx_dtype, ctx.dresidual_dtype
    )
    if ctx.dresidual_dtype is None:
        dresidual = dx
    return dx, dweight, dresidual if ctx.has_residual else None, None, None


_DEVICES = ("CUDA", "CPU")  # CPU: Triton's interpreter
backward_op = register("rms_norm_triton_backward", _backward, _backward_fake, devices=_DEVICES)
forward_op = register("rms_norm_triton", _forward, _forward_fake, _save, _gradients, devices=_DEVICES)
