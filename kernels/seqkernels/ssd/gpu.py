"""`ssd` on the GPU: Triton kernels behind `torch.library` ops. README.md has the maths and the sizes.

In: x, dt, b, c with any strides (the slices of in_proj's and the convolution's outputs are read in place).
Out: y, the final state; gradients of every input, bit for bit the same from run to run: no atomics.

Forward, four kernels: step sizes and cumulative decays; what each chunk adds to the state; the state carried through
the chunks; outputs. Backward keeps step sizes, decays and the state in front of each chunk, and runs the same plan
backwards: what each chunk adds to the state's gradient, that gradient carried from the end, then dx, db, dc, and last
what dt, a, the bias and D get of it. Products of bf16 and fp16 run on tensor cores, with fp32 sums; those of fp32 are
fp32 products. Tile sizes depend on shapes and dtype alone: nothing is tuned at run time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from seqkernels import triton_runtime
from seqkernels.dispatch import constant
from seqkernels.library import register


def unavailable(x_BLHP: Tensor, a_H: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    return triton_runtime.unavailable(x_BLHP)


def ssd(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence; see `seqkernels.ssd.op` for the arguments.

    Returns:
        y_BLHP in x's dtype, and the final state (B or nseq, H, P, N) in fp32.
    """
    y, final, *_ = forward_op(x, dt, a, b, c, d, dt_bias, dt_softplus, initial, cu_seqlens)
    return y, final


class Plan(NamedTuple):
    """How the work is cut.

    Attributes:
        q: positions of a chunk.
        block_q: of these, how many at once are paired with all the others where registers are short.
        block_p, block_n: tiles of a head and of the state.
        warps: of kernels whose tiles are (q, q).
        state_warps: of the kernel whose tile is (block_p, block_n).
    """

    q: int
    block_q: int
    block_p: int
    block_n: int
    warps: int
    state_warps: int


def chunk_length(L: int, dtype: torch.dtype) -> int:
    """Q of a plan; short sequences are not padded to the longest chunk."""
    longest = 64 if dtype == torch.float32 else 128
    return longest if longest // 2 < L else longest // 2


