"""The scan as `torch.library` ops: one node for the compiler, fake shapes, a registered backward."""

# No `from __future__ import annotations`: infer_schema reads the annotations as types.

import torch
from torch import Tensor

from seqkernels.library import register
from seqkernels.selective_scan.cuda import launch, plan


def _or_none(tensor: Tensor) -> Tensor | None:
    """Ops return tensors only; an empty one stands for None."""
    return tensor if tensor.numel() else None


def _or_empty(tensor: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if tensor is None else tensor


def _forward(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    save_every: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, final state, and for the backward pass the output before the gate and the saved states (or empty)."""
    problem = launch.Problem.of(x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens)
    result = launch.run_forward(problem, save_every)
    return result.out, result.final, _or_empty(result.y, x), _or_empty(result.states, a)


def _fake_forward(x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens, save_every):
    B, L, E = x.shape
    N = a.shape[1]
    sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    tiles = B * ((L + plan.TILE - 1) // plan.TILE) if cu_seqlens is None else L // plan.TILE + sequences
    return (
        x.new_empty(B, L, E),
        a.new_empty(sequences, E, N),
        x.new_empty((B, L, E) if save_every and z is not None else (0,)),
        a.new_empty(launch.states_shape(save_every, N, tiles, E) if save_every else (0,)),
    )


def _backward(
    grad_out: Tensor,
    grad_final: Tensor | None,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    softplus: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    y: Tensor,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c, d, z, dt_bias and the initial state; empty for an absent z or initial state."""
    problem = launch.Problem.of(x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens)
    grads = launch.run_backward(problem, grad_out, grad_final, _or_none(y), _or_none(states))
    return (
        grads.x,
        grads.dt,
        grads.a,
        grads.b,
        grads.c,
        grads.d,
        _or_empty(grads.z, x),
        grads.dt_bias,
        _or_empty(grads.initial, a),
    )


def _fake_backward(grad_out, grad_final, x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens, y, states):
    E = x.shape[2]
    return (
        x.new_empty(x.shape),
        x.new_empty(x.shape),
        a.new_empty(a.shape),
        b.new_empty(b.shape),
        c.new_empty(c.shape),
        a.new_empty(E),
        x.new_empty(x.shape if z is not None else (0,)),
        a.new_empty(E),
        a.new_empty(initial.shape if initial is not None else (0,)),
    )


def _setup_context(ctx, inputs, output):
    x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens, _ = inputs
    _, _, y, states = output
    ctx.save_for_backward(x, dt, a, b, c, d, z, dt_bias, initial, cu_seqlens, y, states)
    ctx.softplus = softplus
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_out, grad_final, _grad_y, _grad_states):
    x, dt, a, b, c, d, z, dt_bias, initial, cu_seqlens, y, states = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    gx, gdt, ga, gb, gc, gd, gz, gbias, ginitial = backward_op(
        grad_out, grad_final, x, dt, a, b, c, d, z, dt_bias, ctx.softplus, initial, cu_seqlens, y, states
    )
    return (
        gx,
        gdt,
        ga,
        gb,
        gc,
        None if d is None else gd,
        None if z is None else gz,
        None if dt_bias is None else gbias,
        None,
        None if initial is None else ginitial,
        None,
        None,
    )


backward_op = register("selective_scan_cuda_backward", _backward, _fake_backward)
forward_op = register("selective_scan_cuda", _forward, _fake_forward, _setup_context, _differentiate)
