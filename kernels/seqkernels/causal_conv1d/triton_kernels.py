# type: ignore
# ruff: noqa: RUF005, SIM102
# Triton compiles a dialect of Python: no starred tuples, `if` on compile-time values, ranges that checkers misread.
"""Triton kernels of the causal convolution; imported only when one is launched (see gpu.py).

All kernels walk down the rows of one block of channels with the last W-1 inputs in registers, so every input is
read from memory once (plus W-1 rows of overlap between blocks of rows). Arithmetic is fp32, row offsets are 64-bit.

Packed sequences (PACKED): a program finds the sequence of its first row in `first_seq` and steps to the next one as
it passes a boundary, so no per-row index is read.
"""

import triton
import triton.language as tl

from seqkernels import triton_math


@triton.jit
def _load_weights(weight, bias, e, e_in, W: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_E: tl.constexpr):
    taps = ()
    for w in tl.static_range(W):
        taps = taps + (tl.load(weight + e * W + w, mask=e_in, other=0.0).to(tl.float32),)
    if HAS_BIAS:
        offset = tl.load(bias + e, mask=e_in, other=0.0).to(tl.float32)
    else:
        offset = tl.zeros([BLOCK_E], tl.float32)
    return taps, offset


@triton.jit
def _rows_before(x_b, initial_b, l0, stride_xl, e, e_in, E, W: tl.constexpr, HAS_INITIAL: tl.constexpr):
    """The W-1 inputs before row l0 of one unpacked sequence: zeros or the initial state before row 0."""
    rows = ()
    for j in tl.static_range(W - 1):
        row = l0 - (W - 1) + j
        value = tl.load(x_b + row * stride_xl + e, mask=e_in & (row >= 0), other=0.0).to(tl.float32)
        if HAS_INITIAL:
            state = tl.load(initial_b + (row + W - 1) * E + e, mask=e_in & (row < 0), other=0.0)
            value += state.to(tl.float32)  # one of the two is zero
        rows = rows + (value,)
    return rows


@triton.jit
def _step_sequence(row, L, s, start, end, cu_seqlens):
    """Move to the next sequence when `row` has passed the end of this one."""
    passed = (row >= end) & (row < L)
    start = tl.where(passed, end, start)
    s = tl.where(passed, s + 1, s)
    end = tl.load(cu_seqlens + s + 1, mask=passed, other=end).to(tl.int64)
    return s, start, end


@triton.jit
def _tap(row_value, row, back: tl.constexpr, s, start, initial, e, e_in, E, W: tl.constexpr, HAS_INITIAL: tl.constexpr):
    """The input `back` rows before `row`, or what stands for it before the start of the packed sequence."""
    if back == 0:
        return row_value
    inside = row - back >= start
    value = tl.where(inside, row_value, 0.0)
    if HAS_INITIAL:
        slot = W - 1 - back + row - start
        state = tl.load(initial + (s * (W - 1) + slot) * E + e, mask=e_in & (row - back < start), other=0.0)
        value += state.to(tl.float32)
    return value


@triton.jit
def _store_final_state(x_s, initial_s, final_s, length, stride_xl, e, E, W: tl.constexpr, HAS_INITIAL: tl.constexpr):
    """The last W-1 inputs of one sequence; a sequence shorter than that keeps the end of its initial state."""
    e_in = e < E
    for slot in tl.static_range(W - 1):
        row = length - (W - 1) + slot
        value = tl.load(x_s + row * stride_xl + e, mask=e_in & (row >= 0), other=0.0).to(tl.float32)
        if HAS_INITIAL:
            state = tl.load(initial_s + (slot + length) * E + e, mask=e_in & (row < 0), other=0.0)
            value += state.to(tl.float32)
        tl.store(final_s + slot * E + e, value, mask=e_in)


