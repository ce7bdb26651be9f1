"""The causal convolution on CPUs: numba kernels behind `torch.library` ops, forward and backward.

One pass over x forward, with the bias and the activation; backward computes the activation's input again instead of
keeping it. Arithmetic is fp32 for fp32, bf16 and fp16 inputs, float64 for float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkernels.causal_conv1d import cpu_kernels
from seqkernels.causal_conv1d.cpu_kernels import Gradients, Inputs
from seqkernels.checks import accumulation_dtype
from seqkernels.cpu_tiles import flat, layout_of, n_tasks, steps_of
from seqkernels.threads import run_tasks


def unavailable(x_BLE: Tensor, weight_EW: Tensor, **details: object) -> str | None:
    """Why this implementation cannot run on these tensors, None when it can."""
    if x_BLE.device.type != "cpu":
        return f"the tensors are on {x_BLE.device.type}, these kernels are for CPUs"
    return None


def conv(
    x_BLE: Tensor,
    weight_EW: Tensor,
    bias_E: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Filter; arguments as `seqkernels.causal_conv1d.op` describes them.

    Returns:
        y_BLE in x's dtype and the last W-1 inputs of each sequence.
    """
    return _forward(x_BLE, weight_EW, bias_E, activation == "silu", initial_state, cu_seqlens)


@torch.library.custom_op("seqkernels::causal_conv1d_cpu", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return y and the final state."""
    layout = layout_of(x, 1, 1, cu_seqlens)
    y = torch.empty(x.shape, dtype=weight.dtype)
    final = weight.new_empty(len(layout.rows), weight.shape[1] - 1, layout.channels)
    inputs = _inputs(x, weight, bias, silu, initial)
    run_tasks(cpu_kernels.forward, n_tasks(layout), 4 * x.numel(), layout, inputs, flat(y), flat(final))
    return y.to(x.dtype), final


@_forward.register_fake
def _(x, weight, bias, silu, initial, cu_seqlens):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return x.new_empty(x.shape), weight.new_empty(sequences, weight.shape[1] - 1, x.shape[2])


@torch.library.custom_op("seqkernels::causal_conv1d_cpu_backward", mutates_args=())
def _backward(
    dy: Tensor,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias and the initial state, whether given or not."""
    layout = layout_of(x, 1, 1, cu_seqlens)
    sequences, W, E = len(layout.rows), weight.shape[1], layout.channels
    gradients = Gradients(
        x=torch.empty(x.shape, dtype=weight.dtype),
        initial=weight.new_empty(sequences, W - 1, E),
        weight=torch.zeros(sequences, W, E, dtype=torch.float64),
        bias=torch.zeros(sequences, E, dtype=torch.float64),
    )
    run_tasks(
        cpu_kernels.backward,
        n_tasks(layout),
        12 * x.numel(),
        layout,
        _inputs(x, weight, bias, silu, initial),
        steps_of(dy, weight.dtype),
        flat(weight.new_empty(0) if dfinal is None else dfinal),
        Gradients(*(flat(t) for t in gradients)),
    )
    dweight, dbias = (g.sum(0).to(weight.dtype) for g in (gradients.weight, gradients.bias))
    return gradients.x.to(x.dtype), dweight.T.contiguous(), dbias, gradients.initial


@_backward.register_fake
def _(dy, dfinal, x, weight, bias, silu, initial, cu_seqlens):
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    E, W = weight.shape
    return x.new_empty(x.shape), weight.new_empty(E, W), weight.new_empty(E), weight.new_empty(sequences, W - 1, E)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, silu, initial, cu_seqlens = inputs
    ctx.save_for_backward(x, weight, bias, initial, cu_seqlens)
    ctx.silu = silu
    ctx.set_materialize_grads(False)


def _autograd(ctx, dy, dfinal):
    x, weight, bias, initial, cu_seqlens = ctx.saved_tensors
    if dy is None:
        if dfinal is None:
            return (None,) * 6
        dy = torch.zeros_like(x)
    dx, dweight, dbias, dinitial = _backward(dy, dfinal, x, weight, bias, ctx.silu, initial, cu_seqlens)
    return dx, dweight, None if bias is None else dbias, None, None if initial is None else dinitial, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


def _inputs(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial: Tensor | None) -> Inputs:
    real = accumulation_dtype(x.dtype)
    return Inputs(
        x=steps_of(x, real),
        weight=flat(weight.T),
        bias=flat(weight.new_zeros(weight.shape[0]) if bias is None else bias),
        initial=flat(weight.new_empty(0) if initial is None else initial),
        taps=weight.shape[1],
        with_silu=silu,
    )
