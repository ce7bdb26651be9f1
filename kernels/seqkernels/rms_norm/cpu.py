"""The RMS norm with residual add on CPUs: numba kernels behind `torch.library` ops, forward and backward."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqkernels.addresses import ONE, contiguous, may_bypass_dispatcher
from seqkernels.cpu_tiles import flat
from seqkernels.rms_norm import cpu_kernels
from seqkernels.rms_norm.cpu_kernels import ROWS
from seqkernels.threads import run_tasks


def unavailable(x: Tensor, weight: Tensor, **details: object) -> str | None:
    """Why this implementation cannot run on these tensors, None when it can."""
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}, these kernels are for CPUs"
    return None


def norm(
    x: Tensor, weight: Tensor, residual: Tensor | None, eps: float, residual_in_fp32: bool
) -> tuple[Tensor, Tensor]:
    """Add and normalise; arguments as `seqkernels.rms_norm.op` describes them.

    Returns:
        y in x's dtype, and the sum.
    """
    needs_grad = torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (residual is not None and residual.requires_grad)
    )
    direct = not needs_grad and may_bypass_dispatcher(x)
    y, total = (_compute if direct else _forward)(x, weight, residual, eps)
    total = x if residual is None else total
    wanted = weight.dtype if residual_in_fp32 else x.dtype
    return y, total if total.dtype == wanted else total.to(wanted)


def _compute(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return y and the sum in the accumulation dtype (empty without a residual)."""
    real, width = weight.dtype, x.shape[-1]
    n_rows = x.numel() // width
    x_, weight = contiguous(x, real), contiguous(weight, real)
    y = torch.empty_like(x_)
    if residual is None:
        total = y.new_empty(0)
        addresses = (x_.data_ptr(), 0, weight.data_ptr(), y.data_ptr(), 0)
    else:
        total, residual = torch.empty_like(y), contiguous(residual, real)
        addresses = (x_.data_ptr(), residual.data_ptr(), weight.data_ptr(), y.data_ptr(), total.data_ptr())
    arguments = (width, n_rows, addresses, eps, ONE[real])
    run_tasks(cpu_kernels.forward, -(-n_rows // ROWS), 2 * n_rows * width, *arguments)
    return y if y.dtype == x.dtype else y.to(x.dtype), total


@torch.library.custom_op("seqkernels::rms_norm_cpu", mutates_args=())
def _forward(x: Tensor, weight: Tensor, residual: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return _compute(x, weight, residual, eps)


@_forward.register_fake
def _(x, weight, residual, eps):
    return x.new_empty(x.shape), weight.new_empty(x.shape if residual is not None else (0,))


@torch.library.custom_op("seqkernels::rms_norm_cpu_backward", mutates_args=())
def _backward(dy: Tensor, dsum: Tensor | None, total: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Gradients of the sum and of the weight, in the accumulation dtype."""
    real, width = weight.dtype, total.shape[-1]
    dtotal = torch.empty(total.shape, dtype=real)
    dweight = torch.empty(_blocks(total), width, dtype=real)
    run_tasks(
        cpu_kernels.backward,
        _blocks(total),
        4 * total.numel(),
        width,
        flat(total.to(real)),
        flat(weight),
        _number(eps, real),
        _number(1, real),
        flat(dy.to(real)),
        flat(weight.new_empty(0) if dsum is None else dsum),
        flat(dtotal),
        flat(dweight),
    )
    return dtotal, dweight.sum(0, dtype=torch.float64).to(real)


@_backward.register_fake
def _(dy, dsum, total, weight, eps):
    return weight.new_empty(total.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, residual, eps = inputs
    ctx.save_for_backward(x if residual is None else output[1], weight)
    ctx.eps, ctx.dtype = eps, x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.set_materialize_grads(False)


def _autograd(ctx, dy, dsum):
    total, weight = ctx.saved_tensors
    if dy is None:
        if dsum is None:
            return (None,) * 4
        dy = torch.zeros_like(total)
    if ctx.residual_dtype is None:
        dsum = None  # the empty tensor's
    dtotal, dweight = _backward(dy, dsum, total, weight, ctx.eps)
    dresidual = None if ctx.residual_dtype is None else dtotal.to(ctx.residual_dtype)
    return dtotal.to(ctx.dtype), dweight, dresidual, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _blocks(x: Tensor) -> int:
    """How many tasks the rows make."""
    return -(-(x.numel() // x.shape[-1]) // ROWS)


def _number(value: float, dtype: torch.dtype) -> np.floating:
    """A number of the kernels' precision."""
    return np.float64(value) if dtype == torch.float64 else np.float32(value)
