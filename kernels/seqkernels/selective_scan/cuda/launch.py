"""Runs the kernels of this folder on checked tensors: which, how often, with which buffers between them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seqkernels import nvrtc
from seqkernels.selective_scan.cuda import plan

_SOURCES = {path.name: path for path in Path(__file__).parent.glob("*.cu")}
ELEMENT = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # ELEMENT of common.cuh


@functools.cache
def _device_properties(index: int):
    return torch.cuda.get_device_properties(index)


@dataclass(frozen=True)
class Problem:
    """One scan, with tensors as the kernels want them: N a multiple of 16, E of 64 per group, rows addressable.

    Args:
        x, dt, z: (B, L, E) with adjacent channels and one stride from row to row, or contiguous copies.
        b, c: (B, L, G, N) likewise, with one stride for both.
        a: (E, N) fp32; d, dt_bias: (E) fp32.
        initial: (sequences, E, N) fp32 or None.
        cu_seqlens: int64 or None.
    """

    x: Tensor
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    z: Tensor | None
    dt_bias: Tensor
    softplus: bool
    initial: Tensor | None
    cu_seqlens: Tensor | None

    @classmethod
    def of(
        cls,
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
    ) -> Problem:
        """Copy what does not lie as the kernels read it; absent vectors become zeros."""
        E = x.shape[2]
        b, c = (_rows_in_place(t.flatten(2)).unflatten(2, t.shape[2:]) for t in (b, c))
        if b.stride(1) != c.stride(1):
            b, c = _dense(b), _dense(c)
        return cls(
            _rows_in_place(x),
            _rows_in_place(dt),
            _dense(a),
            b,
            c,
            a.new_zeros(E) if d is None else _dense(d),
            None if z is None else _rows_in_place(z),
            a.new_zeros(E) if dt_bias is None else _dense(dt_bias),
            softplus,
            None if initial is None else _dense(initial),
            None if cu_seqlens is None else cu_seqlens.to(torch.int64).contiguous(),
        )

    @functools.cached_property
    def size(self) -> plan.Size:
        B, L, E = self.x.shape
        packed = self.cu_seqlens is not None
        device = _device_properties(self.x.device.index)
        return plan.Size(
            sequences=self.cu_seqlens.shape[0] - 1 if self.cu_seqlens is not None else B,
            length=L,
            channels=E,
            groups=self.b.shape[2],
            packed=packed,
            element_bytes=self.x.element_size(),
            multiprocessors=device.multi_processor_count,
            shared_bytes=device.shared_memory_per_multiprocessor,
        )

    @property
    def states(self) -> int:
        return self.a.shape[1]

    def kernel(self, file: str, entry: str, args: str, **defines: int) -> nvrtc.Kernel:
        common = {
            "ELEMENT": ELEMENT[self.x.dtype],
            "SOFTPLUS": int(self.softplus),
            "HAS_GATE": int(self.z is not None),
        }
        return nvrtc.kernel(_SOURCES[file], entry, args, common | defines, self.x.device.index)

    def sequence_arguments(self, cut: plan.Cut) -> dict[str, Tensor | int | None]:
        """The fields by which a kernel finds its chunk."""
        size = self.size
        return {
            "cu_seqlens": self.cu_seqlens,
            "length": size.length,
            "sequences": size.sequences,
            "chunks": cut.chunks,
            "chunk_length": cut.chunk_length,
        }

    def shape_arguments(self, first_state: int) -> dict[str, int]:
        """The fields by which a kernel finds its channels and states."""
        size = self.size
        return {
            "bc_stride": self.b.stride(1),
            "E": size.channels,
            "N": self.states,
            "first_state": first_state,
            "channels_per_group": size.channels // size.groups,
        }


def _dense(tensor: Tensor) -> Tensor:
    """Contiguous and on a 16-byte boundary, which a slice of a larger tensor may not be."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def _rows_in_place(tensor: Tensor) -> Tensor:
    """The tensor itself when 16-byte pieces of its rows can be read where they lie, else a dense copy.

    So the halves of in_proj's output, x and z, are read without a copy.
    """
    B, L, _ = tensor.shape
    row = tensor.stride(1)
    regular = tensor.stride(2) == 1 and (B == 1 or tensor.stride(0) == L * row)
    aligned = row * tensor.element_size() % 16 == 0 and tensor.data_ptr() % 16 == 0
    return tensor if regular and aligned else _dense(tensor)


# ----------------------------------------------------------------------------------------------------------- forward


@dataclass(frozen=True)
class ForwardResult:
    """Outputs, and what the backward pass needs (None where it was not asked for)."""

    out: Tensor
    final: Tensor
    y: Tensor | None
    states: Tensor | None


