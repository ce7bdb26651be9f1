# type: ignore
# Triton compiles a dialect of Python that checkers misread.
"""Triton kernels of SSD; imported only when one is launched (see gpu.py, which says in which order; README.md: why).

A chunk is Q positions of one sequence, fewer at its end; chunk i of a batch row starts at position i * Q, those of
packed sequences stand in `table` as (start, count). Tensors kept per chunk:

    steps, high, low   (chunks, H, Q)      step sizes; cumulative sums of dt a in the chunk, times log2(e), as the sum
                                           of two fp32 numbers (`low` is read where PRECISE)
    states             (chunks, H, P, N)   state in front of each chunk, in x's dtype
    dnext              (chunks, H, P, N)   gradient of the state behind each chunk, in x's dtype

Names of positions: q reads, k writes, k <= q. Heads wider than BLOCK_P count as several "virtual" heads v that share
everything but their channels. Decays are exp2 of differences that are never positive. Offsets of chunks are 64-bit.
"""

import triton
import triton.language as tl

from seqkernels.triton_math import exp2, sigmoid

# Compiled once for all values: a model of another width or length does not wait for the compiler again.
SIZES = ("L", "M", "H", "R", "G", "HEADS", "slices", "chunks", "size", "stride_slice")


@triton.jit
def _locate(chunk, table, L, M, Q: tl.constexpr, PACKED: tl.constexpr):
    """Batch row, first position and number of positions of a chunk."""
    if PACKED:
        batch = chunk * 0
        start = tl.load(table + 2 * chunk)
        count = tl.load(table + 2 * chunk + 1)
    else:
        batch = chunk // M
        start = (chunk % M) * Q
        count = tl.minimum(L - start, Q)
    return batch, start, count.to(tl.int32)


