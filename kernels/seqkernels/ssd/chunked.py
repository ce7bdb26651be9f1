"""SSD by chunks, as matrix products in plain PyTorch: any device, any sizes, float64 too; the Triton kernels' plan.

The paper's section 6, with explicit gradients; README.md derives both. A chunk of Q positions takes the state before it
(R heads of a group side by side) and leaves the one behind it. What runs in a chunk are a few products of
(Q, N), (Q, Q) and (Q, R P) matrices; the loop over chunks carries the state. Backward keeps the states at the start of
every SEGMENT chunks and makes those between again.

Letters beside the legend's: R heads of a group, K another Q (the source position of a pair), Z = R * P.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Q = 64  # positions of a chunk: products of Q x Q stay in the cache, and cost less than those with the state
SEGMENT = 16  # chunks between two kept states


def unavailable(x_BLHP: Tensor, a_H: Tensor, **details: object) -> str | None:
    """Return None: this runs everywhere."""
    return None


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
        y_BLHP in x's dtype, and the final state (B or nseq, H, P, N).
    """
    y, final, _ = _forward(x, dt, a, b, c, d, dt_bias, dt_softplus, initial, cu_seqlens)
    return y, final


class Span(NamedTuple):
    """A piece of one sequence (or of every row of an unpacked batch): positions start to end, states at `rows`."""

    rows: slice
    start: int
    end: int
    first: bool
    last: bool


def _segments(batch: int, length: int, cu_seqlens: Tensor | None) -> Iterator[Span]:
    """The segments in order, sequence after sequence."""
    bounds = [0, length] if cu_seqlens is None else cu_seqlens.tolist()
    for sequence, (begin, end) in enumerate(pairwise(bounds)):
        rows = slice(0, batch) if cu_seqlens is None else slice(sequence, sequence + 1)
        for start in range(begin, end, Q * SEGMENT):
            stop = min(start + Q * SEGMENT, end)
            yield Span(rows, start, stop, start == begin, stop == end)


