"""The numba kernels of the CPU decode step: convolution, the two small projections, one step of the scan.

Everything is flat and contiguous, but for xz, whose rows may stand apart. `step` does all of it for small sizes; for
large ones `convolve` and `scan` run on several threads around torch's matrix products.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from seqkernels.addresses import array_at
from seqkernels.vector_math import decay, kernel, part, prescaled, sigmoid, softplus

STATES = 16  # states of a channel worked on at once: a constant, so that LLVM makes vector code of short loops


class Sizes(NamedTuple):
    """B, E, N, R, W, and the distance between rows of xz."""

    batch: int
    channels: int
    states: int
    rank: int
    taps: int
    stride: int


class Addresses(NamedTuple):
    """Where the tensors begin; conv_bias is 0 where there is none. Both states are written over."""

    xz: int
    conv_state: int
    state: int
    conv_weight: int
    conv_bias: int
    x_proj: int
    dt_proj: int
    dt_bias: int
    a: int
    d: int
    y: int


class Rows(NamedTuple):
    """What one row of the batch computes on its way: x after the convolution; dt, B and C; dt per channel."""

    x: Any
    dt_b_c: Any
    dt: Any


@part
def _convolve_row(b, at, sizes, one, x):
    """Write silu(conv) into x and move the window of inputs on by one."""
    E, W = sizes.channels, sizes.taps
    window = (W - 1) * E
    newest = array_at(at.xz, sizes.batch * sizes.stride, one)[b * sizes.stride : b * sizes.stride + E]
    before = array_at(at.conv_state, sizes.batch * window, one)[b * window : (b + 1) * window]
    weight = array_at(at.conv_weight, E * W, one)
    if at.conv_bias != 0:
        x[:] = array_at(at.conv_bias, E, one)
    else:
        x[:] = 0
    if W == 4:  # the usual width, written out: at a constant distance between weights LLVM makes vector code
        first, second, third = before[:E], before[E : 2 * E], before[2 * E :]
        for e in range(E):
            old = first[e] * weight[4 * e] + second[e] * weight[4 * e + 1] + third[e] * weight[4 * e + 2]
            x[e] += old + newest[e] * weight[4 * e + 3]
    else:
        for e in range(E):
            for w in range(W - 1):
                x[e] += before[w * E + e] * weight[e * W + w]
            x[e] += newest[e] * weight[e * W + W - 1]
    for e in range(E):
        x[e] = x[e] * sigmoid(x[e])
    for i in range(window - E):  # upwards: each is read before it is overwritten
        before[i] = before[i + E]
    if W > 1:
        before[window - E :] = newest


@part
def _project_row(at, sizes, one, row):
    """Write x_proj(x) and, from its first R entries, dt_proj without its bias."""
    E, R = sizes.channels, sizes.rank
    J = R + 2 * sizes.states
    x, dt_b_c, dt = row
    x_proj = array_at(at.x_proj, J * E, one)
    for j in range(J):
        weight = x_proj[j * E : (j + 1) * E]
        total = one - one
        for e in range(E):
            total += weight[e] * x[e]
        dt_b_c[j] = total
    dt_proj = array_at(at.dt_proj, E * R, one)
    for e in range(E):
        total = one - one
        for r in range(R):
            total += dt_proj[e * R + r] * dt_b_c[r]
        dt[e] = total


@part
def _scan_row(b, at, sizes, one, row):
    """Equations (2a) and (2b) for one position, then D and the gate; see `selective_scan.reference`."""
    E, N, R = sizes.channels, sizes.states, sizes.rank
    x, dt_b_c, dt = row
    input_weight, output_weight = dt_b_c[R : R + N], dt_b_c[R + N : R + 2 * N]
    gate = array_at(at.xz, sizes.batch * sizes.stride, one)[b * sizes.stride + E : b * sizes.stride + 2 * E]
    state = array_at(at.state, sizes.batch * E * N, one)[b * E * N : (b + 1) * E * N]
    a, d, dt_bias = array_at(at.a, E * N, one), array_at(at.d, E, one), array_at(at.dt_bias, E, one)
    y = array_at(at.y, sizes.batch * E, one)[b * E : (b + 1) * E]
    for e in range(E):
        dt[e] = softplus(dt[e] + dt_bias[e])
    for e in range(E):
        step, scaled = prescaled(dt[e]), dt[e] * x[e]
        h, rate = state[e * N : (e + 1) * N], a[e * N : (e + 1) * N]
        total = one - one
        whole = N // STATES * STATES
        for first in range(0, whole, STATES):
            for k in range(STATES):
                n = first + k
                v = decay(step * rate[n]) * h[n] + scaled * input_weight[n]
                h[n] = v
                total += v * output_weight[n]
        for n in range(whole, N):
            v = decay(step * rate[n]) * h[n] + scaled * input_weight[n]
            h[n] = v
            total += v * output_weight[n]
        y[e] = total
    for e in range(E):
        y[e] = (y[e] + d[e] * x[e]) * (gate[e] * sigmoid(gate[e]))


@kernel
def step(first, last, addresses, sizes, one):
    """Everything, for rows first to last; `addresses` and `sizes` are plain tuples, the quickest to hand over."""
    at, sizes = Addresses(*addresses), Sizes(*sizes)
    real = array_at(at.y, 1, one).dtype
    E = sizes.channels
    row = Rows(np.empty(E, real), np.empty(sizes.rank + 2 * sizes.states, real), np.empty(E, real))
    for b in range(first, last):
        _convolve_row(b, at, sizes, one, row.x)
        _project_row(at, sizes, one, row)
        _scan_row(b, at, sizes, one, row)


@kernel
def convolve(first, last, addresses, sizes, one, x):
    """The convolution of rows first to last, into x (B, E)."""
    at, sizes = Addresses(*addresses), Sizes(*sizes)
    for b in range(first, last):
        _convolve_row(b, at, sizes, one, x[b])


@kernel
def scan(first, last, addresses, sizes, one, rows):
    """The scan of rows first to last; `rows` holds (x, dt_b_c, dt), each with a leading dimension B."""
    at, sizes = Addresses(*addresses), Sizes(*sizes)
    x, dt_b_c, dt = rows
    for b in range(first, last):
        _scan_row(b, at, sizes, one, Rows(x[b], dt_b_c[b], dt[b]))
