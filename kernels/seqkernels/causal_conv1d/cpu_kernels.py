"""The numba kernels of the CPU convolution.

Tiles are rows of `LANES` channels side by side, one row per step, with W - 1 rows of history before the chunk: the
inputs before it (X) and, in the backward pass, the gradients before it (G). Both passes walk forward in time. With p
the inputs with the W - 1 of the initial state in front, y_t = sum_w k_w p_{t+w} and so dp_j = sum_w k_w dy_{j-w}:
the gradient at j needs only gradients that came before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkernels.cpu_tiles import CHUNK, LANES, Place, Steps, out_row, row_of, task_parts
from seqkernels.vector_math import kernel, part, sigmoid, silu_slope

HISTORY = 7  # rows kept for it: W is 8 at most


class Inputs(NamedTuple):
    """The tensors of a convolution; bias is zeros where absent."""

    x: Steps
    weight: Any  # (W, E) flat
    bias: Any
    initial: Any  # (sequences, W-1, E) flat, or empty for zero
    taps: int
    with_silu: bool


class Gradients(NamedTuple):
    """Outputs of the backward pass, flat."""

    x: Any  # (B, L, E)
    initial: Any  # (sequences, W-1, E)
    # Sums over time, zero at the start and of double precision: each chunk adds its part.
    weight: Any  # (sequences, W, E)
    bias: Any  # (sequences, E)


@part
def _start(X, K, inputs, sequence, channel, width):
    """Put the filter into K and the initial state into the history rows of X."""
    E = inputs.bias.size
    X[:] = 0
    K[:] = 0
    for w in range(inputs.taps):
        for e in range(width):
            K[w, e] = inputs.weight[w * E + channel + e]
    if inputs.initial.size > 0:
        for w in range(inputs.taps - 1):
            for e in range(width):
                X[w, e] = inputs.initial[(sequence * (inputs.taps - 1) + w) * E + channel + e]


@part
def _filter(X, Y, K, inputs, place):
    """Load a chunk of inputs behind the history in X and put the filtered rows, before the activation, into Y."""
    bias = inputs.bias[place.channel : place.channel + place.width]
    for q in range(place.steps):
        source, target, out = row_of(inputs.x, place, q), X[q + inputs.taps - 1], Y[q]
        for e in range(place.width):
            target[e] = source[e]
            out[e] = bias[e]
        for w in range(inputs.taps):
            k, before = K[w], X[q + w]
            for e in range(LANES):
                out[e] += k[e] * before[e]


@part
def _shift(X, steps, history):
    """Make the last rows of a chunk the history of the next."""
    for i in range(history):
        X[i] = X[i + steps]


@kernel
def forward(first_task, last_task, layout, inputs, y, final):
    """Filter. Writes y (B, L, E) and final (sequences, W-1, E), both flat."""
    X = np.zeros((CHUNK + HISTORY, LANES), dtype=y.dtype)
    Y = np.zeros((CHUNK, LANES), dtype=y.dtype)
    K = np.zeros((HISTORY + 1, LANES), dtype=y.dtype)
    for task in range(first_task, last_task):
        sequence, _, _, channel, width = task_parts(task, layout)
        batch, start, total, _ = layout.rows[sequence]
        _start(X, K, inputs, sequence, channel, width)
        for done in range(0, total, CHUNK):
            place = Place(batch, start + done, min(CHUNK, total - done), channel, width)
            _filter(X, Y, K, inputs, place)
            for q in range(place.steps):
                row, out = Y[q], out_row(y, place, layout, q)
                if inputs.with_silu:
                    for e in range(width):
                        out[e] = row[e] * sigmoid(row[e])
                else:
                    for e in range(width):
                        out[e] = row[e]
            _shift(X, place.steps, inputs.taps - 1)
        for w in range(inputs.taps - 1):
            for e in range(width):
                final[(sequence * (inputs.taps - 1) + w) * layout.channels + channel + e] = X[w, e]


@part
def _load_dy(G, Y, d_bias, dy, inputs, place):
    """Put the gradient before the activation behind the history in G; sum up the bias's."""
    for q in range(place.steps):
        above, row, target = row_of(dy, place, q), Y[q], G[q + inputs.taps - 1]
        if inputs.with_silu:
            for e in range(place.width):
                target[e] = above[e] * silu_slope(row[e])
        else:
            for e in range(place.width):
                target[e] = above[e]
        for e in range(place.width):
            d_bias[e] += target[e]