def _most_segments(length: int, cu_seqlens: Tensor | None) -> int:
    """No fewer than there are segments, from shapes alone."""
    return -(-length // (Q * SEGMENT)) + (0 if cu_seqlens is None else cu_seqlens.shape[0] - 2)


class Chunk(NamedTuple):
    """What forward and backward of a chunk share; real dtype, B and G in front."""

    x_BGRQP: Tensor
    dt_BGRQ: Tensor
    b_BGQN: Tensor
    c_BGQN: Tensor
    before_BGRQ: Tensor  # exp(sum of dt a from the chunk's start to q): what is left of the state before
    after_BGRQ: Tensor  # exp(sum after q to the chunk's end): what is left of q's input in the state behind
    total_BGR: Tensor  # exp(sum over the chunk)
    decay_BGRQK: Tensor  # exp(sum after k to q), 0 for k > q


def _chunk(x: Tensor, dt_BLH: Tensor, a: Tensor, b: Tensor, c: Tensor, start: int, end: int) -> Chunk:
    """Positions start to end of the inputs; dt is ready for use."""
    G, real = b.shape[2], a.dtype
    x_BGRQP = x[:, start:end].to(real).unflatten(2, (G, -1)).permute(0, 2, 3, 1, 4)
    dt_BGRQ = dt_BLH[:, start:end].unflatten(2, (G, -1)).permute(0, 2, 3, 1)
    b_BGQN, c_BGQN = (t[:, start:end].to(real).transpose(1, 2) for t in (b, c))
    # Sums in float64, split in two: differences of long sums keep the accuracy of the few terms between.
    exact_BGRQ = (dt_BGRQ.double() * a.double().view(1, G, -1, 1)).cumsum(-1)
    high = exact_BGRQ.to(real)
    low = (exact_BGRQ - high).to(real)
    pairs_BGRQK = (high[..., :, None] - high[..., None, :]) + (low[..., :, None] - low[..., None, :])
    future_QK = torch.ones(end - start, end - start, dtype=torch.bool, device=x.device).triu(1)
    last = exact_BGRQ[..., -1]
    return Chunk(
        x_BGRQP,
        dt_BGRQ,
        b_BGQN,
        c_BGQN,
        before_BGRQ=high.exp(),
        after_BGRQ=(last[..., None] - exact_BGRQ).to(real).exp(),
        total_BGR=last.to(real).exp(),
        decay_BGRQK=pairs_BGRQK.masked_fill_(future_QK, float("-inf")).exp_(),
    )


def _beside(t_BGRQP: Tensor) -> Tensor:
    """(B, G, R, Q, P) to (B, G, Q, Z): the heads of a group side by side."""
    return t_BGRQP.transpose(2, 3).flatten(3)


def _apart(t_BGQZ: Tensor, heads: int) -> Tensor:
    """The other way: (B, G, Q, Z) to (B, G, R, Q, P)."""
    return t_BGQZ.unflatten(3, (heads, -1)).transpose(2, 3)


def _advance(chunk: Chunk, state_BGRPN: Tensor) -> Tensor:
    """The state behind the chunk."""
    weighted_BGQZ = _beside(chunk.x_BGRQP * (chunk.dt_BGRQ * chunk.after_BGRQ)[..., None])
    added_BGZN = weighted_BGQZ.mT @ chunk.b_BGQN
    return torch.addcmul(added_BGZN.view_as(state_BGRPN), chunk.total_BGR[..., None, None], state_BGRPN)


def _output(chunk: Chunk, state_BGRPN: Tensor) -> Tensor:
    """y_BGRQP of the chunk, without the skip."""
    scores_BGRQK = chunk.decay_BGRQK * (chunk.c_BGQN @ chunk.b_BGQN.mT)[:, :, None]
    scores_BGRQK *= chunk.dt_BGRQ[..., None, :]
    read_BGRQP = _read(chunk.c_BGQN, state_BGRPN)
    return torch.addcmul(scores_BGRQK @ chunk.x_BGRQP, chunk.before_BGRQ[..., None], read_BGRQP)


def _read(c_BGQN: Tensor, state_BGRPN: Tensor) -> Tensor:
    """What C reads from the state before the chunk: (B, G, R, Q, P)."""
    return _apart(c_BGQN @ state_BGRPN.flatten(2, 3).mT, state_BGRPN.shape[2])


def _step_sizes(dt: Tensor, dt_bias: Tensor | None, dt_softplus: bool, real: torch.dtype) -> tuple[Tensor, Tensor]:
    """Step sizes as they are used, and what the softplus was taken of."""
    raw = dt.to(real) if dt_bias is None else dt.to(real) + dt_bias
    return (F.softplus(raw) if dt_softplus else raw), raw


def _grouped(state_BHPN: Tensor, groups: int) -> Tensor:
    return state_BHPN.unflatten(1, (groups, -1))


@torch.library.custom_op("seqkernels::ssd_torch", mutates_args=())
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
) -> tuple[Tensor, Tensor, Tensor]:
    (B, L, H, P), (G, N) = x.shape, b.shape[2:]
    used, _ = _step_sizes(dt, dt_bias, dt_softplus, a.dtype)
    y, final, kept = _empty_outputs(x, a, b, cu_seqlens)
    for index, span in enumerate(_segments(B, L, cu_seqlens)):
        if span.first:
            state = a.new_zeros(B, G, H // G, P, N) if initial is None else _grouped(initial[span.rows], G)
        kept[index] = state.flatten(1, 2)
        for start in range(span.start, span.end, Q):
            end = min(start + Q, span.end)
            chunk = _chunk(x, used, a, b, c, start, end)
            y_BGRQP = _output(chunk, state)
            if d is not None:
                y_BGRQP.addcmul_(d.view(1, G, -1, 1, 1), chunk.x_BGRQP)
            y[:, start:end].unflatten(2, (G, -1)).copy_(y_BGRQP.permute(0, 3, 1, 2, 4))
            state = _advance(chunk, state)
        if span.last:
            final[span.rows] = state.flatten(1, 2)
    return y, final, kept


@_forward.register_fake
def _(x, dt, a, b, c, d, dt_bias, dt_softplus, initial, cu_seqlens):
    return _empty_outputs(x, a, b, cu_seqlens)


def _empty_outputs(x: Tensor, a: Tensor, b: Tensor, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    B, L, H, P = x.shape
    sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    kept = a.new_empty(_most_segments(L, cu_seqlens), B, H, P, b.shape[3])
    return y, a.new_empty(sequences, H, P, b.shape[3]), kept


class ChunkGradients(NamedTuple):
    """Gradients of one chunk; real dtype, B and G in front."""

    dx_BGRQP: Tensor
    ddt_BGRQ: Tensor  # of the step sizes as they are used
    db_BGQN: Tensor
    dc_BGQN: Tensor
    dlog_decay_BGRQ: Tensor  # of dt a at each position
    dstate_BGRPN: Tensor  # of the state before the chunk


def _gradients(chunk: Chunk, state_BGRPN: Tensor, dy_BGRQP: Tensor, dnext_BGRPN: Tensor) -> ChunkGradients:
    """From the gradients of the chunk's outputs and of the state behind it to those of everything in front.

    The gradient of dt a at position j collects what crosses j: every pair k < j <= q, every output at q >= j that
    reads the state before, every input at k < j that reaches the state behind, and the state that passes through.
    Each is summed as it is; differences of larger sums would lose all where decays are strong.
    """
    x, dt, b, c = chunk.x_BGRQP, chunk.dt_BGRQ, chunk.b_BGQN, chunk.c_BGQN
    heads = x.shape[2]
    products_BGRQK = dy_BGRQP @ x.mT  # dy_q . x_k
    weights_BGRQK = chunk.decay_BGRQK * (c @ b.mT)[:, :, None]  # decay(q, k) C_q . B_k
    pulled = chunk.decay_BGRQK * products_BGRQK * dt[..., None, :]
    pulled_BGQK = pulled.sum(2)  # the heads of a group share B and C
    from_next_BGRQP = _apart(b @ dnext_BGRPN.flatten(2, 3).mT, heads) * chunk.after_BGRQ[..., None]
    through_BGRQP = weights_BGRQK.mT @ dy_BGRQP + from_next_BGRQP
    decayed_dy_BGQZ = _beside(dy_BGRQP * chunk.before_BGRQ[..., None])
    weighted_x_BGQZ = _beside(x * (dt * chunk.after_BGRQ)[..., None])
    from_state_BGQN = decayed_dy_BGQZ @ state_BGRPN.flatten(2, 3)

    pairs_BGRQK = weights_BGRQK.mul_(products_BGRQK).mul_(dt[..., None, :])
    earlier_BGRQK = F.pad(pairs_BGRQK[..., :-1].cumsum(-1), (1, 0)).tril_()  # at (q, j): pairs (q, k) with k < j <= q
    reads_BGRQ = (_apart(decayed_dy_BGQZ, heads) * _read(c, state_BGRPN)).sum(-1)
    writes_BGRQ = dt * (x * from_next_BGRQP).sum(-1)
    passing_BGR = chunk.total_BGR * (dnext_BGRPN * state_BGRPN).sum((-1, -2))
    crossing_BGRQ = earlier_BGRQK.sum(-2) + reads_BGRQ.flip(-1).cumsum(-1).flip(-1) + passing_BGR[..., None]
    crossing_BGRQ[..., 1:] += writes_BGRQ[..., :-1].cumsum(-1)
    return ChunkGradients(
        dx_BGRQP=through_BGRQP * dt[..., None],
        ddt_BGRQ=(through_BGRQP * x).sum(-1),
        db_BGQN=pulled_BGQK.mT @ c + weighted_x_BGQZ @ dnext_BGRPN.flatten(2, 3),
        dc_BGQN=pulled_BGQK @ b + from_state_BGQN,
        dlog_decay_BGRQ=crossing_BGRQ,
        dstate_BGRPN=torch.addcmul(
            (decayed_dy_BGQZ.mT @ c).view_as(dnext_BGRPN), chunk.total_BGR[..., None, None], dnext_BGRPN
        ),
    )


@torch.library.custom_op("seqkernels::ssd_torch_backward", mutates_args=())
def _backward(
    dy: Tensor | None,
    dfinal: Tensor | None,
    kept: Tensor,
    x: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c, d, dt_bias and the initial state."""
    (B, L, H, P), G = x.shape, b.shape[2]
    used, raw = _step_sizes(dt, dt_bias, dt_softplus, a.dtype)
    dx, dused, db, dc = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, used, b, c))
    da, dd = a.new_zeros(H, dtype=torch.float64), a.new_zeros(H, dtype=torch.float64)  # sums over all positions
    sequences = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    dinitial = a.new_empty(sequences, H, P, b.shape[3])
    for index, span in reversed(list(enumerate(_segments(B, L, cu_seqlens)))):
        starts = range(span.start, span.end, Q)
        chunks = [_chunk(x, used, a, b, c, start, min(start + Q, span.end)) for start in starts]
        states = [_grouped(kept[index], G)]
        for chunk in chunks[:-1]:
            states.append(_advance(chunk, states[-1]))
        if span.last:
            dstate = torch.zeros_like(states[0]) if dfinal is None else _grouped(dfinal[span.rows].to(a.dtype), G)
        for start, chunk, state in reversed(list(zip(starts, chunks, states))):
            here = slice(start, min(start + Q, span.end))
            if dy is None:
                dy_BGRQP = torch.zeros_like(chunk.x_BGRQP)
            else:
                dy_BGRQP = dy[:, here].to(a.dtype).unflatten(2, (G, -1)).permute(0, 2, 3, 1, 4)
            grads = _gradients(chunk, state, dy_BGRQP, dstate)
            dstate = grads.dstate_BGRPN
            dx_BGRQP, a_BGRQ = grads.dx_BGRQP, a.view(1, G, -1, 1)
            if d is not None:
                dx_BGRQP.addcmul_(d.view(1, G, -1, 1, 1), dy_BGRQP)
                dd += (dy_BGRQP * chunk.x_BGRQP).sum((0, 3, 4), dtype=torch.float64).flatten()
            dx[:, here].unflatten(2, (G, -1)).copy_(dx_BGRQP.permute(0, 3, 1, 2, 4))
            db[:, here], dc[:, here] = grads.db_BGQN.transpose(1, 2), grads.dc_BGQN.transpose(1, 2)
            ddt_BGRQ = torch.addcmul(grads.ddt_BGRQ, a_BGRQ, grads.dlog_decay_BGRQ)
            dused[:, here].unflatten(2, (G, -1)).copy_(ddt_BGRQ.permute(0, 3, 1, 2))
            da += (grads.dlog_decay_BGRQ * chunk.dt_BGRQ).sum((0, 3), dtype=torch.float64).flatten()
        if span.first:
            dinitial[span.rows] = dstate.flatten(1, 2)
    if dt_softplus:
        dused *= torch.where(raw > 20, 1.0, torch.sigmoid(raw))
    dbias = dused.sum((0, 1), dtype=torch.float64)
    return dx, dused.to(dt.dtype), da.to(a.dtype), db, dc, dd.to(a.dtype), dbias.to(a.dtype), dinitial


@_backward.register_fake
def _(dy, dfinal, kept, x, dt, a, b, c, d, dt_bias, dt_softplus, cu_seqlens):
    dense = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, dt, a, b, c, a, a)]
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return (*dense, a.new_empty(sequences, *x.shape[2:], b.shape[3]))


def _setup_context(ctx, inputs, output) -> None:
    x, dt, a, b, c, d, dt_bias, ctx.dt_softplus, initial, cu_seqlens = inputs
    ctx.save_for_backward(output[2], x, dt, a, b, c, d, dt_bias, cu_seqlens)
    ctx.has_initial = initial is not None
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _autograd(ctx, dy, dfinal, _):
    *tensors, d, dt_bias, cu_seqlens = ctx.saved_tensors
    dx, ddt, da, db, dc, dd, dbias, dinitial = _backward(
        dy, dfinal, *tensors, d, dt_bias, ctx.dt_softplus, cu_seqlens
    )
    dd, dbias = None if d is None else dd, None if dt_bias is None else dbias
    return dx, ddt, da, db, dc, dd, dbias, None, dinitial if ctx.has_initial else None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
