"""The numba kernels of the CPU norm: one pass over each row forward, one backward; tasks are blocks of rows."""

from __future__ import annotations

from seqkernels.addresses import array_at
from seqkernels.vector_math import kernel

ROWS = 32  # rows of a task; fixed, so that sums over rows do not depend on the number of threads


@kernel
def forward(first_task, last_task, width, n_rows, addresses, eps, one):
    """Write total = x + residual (skipped at address 0 of the residual: then x is the total) and its scaled norm."""
    x_at, residual_at, weight_at, y_at, total_at = addresses
    x, y = array_at(x_at, n_rows * width, one), array_at(y_at, n_rows * width, one)
    weight = array_at(weight_at, width, one)
    small = x.dtype.type(eps)
    for row in range(first_task * ROWS, min(last_task * ROWS, n_rows)):
        source, out = x[row * width : (row + 1) * width], y[row * width : (row + 1) * width]
        if residual_at != 0:
            before = array_at(residual_at, n_rows * width, one)[row * width : (row + 1) * width]
            sums = array_at(total_at, n_rows * width, one)[row * width : (row + 1) * width]
            for i in range(width):
                sums[i] = source[i] + before[i]
            source = sums
        squares = one - one
        for i in range(width):
            squares += source[i] * source[i]
        scale = one / (squares / width + small) ** (one / 2)
        for i in range(width):
            out[i] = source[i] * weight[i] * scale


@kernel
def backward(first_task, last_task, width, total, weight, eps, one, dy, dsum, dtotal, dweight):
    """Gradients of total (with that of the returned sum, unless `dsum` is empty) and, per task, of the weight."""
    n_rows = total.size // width
    for task in range(first_task, last_task):
        weight_sums = dweight[task * width : (task + 1) * width]
        weight_sums[:] = 0
        for row in range(task * ROWS, min((task + 1) * ROWS, n_rows)):
            source, above = total[row * width : (row + 1) * width], dy[row * width : (row + 1) * width]
            out = dtotal[row * width : (row + 1) * width]
            squares, along = one - one, one - one
            for i in range(width):
                squares += source[i] * source[i]
                along += above[i] * weight[i] * source[i]
            mean = squares / width + eps
            scale = one / mean ** (one / 2)
            pull = along / width / mean
            for i in range(width):
                weight_sums[i] += above[i] * source[i] * scale
                out[i] = (above[i] * weight[i] - source[i] * pull) * scale
            if dsum.size > 0:
                more = dsum[row * width : (row + 1) * width]
                for i in range(width):
                    out[i] += more[i]