def run_forward(p: Problem, save_every: int, layout: plan.Forward | None = None) -> ForwardResult:
    """Scan.

    Args:
        p: the problem.
        save_every: 4 or 8 to keep what the backward pass needs, 0 otherwise; see `plan.save_every`.
        layout: chosen by the size unless given.
    """
    size, N = p.size, p.states
    layout = layout or plan.forward(size, save_every)
    rows_shape = (*p.x.shape[:2], size.channels)
    out = p.x.new_empty(rows_shape)
    final = p.a.new_empty(size.sequences, size.channels, N)
    y = p.x.new_empty(rows_shape) if save_every and p.z is not None else None
    states = p.a.new_empty(states_shape(save_every, N, size.tiles, size.channels)) if save_every else None
    h_in = p.initial if layout.cut.chunks == 1 else _carried_states(p, layout.cut)
    passes = N // plan.STATES
    y_partial = p.a.new_empty(rows_shape) if passes > 1 else None
    for index in range(passes):
        kernel = p.kernel(
            "forward.cu",
            "forward_scan",
            "ForwardArgs",
            LANES=layout.lanes,
            THREADS=layout.threads,
            MIN_BLOCKS=layout.min_blocks,
            SAVE_Y=int(y is not None),
            **({"SAVE_EVERY": save_every} if save_every else {}),
            PARTIAL_IN=int(index > 0),
            PARTIAL_OUT=int(index < passes - 1),
        )
        kernel.launch(
            layout.cut.slots * (size.channels // layout.channels),
            layout.threads,
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
            y_saved=y,
            states=None if states is None else states[index],
            y_partial=y_partial,
            h_final=final,
            x_stride=p.x.stride(1),
            dt_stride=p.dt.stride(1),
            z_stride=0 if p.z is None else p.z.stride(1),
            **p.sequence_arguments(layout.cut),
            **p.shape_arguments(index * plan.STATES),
        )
    return ForwardResult(out, final, y, states)


def states_shape(save_every: int, states: int, tiles: int, channels: int) -> tuple[int, ...]:
    """Of the saved states, by groups of 16; see saved_piece() in common.cuh."""
    return (states // plan.STATES, tiles, plan.saves_per_tile(save_every), plan.STATES // 4, channels, 4)


def _carried_states(p: Problem, cut: plan.Cut) -> Tensor:
    """The state that enters each chunk, (slots, E, N)."""
    ends = _chunk_ends(p, cut, reverse=False, drive=p.x, bc=p.b)
    return _carry(p, cut, *ends, start=p.initial, reverse=False)


def _chunk_ends(p: Problem, cut: plan.Cut, *, reverse: bool, drive: Tensor, bc: Tensor) -> tuple[Tensor, Tensor]:
    """Each chunk as an affine map: its end from a zero state, and its sum of delta."""
    size = p.size
    threads, min_blocks = (128, 4) if size.wide else (64, 8)
    ends = p.a.new_empty(cut.slots, size.channels, p.states)
    delta_sum = p.a.new_empty(cut.slots, size.channels)
    kernel = p.kernel(
        "ends.cu", "chunk_ends", "EndsArgs", REVERSE=int(reverse), THREADS=threads, MIN_BLOCKS=min_blocks
    )
    for first_state in range(0, p.states, plan.STATES):
        kernel.launch(
            cut.slots * (size.channels // threads),
            threads,
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
            **p.shape_arguments(first_state),
        )
    return ends, delta_sum


def _carry(
    p: Problem, cut: plan.Cut, ends: Tensor, delta_sum: Tensor, *, start: Tensor | None, reverse: bool
) -> Tensor:
    size = p.size
    carried = torch.empty_like(ends)
    threads = size.sequences * size.channels * p.states
    p.kernel("carry.cu", "carry", "CarryArgs").launch(
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


# ---------------------------------------------------------------------------------------------------------- backward


@dataclass(frozen=True)
class Gradients:
    """Of every input; `z` and `initial` None where there is no such input."""

    x: Tensor
    dt: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor
    z: Tensor | None
    dt_bias: Tensor
    initial: Tensor | None


class RowGradients(NamedTuple):
    """Where the gradients of b, c (B, L, G, N; one row stride for both) and z (B, L, E) go; rows may lie apart."""

    b: Tensor
    c: Tensor
    z: Tensor | None


def run_backward(
    p: Problem,
    grad_out: Tensor,
    grad_final: Tensor | None,
    y: Tensor | None,
    states: Tensor | None,
    layout: plan.Backward | None = None,
    *,
    into: RowGradients | None = None,
) -> Gradients:
    """Gradients from those of the output and of the final state.

    Args:
        p: the same problem as in the forward pass.
        grad_out: (B, L, E).
        grad_final: (sequences, E, N) or None for zero.
        y, states: from `run_forward`; None for both: they are computed again.
        layout: chosen by the size unless given.
        into: memory for some of the gradients, for instance parts of a wider tensor.
    """
    if states is None:
        again = run_forward(p, save_every=8)
        y, states = again.y, again.states
        assert states is not None
        del again
    size, N = p.size, p.states
    layout = layout or plan.backward(size)
    grad_out = _dense(grad_out)
    grad_final = None if grad_final is None else _dense(grad_final)
    r_in = grad_final
    if layout.cut.chunks > 1:
        ends = _chunk_ends(p, layout.cut, reverse=True, drive=grad_out, bc=p.c)
        r_in = _carry(p, layout.cut, *ends, start=grad_final, reverse=True)

    def like_rows(dtype: torch.dtype) -> Tensor:
        return torch.empty((*p.x.shape[:2], size.channels), dtype=dtype, device=p.x.device)

    if into is None:
        b, c = (torch.empty(p.b.shape, dtype=p.b.dtype, device=p.b.device) for _ in range(2))
        into = RowGradients(b, c, None if p.z is None else like_rows(p.x.dtype))
    grads = Gradients(
        x=like_rows(p.x.dtype),
        dt=like_rows(p.x.dtype),
        a=torch.empty_like(p.a),
        b=into.b,
        c=into.c,
        d=torch.empty_like(p.d),
        z=into.z,
        dt_bias=torch.empty_like(p.dt_bias),
        initial=None if p.initial is None else torch.empty_like(p.initial),
    )
    passes = N // plan.STATES
    dw_partial, ddelta_partial = (like_rows(torch.float32) if passes > 1 else None for _ in range(2))
    bc_partial = p.a.new_empty(size.channels // layout.channels, size.rows, 2 * plan.STATES)
    parameter_partial = p.a.new_empty(layout.cut.slots, plan.STATES + 2, size.channels)
    for index in range(passes):
        kernel = p.kernel(
            "backward.cu",
            "backward_scan",
            "BackwardArgs",
            LANE_CHANNELS=layout.lane_channels,
            WARPS=layout.warps,
            MIN_BLOCKS=layout.min_blocks,
            SAVE_EVERY=plan.TILE // states.shape[2],
            PARTIAL_IN=int(index > 0),
            PARTIAL_OUT=int(index < passes - 1),
        )
        kernel.launch(
            layout.cut.slots * (size.channels // layout.channels),
            32 * layout.warps,
            x=p.x,
            dt=p.dt,
            dout=grad_out,
            z=p.z,
            y=y,
            b=p.b,
            c=p.c,
            a=p.a,
            d=p.d,
            dt_bias=p.dt_bias,
            states=states[index],
            r_in=r_in,
            dx=grads.x,
            ddt=grads.dt,
            dz=grads.z,
            dw_partial=dw_partial,
            ddelta_partial=ddelta_partial,
            bc_partial=bc_partial,
            parameter_partial=parameter_partial,
            h_initial_grad=grads.initial,
            rows=size.rows,
            x_stride=p.x.stride(1),
            dt_stride=p.dt.stride(1),
            z_stride=0 if p.z is None else p.z.stride(1),
            dz_stride=0 if grads.z is None else grads.z.stride(1),
            **p.sequence_arguments(layout.cut),
            **p.shape_arguments(index * plan.STATES),
        )
        _reduce(p, grads, bc_partial, parameter_partial, index * plan.STATES)
    return grads


def _reduce(p: Problem, grads: Gradients, bc_partial: Tensor, parameter_partial: Tensor, first_state: int) -> None:
    """Add the blocks' parts of the gradients that several blocks share."""
    size, N = p.size, p.states
    p.kernel("reduce.cu", "reduce_bc", "ReduceBcArgs").launch(
        -(-size.rows * size.groups * (2 * plan.STATES // 4) // 256),
        256,
        partial=bc_partial,
        db=grads.b,
        dc=grads.c,
        rows=size.rows,
        out_stride=grads.b.stride(1),
        groups=size.groups,
        blocks_per_group=bc_partial.shape[0] // size.groups,
        N=N,
        first_state=first_state,
    )
    p.kernel("reduce.cu", "reduce_parameters", "ReduceParametersArgs").launch(
        (size.channels // 32, plan.STATES + 2),
        256,
        partial=parameter_partial,
        da=grads.a,
        dd=grads.d,
        dbias=grads.dt_bias,
        slots=parameter_partial.shape[0],
        E=size.channels,
        N=N,
        first_state=first_state,
    )