@triton.jit
def _load(pointer, rows, stride, columns, n_rows, n_columns):
    """A tile with dense columns; zeros outside."""
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    return tl.load(pointer + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _state(pointer, p, P, n, N):
    """A (P, N) tile of a state."""
    return tl.load(pointer + p[:, None] * N + n[None, :], mask=(p[:, None] < P) & (n[None, :] < N), other=0.0)


@triton.jit
def _dot(a, b, acc):
    """acc + a b; fp32 factors are not rounded."""
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _decay(high_q, low_q, high_k, low_k, PRECISE: tl.constexpr):
    """What is left at q of what was written at k <= q; pairs the other way round give 1, to be masked elsewhere."""
    gap = high_q - high_k
    if PRECISE:
        gap += low_q - low_k
    return exp2(tl.minimum(gap, 0.0))


@triton.jit
def _softplus(x):
    """log(1 + exp(x)), the identity above 20; what rounding 1 + exp(x) lost is put back."""
    e = tl.exp(tl.minimum(x, 20.0))
    one_plus = 1.0 + e
    log = tl.where(one_plus == 1.0, e, tl.log(one_plus) * (e / tl.where(one_plus == 1.0, 1.0, one_plus - 1.0)))
    return tl.where(x > 20.0, x, log)


@triton.jit(do_not_specialize=SIZES)
def step_sizes(
    dt, a, dt_bias, table, steps, high, low,
    stride_b, stride_l, stride_h, L, M, H,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, PACKED: tl.constexpr, PRECISE: tl.constexpr,
    Q: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Step sizes as they are used, 0 behind the chunk's end, and their cumulative decays."""
    chunk = tl.program_id(0).to(tl.int64)
    batch, start, count = _locate(chunk, table, L, M, Q, PACKED)
    rows = tl.arange(0, Q)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    inside = (rows[:, None] < count) & (h[None, :] < H)
    source = dt + batch * stride_b + start * stride_l
    step = tl.load(source + rows[:, None] * stride_l + h[None, :] * stride_h, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        step += tl.load(dt_bias + h, mask=h < H, other=0.0)[None, :]
    if SOFTPLUS:
        step = _softplus(step)
    step = tl.where(inside, step, 0.0)
    rate = tl.load(a + h, mask=h < H, other=0.0).to(tl.float64)
    exact = tl.cumsum(step.to(tl.float64) * rate[None, :], axis=0) * 1.4426950408889634
    nearest = exact.to(tl.float32)
    target = (chunk * H + h[None, :]) * Q + rows[:, None]
    real_head = (rows[:, None] < Q) & (h[None, :] < H)
    tl.store(steps + target, step, mask=real_head)
    tl.store(high + target, nearest, mask=real_head)
    if PRECISE:
        tl.store(low + target, (exact - nearest.to(tl.float64)).to(tl.float32), mask=real_head)


@triton.jit(do_not_specialize=SIZES)
def chunk_states(
    x, b, states, steps, high, low, table, local, reads,
    stride_xb, stride_xl, stride_xh, stride_bb, stride_bl, stride_bg,
    L, M, H, P, N, R,
    GRADIENT: tl.constexpr, PACKED: tl.constexpr, PRECISE: tl.constexpr,
    Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What a chunk by itself adds to the state behind it, sum_k exp(sum after k) dt_k x_k b_k^T, in fp32.

    GRADIENT: x is dy and b is c, and what the chunk adds to the gradient of the state in front of it,
    sum_q exp(sum up to q) dy_q c_q^T; also `reads`, what comes through that state to the decay's gradient at q.
    """
    p_blocks = tl.cdiv(P, BLOCK_P)
    heads = H * p_blocks
    chunk = (tl.program_id(0) // heads).to(tl.int64)
    v = tl.program_id(0) % heads
    h = v // p_blocks
    batch, start, count = _locate(chunk, table, L, M, Q, PACKED)
    rows = tl.arange(0, Q)
    p = (v % p_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    vector = (chunk * H + h) * Q
    x_tile = _load(x + batch * stride_xb + start * stride_xl + h * stride_xh, rows, stride_xl, p, count, P)
    b_tile = _load(b + batch * stride_bb + start * stride_bl + (h // R) * stride_bg, rows, stride_bl, n, count, N)
    exponent = tl.load(high + vector + rows)
    if GRADIENT:
        weight = exp2(exponent)
    else:
        gap = tl.load(high + vector + Q - 1) - exponent
        if PRECISE:
            gap += tl.load(low + vector + Q - 1) - tl.load(low + vector + rows)
        weight = exp2(gap) * tl.load(steps + vector + rows)
    weighted = (x_tile.to(tl.float32) * weight[:, None]).to(x.dtype.element_ty)
    total = _dot(tl.trans(weighted), b_tile, tl.zeros([BLOCK_P, BLOCK_N], tl.float32))
    place = (chunk * H + h) * P * N
    inside = (p[:, None] < P) & (n[None, :] < N)
    tl.store(local + place + p[:, None] * N + n[None, :], total, mask=inside)
    if GRADIENT:
        before = _state(states + place, p, P, n, N)
        read = _dot(b_tile, tl.trans(before), tl.zeros([Q, BLOCK_P], tl.float32))
        read = tl.sum(read * x_tile.to(tl.float32), axis=1) * weight
        tl.store(reads + ((chunk * tl.num_programs(1) + tl.program_id(1)) * heads + v) * Q + rows, read)


@triton.jit(do_not_specialize=SIZES)
def pass_states(
    local, high, initial, first_chunk, states, final,
    M, H, PN,
    HAS_INITIAL: tl.constexpr, PACKED: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Carry the state through the chunks of a sequence; writes the one in front of each chunk, and the last."""
    blocks = tl.cdiv(PN, BLOCK)
    at = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < PN
    h = (tl.program_id(0) // blocks) % H
    sequence = (tl.program_id(0) // blocks // H).to(tl.int64)
    if PACKED:
        first = tl.load(first_chunk + sequence)
        count = (tl.load(first_chunk + sequence + 1) - first).to(tl.int32)
    else:
        first = sequence * M
        count = M
    place = (sequence * H + h) * PN
    if HAS_INITIAL:
        state = tl.load(initial + place + at, mask=inside, other=0.0)
    else:
        state = tl.zeros([BLOCK], tl.float32)
    local += (first * H + h) * PN
    states += (first * H + h) * PN
    high += (first * H + h) * Q + Q - 1
    for i in range(0, count, UNROLL):
        added = ()
        decays = ()
        for u in tl.static_range(UNROLL):  # all loads first, so that they are in flight together
            added = added + (tl.load(local + u * H * PN + at, mask=inside & (i + u < count), other=0.0),)  # noqa: RUF005
            decays = decays + (tl.load(high + u * H * Q, mask=i + u < count, other=0.0),)  # noqa: RUF005
        for u in tl.static_range(UNROLL):
            tl.store(states + u * H * PN + at, state, mask=inside & (i + u < count))
            state = state * exp2(decays[u]) + added[u]  # behind the end: times 1 plus 0
        local += UNROLL * H * PN
        states += UNROLL * H * PN
        high += UNROLL * H * Q
    tl.store(final + place + at, state, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def pass_gradients(
    local, states, high, dfinal, first_chunk, dnext, passing, dinitial,
    M, H, PN,
    HAS_DFINAL: tl.constexpr, PACKED: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """`pass_states` backwards: the gradient of the state behind each chunk, and of the first.

    Also `passing`, the part of the decay's gradient that passes through a whole chunk, one sum a block.
    """
    blocks = tl.cdiv(PN, BLOCK)
    block = tl.program_id(0) % blocks
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < PN
    h = (tl.program_id(0) // blocks) % H
    sequence = (tl.program_id(0) // blocks // H).to(tl.int64)
    if PACKED:
        first = tl.load(first_chunk + sequence)
        count = (tl.load(first_chunk + sequence + 1) - first).to(tl.int32)
    else:
        first = sequence * M
        count = M
    place = (sequence * H + h) * PN
    if HAS_DFINAL:
        gradient = tl.load(dfinal + place + at, mask=inside, other=0.0)
    else:
        gradient = tl.zeros([BLOCK], tl.float32)
    last = (first + count - 1) * H + h
    local += last * PN
    states += last * PN
    dnext += last * PN
    high += last * Q + Q - 1
    passing += last * blocks + block
    for i in range(0, count, UNROLL):
        added = ()
        before = ()
        decays = ()
        for u in tl.static_range(UNROLL):
            here = inside & (i + u < count)
            added = added + (tl.load(local - u * H * PN + at, mask=here, other=0.0),)  # noqa: RUF005
            before = before + (tl.load(states - u * H * PN + at, mask=here, other=0.0),)  # noqa: RUF005
            decays = decays + (tl.load(high - u * H * Q, mask=i + u < count, other=0.0),)  # noqa: RUF005
        for u in tl.static_range(UNROLL):
            tl.store(dnext - u * H * PN + at, gradient, mask=inside & (i + u < count))
            gradient = gradient * exp2(decays[u])
            through = tl.sum(gradient * before[u].to(tl.float32), axis=0)
            tl.store(passing - u * H * blocks, through, mask=i + u < count)
            gradient += added[u]
        local -= UNROLL * H * PN
        states -= UNROLL * H * PN
        dnext -= UNROLL * H * PN
        high -= UNROLL * H * Q
        passing -= UNROLL * H * blocks
    tl.store(dinitial + place + at, gradient, mask=inside)


@triton.jit
def _heads_of(slice_, R, HEADS):
    """Group, first and behind-last head of a slice: at most HEADS heads of one group."""
    per_group = tl.cdiv(R, HEADS)
    group = slice_ // per_group
    first = group * R + (slice_ % per_group) * HEADS
    return group, first, tl.minimum(first + HEADS, (group + 1) * R)


@triton.jit
def _projection_tiles(
    pointer, rows, stride, count, N, BLOCK_N: tl.constexpr, N_BLOCKS: tl.constexpr, PRECISE: tl.constexpr
):
    """b or c of a chunk, in tiles that stay in shared memory for all heads; none for fp32, which would not fit."""
    tiles = ()
    if not PRECISE:
        for j in tl.static_range(N_BLOCKS):
            tiles = tiles + (_load(pointer, rows, stride, j * BLOCK_N + tl.arange(0, BLOCK_N), count, N),)  # noqa: RUF005
    return tiles


@triton.jit
def _products(
    tiles, left, right, rows, columns, stride_left, stride_right, count, N,
    BLOCK_N: tl.constexpr, N_BLOCKS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """left_i . right_j over N for rows i and columns j of a chunk; `tiles` are left's."""
    products = tl.zeros([rows.shape[0], columns.shape[0]], tl.float32)
    if PRECISE:
        for j in range(N_BLOCKS):
            n = j * BLOCK_N + tl.arange(0, BLOCK_N)
            right_tile = _load(right, columns, stride_right, n, count, N)
            products = _dot(_load(left, rows, stride_left, n, count, N), tl.trans(right_tile), products)
    else:
        for j in tl.static_range(N_BLOCKS):
            n = j * BLOCK_N + tl.arange(0, BLOCK_N)
            products = _dot(tiles[j], tl.trans(_load(right, columns, stride_right, n, count, N)), products)
    return products


@triton.jit
def _through_state(
    tiles, pointer, rows, stride, count, state, p, P, N,
    BLOCK_N: tl.constexpr, N_BLOCKS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """state (P, N) applied to b or c at each row: (rows, P)."""
    out = tl.zeros([rows.shape[0], p.shape[0]], tl.float32)
    if PRECISE:
        for j in range(N_BLOCKS):
            n = j * BLOCK_N + tl.arange(0, BLOCK_N)
            out = _dot(_load(pointer, rows, stride, n, count, N), tl.trans(_state(state, p, P, n, N)), out)
    else:
        for j in tl.static_range(N_BLOCKS):
            n = j * BLOCK_N + tl.arange(0, BLOCK_N)
            out = _dot(tiles[j], tl.trans(_state(state, p, P, n, N)), out)
    return out


@triton.jit(do_not_specialize=SIZES)
def chunk_output(
    x, b, c, d, states, steps, high, low, table, y,
    stride_xb, stride_xl, stride_xh, stride_bb, stride_bl, stride_bg, stride_cb, stride_cl, stride_cg,
    L, M, H, P, N, R, HEADS, slices,
    HAS_D: tl.constexpr, PACKED: tl.constexpr, PRECISE: tl.constexpr,
    Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, N_BLOCKS: tl.constexpr,
):  # fmt: skip
    """y_q = sum_k decay(q, k) (c_q . b_k) dt_k x_k + exp(sum up to q) c_q . state + D x_q, for a slice of heads.

    The products c_q . b_k are made once for all heads; D joins their diagonal.
    """
    chunk = (tl.program_id(0) // slices).to(tl.int64)
    group, first, last = _heads_of(tl.program_id(0) % slices, R, HEADS)
    batch, start, count = _locate(chunk, table, L, M, Q, PACKED)
    q = tl.arange(0, Q)
    c += batch * stride_cb + start * stride_cl + group * stride_cg
    b += batch * stride_bb + start * stride_bl + group * stride_bg
    x += batch * stride_xb + start * stride_xl
    y += (batch * L + start) * H * P
    tiles = _projection_tiles(c, q, stride_cl, count, N, BLOCK_N, N_BLOCKS, PRECISE)
    products = _products(tiles, c, b, q, q, stride_cl, stride_bl, count, N, BLOCK_N, N_BLOCKS, PRECISE)
    products = tl.where(q[:, None] >= q[None, :], products, 0.0)
    p_blocks = tl.cdiv(P, BLOCK_P)
    for v in range(first * p_blocks, last * p_blocks):
        h = v // p_blocks
        p = (v % p_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        vector = (chunk * H + h) * Q + q
        exponent = tl.load(high + vector)
        rest = tl.load(low + vector) if PRECISE else exponent
        step = tl.load(steps + vector)
        x_tile = _load(x + h * stride_xh, q, stride_xl, p, count, P)
        state = states + (chunk * H + h) * P * N
        out = _through_state(tiles, c, q, stride_cl, count, state, p, P, N, BLOCK_N, N_BLOCKS, PRECISE)
        out *= exp2(exponent)[:, None]
        decay = _decay(exponent[:, None], rest[:, None], exponent[None, :], rest[None, :], PRECISE)
        weights = products * decay * step[None, :]
        if HAS_D:
            weights += tl.where(q[:, None] == q[None, :], tl.load(d + h), 0.0)
        out = _dot(weights.to(x.dtype.element_ty), x_tile, out)
        inside = (q[:, None] < count) & (p[None, :] < P)
        tl.store(y + q[:, None] * (H * P) + h * P + p[None, :], out, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def input_gradients(
    x, dy, b, c, d, dnext, steps, high, low, table, dx, direct, pair_reads, pair_writes, writes, dskip,
    stride_xb, stride_xl, stride_xh, stride_yb, stride_yl, stride_yh,
    stride_bb, stride_bl, stride_bg, stride_cb, stride_cl, stride_cg,
    L, M, H, P, N, R, HEADS, slices,
    HAS_D: tl.constexpr, PACKED: tl.constexpr, PRECISE: tl.constexpr, Q: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, N_BLOCKS: tl.constexpr,
):  # fmt: skip
    """dx_k = dt_k u_k + D dy_k with u_k = sum_q decay(q, k) (c_q . b_k) dy_q + exp(sum after k) dnext b_k.

    And what dt's gradient is made of, per position: `direct`, u_k . x_k; `pair_reads` and `pair_writes`, the pairs
    k < q inside the chunk summed for each q and for each k, whose differences summed from the chunk's end are the pairs
    that cross a position (PRECISE: `pair_reads` are those pairs themselves); `writes`, what k writes to the state
    behind, stored one further. `dskip` is the chunk's x . dy. The positions q come in blocks: a tile of pairs fits
    the registers.
    """
    chunk = (tl.program_id(0) // slices).to(tl.int64)
    group, first, last = _heads_of(tl.program_id(0) % slices, R, HEADS)
    batch, start, count = _locate(chunk, table, L, M, Q, PACKED)
    k = tl.arange(0, Q)
    c += batch * stride_cb + start * stride_cl + group * stride_cg
    b += batch * stride_bb + start * stride_bl + group * stride_bg
    x += batch * stride_xb + start * stride_xl
    dy += batch * stride_yb + start * stride_yl
    dx += (batch * L + start) * H * P
    tiles = _projection_tiles(b, k, stride_bl, count, N, BLOCK_N, N_BLOCKS, PRECISE)
    products = ()
    for i in tl.static_range(Q // BLOCK_Q):
        q = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
        block = _products(tiles, b, c, k, q, stride_bl, stride_cl, count, N, BLOCK_N, N_BLOCKS, PRECISE)
        products = products + (tl.where(k[:, None] <= q[None, :], block, 0.0),)  # noqa: RUF005
    p_blocks = tl.cdiv(P, BLOCK_P)
    for v in range(first * p_blocks, last * p_blocks):
        h = v // p_blocks
        p = (v % p_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        vector = (chunk * H + h) * Q
        exponent = tl.load(high + vector + k)
        rest = tl.load(low + vector + k) if PRECISE else exponent
        step = tl.load(steps + vector + k)
        gap = tl.load(high + vector + Q - 1) - exponent
        if PRECISE:
            gap += tl.load(low + vector + Q - 1) - rest
        x_tile = _load(x + h * stride_xh, k, stride_xl, p, count, P)
        target = (chunk * H * p_blocks + v) * Q

        state = dnext + (chunk * H + h) * P * N
        out = _through_state(tiles, b, k, stride_bl, count, state, p, P, N, BLOCK_N, N_BLOCKS, PRECISE)
        out *= exp2(gap)[:, None]
        used = tl.sum(out * x_tile.to(tl.float32), axis=1)
        tl.store(writes + target + (k + 1) % Q, tl.where(k == Q - 1, 0.0, step * used))
        out *= step[:, None]

        later = tl.zeros([Q], tl.float32)
        crossing = tl.zeros([Q], tl.float32)
        skip = tl.zeros([Q], tl.float32)
        for i in tl.static_range(Q // BLOCK_Q):
            q = i * BLOCK_Q + tl.arange(0, BLOCK_Q)
            exponent_q = tl.load(high + vector + q)
            rest_q = tl.load(low + vector + q) if PRECISE else exponent_q
            decay = _decay(exponent_q[None, :], rest_q[None, :], exponent[:, None], rest[:, None], PRECISE)
            weights = products[i] * decay
            dy_tile = _load(dy + h * stride_yh, q, stride_yl, p, count, P)
            inner = _dot(x_tile, tl.trans(dy_tile), tl.zeros([Q, BLOCK_Q], tl.float32))
            same = k[:, None] == q[None, :]
            used += tl.sum(tl.where(same, weights * inner, 0.0), axis=1)
            pair = tl.where(same, 0.0, weights * inner)
            later += tl.sum(pair, axis=1)
            if PRECISE:
                passed = tl.cumsum(pair * step[:, None], axis=0)
                crossing += tl.sum(tl.where(k[:, None] < q[None, :], passed, 0.0), axis=1)
            else:
                tl.store(pair_reads + target + q, tl.sum(pair * step[:, None], axis=0))
            weights *= step[:, None]
            if HAS_D:
                skip += tl.sum(tl.where(same, inner, 0.0), axis=1)
                weights += tl.where(same, tl.load(d + h), 0.0)
            out = _dot(weights.to(x.dtype.element_ty), dy_tile, out)
        if PRECISE:
            tl.store(pair_reads + target + (k + 1) % Q, tl.where(k == Q - 1, 0.0, crossing))
        else:
            tl.store(pair_writes + target + k, step * later)
        tl.store(direct + target + k, used + later)
        if HAS_D:
            tl.store(dskip + chunk * H * p_blocks + v, tl.sum(skip))
        inside = (k[:, None] < count) & (p[None, :] < P)
        tl.store(dx + k[:, None] * (H * P) + h * P + p[None, :], out, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def projection_gradients(
    own, other, projection, states, steps, high, low, table, out,
    stride_ob, stride_ol, stride_oh, stride_tb, stride_tl, stride_th, stride_pb, stride_pl, stride_pg,
    L, M, H, P, N, R, HEADS, G, slices, stride_slice,
    OF_B: tl.constexpr, PACKED: tl.constexpr, PRECISE: tl.constexpr,
    Q: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dc_q = sum_k v(q, k) b_k + sum_h exp(sum up to q) state dy_q, v(q, k) = sum_h decay(q, k) dt_k dy_q . x_k.

    Then own is dy, other x, projection b. OF_B: db_k = sum_q v(q, k) c_q + sum_h dt_k exp(sum after k) dnext x_k, with
    own x, other dy, projection c and states dnext. The heads of a slice are added here, slices later.
    """
    chunk = (tl.program_id(0) // slices).to(tl.int64)
    slice_ = tl.program_id(0) % slices
    group, first, last = _heads_of(slice_, R, HEADS)
    batch, start, count = _locate(chunk, table, L, M, Q, PACKED)
    i = tl.arange(0, Q)  # rows: own positions; columns: the others'
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    own += batch * stride_ob + start * stride_ol
    other += batch * stride_tb + start * stride_tl
    summed = tl.zeros([Q, Q], tl.float32)
    p_blocks = tl.cdiv(P, BLOCK_P)
    for v in range(first * p_blocks, last * p_blocks):
        h = v // p_blocks
        p = (v % p_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        vector = (chunk * H + h) * Q + i
        exponent = tl.load(high + vector)
        rest = tl.load(low + vector) if PRECISE else exponent
        step = tl.load(steps + vector)
        own_tile = _load(own + h * stride_oh, i, stride_ol, p, count, P)
        other_tile = _load(other + h * stride_th, i, stride_tl, p, count, P)
        inner = _dot(own_tile, tl.trans(other_tile), tl.zeros([Q, Q], tl.float32))
        if OF_B:
            decay = _decay(exponent[None, :], rest[None, :], exponent[:, None], rest[:, None], PRECISE)
            summed += inner * (decay * step[:, None])
        else:
            decay = _decay(exponent[:, None], rest[:, None], exponent[None, :], rest[None, :], PRECISE)
            summed += inner * (decay * step[None, :])
    if OF_B:
        summed = tl.where(i[:, None] <= i[None, :], summed, 0.0)
    else:
        summed = tl.where(i[:, None] >= i[None, :], summed, 0.0)
    source = projection + batch * stride_pb + start * stride_pl + group * stride_pg
    total = tl.zeros([Q, BLOCK_N], tl.float32)
    total = _dot(summed.to(own.dtype.element_ty), _load(source, i, stride_pl, n, count, N), total)
    for v in range(first * p_blocks, last * p_blocks):  # a loop of its own: both sums at once would not fit registers
        h = v // p_blocks
        p = (v % p_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
        vector = (chunk * H + h) * Q
        exponent = tl.load(high + vector + i)
        if OF_B:
            gap = tl.load(high + vector + Q - 1) - exponent
            if PRECISE:
                gap += tl.load(low + vector + Q - 1) - tl.load(low + vector + i)
            weight = exp2(gap) * tl.load(steps + vector + i)
        else:
            weight = exp2(exponent)
        own_tile = _load(own + h * stride_oh, i, stride_ol, p, count, P)
        weighted = (own_tile.to(tl.float32) * weight[:, None]).to(own.dtype.element_ty)
        total = _dot(weighted, _state(states + (chunk * H + h) * P * N, p, P, n, N), total)
    target = out + (slice_ % tl.cdiv(R, HEADS)).to(tl.int64) * stride_slice + ((batch * L + start) * G + group) * N
    inside = (i[:, None] < count) & (n[None, :] < N)
    tl.store(target + i[:, None] * (G * N) + n[None, :], total, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def add_slices(partial, out, size, stride_slice, slices, BLOCK: tl.constexpr):
    """Add the slices of heads, in order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(slices):
        total += tl.load(partial + at, mask=at < size, other=0.0)
        partial += stride_slice
    tl.store(out + at, total, mask=at < size)


@triton.jit(do_not_specialize=SIZES)
def step_gradients(
    dt, a, dt_bias, steps, direct, pair_reads, pair_writes, writes, reads, passing, dskip, table, ddt, sums,
    stride_b, stride_l, stride_h, L, M, H, chunks,
    HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, PACKED: tl.constexpr, PRECISE: tl.constexpr,
    Q: tl.constexpr, P_BLOCKS: tl.constexpr, N_BLOCKS: tl.constexpr, PASS_BLOCKS: tl.constexpr,
    PASS_TILE: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The gradient of dt a at position j is all that crosses j; from it those of dt, and the chunk's of a, bias, D.

    Crossing j: pairs k < j <= q, reads of the state in front at q >= j, writes at k < j to the state behind, and the
    state that passes through.
    """
    chunk = tl.program_id(0).to(tl.int64)
    batch, start, count = _locate(chunk, table, L, M, Q, PACKED)
    j = tl.arange(0, Q)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_head = h < H
    real = is_head[:, None] & (j[None, :] < count)
    crossing = tl.zeros([BLOCK_H, Q], tl.float32)
    suffix = tl.zeros([BLOCK_H, Q], tl.float32)
    prefix = tl.zeros([BLOCK_H, Q], tl.float32)
    gradient = tl.zeros([BLOCK_H, Q], tl.float32)
    skip = tl.zeros([BLOCK_H], tl.float32)
    for block in tl.static_range(P_BLOCKS):
        v = h * P_BLOCKS + block
        place = (chunk * H * P_BLOCKS + v[:, None]) * Q + j[None, :]
        if PRECISE:
            crossing += tl.load(pair_reads + place, mask=real, other=0.0)
        else:
            suffix += tl.load(pair_reads + place, mask=real, other=0.0)
            suffix -= tl.load(pair_writes + place, mask=real, other=0.0)
        prefix += tl.load(writes + place, mask=real, other=0.0)
        gradient += tl.load(direct + place, mask=real, other=0.0)
        for n in tl.static_range(N_BLOCKS):
            place = ((chunk * N_BLOCKS + n) * H * P_BLOCKS + v[:, None]) * Q + j[None, :]
            suffix += tl.load(reads + place, mask=real, other=0.0)
        if HAS_D:
            skip += tl.load(dskip + chunk * H * P_BLOCKS + v, mask=is_head, other=0.0)
    block = tl.arange(0, PASS_TILE)
    place = (chunk * H + h[:, None]) * PASS_BLOCKS + block[None, :]
    there = is_head[:, None] & (block[None, :] < PASS_BLOCKS) & (count > 0)
    through = tl.sum(tl.load(passing + place, mask=there, other=0.0), axis=1)
    crossing += tl.cumsum(suffix, axis=1, reverse=True) + tl.cumsum(prefix, axis=1) + through[:, None]
    rate = tl.load(a + h, mask=is_head, other=0.0)
    step = tl.load(steps + (chunk * H + h[:, None]) * Q + j[None, :], mask=real, other=0.0)
    gradient += rate[:, None] * crossing
    if SOFTPLUS:
        source = dt + batch * stride_b + start * stride_l
        raw = tl.load(source + j[None, :] * stride_l + h[:, None] * stride_h, mask=real, other=0.0).to(tl.float32)
        if HAS_BIAS:
            raw += tl.load(dt_bias + h, mask=is_head, other=0.0)[:, None]
        gradient = tl.where(raw > 20.0, gradient, gradient / (1.0 + tl.exp(-raw)))
    gradient = tl.where(real, gradient, 0.0)
    target = (batch * L + start + j[None, :]) * H + h[:, None]
    tl.store(ddt + target, gradient, mask=real)
    tl.store(sums + chunk * H + h, tl.sum(tl.where(real, crossing * step, 0.0), axis=1), mask=is_head)
    tl.store(sums + (chunks + chunk) * H + h, tl.sum(gradient, axis=1), mask=is_head)
    tl.store(sums + (2 * chunks + chunk) * H + h, skip, mask=is_head)


@triton.jit
def _convolved(
    xbc, before, after, weight, bias, channel, there, C, writes,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """silu of the convolution at one position for some channels; shifts their window where `writes`."""
    present = tl.load(xbc + channel, mask=there, other=0.0)
    total = present.to(tl.float32) * tl.load(weight + channel * W + W - 1, mask=there, other=0.0).to(tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    for w in tl.static_range(W - 1):
        past = tl.load(before + w * C + channel, mask=there, other=0.0)
        total += past * tl.load(weight + channel * W + w, mask=there, other=0.0).to(tl.float32)
        if w > 0:
            tl.store(after + (w - 1) * C + channel, past, mask=there & writes)
    tl.store(after + (W - 2) * C + channel, present.to(tl.float32), mask=there & writes)
    # rounded where the convolution of longer pieces rounds
    return (total * sigmoid(total, PRECISE)).to(xbc.dtype.element_ty).to(tl.float32)


@triton.jit
def decode_step(
    xbc, dt, conv_before, conv_after, conv_weight, conv_bias, dt_bias, a_log, d, before, after, y,
    stride_xbc, stride_dt, H, P, N, R, G,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One position of one row, BLOCK_P channels of one head: convolution, recurrence, skip; `after` may be `before`.

    b and c are convolved by every program that reads them; the first head of a group writes their window.
    """
    h = tl.program_id(0) % H
    row = (tl.program_id(0) // H).to(tl.int64)
    C = H * P + 2 * G * N
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    n = tl.arange(0, BLOCK_N)
    xbc += row * stride_xbc
    conv_before += row * (W - 1) * C
    conv_after += row * (W - 1) * C
    first = (h % R == 0) & (tl.program_id(1) == 0)
    group = H * P + (h // R) * N + n
    x = _convolved(
        xbc, conv_before, conv_after, conv_weight, conv_bias, h * P + p, p < P, C, h >= 0, W, HAS_BIAS, PRECISE
    )
    b = _convolved(xbc, conv_before, conv_after, conv_weight, conv_bias, group, n < N, C, first, W, HAS_BIAS, PRECISE)
    c = _convolved(
        xbc, conv_before, conv_after, conv_weight, conv_bias, group + G * N, n < N, C, first, W, HAS_BIAS, PRECISE
    )
    step = _softplus(tl.load(dt + row * stride_dt + h).to(tl.float32) + tl.load(dt_bias + h).to(tl.float32))
    decay = tl.exp(-step * tl.exp(tl.load(a_log + h).to(tl.float32)))
    inside = (p[:, None] < P) & (n[None, :] < N)
    place = (row * H + h) * P * N + p[:, None] * N + n[None, :]
    state = decay * tl.load(before + place, mask=inside, other=0.0) + (step * x)[:, None] * b[None, :]
    tl.store(after + place, state, mask=inside)
    out = tl.sum(state * c[None, :], axis=1) + tl.load(d + h).to(tl.float32) * x
    tl.store(y + (row * H + h) * P + p, out, mask=p < P)
