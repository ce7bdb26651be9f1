# type: ignore
# Triton compiles a dialect of Python that checkers misread.
"""Triton kernels of the gated RMS norm; imported only when one is launched (see gpu.py).

A row is one group of one position: `width` neighbouring channels. Programs walk rows in tiles of ROWS; a row lies in
registers as a whole, so every input is read once. fp32 arithmetic, 64-bit row offsets.
"""

import triton
import triton.language as tl

from seqkernels.triton_math import sigmoid


@triton.jit
def _tile(pointer, rows, groups, group, stride, columns, width, inside):
    """Rows of x-like tensors: row r is group r % groups of position r // groups."""
    return tl.load(
        pointer + (rows // groups)[:, None] * stride + (group * width)[:, None] + columns[None, :],
        mask=inside,
        other=0.0,
    ).to(tl.float32)


@triton.jit(do_not_specialize=("n_rows",))
def forward(
    x, z, weight, y, inverse_rms,
    stride_x, stride_z, n_rows, groups, width, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """y = weight u / rms(u), u = x silu(z); also 1 / rms(u) of each row."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = rows % groups
    columns = tl.arange(0, BLOCK)
    inside = (rows[:, None] < n_rows) & (columns[None, :] < width)
    gate = _tile(z, rows, groups, group, stride_z, columns, width, inside)
    u = _tile(x, rows, groups, group, stride_x, columns, width, inside) * gate * sigmoid(gate, PRECISE)
    inverse = 1.0 / tl.sqrt_rn(tl.sum(u * u, axis=1) / width + eps)
    scale = tl.load(weight + (group * width)[:, None] + columns[None, :], mask=inside, other=0.0)
    tl.store(y + rows[:, None] * width + columns[None, :], u * inverse[:, None] * scale, mask=inside)
    tl.store(inverse_rms + rows, inverse, mask=rows < n_rows)


@triton.jit(do_not_specialize=("n_positions", "tiles"))
def backward(
    x, z, weight, inverse_rms, dy, dx, dz, partial,
    stride_x, stride_z, stride_dy, n_positions, groups, width, tiles,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """Gradients of x and z, and this program's share of the weight's; a program stays within one group."""
    group = tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    scale = tl.load(weight + group * width + columns, mask=columns < width, other=0.0)
    shares = tl.zeros([BLOCK], tl.float32)
    for tile in range(tiles):
        position = (tl.program_id(0).to(tl.int64) * tiles + tile) * ROWS + tl.arange(0, ROWS)
        rows = position * groups + group
        inside = (position[:, None] < n_positions) & (columns[None, :] < width)
        groups_of_rows = rows % groups
        gate = _tile(z, rows, groups, groups_of_rows, stride_z, columns, width, inside)
        value = _tile(x, rows, groups, groups_of_rows, stride_x, columns, width, inside)
        above = _tile(dy, rows, groups, groups_of_rows, stride_dy, columns, width, inside)
        inverse = tl.load(inverse_rms + rows, mask=position < n_positions, other=0.0)[:, None]
        open_ = sigmoid(gate, PRECISE)
        silu = gate * open_
        normed = value * silu * inverse
        shares += tl.sum(above * normed, axis=0)
        scaled = above * scale[None, :]
        along = tl.sum(scaled * normed, axis=1) / width
        du = (scaled - normed * along[:, None]) * inverse
        target = rows[:, None] * width + columns[None, :]
        tl.store(dx + target, du * silu, mask=inside)
        tl.store(dz + target, du * value * (open_ + silu * (1.0 - open_)), mask=inside)
    share = partial + (tl.program_id(0).to(tl.int64) * groups + group) * width + columns
    tl.store(share, shares, mask=columns < width)
