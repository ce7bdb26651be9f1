"""The numba kernels of the CPU scan: forward, and backward with recomputation (README.md has the maths).

Tiles: T holds real rows of each step of the chunk, S rows of each state, P the decay of every step
and state of the chunk and the state before it. Rows of `LANES` numbers stand side by side in the last dimension, at the
constant offsets below: at constant distances from one base LLVM knows that they do not overlap (otherwise it checks at
run time, and beyond eight checks it gives up). Lanes past the last channel hold zeros and change nothing.

Complex numbers: gradients follow PyTorch's convention (the conjugate), so one code serves real and complex states;
`scale` is 1, or 2 for complex ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkernels.cpu_tiles import CHUNK, LANES, Place, Steps, out_row, row_of, task_parts
from seqkernels.vector_math import decay, kernel, part, prescaled, sigmoid, silu_slope, softplus, softplus_slope

# Rows of T; the forward pass uses the first three. G_ is the gradient of.
DT, DTX, Y, DY, G_DT, G_DTX = 0, LANES, 2 * LANES, 3 * LANES, 4 * LANES, 5 * LANES
# Rows of S; the forward pass uses the first two.
A_SCALED, H, A, G, G_A = 0, LANES, 2 * LANES, 3 * LANES, 4 * LANES
# Rows of P.
DECAY, BEFORE = 0, LANES


class Inputs(NamedTuple):
    """The tensors of a scan; z stands for x where there is no gate, d and bias are zeros where absent."""

    x: Steps
    dt: Steps
    z: Steps
    b: Steps
    c: Steps
    a: Any  # (E, N) flat
    d: Any
    bias: Any
    scale: Any
    with_softplus: bool
    with_z: bool


class Gradients(NamedTuple):
    """Outputs of the backward pass, flat."""

    x: Any  # (B, L, E), as dt and z
    dt: Any
    z: Any
    initial: Any  # (sequences, N, E)
    b: Any  # (blocks, B, L, groups, N), as c
    c: Any
    # Sums over time, zero at the start and of double precision: each chunk adds its part, so that long sequences
    # lose nothing.
    a: Any  # (sequences, N, E)
    d: Any  # (sequences, E), as bias
    bias: Any


@part
def _load_group(tile, source, place, group):
    """Copy B or C of one group for the steps of a chunk."""
    for q in range(place.steps):
        base = place.batch * source.batch_stride + (place.first + q) * source.step_stride + group * source.group_stride
        for n in range(tile.shape[1]):
            tile[q, n] = source.values[base + n]


@part
def _load_steps(T, inputs, place):
    """Fill the rows dt, dt * x and y = D x of a chunk."""
    d = inputs.d[place.channel : place.channel + place.width]
    bias = inputs.bias[place.channel : place.channel + place.width]
    for q in range(place.steps):
        t, x, dt = T[q], row_of(inputs.x, place, q), row_of(inputs.dt, place, q)
        if inputs.with_softplus:
            for e in range(place.width):
                t[DT + e] = softplus(dt[e] + bias[e])
        else:
            for e in range(place.width):
                t[DT + e] = dt[e] + bias[e]
        for e in range(place.width):
            t[DTX + e] = t[DT + e] * x[e]
            t[Y + e] = d[e] * x[e]


@part
def _scan_chunk(T, S, b, c, steps, scale):
    """Equations (2a) and (2b) over a chunk; S carries the state."""
    for q in range(steps):
        t = T[q]
        for n in range(S.shape[0]):
            bn = b[q, n]
            cn = scale * c[q, n]
            s = S[n]
            for e in range(LANES):
                h = decay(t[DT + e] * s[A_SCALED + e]) * s[H + e] + t[DTX + e] * bn
                s[H + e] = h
                t[Y + e] += (cn * h).real


@part
def _store_y(T, y, inputs, place, layout):
    """Gate y and write it out."""
    for q in range(place.steps):
        t, out, z = T[q], out_row(y, place, layout, q), row_of(inputs.z, place, q)
        if inputs.with_z:
            for e in range(place.width):
                out[e] = t[Y + e] * (z[e] * sigmoid(z[e]))
        else:
            for e in range(place.width):
                out[e] = t[Y + e]


@part
def _start_forward(S, inputs, initial, sequence, channel, width):
    """Put a and the initial state into S."""
    N, E = S.shape[0], inputs.d.size
    S[:] = 0
    for n in range(N):
        for e in range(width):
            S[n, A_SCALED + e] = prescaled(inputs.a[(channel + e) * N + n])
        if initial.size > 0:
            for e in range(width):
                S[n, H + e] = initial[(sequence * N + n) * E + channel + e]


@part
def _store_state(S, row, target, index, channel, width, channels):
    """Write one row of S into entry `index` of a flat (entries, N, E) array."""
    for n in range(S.shape[0]):
        base = (index * S.shape[0] + n) * channels + channel
        for e in range(width):
            target[base + e] = S[n, row + e]


@part
def _add_a_gradient(S, total, sequence, channel, width, channels):
    """Add the chunk's part of the gradient of a to the total and clear it."""
    for n in range(S.shape[0]):
        s = S[n]
        base = (sequence * S.shape[0] + n) * channels + channel
        sums = total[base : base + width]
        for e in range(width):
            sums[e] += s[G_A + e]
            s[G_A + e] = 0


