"""Runs the fast kernels for complex a, b, c: which, with which buffers between them. Equations: `complex.cuh`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from seqkernels import nvrtc
from seqkernels.selective_scan.cuda import launch, plan

_ENDS_WARPS = 4


def problem(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, softplus: bool, initial: Tensor | None, cu_seqlens: Tensor | None,
) -> launch.Problem:  # fmt: skip
    """As `launch.Problem.of`, with complex64 a, b, c and initial state and sizes by `plan.complex_is_fast`."""
    zeros = torch.zeros(x.shape[2], device=x.device) if d is None or dt_bias is None else None
    a, b, c = (t.resolve_conj() for t in (a, b, c))
    return launch.Problem.of(
        x, dt, a, b, c, zeros if d is None else d, z, zeros if dt_bias is None else dt_bias, softplus,
        None if initial is None else initial.resolve_conj(), cu_seqlens,
    )  # fmt: skip


@dataclass(frozen=True)
class Gradients:
    """Of every input; `z` None where there is none."""

    x: Tensor
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    z: Tensor | None
    dt_bias: Tensor
    initial: Tensor


def _kernel(p: launch.Problem, name: str, layout: plan.Complex, **defines: int) -> nvrtc.Kernel:
    entry = {"Forward": "forward_scan", "Backward": "backward_scan", "Ends": "chunk_ends", "Carry": "carry"}[name]
    return p.kernel(
        f"complex_{name.lower()}.cu",
        f"complex_{entry}",
        f"Complex{name}Args",
        LANES=layout.lanes,
        PER_LANE=layout.per_lane,
        WARPS=layout.warps,
        MIN_BLOCKS=layout.min_blocks,
        **defines,
    )


def _shape_arguments(p: launch.Problem) -> dict[str, int]:
    size = p.size
    return {
        "bc_stride": p.b.stride(1),
        "E": size.channels,
        "channels_per_group": size.channels // size.groups,
    }


def run_forward(p: launch.Problem, save: bool, layout: plan.Complex | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state (sequences, E, N), and if `save` the states before each tile (tiles, E, N), else empty."""
    size = p.size
    layout = layout or plan.complex_forward(size, p.states)
    out = p.x.new_empty(p.x.shape)
    final = p.a.new_empty(size.sequences, *p.a.shape)
    states = p.a.new_empty((size.tiles, *p.a.shape) if save else (0,))
    h_in = p.initial
    if layout.cut.chunks > 1:
        h_in = _carried(p, layout, reverse=False, drive=p.x, bc=p.b, start=p.initial)
    _kernel(p, "Forward", layout, SAVE=int(save)).launch(
        layout.cut.slots * (size.channels // layout.channels),
        32 * layout.warps,
        x=p.x,
        dt=p.dt,
        z=p.z,
        b=p.b,
        c=p.c,
        a=p.a,
        d=p.d,
        dt_bias=p.dt_bias,
        h_in=h_in,
        out=out,
        states=states,
        h_final=final,
        x_stride=p.x.stride(1),
        dt_stride=p.dt.stride(1),
        z_stride=0 if p.z is None else p.z.stride(1),
        **p.sequence_arguments(layout.cut),
        **_shape_arguments(p),
    )
    return out, final, states


def _carried(
    p: launch.Problem, layout: plan.Complex, *, reverse: bool, drive: Tensor, bc: Tensor, start: Tensor | None
) -> Tensor:
    """The state that enters each chunk, (slots, E, N); in reverse its adjoint."""
    size, cut = p.size, layout.cut
    layout = layout._replace(warps=_ENDS_WARPS, min_blocks=4)
    ends, carried = (p.a.new_empty(cut.slots, *p.a.shape) for _ in range(2))
    delta_sum = torch.empty(cut.slots, size.channels, 2, device=p.x.device)
    _kernel(p, "Ends", layout, REVERSE=int(reverse)).launch(
        cut.slots * (size.channels // layout.channels),
        32 * layout.warps,
        dt=p.dt,
        drive=drive,
        z=p.z,
        bc=bc,
        a=p.a,
        dt_bias=p.dt_bias,
        ends=ends,
        delta_sum=delta_sum,
        dt_stride=p.dt.stride(1),
        drive_stride=drive.stride(1),
        z_stride=0 if p.z is None else p.z.stride(1),
        **p.sequence_arguments(cut),
        **_shape_arguments(p),
    )
    threads = size.sequences * size.channels * p.states
    p.kernel("complex_carry.cu", "complex_carry", "ComplexCarryArgs").launch(
        -(-threads // 128),
        128,
        a=p.a,
        start=start,
        ends=ends,
        delta_sum=delta_sum,
        carried=carried,
        E=size.channels,
        N=p.states,
        reverse=int(reverse),
        **p.sequence_arguments(cut),
    )
    return carried


def run_backward(
    p: launch.Problem,
    grad_out: Tensor,
    grad_final: Tensor | None,
    states: Tensor,
    layout: plan.Complex | None = None,
) -> Gradients:
    """Gradients from those of the output and of the final state.

    Args:
        p: the same problem as in the forward pass.
        grad_out: (B, L, E).
        grad_final: (sequences, E, N) or None for zero.
        states: from `run_forward`.
        layout: chosen by the size unless given.
    """
    size, N = p.size, p.states
    layout = layout or plan.complex_backward(size, N)
    grad_out = launch._dense(grad_out)
    r_in = grad_final = None if grad_final is None else launch._dense(grad_final.resolve_conj())
    if layout.cut.chunks > 1:
        r_in = _carried(p, layout, reverse=True, drive=grad_out, bc=p.c, start=grad_final)
    dx, ddt = (p.x.new_empty(p.x.shape) for _ in range(2))
    dz = None if p.z is None else p.x.new_empty(p.x.shape)
    initial = p.a.new_empty(size.sequences, *p.a.shape)
    blocks, slots = size.channels // layout.channels, layout.cut.slots
    bc_partial = p.a.new_empty(2, blocks, size.rows, N)
    da_partial = p.a.new_empty(slots, *p.a.shape)
    d_partial = torch.empty(2, slots, size.channels, device=p.x.device)
    _kernel(p, "Backward", layout).launch(
        slots * blocks,
        32 * layout.warps,
        x=p.x,
        dt=p.dt,
        dout=grad_out,
        z=p.z,
        b=p.b,
        c=p.c,
        a=p.a,
        d=p.d,
        dt_bias=p.dt_bias,
        states=states,
        r_in=r_in,
        dx=dx,
        ddt=ddt,
        dz=dz,
        bc_partial=bc_partial,
        da_partial=da_partial,
        d_partial=d_partial,
        h_initial_grad=initial,
        rows=size.rows,
        slots=slots,
        x_stride=p.x.stride(1),
        dt_stride=p.dt.stride(1),
        z_stride=0 if p.z is None else p.z.stride(1),
        **p.sequence_arguments(layout.cut),
        **_shape_arguments(p),
    )
    db, dc = (_over_blocks(partial, p.b.shape) for partial in bc_partial)
    dd, dbias = (partial.sum(0) for partial in d_partial)
    return Gradients(dx, ddt, da_partial.sum(0), db, dc, dd, dz, dbias, initial)


def _over_blocks(partial: Tensor, shape: torch.Size) -> Tensor:
    """(blocks, rows, N) summed over the blocks of each group, as (B, L, G, N)."""
    _, _, G, N = shape
    return partial.view(G, -1, partial.shape[1], N).sum(1).transpose(0, 1).contiguous().view(shape)