def plan(L: int, P: int, N: int, dtype: torch.dtype) -> Plan:
    """Sizes for an H200's multiprocessor (228 KB shared memory, 65536 registers), from shapes and dtype alone.

    A chunk of 128 balances products inside chunks (which grow with Q) and traffic of states (which shrinks with it).
    Products of fp32 do not run on tensor cores: both factors stand in registers, so the tiles are smaller.
    """
    q = chunk_length(L, dtype)
    if dtype == torch.float32:
        return Plan(q, 32, 16, min(32, _power_of_2(N)), q // 8, 4)
    return Plan(q, 64, min(64, _power_of_2(P)), min(128, _power_of_2(N)), q // 16, 4)


def _power_of_2(size: int) -> int:
    return max(16, 1 << (size - 1).bit_length())


@constant
def _stages(device_index: int, n_blocks: int) -> int:
    """Tiles in flight: those of the next head too where shared memory holds them (130 KB; 200 KB with N above 128)."""
    if triton_runtime.interpreting():
        return 1
    room = torch.cuda.get_device_properties(device_index).shared_memory_per_block_optin
    return 2 if room >= (140_000 if n_blocks == 1 else 205_000) else 1


#: Programs that keep an H200 busy: about four for each of its 132 multiprocessors.
_PROGRAMS_WANTED = 512


def heads_of_a_program(chunks: int, heads: int, groups: int) -> int:
    """How many heads share one program's products of b and c: up to 8, fewer where programs would be few."""
    shared = 8
    while shared > 1 and chunks * groups * -(-(heads // groups) // shared) < _PROGRAMS_WANTED:
        shared //= 2
    return shared


class Chunks(NamedTuple):
    """Where the chunks lie.

    Attributes:
        count: how many (packed: at most how many, from shapes alone).
        per_row: chunks of a batch row that is not packed.
        sequences: leading dimension of states.
        table: packed: (count, 2) first position and number of positions; else empty.
        first: packed: (nseq + 1,) first chunk of each sequence; else empty.
    """

    count: int
    per_row: int
    sequences: int
    table: Tensor
    first: Tensor


_tables = WeakIdKeyDictionary()


def chunks_of(B: int, L: int, cu_seqlens: Tensor | None, q: int, device: torch.device) -> Chunks:
    """Cut every sequence into chunks of its own. Packed: found on the device, once per `cu_seqlens` tensor."""
    if cu_seqlens is None:
        empty = torch.empty(0, dtype=torch.int64, device=device)
        return Chunks(B * -(-L // q), -(-L // q), B, empty, empty)
    sequences = cu_seqlens.shape[0] - 1
    key = (cu_seqlens._version, L, q)
    kept = _tables.get(cu_seqlens)
    if kept is None or kept[0] != key:
        kept = (key, *_chunk_table(cu_seqlens.to(torch.int64), L, q))
        if not (cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing()):
            _tables[cu_seqlens] = kept  # what a graph under capture makes is not there yet
    return Chunks(L // q + sequences, 0, sequences, kept[1], kept[2])


def _chunk_table(cu_seqlens: Tensor, L: int, q: int) -> tuple[Tensor, Tensor]:
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    counts = (ends - starts + q - 1) // q
    behind = counts.cumsum(0)
    chunk = torch.arange(L // q + len(starts), device=cu_seqlens.device)
    sequence = torch.searchsorted(behind, chunk, right=True).clamp_(max=len(starts) - 1)
    first = starts[sequence] + (chunk - (behind - counts)[sequence]) * q
    table = torch.stack([first, (ends[sequence] - first).clamp_(0, q)], dim=1)
    return table, torch.cat([behind.new_zeros(1), behind])


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself when its last dimension is dense, else a dense copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _pass_block(PN: int) -> int:
    """Elements of a state that one program carries: a warp, so that its sums need no barrier, 8 elements a thread."""
    return min(256, max(32, 1 << (PN - 1).bit_length()))


def _forward(
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the final state; for backward the states in front of the chunks, step sizes and decays (two parts)."""
    kernels = triton_runtime.kernels("ssd")
    x, b, c, a = _dense(x), _dense(b), _dense(c), a.contiguous()
    (B, L, H, P), (G, N) = x.shape, b.shape[2:]
    cut = plan(L, P, N, x.dtype)
    chunks = chunks_of(B, L, cu_seqlens, cut.q, x.device)
    y, final, states, steps, high, low = _empty_outputs(x, b, cu_seqlens)
    local = torch.empty(states.shape, dtype=torch.float32, device=x.device)
    packed, precise = cu_seqlens is not None, x.dtype == torch.float32
    p_blocks, n_blocks = -(-P // cut.block_p), -(-N // cut.block_n)
    heads = heads_of_a_program(chunks.count, H, G)
    slices = G * -(-(H // G) // heads)
    stages = _stages(x.device.index, n_blocks)
    block = _pass_block(P * N)
    tiles = {"PACKED": packed, "Q": cut.q}
    with torch.cuda.device_of(x):
        kernels.step_sizes[(chunks.count, -(-H // 8))](
            dt, a, a if dt_bias is None else dt_bias.contiguous(), chunks.table, steps, high, low,
            *dt.stride(), L, chunks.per_row, H,
            HAS_BIAS=dt_bias is not None, SOFTPLUS=dt_softplus, PRECISE=precise, BLOCK_H=8, num_warps=4, **tiles,
        )  # fmt: skip
        kernels.chunk_states[(chunks.count * H * p_blocks, n_blocks)](
            x, b, states, steps, high, low, chunks.table, local, local,
            *x.stride()[:3], *b.stride()[:3], L, chunks.per_row, H, P, N, H // G,
            GRADIENT=False, PRECISE=precise, BLOCK_P=cut.block_p, BLOCK_N=cut.block_n, num_warps=cut.state_warps,
            **tiles,
        )  # fmt: skip
        kernels.pass_states[(chunks.sequences * H * -(-(P * N) // block),)](
            local, high, local if initial is None else initial.contiguous(), chunks.first, states, final,
            chunks.per_row, H, P * N,
            HAS_INITIAL=initial is not None, BLOCK=block, UNROLL=16, num_warps=1, **tiles,
        )  # fmt: skip
        kernels.chunk_output[(chunks.count * slices,)](
            x, b, c, a if d is None else d.contiguous(), states, steps, high, low, chunks.table, y,
            *x.stride()[:3], *b.stride()[:3], *c.stride()[:3], L, chunks.per_row, H, P, N, H // G, heads, slices,
            HAS_D=d is not None, PRECISE=precise, BLOCK_P=cut.block_p, BLOCK_N=cut.block_n, N_BLOCKS=n_blocks,
            num_warps=cut.warps, num_stages=stages, **tiles,
        )  # fmt: skip
    return y, final, states, steps, high, low


def _forward_fake(x, dt, a, b, c, d, dt_bias, dt_softplus, initial, cu_seqlens):
    return _empty_outputs(x, b, cu_seqlens)


def _empty_outputs(
    x: Tensor, b: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    (B, L, H, P), N = x.shape, b.shape[3]
    q = chunk_length(L, x.dtype)
    sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    count = B * -(-L // q) if cu_seqlens is None else L // q + sequences

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=x.device)

    low = empty(count, H, q) if x.dtype == torch.float32 else empty(0)
    states = empty(count, H, P, N, dtype=x.dtype)
    y = empty(B, L, H, P, dtype=x.dtype)
    return y, empty(sequences, H, P, N), states, empty(count, H, q), empty(count, H, q), low


def _backward(
    dy: Tensor | None,
    dfinal: Tensor | None,
    states: Tensor,
    steps: Tensor,
    high: Tensor,
    low: Tensor,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, b, c, the initial state; those of a, dt_bias and d are the rows of the last."""
    kernels = triton_runtime.kernels("ssd")
    x, b, c, a = _dense(x), _dense(b), _dense(c), a.contiguous()
    dy = torch.zeros_like(x, memory_format=torch.contiguous_format) if dy is None else _dense(dy)
    (B, L, H, P), (G, N) = x.shape, b.shape[2:]
    cut = plan(L, P, N, x.dtype)
    chunks = chunks_of(B, L, cu_seqlens, cut.q, x.device)
    p_blocks, n_blocks = -(-P // cut.block_p), -(-N // cut.block_n)
    heads = heads_of_a_program(chunks.count, H, G)
    per_group = -(-(H // G) // heads)
    slices = G * per_group
    stages = _stages(x.device.index, n_blocks)
    block = _pass_block(P * N)
    pass_blocks = -(-(P * N) // block)
    dx, ddt, db, dc, dinitial, _ = _empty_gradients(x, dt, a, b, c, cu_seqlens)

    def scratch(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    local, dnext = scratch(*states.shape), torch.empty_like(states)
    # one allocation for what is kept per position and virtual head; see the kernels for their meanings
    vectors = scratch(4 + n_blocks, chunks.count, H * p_blocks, cut.q)
    direct, pair_reads, pair_writes, writes, reads = vectors[0], vectors[1], vectors[2], vectors[3], vectors[4:]
    passing, dskip = scratch(chunks.count, H, pass_blocks), scratch(chunks.count, H * p_blocks)
    sums = scratch(3, chunks.count, H)
    tiles = {"PACKED": cu_seqlens is not None, "Q": cut.q}
    precise = {"PRECISE": x.dtype == torch.float32}
    products = {**tiles, **precise, "BLOCK_P": cut.block_p, "BLOCK_N": cut.block_n}
    where = (L, chunks.per_row, H, P, N, H // G)
    with torch.cuda.device_of(x):
        kernels.chunk_states[(chunks.count * H * p_blocks, n_blocks)](
            dy, c, states, steps, high, low, chunks.table, local, reads,
            *dy.stride()[:3], *c.stride()[:3], *where,
            GRADIENT=True, num_warps=cut.state_warps, **products,
        )  # fmt: skip
        kernels.pass_gradients[(chunks.sequences * H * pass_blocks,)](
            local, states, high, local if dfinal is None else dfinal.contiguous(), chunks.first, dnext, passing,
            dinitial, chunks.per_row, H, P * N,
            HAS_DFINAL=dfinal is not None, BLOCK=block, UNROLL=8, num_warps=1, **tiles,
        )  # fmt: skip
        kernels.input_gradients[(chunks.count * slices,)](
            x, dy, b, c, a if d is None else d.contiguous(), dnext, steps, high, low, chunks.table,
            dx, direct, pair_reads, pair_writes, writes, dskip,
            *x.stride()[:3], *dy.stride()[:3], *b.stride()[:3], *c.stride()[:3], *where, heads, slices,
            HAS_D=d is not None, N_BLOCKS=n_blocks, BLOCK_Q=cut.block_q,
            num_warps=cut.warps, num_stages=stages, **products,
        )  # fmt: skip
        for of_b, out in ((False, dc), (True, db)):
            partial = out if per_group == 1 else scratch(per_group, *out.shape)
            own, other, projection, state = (x, dy, c, dnext) if of_b else (dy, x, b, states)
            kernels.projection_gradients[(chunks.count * slices, n_blocks)](
                own, other, projection, state, steps, high, low, chunks.table, partial,
                *own.stride()[:3], *other.stride()[:3], *projection.stride()[:3], *where,
                heads, G, slices, out.numel(), OF_B=of_b, num_warps=cut.warps, num_stages=stages, **products,
            )  # fmt: skip
            if per_group > 1:
                kernels.add_slices[(-(-out.numel() // 1024),)](
                    partial, out, out.numel(), out.numel(), per_group, BLOCK=1024, num_warps=4
                )
        kernels.step_gradients[(chunks.count, -(-H // 8))](
            dt, a, a if dt_bias is None else dt_bias.contiguous(), steps,
            direct, pair_reads, pair_writes, writes, reads, passing, dskip, chunks.table, ddt, sums,
            *dt.stride(), L, chunks.per_row, H, chunks.count,
            HAS_BIAS=dt_bias is not None, SOFTPLUS=dt_softplus, HAS_D=d is not None,
            P_BLOCKS=p_blocks, N_BLOCKS=n_blocks, PASS_BLOCKS=pass_blocks,
            PASS_TILE=1 << (pass_blocks - 1).bit_length(), BLOCK_H=8, num_warps=4, **tiles, **precise,
        )  # fmt: skip
    return dx, ddt, db, dc, dinitial, sums.sum(1)  # torch sums a dimension in a fixed order


def _backward_fake(dy, dfinal, states, steps, high, low, x, dt, a, b, c, d, dt_bias, dt_softplus, cu_seqlens):
    return _empty_gradients(x, dt, a, b, c, cu_seqlens)


def _empty_gradients(
    x: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dx, ddt, db, dc = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, dt, b, c))
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dinitial = a.new_empty(sequences, *x.shape[2:], b.shape[3])
    return dx, ddt, db, dc, dinitial, a.new_empty(3, a.shape[0])


def _save(ctx, inputs, output):
    x, dt, a, b, c, d, dt_bias, ctx.dt_softplus, initial, cu_seqlens = inputs
    ctx.save_for_backward(*output[2:], x, dt, a, b, c, d, dt_bias, cu_seqlens)
    ctx.has_initial = initial is not None
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy, dfinal, *_):
    *kept, d, dt_bias, cu_seqlens = ctx.saved_tensors
    dx, ddt, db, dc, dinitial, (da, dbias, dd) = backward_op(
        dy, dfinal, *kept, d, dt_bias, ctx.dt_softplus, cu_seqlens
    )
    dd, dbias = None if d is None else dd, None if dt_bias is None else dbias
    return dx, ddt, da, db, dc, dd, dbias, None, dinitial if ctx.has_initial else None, None


_DEVICES = ("CUDA", "CPU")  # CPU: Triton's interpreter
backward_op = register("ssd_triton_backward", _backward, _backward_fake, devices=_DEVICES)
forward_op = register("ssd_triton", _forward, _forward_fake, _save, _gradients, devices=_DEVICES)