@kernel
def forward(first_task, last_task, layout, inputs, initial, y, final, saved):
    """Scan. Writes y (B, L, E), final (sequences, N, E) and, unless it is empty, saved (chunks, N, E).

    `initial` is (sequences, N, E) or empty for zero; `saved` gets the state before each chunk. All are flat.
    """
    N = layout.states
    T = np.zeros((CHUNK, 3 * LANES), dtype=y.dtype)
    S = np.zeros((N, 2 * LANES), dtype=final.dtype)
    b_tile = np.zeros((CHUNK, N), dtype=final.dtype)
    c_tile = np.zeros((CHUNK, N), dtype=final.dtype)
    for task in range(first_task, last_task):
        sequence, group, _, channel, width = task_parts(task, layout)
        batch, start, total, chunk = layout.rows[sequence]
        T[:] = 0
        _start_forward(S, inputs, initial, sequence, channel, width)
        for done in range(0, total, CHUNK):
            place = Place(batch, start + done, min(CHUNK, total - done), channel, width)
            if saved.size > 0:
                _store_state(S, H, saved, chunk + done // CHUNK, channel, width, layout.channels)
            _load_group(b_tile, inputs.b, place, group)
            _load_group(c_tile, inputs.c, place, group)
            _load_steps(T, inputs, place)
            _scan_chunk(T, S, b_tile, c_tile, place.steps, inputs.scale)
            _store_y(T, y, inputs, place, layout)
        _store_state(S, H, final, sequence, channel, width, layout.channels)


@part
def _load_dy(T, dy, inputs, place):
    """Fill the row of the gradient of y before the gate; clear the rows that collect gradients."""
    for q in range(place.steps):
        t, above, z = T[q], row_of(dy, place, q), row_of(inputs.z, place, q)
        if inputs.with_z:
            for e in range(place.width):
                t[DY + e] = above[e] * (z[e] * sigmoid(z[e]))
        else:
            for e in range(place.width):
                t[DY + e] = above[e]
        for e in range(LANES):
            t[G_DT + e] = 0
            t[G_DTX + e] = 0


@part
def _recompute_chunk(T, S, P, b, c, dc, steps, scale):
    """Scan a chunk again, keeping the decay of each step and the state before it in P; sum up the gradient of C."""
    for q in range(steps):
        t = T[q]
        for n in range(S.shape[0]):
            bn = b[q, n]
            cn = scale * c[q, n]
            dcn = dc.dtype.type(0)
            s, p = S[n], P[q, n]
            for e in range(LANES):
                before = s[H + e]
                step_decay = decay(t[DT + e] * s[A_SCALED + e])
                h = step_decay * before + t[DTX + e] * bn
                p[DECAY + e] = step_decay
                p[BEFORE + e] = before
                s[H + e] = h
                t[Y + e] += (cn * h).real
                dcn += t[DY + e] * np.conj(h)
            dc[q, n] = scale * dcn


@part
def _reverse_chunk(T, S, P, b, c, db, steps, scale):
    """Run the adjoint of the recurrence backwards over a chunk; S carries the gradient of the state."""
    for q in range(steps - 1, -1, -1):
        t = T[q]
        for n in range(S.shape[0]):
            bn = np.conj(b[q, n])
            cn = scale * np.conj(c[q, n])
            dbn = db.dtype.type(0)
            s, p = S[n], P[q, n]
            for e in range(LANES):
                g = s[G + e] + t[DY + e] * cn
                dbn += t[DTX + e] * g
                t[G_DTX + e] += (g * bn).real
                g = g * np.conj(p[DECAY + e])
                s[G + e] = g
                g = g * np.conj(p[BEFORE + e])
                s[G_A + e] += t[DT + e] * g
                t[G_DT + e] += (g * np.conj(s[A + e])).real
            db[q, n] = dbn


@part
def _store_gradients(T, gradients, dy, inputs, place, layout, sequence):
    """Gradients of x, dt, z, D and the bias from those of y, dt and dt * x."""
    here = place.channel
    d, bias = inputs.d[here : here + place.width], inputs.bias[here : here + place.width]
    per_channel = sequence * layout.channels + here
    d_grad = gradients.d[per_channel : per_channel + place.width]
    bias_grad = gradients.bias[per_channel : per_channel + place.width]
    for q in range(place.steps):
        t, x, dt, z = T[q], row_of(inputs.x, place, q), row_of(inputs.dt, place, q), row_of(inputs.z, place, q)
        x_grad, dt_grad = out_row(gradients.x, place, layout, q), out_row(gradients.dt, place, layout, q)
        for e in range(place.width):
            x_grad[e] = t[G_DTX + e] * t[DT + e] + d[e] * t[DY + e]
            d_grad[e] += t[DY + e] * x[e]
            t[G_DT + e] += t[G_DTX + e] * x[e]
        if inputs.with_softplus:
            for e in range(place.width):
                t[G_DT + e] *= softplus_slope(dt[e] + bias[e])
        for e in range(place.width):
            dt_grad[e] = t[G_DT + e]
            bias_grad[e] += t[G_DT + e]
        if inputs.with_z:
            z_grad, above = out_row(gradients.z, place, layout, q), row_of(dy, place, q)
            for e in range(place.width):
                z_grad[e] = above[e] * t[Y + e] * silu_slope(z[e])


@part
def _store_group(tile, target, place, layout, block, group):
    """Write this block's part of the gradient of B or C into (blocks, B, L, groups, N)."""
    for q in range(place.steps):
        row = (block * layout.batches + place.batch) * layout.length + place.first + q
        base = (row * layout.groups + group) * layout.states
        for n in range(layout.states):
            target[base + n] = tile[q, n]


@part
def _start_backward(S, inputs, dfinal, sequence, channel, width):
    """Put a and the gradient of the final state into S, clear the gradient of a."""
    N, E = S.shape[0], inputs.d.size
    S[:] = 0
    for n in range(N):
        for e in range(width):
            S[n, A + e] = inputs.a[(channel + e) * N + n]
            S[n, A_SCALED + e] = prescaled(S[n, A + e])
        if dfinal.size > 0:
            for e in range(width):
                S[n, G + e] = dfinal[(sequence * N + n) * E + channel + e]


@part
def _load_saved(S, saved, chunk, channel, width, channels):
    """Put the saved state before a chunk into S."""
    N = S.shape[0]
    for n in range(N):
        base = (chunk * N + n) * channels + channel
        for e in range(width):
            S[n, H + e] = saved[base + e]


@kernel
def backward(first_task, last_task, layout, inputs, saved, dy, dfinal, gradients):
    """Gradients of everything, chunk by chunk from the last; `dfinal` is (sequences, N, E) flat, or empty for zero."""
    N = layout.states
    T = np.zeros((CHUNK, 6 * LANES), dtype=gradients.x.dtype)
    S = np.zeros((N, 5 * LANES), dtype=saved.dtype)
    P = np.empty((CHUNK, N, 2 * LANES), dtype=saved.dtype)
    b_tile, c_tile = np.zeros((CHUNK, N), dtype=saved.dtype), np.zeros((CHUNK, N), dtype=saved.dtype)
    db_tile, dc_tile = np.zeros((CHUNK, N), dtype=saved.dtype), np.zeros((CHUNK, N), dtype=saved.dtype)
    for task in range(first_task, last_task):
        sequence, group, block, channel, width = task_parts(task, layout)
        batch, start, total, chunk = layout.rows[sequence]
        T[:] = 0
        _start_backward(S, inputs, dfinal, sequence, channel, width)
        chunks = (total + CHUNK - 1) // CHUNK
        for back in range(chunks - 1, -1, -1):
            done = back * CHUNK
            place = Place(batch, start + done, min(CHUNK, total - done), channel, width)
            _load_saved(S, saved, chunk + back, channel, width, layout.channels)
            _load_group(b_tile, inputs.b, place, group)
            _load_group(c_tile, inputs.c, place, group)
            _load_steps(T, inputs, place)
            _load_dy(T, dy, inputs, place)
            _recompute_chunk(T, S, P, b_tile, c_tile, dc_tile, place.steps, inputs.scale)
            _reverse_chunk(T, S, P, b_tile, c_tile, db_tile, place.steps, inputs.scale)
            _store_gradients(T, gradients, dy, inputs, place, layout, sequence)
            _store_group(db_tile, gradients.b, place, layout, block, group)
            _store_group(dc_tile, gradients.c, place, layout, block, group)
            _add_a_gradient(S, gradients.a, sequence, channel, width, layout.channels)
        _store_state(S, G, gradients.initial, sequence, channel, width, layout.channels)
