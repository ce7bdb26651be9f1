"""The selective scan on CPUs: numba kernels behind `torch.library` ops, forward and backward.

Arithmetic is fp32 for fp32, bf16 and fp16 inputs (float64 for float64, complex for complex `a`). The forward pass keeps
the state before every chunk of 64 steps (N/64 of x's size); the backward pass computes the rest again, so memory stays
far below the (B, L, E, N) that a plain PyTorch loop keeps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seqkernels.checks import accumulation_dtype
from seqkernels.cpu_tiles import CHUNK, flat, layout_of, n_chunks, n_tasks, steps_of
from seqkernels.selective_scan import cpu_kernels
from seqkernels.selective_scan.cpu_kernels import Gradients, Inputs
from seqkernels.threads import run_tasks


def unavailable(x_BLE: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Why this implementation cannot run on these tensors, None when it can."""
    if x_BLE.device.type != "cpu":
        return f"the tensors are on {x_BLE.device.type}, these kernels are for CPUs"
    return None


def scan(
    x_BLE: Tensor,
    dt_BLE: Tensor,
    a_EN: Tensor,
    b_BLGN: Tensor,
    c_BLGN: Tensor,
    d_E: Tensor | None,
    z_BLE: Tensor | None,
    dt_bias_E: Tensor | None,
    dt_softplus: bool,
    initial_state_BEN: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scan; arguments as `seqkernels.selective_scan.op` describes them.

    Returns:
        y_BLE in x's dtype and the final state.
    """
    tensors = (x_BLE, dt_BLE, a_EN, b_BLGN, c_BLGN, d_E, z_BLE, dt_bias_E, initial_state_BEN)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    y, final, _ = _forward(*tensors[:8], dt_softplus, initial_state_BEN, cu_seqlens, keep)
    return y, final


@torch.library.custom_op("seqkernels::selective_scan_cpu", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the final state, and the state before each chunk (empty unless `keep`)."""
    layout = layout_of(x, a.shape[1], b.shape[2], cu_seqlens)
    sequences, N, E = len(layout.rows), layout.states, layout.channels
    y = torch.empty(x.shape, dtype=accumulation_dtype(x.dtype))
    final = a.new_empty(sequences, N, E)
    saved = a.new_empty((n_chunks(layout), N, E) if keep else (0,))
    inputs = _inputs(x, dt, a, b, c, d, z, bias, softplus)
    state = flat(a.new_empty(0) if initial is None else initial.transpose(1, 2))
    outputs = (flat(y), flat(final), flat(saved))
    run_tasks(cpu_kernels.forward, n_tasks(layout), x.numel() * N, layout, inputs, state, *outputs)
    return y.to(x.dtype), final.transpose(1, 2).contiguous(), saved


@_forward.register_fake
def _(x, dt, a, b, c, d, z, bias, softplus, initial, cu_seqlens, keep):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if not keep:
        saved = a.new_empty((0,))
    elif cu_seqlens is None:
        saved = a.new_empty((x.shape[0] * ((x.shape[1] + CHUNK - 1) // CHUNK), a.shape[1], a.shape[0]))
    else:  # the number of chunks depends on where the boundaries lie
        saved = a.new_empty((torch.library.get_ctx().new_dynamic_size(), a.shape[1], a.shape[0]))
    return x.new_empty(x.shape), a.new_empty(sequences, *a.shape), saved


@torch.library.custom_op("seqkernels::selective_scan_cpu_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    saved: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c, d, z, bias and the initial state, whether given or not."""
    layout = layout_of(x, a.shape[1], b.shape[2], cu_seqlens)
    sequences, N, E = len(layout.rows), layout.states, layout.channels
    real = accumulation_dtype(x.dtype)
    gradients = Gradients(
        x=torch.empty(x.shape, dtype=real),
        dt=torch.empty(x.shape, dtype=real),
        z=torch.empty(x.shape if z is not None else (0,), dtype=real),
        initial=a.new_empty(sequences, N, E),
        b=a.new_empty(layout.blocks, *b.shape),
        c=a.new_empty(layout.blocks, *b.shape),
        a=torch.zeros(sequences, N, E, dtype=torch.complex128 if a.is_complex() else torch.float64),
        d=torch.zeros(sequences, E, dtype=torch.float64),
        bias=torch.zeros(sequences, E, dtype=torch.float64),
    )
    run_tasks(
        cpu_kernels.backward,
        n_tasks(layout),
        4 * x.numel() * N,
        layout,
        _inputs(x, dt, a, b, c, d, z, bias, softplus),
        flat(saved),
        steps_of(dy, real),
        flat(a.new_empty(0) if dfinal is None else dfinal.transpose(1, 2)),
        Gradients(*(flat(t) for t in gradients)),
    )
    return (
        gradients.x.to(x.dtype),
        gradients.dt.to(dt.dtype),
        gradients.a.sum(0).T.to(a.dtype).contiguous(),
        gradients.b.sum(0).to(b.dtype),
        gradients.c.sum(0).to(c.dtype),
        gradients.d.sum(0).to(real),
        gradients.z.to(x.dtype),
        gradients.bias.sum(0).to(real),
        gradients.initial.transpose(1, 2).contiguous(),
    )


@_backward.register_fake
def _(dy, dfinal, x, dt, a, b, c, d, z, bias, softplus, saved, cu_seqlens):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    channel = x.new_empty(a.shape[0], dtype=accumulation_dtype(x.dtype))
    return (
        x.new_empty(x.shape),
        dt.new_empty(dt.shape),
        a.new_empty(a.shape),
        b.new_empty(b.shape),
        c.new_empty(c.shape),
        torch.empty_like(channel),
        x.new_empty(x.shape if z is not None else (0,)),
        torch.empty_like(channel),
        a.new_empty(sequences, *a.shape),
    )


def _setup_context(ctx, inputs, output) -> None:
    x, dt, a, b, c, d, z, bias, softplus, initial, cu_seqlens, _ = inputs
    ctx.save_for_backward(x, dt, a, b, c, d, z, bias, output[2], cu_seqlens)
    ctx.softplus, ctx.has_initial = softplus, initial is not None
    ctx.set_materialize_grads(False)


def _autograd(ctx, dy, dfinal, _):
    x, dt, a, b, c, d, z, bias, saved, cu_seqlens = ctx.saved_tensors
    if dy is None:
        if dfinal is None:
            return (None,) * 12
        dy = torch.zeros_like(x)
    grads = _backward(dy, dfinal, x, dt, a, b, c, d, z, bias, ctx.softplus, saved, cu_seqlens)
    dx, ddt, da, db, dc, dd, dz, dbias, dinitial = grads
    return (
        dx,
        ddt,
        da,
        db,
        dc,
        None if d is None else dd,
        None if z is None else dz,
        None if bias is None else dbias,
        None,
        dinitial if ctx.has_initial else None,
        None,
        None,
    )


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _inputs(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> Inputs:
    real = accumulation_dtype(x.dtype)
    zeros = torch.zeros(x.shape[-1], dtype=real)
    return Inputs(
        x=steps_of(x, real),
        dt=steps_of(dt, real),
        z=steps_of(x if z is None else z, real),
        b=steps_of(b, a.dtype),
        c=steps_of(c, a.dtype),
        a=flat(a),
        d=flat(zeros if d is None else d),
        bias=flat(zeros if bias is None else bias),
        scale=(np.float64 if real == torch.float64 else np.float32)(2 if a.is_complex() else 1),
        with_softplus=softplus,
        with_z=z is not None,
    )
