# type: ignore
# ruff: noqa: PIE808
# Triton compiles a dialect of Python: no starred tuples, `if` on compile-time values, ranges that checkers misread.
"""Triton kernels of the RMS norm; imported only when one is launched (see gpu.py).

A tile is ROWS whole rows, padded to BLOCK_D columns; everything is fp32 after the load, row offsets are 64-bit.
"""

import triton
import triton.language as tl


@triton.jit
def forward(
    x, residual, weight, y, total, inverse_rms,
    stride_x, stride_residual, M, D, eps,
    HAS_RESIDUAL: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """r = x + residual; y = r / sqrt(mean(r^2) + eps) * weight; r goes out when there is a residual."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    d = tl.arange(0, BLOCK_D)[None, :]
    inside = (row < M) & (d < D)
    r = tl.load(x + row * stride_x + d, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        r += tl.load(residual + row * stride_residual + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + row * D + d, r, mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(r * r, axis=1, keep_dims=True) / D + eps)
    tl.store(inverse_rms + row, scale, mask=row < M)
    weight_d = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(y + row * D + d, r * scale * weight_d, mask=inside)


@triton.jit
def backward(
    dy, dtotal, x, residual, weight, inverse_rms, dx, dresidual, partial,
    stride_dy, stride_dtotal, stride_x, stride_residual, M, D, tiles,
    HAS_DTOTAL: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_DRESIDUAL: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dr = (w dy - n mean(w dy n)) / rms + dtotal with n = r / rms, over `tiles` tiles in a row.

    dx and dresidual are dr in their dtypes; the program's share of dweight = sum of dy n goes to its row of `partial`.
    """
    d = tl.arange(0, BLOCK_D)[None, :]
    weight_d = tl.load(weight + d, mask=d < D, other=0.0).to(tl.float32)
    share = tl.zeros([ROWS, BLOCK_D], tl.float32)
    first = tl.program_id(0).to(tl.int64) * tiles
    for tile in range(0, tiles):
        row = (first + tile) * ROWS + tl.arange(0, ROWS)[:, None]
        inside = (row < M) & (d < D)
        r = tl.load(x + row * stride_x + d, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy + row * stride_dy + d, mask=inside, other=0.0).to(tl.float32)
        if HAS_RESIDUAL:
            r += tl.load(residual + row * stride_residual + d, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(inverse_rms + row, mask=row < M, other=0.0)
        n = r * scale
        share += g * n
        weighted = g * weight_d
        dr = (weighted - n * (tl.sum(weighted * n, axis=1, keep_dims=True) / D)) * scale
        if HAS_DTOTAL:
            dr += tl.load(dtotal + row * stride_dtotal + d, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row * D + d, dr, mask=inside)
        if HAS_DRESIDUAL:
            tl.store(dresidual + row * D + d, dr, mask=inside)
    column = tl.arange(0, BLOCK_D)
    tl.store(partial + tl.program_id(0) * D + column, tl.sum(share, axis=0), mask=column < D)
