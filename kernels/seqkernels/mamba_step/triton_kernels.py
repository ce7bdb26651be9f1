# type: ignore
# ruff: noqa: RUF005
# Triton compiles a dialect of Python: no starred tuples, `if` on compile-time values, ranges that checkers misread.
"""Triton kernels of the fused decode step; imported only when one is launched (see gpu.py).

Two launches: x_proj needs every channel of the convolution's output before any channel can go on, and two kernels are
cheaper than one with a barrier over the whole card. The first leaves x_proj's sum as one partial sum per block of
channels, which the second adds up in order (deterministic). All arithmetic is fp32.
"""

import triton
import triton.language as tl

from seqkernels import triton_math


@triton.jit
def convolve_and_project(
    xz, conv_state, conv_weight, conv_bias, x_proj, new_conv_state, x_out, partial,
    stride_xz, stride_x_proj, B, E, J,
    W: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """BLOCK_B rows of BLOCK_E channels: convolution, SiLU, shifted state, and their share of all J rows of x_proj."""
    b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)[:, None]
    e_row = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    e = e_row[None, :]
    here = (b < B) & (e < E)
    spot = b * (W - 1) * E + e

    rows = ()
    for w in tl.static_range(W - 1):
        rows = rows + (tl.load(conv_state + spot + w * E, mask=here, other=0.0),)
    rows = rows + (tl.load(xz + b * stride_xz + e, mask=here, other=0.0).to(tl.float32),)
    total = tl.zeros([BLOCK_B, BLOCK_E], tl.float32)
    if HAS_BIAS:
        total += tl.load(conv_bias + e, mask=e < E, other=0.0)
    for w in tl.static_range(W):
        total += tl.load(conv_weight + e * W + w, mask=e < E, other=0.0) * rows[w]
    total = total * triton_math.sigmoid(total)
    tl.debug_barrier()  # in place: every thread has read the old state
    for w in tl.static_range(W - 1):
        tl.store(new_conv_state + spot + w * E, rows[w + 1], mask=here)
    tl.store(x_out + b * E + e, total, mask=here)

    for j0 in range(0, J, BLOCK_J):
        j = j0 + tl.arange(0, BLOCK_J)
        weight_spot = j[:, None] * stride_x_proj + e_row[None, :]
        weights = tl.load(x_proj + weight_spot, mask=(j < J)[:, None] & (e < E), other=0.0).to(tl.float32)
        if BLOCK_B >= 16:
            share = tl.dot(total, tl.trans(weights), input_precision="tf32x3")  # three passes: fp32's accuracy
        else:
            share = tl.sum(weights[None, :, :] * total[:, None, :], axis=2)
        tl.store(partial + (tl.program_id(1) * B + b) * J + j[None, :], share, mask=(b < B) & (j < J)[None, :])


@triton.jit
def _add_shares(partial, b, first, count, B, J, n_shares, BLOCK_SHARES: tl.constexpr, BLOCK: tl.constexpr):
    """Entries first .. first+count of x_proj's output for row b."""
    share = tl.arange(0, BLOCK_SHARES)[:, None]
    j = tl.arange(0, BLOCK)[None, :]
    inside = (share < n_shares) & (j < count) & (b < B)
    return tl.sum(tl.load(partial + (share * B + b) * J + first + j, mask=inside, other=0.0), axis=0)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to full relative accuracy also where exp(x) is far below 1.

    What 1 + small loses by rounding is put back by the factor small / (rounded - 1) (Kahan's log1p).
    """
    small = tl.exp(tl.minimum(x, 20.0))
    rounded = 1.0 + small
    return tl.where(x > 20.0, x, tl.where(rounded == 1.0, small, tl.log(rounded) * small / (rounded - 1.0)))


@triton.jit
def scan_and_gate(
    xz, x, partial, state, dt_proj, dt_bias, a, d, new_state, y,
    stride_xz, stride_dt_proj, B, E, N, R, n_shares,
    BLOCK_SHARES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dt_proj, softplus, h = exp(dt a) h + dt b x, y = (c h + d x) silu(z) for BLOCK_E channels.

    The weights are loaded once and used for BLOCK_B rows, one after the other.
    """
    e = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    e_in = e < E
    n = tl.arange(0, BLOCK_N)[None, :]
    r = tl.arange(0, BLOCK_R)[None, :]
    rate = tl.load(a + e[:, None] * N + n, mask=e_in[:, None] & (n < N), other=0.0)
    proj = tl.load(dt_proj + e[:, None] * stride_dt_proj + r, mask=e_in[:, None] & (r < R), other=0.0).to(tl.float32)
    bias = tl.load(dt_bias + e, mask=e_in, other=0.0)
    skip = tl.load(d + e, mask=e_in, other=0.0)
    J = R + 2 * N
    for i in tl.static_range(BLOCK_B):
        b = tl.program_id(0).to(tl.int64) * BLOCK_B + i
        here = e_in & (b < B)
        inside = here[:, None] & (n < N)
        spot = (b * E + e[:, None]) * N + n
        h = tl.load(state + spot, mask=inside, other=0.0)
        z = tl.load(xz + b * stride_xz + E + e, mask=here, other=0.0).to(tl.float32)
        x_e = tl.load(x + b * E + e, mask=here, other=0.0)
        rank = _add_shares(partial, b, 0, R, B, J, n_shares, BLOCK_SHARES, BLOCK_R)
        b_n = _add_shares(partial, b, R, N, B, J, n_shares, BLOCK_SHARES, BLOCK_N)
        c_n = _add_shares(partial, b, R + N, N, B, J, n_shares, BLOCK_SHARES, BLOCK_N)

        dt = softplus(tl.sum(proj * rank[None, :], axis=1) + bias)
        h = triton_math.exp(dt[:, None] * rate) * h + (dt * x_e)[:, None] * b_n[None, :]
        tl.store(new_state + spot, h, mask=inside)
        out = tl.sum(h * c_n[None, :], axis=1) + skip * x_e
        tl.store(y + b * E + e, out * z * triton_math.sigmoid(z), mask=here)
