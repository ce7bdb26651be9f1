# type: ignore
# Triton compiles a dialect of Python that checkers misread.
"""Triton kernels of the long convolution: tiles of (positions, channels) turned on their way."""

import triton
import triton.language as tl


@triton.jit
def channels_first(
    u, out, stride_b, stride_l, L, E, size, MIRRORED: tl.constexpr, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr
):
    """out[e, b, t] = u[b, t, e] for t < L, else 0; MIRRORED: at -t modulo size instead of t."""
    at = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    e = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    t = at
    if MIRRORED:
        t = tl.where(at == 0, 0, size - at)
    inside = (t >= 0) & (t < L)
    tile = tl.load(
        u + b * stride_b + t.to(tl.int64)[:, None] * stride_l + e[None, :],
        mask=inside[:, None] & (e < E)[None, :],
        other=0.0,
    )
    target = out + (e * tl.num_programs(2) + b)[:, None] * size + at[None, :]
    tl.store(target, tl.trans(tile).to(out.dtype.element_ty), mask=(e < E)[:, None] & (at < size)[None, :])


@triton.jit
def channels_last(y, out, length, E, size, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr):
    """out[b, t, e] = y[e, b, t] for t < length."""
    t = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    e = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)).to(tl.int64)
    b = tl.program_id(2).to(tl.int64)
    inside = (e < E)[:, None] & (t < length)[None, :]
    tile = tl.load(y + (e * tl.num_programs(2) + b)[:, None] * size + t[None, :], mask=inside, other=0.0)
    target = out + (b * length + t.to(tl.int64))[:, None] * E + e[None, :]
    tl.store(target, tl.trans(tile).to(out.dtype.element_ty), mask=(t < length)[:, None] & (e < E)[None, :])