@triton.jit
def forward(
    x, weight, bias, initial, cu_seqlens, first_seq, y, final,
    stride_xb, stride_xl, L, E, n_chunks,
    W: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr,
    ROWS: tl.constexpr, UNROLL: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """y[l] = act(bias + sum_w weight[w] * x[l - (W-1) + w]) for ROWS rows of BLOCK_E channels."""
    n_blocks_e = tl.cdiv(E, BLOCK_E)
    e = (tl.program_id(0) % n_blocks_e) * BLOCK_E + tl.arange(0, BLOCK_E)
    e_in = e < E
    chunk = (tl.program_id(0) // n_blocks_e).to(tl.int64)
    b = chunk // n_chunks
    l0 = (chunk % n_chunks) * ROWS
    x_b = x + b * stride_xb

    taps, offset = _load_weights(weight, bias, e, e_in, W, HAS_BIAS, BLOCK_E)
    window = _rows_before(x_b, initial + b * (W - 1) * E, l0, stride_xl, e, e_in, E, W, HAS_INITIAL and not PACKED)
    if PACKED:
        s = tl.load(first_seq + chunk).to(tl.int64)
        start = tl.load(cu_seqlens + s).to(tl.int64)
        end = tl.load(cu_seqlens + s + 1).to(tl.int64)

    # Rows are counted from l0 in 32 bits: the pointers carry the 64-bit part.
    count = tl.minimum(L - l0, ROWS).to(tl.int32)
    x_r = x_b + l0 * stride_xl
    y_r = y + (b * L + l0) * E
    for r in range(0, count, UNROLL):
        rows = window
        for u in tl.static_range(UNROLL):  # all loads first, so that they are in flight together
            here = e_in & (r + u < count)
            rows = rows + (tl.load(x_r + u * stride_xl + e, mask=here, other=0.0).to(tl.float32),)
        for u in tl.static_range(UNROLL):
            if PACKED:
                row = l0 + r + u
                s, start, end = _step_sequence(row, L, s, start, end, cu_seqlens)
            total = offset
            for w in tl.static_range(W):
                value = rows[u + w]
                if PACKED:
                    value = _tap(value, row, W - 1 - w, s, start, initial, e, e_in, E, W, HAS_INITIAL)
                total += taps[w] * value
            if SILU:
                total = total * triton_math.sigmoid(total, x.dtype.element_ty == tl.float32)
            tl.store(y_r + u * E + e, total, mask=e_in & (r + u < count))
        window = rows[UNROLL:]
        x_r += UNROLL * stride_xl
        y_r += UNROLL * E

    if not PACKED:
        if l0 + ROWS >= L:
            state = b * (W - 1) * E
            length = l0 * 0 + L  # 64-bit
            _store_final_state(x_b, initial + state, final + state, length, stride_xl, e, E, W, HAS_INITIAL)


@triton.jit
def packed_final_state(
    x, initial, cu_seqlens, final,
    stride_xl, E,
    W: tl.constexpr, HAS_INITIAL: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The final state of each packed sequence."""
    n_blocks_e = tl.cdiv(E, BLOCK_E)
    e = (tl.program_id(0) % n_blocks_e) * BLOCK_E + tl.arange(0, BLOCK_E)
    s = (tl.program_id(0) // n_blocks_e).to(tl.int64)
    start = tl.load(cu_seqlens + s).to(tl.int64)
    length = tl.load(cu_seqlens + s + 1).to(tl.int64) - start
    state = s * (W - 1) * E
    _store_final_state(x + start * stride_xl, initial + state, final + state, length, stride_xl, e, E, W, HAS_INITIAL)


@triton.jit
def _pre_activation_gradient(dy, total, SILU: tl.constexpr, PRECISE: tl.constexpr):
    if SILU:
        gate = triton_math.sigmoid(total, PRECISE)
        gated = total * gate
        return dy * (gate * (1.0 - gated) + gated)
    return dy


@triton.jit
def backward(
    x, weight, bias, initial, cu_seqlens, first_seq, dy, dfinal, dx, partial,
    stride_xb, stride_xl, stride_dyb, stride_dyl, stride_dxl, L, E, n_chunks,
    W: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_DFINAL: tl.constexpr,
    PACKED: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """dx of ROWS rows, and this program's share of the weight and bias gradients, into its own slot of `partial`.

    Row l gives g = dy * act'(pre-activation); dx[l - k] += weight[W-1-k] * g. `pending` holds the W-1 rows of dx that
    later rows still add to, so dx leaves W-1 rows behind and the walk goes W-1 rows past the program's own.
    """
    n_blocks_e = tl.cdiv(E, BLOCK_E)
    e = (tl.program_id(0) % n_blocks_e) * BLOCK_E + tl.arange(0, BLOCK_E)
    e_in = e < E
    chunk = (tl.program_id(0) // n_blocks_e).to(tl.int64)
    b = chunk // n_chunks
    l0 = (chunk % n_chunks) * ROWS
    x_b = x + b * stride_xb

    taps, offset = _load_weights(weight, bias, e, e_in, W, HAS_BIAS, BLOCK_E)
    window = _rows_before(x_b, initial + b * (W - 1) * E, l0, stride_xl, e, e_in, E, W, HAS_INITIAL and not PACKED)
    zero = tl.zeros([BLOCK_E], tl.float32)
    pending = ()
    for _ in tl.static_range(W - 1):
        pending = pending + (zero,)
    dtaps = pending + (zero,)
    doffset = zero
    s = b
    start = l0 * 0
    end = start + L
    if PACKED:
        s = tl.load(first_seq + chunk).to(tl.int64)
        start = tl.load(cu_seqlens + s).to(tl.int64)
        end = tl.load(cu_seqlens + s + 1).to(tl.int64)

    # Rows are counted from l0 in 32 bits: the pointers carry the 64-bit part.
    own_rows = tl.minimum(L - l0, ROWS).to(tl.int32)
    all_rows = tl.minimum(L - l0, ROWS + W - 1).to(tl.int32)
    x_r = x_b + l0 * stride_xl
    dy_r = dy + b * stride_dyb + l0 * stride_dyl
    dx_r = dx + (b * L + l0 - (W - 1)) * stride_dxl
    for r in range(0, own_rows + W - 1, UNROLL):
        rows = window
        dys = ()
        for u in tl.static_range(UNROLL):  # all loads first, so that they are in flight together
            here = e_in & (r + u < all_rows)
            rows = rows + (tl.load(x_r + u * stride_xl + e, mask=here, other=0.0).to(tl.float32),)
            dys = dys + (tl.load(dy_r + u * stride_dyl + e, mask=here, other=0.0).to(tl.float32),)
        for u in tl.static_range(UNROLL):
            row = l0 + r + u
            if PACKED:
                s, start, end = _step_sequence(row, L, s, start, end, cu_seqlens)
            total = offset
            values = ()
            for w in tl.static_range(W):
                value = rows[u + w]
                if PACKED:
                    value = _tap(value, row, W - 1 - w, s, start, initial, e, e_in, E, W, HAS_INITIAL)
                values = values + (value,)
                total += taps[w] * value
            g = _pre_activation_gradient(dys[u], total, SILU, x.dtype.element_ty == tl.float32)

            fresh = zero
            if HAS_DFINAL:
                slot = row - (end - (W - 1))
                state_row = dfinal + (s * (W - 1) + slot) * E
                fresh = tl.load(state_row + e, mask=e_in & (slot >= 0) & (row < end), other=0.0)
            grown = ()
            for w in tl.static_range(W):
                share = taps[w] * g
                if PACKED and w < W - 1:
                    share = tl.where(row - (W - 1 - w) >= start, share, 0.0)
                grown = grown + ((pending + (fresh,))[w] + share,)
            is_own = (r + u >= W - 1) & (r + u < own_rows + W - 1)
            tl.store(dx_r + u * stride_dxl + e, grown[0], mask=e_in & is_own)
            pending = grown[1:]

            own = tl.where(r + u < own_rows, g, 0.0)  # later rows belong to the next program's share
            summed = ()
            for w in tl.static_range(W):
                summed = summed + (dtaps[w] + own * values[w],)
            dtaps = summed
            doffset += own
        window = rows[UNROLL:]
        x_r += UNROLL * stride_xl
        dy_r += UNROLL * stride_dyl
        dx_r += UNROLL * stride_dxl

    partial_c = partial + chunk * (W + 1) * E
    for w in tl.static_range(W):
        tl.store(partial_c + w * E + e, dtaps[w], mask=e_in)
    tl.store(partial_c + W * E + e, doffset, mask=e_in)


@triton.jit
def add_shares(
    partial, dweight, dbias, n_shares, E,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_SHARES: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Sum the programs' shares of the weight gradient (tap w) or of the bias gradient (w = W), in a fixed order."""
    e = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    w = tl.program_id(1)
    total = tl.zeros([BLOCK_SHARES, BLOCK_E], tl.float32)
    for first in range(0, n_shares, BLOCK_SHARES):
        share = (first + tl.arange(0, BLOCK_SHARES)).to(tl.int64)[:, None]
        inside = (share < n_shares) & (e < E)[None, :]
        total += tl.load(partial + (share * (W + 1) + w) * E + e[None, :], mask=inside, other=0.0)
    gradient = tl.sum(total, axis=0)
    tl.store(dweight + e * W + w, gradient, mask=(e < E) & (w < W))
    if HAS_BIAS:
        tl.store(dbias + e, gradient, mask=(e < E) & (w == W))


@triton.jit
def initial_state_gradient(
    x, weight, bias, initial, cu_seqlens, dy, dfinal, dinitial,
    stride_xb, stride_xl, stride_dyb, stride_dyl, L, E,
    W: tl.constexpr, SILU: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DFINAL: tl.constexpr, PACKED: tl.constexpr,
    BLOCK_E: tl.constexpr,
):  # fmt: skip
    """d(initial state) of each sequence: its first W-1 rows saw it, and a short one passed some of it on."""
    n_blocks_e = tl.cdiv(E, BLOCK_E)
    e = (tl.program_id(0) % n_blocks_e) * BLOCK_E + tl.arange(0, BLOCK_E)
    e_in = e < E
    s = (tl.program_id(0) // n_blocks_e).to(tl.int64)
    if PACKED:
        start = tl.load(cu_seqlens + s).to(tl.int64)
        length = tl.load(cu_seqlens + s + 1).to(tl.int64) - start
        x_s = x + start * stride_xl
        dy_s = dy + start * stride_dyl
    else:
        length = s * 0 + L  # 64-bit
        x_s = x + s * stride_xb
        dy_s = dy + s * stride_dyb
    state_s = s * (W - 1) * E

    taps, offset = _load_weights(weight, bias, e, e_in, W, HAS_BIAS, BLOCK_E)
    inputs = ()
    for slot in tl.static_range(W - 1):
        inputs = inputs + (tl.load(initial + state_s + slot * E + e, mask=e_in, other=0.0).to(tl.float32),)
    gradients = ()
    for row in tl.static_range(W - 1):
        here = e_in & (row < length)
        inputs = inputs + (tl.load(x_s + row * stride_xl + e, mask=here, other=0.0).to(tl.float32),)
        total = offset
        for w in tl.static_range(W):
            total += taps[w] * inputs[row + w]
        dy_row = tl.load(dy_s + row * stride_dyl + e, mask=here, other=0.0).to(tl.float32)
        gradients = gradients + (_pre_activation_gradient(dy_row, total, SILU, x.dtype.element_ty == tl.float32),)
    for slot in tl.static_range(W - 1):
        value = tl.zeros([BLOCK_E], tl.float32)
        if HAS_DFINAL:
            passed_to = slot - length
            value += tl.load(dfinal + state_s + passed_to * E + e, mask=e_in & (passed_to >= 0), other=0.0)
        for row in tl.static_range(slot + 1):  # row sees slot through tap w = slot - row
            value += taps[slot - row] * gradients[row]
        tl.store(dinitial + state_s + slot * E + e, value, mask=e_in)
