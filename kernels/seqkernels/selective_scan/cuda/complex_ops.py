"""The scan with complex a, b, c as `torch.library` ops.

Complex numbers are complex64; x, dt, z fp32, bf16 or fp16. The states at every 16th position are saved for the backward
pass, and the gradients of b and c go through a buffer of (channels / 64) times their size. Sizes by
`plan.complex_is_fast` go to `complex_launch`, all others here to `complex.cu`.
"""

# No `from __future__ import annotations`: infer_schema reads the annotations as types.

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seqkernels import nvrtc
from seqkernels.library import register
from seqkernels.selective_scan.cuda import complex_launch, launch, plan

_SOURCE = Path(__file__).parent / "complex.cu"
_WARP = 32


@dataclass(frozen=True)
class _Shape:
    """Sizes of one call, and the launch of `complex.cu` that follows from them."""

    sequences: int
    tiles: int
    rows: int
    blocks: int  # of channels, each within one group
    per_lane: int
    warps: int

    @classmethod
    def of(cls, x: Tensor, a: Tensor, b: Tensor, cu_seqlens: Tensor | None) -> "_Shape":
        (B, L, E), N, G = x.shape, a.shape[1], b.shape[2]
        sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
        tiles = B * -(-L // plan.TILE) if cu_seqlens is None else L // plan.TILE + sequences
        per_lane = 1 << max(0, (-(-N // _WARP) - 1).bit_length())
        warps = 16 if per_lane == 1 else 8
        return cls(sequences, tiles, B * L, G * -(-(E // G) // warps), per_lane, warps)


def _launch(
    entry: str, x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor | None, z: Tensor | None,
    dt_bias: Tensor | None, softplus: bool, cu_seqlens: Tensor | None, save: bool, **buffers: Tensor | None
) -> None:  # fmt: skip
    shape = _Shape.of(x, a, b, cu_seqlens)
    (_, L, E), zeros = x.shape, torch.zeros(x.shape[2], device=x.device)
    defines = {
        "ELEMENT": launch.ELEMENT[x.dtype],
        "SOFTPLUS": int(softplus),
        "HAS_GATE": int(z is not None),
        "PER_LANE": shape.per_lane,
        "SAVE": int(save),
        "WARPS": shape.warps,
    }
    x, dt, z = x.contiguous(), dt.contiguous(), _dense(z)
    a, b, c = (t.resolve_conj().contiguous() for t in (a, b, c))
    absent = dict.fromkeys(
        ("start", "states", "end", "out", "dout", "dx", "ddt", "dz", "db_partial", "dc_partial", "da_partial",
         "dd_partial", "dbias_partial")
    )  # fmt: skip
    nvrtc.kernel(_SOURCE, entry, "ComplexArgs", defines, x.device.index).launch(
        shape.sequences * shape.blocks,
        _WARP * shape.warps,
        x=x,
        dt=dt,
        z=z,
        a=a,
        b=b,
        c=c,
        d=zeros if d is None else d.contiguous(),
        dt_bias=zeros if dt_bias is None else dt_bias.contiguous(),
        cu_seqlens=None if cu_seqlens is None else cu_seqlens.to(torch.int64),
        length=L,
        rows=shape.rows,
        x_stride=E,
        dt_stride=E,
        z_stride=E,
        sequences=shape.sequences,
        chunks=1,
        chunk_length=-(-L // plan.TILE) * plan.TILE,
        E=E,
        N=a.shape[1],
        groups=b.shape[2],
        **(absent | buffers),
    )


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.resolve_conj().contiguous()


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
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, final state, and saved states (empty unless `save`)."""
    if plan.complex_is_fast(a.shape[0], b.shape[2], a.shape[1]):
        problem = complex_launch.problem(x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens)
        return complex_launch.run_forward(problem, save)
    shape = _Shape.of(x, a, b, cu_seqlens)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    final = a.new_empty(shape.sequences, *a.shape)
    states = a.new_empty((shape.tiles, *a.shape) if save else (0,))
    _launch(
        "complex_forward", x, dt, a, b, c, d, z, dt_bias, softplus, cu_seqlens, save,
        start=_dense(initial), states=states, end=final, out=out,
    )  # fmt: skip
    return out, final, states


def _fake_forward(x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens, save):
    B, L, _ = x.shape
    sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    tiles = B * ((L + plan.TILE - 1) // plan.TILE) if cu_seqlens is None else L // plan.TILE + sequences
    return (
        x.new_empty(x.shape),
        a.new_empty(sequences, *a.shape),
        a.new_empty((tiles, *a.shape) if save else (0,)),
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
    cu_seqlens: Tensor | None,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c, d, z (empty if absent), dt_bias and the initial state."""
    if plan.complex_is_fast(a.shape[0], b.shape[2], a.shape[1]):
        problem = complex_launch.problem(x, dt, a, b, c, d, z, dt_bias, softplus, None, cu_seqlens)
        g = complex_launch.run_backward(problem, grad_out, grad_final, states)
        return g.x, g.dt, g.a, g.b, g.c, g.d, x.new_empty(0) if g.z is None else g.z, g.dt_bias, g.initial
    shape = _Shape.of(x, a, b, cu_seqlens)
    (_, _, E), N, G = x.shape, a.shape[1], b.shape[2]
    dx, ddt, dz = (torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(3))
    initial = a.new_empty(shape.sequences, E, N)
    da, db, dc = (
        a.new_empty(size) for size in ((shape.sequences, E, N), *[(shape.blocks, shape.rows, N)] * 2)
    )
    dd, dbias = (torch.empty(shape.sequences, E, device=x.device) for _ in range(2))
    _launch(
        "complex_backward", x, dt, a, b, c, d, z, dt_bias, softplus, cu_seqlens, True,
        start=_dense(grad_final), states=states, end=initial, dout=grad_out.contiguous(), dx=dx, ddt=ddt, dz=dz,
        db_partial=db, dc_partial=dc, da_partial=da, dd_partial=dd, dbias_partial=dbias,
    )  # fmt: skip

    def over_blocks(partial: Tensor) -> Tensor:
        return partial.view(G, -1, shape.rows, N).sum(1).transpose(0, 1).contiguous().view(b.shape)

    return (
        dx, ddt, da.sum(0), over_blocks(db), over_blocks(dc), dd.sum(0), x.new_empty(0) if z is None else dz,
        dbias.sum(0), initial,
    )  # fmt: skip


def _fake_backward(grad_out, grad_final, x, dt, a, b, c, d, z, dt_bias, softplus, cu_seqlens, states):
    E = x.shape[2]
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    vector = torch.empty(E, device=x.device)
    return (
        x.new_empty(x.shape), x.new_empty(x.shape), a.new_empty(a.shape), b.new_empty(b.shape), c.new_empty(c.shape),
        vector, x.new_empty(x.shape if z is not None else (0,)), vector.clone(), a.new_empty(sequences, *a.shape),
    )  # fmt: skip


def _setup_context(ctx, inputs, output):
    x, dt, a, b, c, d, z, dt_bias, softplus, initial, cu_seqlens, _ = inputs
    ctx.save_for_backward(x, dt, a, b, c, d, z, dt_bias, cu_seqlens, output[2])
    ctx.softplus, ctx.has_initial = softplus, initial is not None
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_out, grad_final, _grad_states):
    x, dt, a, b, c, d, z, dt_bias, cu_seqlens, states = ctx.saved_tensors
    if grad_out is None:
        grad_out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    gx, gdt, ga, gb, gc, gd, gz, gbias, ginitial = backward_op(
        grad_out, grad_final, x, dt, a, b, c, d, z, dt_bias, ctx.softplus, cu_seqlens, states
    )
    return (
        gx, gdt, ga, gb, gc, None if d is None else gd, None if z is None else gz, None if dt_bias is None else gbias,
        None, ginitial if ctx.has_initial else None, None, None,
    )  # fmt: skip


backward_op = register("selective_scan_complex_cuda_backward", _backward, _fake_backward)
forward_op = register("selective_scan_complex_cuda", _forward, _fake_forward, _setup_context, _differentiate)
