"""`causal_conv1d` on the GPU: Triton kernels behind `torch.library` ops.

In: x_BLE channel-last with any strides over B and L (the first half of in_proj's output is read in place).
Out: y_BLE and the final state; gradients of every input, bit for bit the same from run to run.

Bound by memory: forward moves one read of x and one write of y; backward reads x and dy and writes dx (the
pre-activation is recomputed). The weight gradient is summed in fp32 registers over a block of rows, then over blocks
in a fixed order; there are no atomics.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqkernels import triton_runtime
from seqkernels.library import register


def unavailable(x_BLE: Tensor, weight_EW: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    return triton_runtime.unavailable(x_BLE)


def conv(
    x_BLE: Tensor,
    weight_EW: Tensor,
    bias_E: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Filter each sequence; see `seqkernels.causal_conv1d.op` for the arguments.

    Returns:
        y_BLE in x's dtype, and the last W-1 inputs of each sequence in fp32.
    """
    return forward_op(x_BLE, weight_EW, bias_E, activation == "silu", initial_state, cu_seqlens)


class Plan(NamedTuple):
    """How the work is cut: a program of one warp walks `rows` rows of `block_e` channels, `unroll` rows at a time."""

    rows: int
    unroll: int
    block_e: int


def plan(B: int, L: int, E: int, *, most_rows: int, programs_wanted: int) -> Plan:
    """Cut (B, L, E) into programs of one warp with 4 channels a thread: the taps and the open rows live in registers.

    Long blocks of rows re-read little (W-1 rows of overlap), short ones give small inputs enough programs: a few waves
    of 16 to 32 on each of about 132 multiprocessors. The cut depends on the shape alone, never on the card.
    """
    rows, block_e = most_rows, 128
    while rows > 16 and B * -(-L // rows) * -(-E // block_e) < programs_wanted:
        rows //= 2
    return Plan(rows, 4, block_e)


def plan_forward(x_BLE: Tensor) -> Plan:
    """64 registers a thread: 32 programs fit on a multiprocessor."""
    return plan(*x_BLE.shape, most_rows=128, programs_wanted=8_000)


def plan_backward(x_BLE: Tensor) -> Plan:
    """96 registers a thread; longer blocks, since each leaves one set of weight-gradient sums."""
    return plan(*x_BLE.shape, most_rows=256, programs_wanted=4_000)


def _rows_in_place(x: Tensor) -> Tensor:
    """x itself when its last dimension is dense, else a dense copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _first_sequences(cu_seqlens: Tensor, L: int, rows: int) -> Tensor:
    """Which sequence holds the first row of each block of rows."""
    starts = torch.arange(0, L, rows, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, starts, right=True, out_int32=True) - 1


def run_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, initial: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    triton_kernels = triton_runtime.kernels("causal_conv1d")
    x, weight, initial = _rows_in_place(x), weight.contiguous(), None if initial is None else initial.contiguous()
    (B, L, E), W = x.shape, weight.shape[1]
    y, final = _empty_outputs(x, weight, cu_seqlens)
    cut = plan_forward(x)
    packed = cu_seqlens is not None
    n_chunks, n_blocks_e = -(-L // cut.rows), -(-E // cut.block_e)
    with torch.cuda.device_of(x):
        triton_kernels.forward[(B * n_chunks * n_blocks_e,)](
            x,
            weight,
            weight if bias is None else bias,
            x if initial is None else initial,
            cu_seqlens if packed else x,
            _first_sequences(cu_seqlens, L, cut.rows) if packed else x,
            y,
            final,
            x.stride(0),
            x.stride(1),
            L,
            E,
            n_chunks,
            W=W,
            SILU=silu,
            HAS_BIAS=bias is not None,
            HAS_INITIAL=initial is not None,
            PACKED=packed,
            ROWS=cut.rows,
            UNROLL=cut.unroll,
            BLOCK_E=cut.block_e,
            num_warps=1,
        )
        if packed:
            triton_kernels.packed_final_state[(final.shape[0] * n_blocks_e,)](
                x,
                x if initial is None else initial,
                cu_seqlens,
                final,
                x.stride(1),
                E,
                W=W,
                HAS_INITIAL=initial is not None,
                BLOCK_E=cut.block_e,
                num_warps=1,
            )
    return y, final


def _forward_fake(x, weight, bias, silu, initial, cu_seqlens):
    return _empty_outputs(x, weight, cu_seqlens)


def _empty_outputs(x: Tensor, weight: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    B, _, E = x.shape
    sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return y, torch.empty(sequences, weight.shape[1] - 1, E, dtype=torch.float32, device=x.device)


def _backward(
    dy: Tensor | None,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return dx, *run_backward(dy, dfinal, x, weight, bias, silu, initial, cu_seqlens, dx)


def run_backward(
    dy: Tensor | None,
    dfinal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    dx: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the gradient of x into `dx`, (B, L, E) with adjacent channels and one stride from row to row.

    Returns:
        Gradients of the weight, the bias and the initial state; empty for what is absent.
    """
    triton_kernels = triton_runtime.kernels("causal_conv1d")
    x, weight, initial = _rows_in_place(x), weight.contiguous(), None if initial is None else initial.contiguous()
    dy = torch.zeros_like(x) if dy is None else _rows_in_place(dy)
    dfinal = None if dfinal is None else dfinal.contiguous()
    (B, L, E), W = x.shape, weight.shape[1]
    cut = plan_backward(x)
    packed = cu_seqlens is not None
    n_chunks, n_blocks_e = -(-L // cut.rows), -(-E // cut.block_e)
    partial = torch.empty(B * n_chunks, W + 1, E, dtype=torch.float32, device=x.device)
    shared_options = {
        "W": W,
        "SILU": silu,
        "HAS_BIAS": bias is not None,
        "HAS_DFINAL": dfinal is not None,
        "PACKED": packed,
        "BLOCK_E": cut.block_e,
        "num_warps": 1,
    }
    strides = (x.stride(0), x.stride(1), dy.stride(0), dy.stride(1))
    pointers = (
        x,
        weight,
        weight if bias is None else bias,
        x if initial is None else initial,
        cu_seqlens if packed else x,
    )
    with torch.cuda.device_of(x):
        triton_kernels.backward[(B * n_chunks * n_blocks_e,)](
            *pointers,
            _first_sequences(cu_seqlens, L, cut.rows) if packed else x,
            dy,
            x if dfinal is None else dfinal,
            dx,
            partial,
            *strides,
            dx.stride(1),
            L,
            E,
            n_chunks,
            HAS_INITIAL=initial is not None,
            ROWS=cut.rows,
            UNROLL=cut.unroll,
            **shared_options,
        )
        dinitial = x.new_empty(0) if initial is None else torch.empty_like(initial)
        if initial is not None:
            triton_kernels.initial_state_gradient[(initial.shape[0] * n_blocks_e,)](
                *pointers, dy, x if dfinal is None else dfinal, dinitial, *strides, L, E, **shared_options
            )
        dweight = torch.empty_like(weight)
        dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
        triton_kernels.add_shares[(-(-E // 32), W + 1 if bias is not None else W)](
            partial,
            dweight,
            dbias,
            partial.shape[0],
            E,
            W=W,
            HAS_BIAS=bias is not None,
            BLOCK_SHARES=min(256, 1 << (partial.shape[0] - 1).bit_length()),
            BLOCK_E=32,
            num_warps=8,
        )
    return dweight, dbias, dinitial


def _backward_fake(dy, dfinal, x, weight, bias, silu, initial, cu_seqlens):
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dweight = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    dinitial = x.new_empty(0) if initial is None else initial.new_empty(initial.shape)
    return dx, dweight, dbias, dinitial


def _save(ctx, inputs, output):
    x, weight, bias, ctx.silu, initial, cu_seqlens = inputs
    ctx.save_for_backward(x, weight, bias, initial, cu_seqlens)
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy, dfinal):
    x, weight, bias, initial, cu_seqlens = ctx.saved_tensors
    dx, dweight, dbias, dinitial = backward_op(dy, dfinal, x, weight, bias, ctx.silu, initial, cu_seqlens)
    return dx, dweight, None if bias is None else dbias, None, None if initial is None else dinitial, None


_DEVICES = ("CUDA", "CPU")  # CPU: Triton's interpreter
backward_op = register("causal_conv1d_triton_backward", _backward, _backward_fake, devices=_DEVICES)
forward_op = register("causal_conv1d_triton", run_forward, _forward_fake, _save, _gradients, devices=_DEVICES)