@part
def _sum_weight(X, G, DK, taps, steps):
    """Sum up the filter's gradient over a chunk."""
    for q in range(steps):
        g = G[q + taps - 1]
        for w in range(taps):
            x, dk = X[q + w], DK[w]
            for e in range(LANES):
                dk[e] += g[e] * x[e]


@part
def _add_up(row, total, first, width):
    """Add a chunk's part to the total and clear it."""
    sums = total[first : first + width]
    for e in range(width):
        sums[e] += row[e]
        row[e] = 0


@part
def _transposed(G, K, row, taps, q):
    """dp at row q of a chunk: the sum over the taps of the gradients that came before."""
    row[:] = 0
    for w in range(taps):
        k, g = K[w], G[q + taps - 1 - w]
        for e in range(LANES):
            row[e] += k[e] * g[e]


@part
def _store_dp(row, gradients, dfinal, layout, sequence, position, taps, channel, width):
    """Add the final state's gradient and write dp at a position: first the initial state's, then x's."""
    batch, start, total, _ = layout.rows[sequence]
    history = taps - 1
    if position >= total and dfinal.size > 0:
        base = (sequence * history + position - total) * layout.channels + channel
        above = dfinal[base : base + width]
        for e in range(width):
            row[e] += above[e]
    if position < history:
        base = (sequence * history + position) * layout.channels + channel
        out = gradients.initial[base : base + width]
    else:
        base = (batch * layout.length + start + position - history) * layout.channels + channel
        out = gradients.x[base : base + width]
    for e in range(width):
        out[e] = row[e]


@kernel
def backward(first_task, last_task, layout, inputs, dy, dfinal, gradients):
    """Gradients of everything; `dfinal` is (sequences, W-1, E) flat, or empty for zero."""
    real = gradients.x.dtype
    X, G = np.zeros((CHUNK + HISTORY, LANES), dtype=real), np.zeros((CHUNK + HISTORY, LANES), dtype=real)
    Y = np.zeros((CHUNK, LANES), dtype=real)
    K, DK = np.zeros((HISTORY + 1, LANES), dtype=real), np.zeros((HISTORY + 1, LANES), dtype=real)
    row, d_bias = np.zeros(LANES, dtype=real), np.zeros(LANES, dtype=real)
    taps = inputs.taps
    for task in range(first_task, last_task):
        sequence, _, _, channel, width = task_parts(task, layout)
        batch, start, total, _ = layout.rows[sequence]
        G[:] = 0
        DK[:] = 0
        d_bias[:] = 0
        _start(X, K, inputs, sequence, channel, width)
        for done in range(0, total, CHUNK):
            place = Place(batch, start + done, min(CHUNK, total - done), channel, width)
            _filter(X, Y, K, inputs, place)
            _load_dy(G, Y, d_bias, dy, inputs, place)
            _sum_weight(X, G, DK, taps, place.steps)
            for q in range(place.steps):
                _transposed(G, K, row, taps, q)
                _store_dp(row, gradients, dfinal, layout, sequence, done + q, taps, channel, width)
            _add_up(d_bias, gradients.bias, sequence * layout.channels + channel, width)
            for w in range(taps):
                _add_up(DK[w], gradients.weight, (sequence * taps + w) * layout.channels + channel, width)
            _shift(X, place.steps, taps - 1)
            _shift(G, place.steps, taps - 1)
        G[taps - 1 :] = 0
        for q in range(taps - 1):
            _transposed(G, K, row, taps, q)
            _store_dp(row, gradients, dfinal, layout, sequence, total + q, taps, channel, width)
