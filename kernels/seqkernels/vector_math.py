"""Elementary functions for numba kernels that LLVM turns into vector instructions, and the decorator that caches them.

numba has no vector maths library of its own without Intel's: `math.exp` in a loop becomes one call per element. The
fp32 functions here are branch-free polynomials, so that a loop over them vectorises (16 lanes with AVX-512, 8 with
AVX2); relative errors are about 1e-7. float64 and complex use the scalar library: correct, and not the fast path.

Coefficients are minimax fits (relative error below 4e-9 before rounding to fp32).
"""

from __future__ import annotations

import cmath
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload


def cache_folder() -> Path:
    """Where compiled kernels are kept: `$SEQKERNELS_CACHE`, else the user's cache folder.

    numba drops a cached kernel when the file it stands in changes, not when one that it calls does: hence the hash of
    the shared files.
    """
    root = os.environ.get("SEQKERNELS_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "seqkernels"
    shared = [Path(__file__).with_name(name) for name in ("vector_math.py", "cpu_tiles.py", "addresses.py")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in shared)).hexdigest()
    return Path(root).expanduser() / f"numba-{digest[:12]}"


def kernel(function: Callable[..., Any], **more: bool) -> Callable[..., Any]:
    """Compile at first call without the GIL; cache on disk where a folder can be written, else for this process.

    Sums may be reassociated into vector lanes: the order is fixed at compile time, so results repeat bit for bit.
    """
    flags = {"nogil": True, "error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz"}, **more}
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    if not before:
        numba.config.CACHE_DIR = str(cache_folder())  # type: ignore[attr-defined]
    try:
        return numba.njit(cache=True, **flags)(function)
    except (RuntimeError, OSError):  # no folder can be written
        return numba.njit(**flags)(function)
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that only kernels call: spares the entry from Python, a good part of the time to compile."""
    return kernel(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


# No reassociation in here: (v + MAGIC) - MAGIC is the rounding.
_exact = numba.njit(fastmath={"contract"}, error_model="numpy")

ONE = np.float32(1)
TWO = np.float32(2)
ZERO = np.float32(0)
LOG2_E = np.float32(1.4426950408889634)
MAGIC = np.float32(1.5 * 2**23)  # adding it rounds to an integer, which then stands in the low bits of the mantissa
EXP2_LOWEST = np.float32(-126.0)  # below: 2**-126, the smallest normal number, in place of a denormal or zero
EXP2_HIGHEST = np.float32(127.0)
EXP_LOWEST = np.float32(-87)
EXP_HIGHEST = np.float32(88)
LN2_HIGH = np.float32(0.693359375)  # 12 bits: its product with a small integer is exact
LN2_LOW = np.float32(-2.12194440e-4)
SOFTPLUS_THRESHOLD = np.float32(20)  # as published: the identity above

E1, E2, E3, E4, E5, E6 = (
    np.float32(v)
    for v in (0.6931471824645996, 0.2402264624834, 0.05550328642129898, 0.00961848907172, 0.00133999309, 0.000153458124)
)
X2, X3, X4, X5, X6 = (
    np.float32(v)
    for v in (0.49999991059303284, 0.16666419804096222, 0.04166822507977486, 0.008374815806746483, 0.00138368457555)
)
A1, A2, A3, A4 = (
    np.float32(v) for v in (0.3333315849304199, 0.20012454688549042, 0.13980302214622498, 0.1408916711807251)
)


@intrinsic
def _bits(context, value):
    """The bits of an fp32 number as an int32."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))

    return types.int32(types.float32), code


@intrinsic
def _from_bits(context, value):
    """The fp32 number with these bits."""

    def code(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), code


@_exact
def _exp2_fp32(v):
    """2**v: v = k + f with k an integer and |f| <= 1/2; a polynomial gives 2**f, k goes into the exponent bits."""
    v = EXP2_LOWEST if v < EXP2_LOWEST else v  # in this order NaN stays NaN
    v = EXP2_HIGHEST if v > EXP2_HIGHEST else v
    k = v + MAGIC
    f = v - (k - MAGIC)
    p = (((((E6 * f + E5) * f + E4) * f + E3) * f + E2) * f + E1) * f + ONE
    return _from_bits(_bits(p) + (_bits(k) << np.int32(23)))  # pyright: ignore[reportCallIssue]


@_exact
def _exp_fp32(v):
    """e**v for -87 <= v <= 88 (the ends are kept beyond): v = k ln 2 + f, with ln 2 in two parts."""
    v = EXP_LOWEST if v < EXP_LOWEST else v
    v = EXP_HIGHEST if v > EXP_HIGHEST else v
    k = v * LOG2_E + MAGIC
    turns = k - MAGIC
    f = v - turns * LN2_HIGH
    f = f - turns * LN2_LOW
    p = (((((X6 * f + X5) * f + X4) * f + X3) * f + X2) * f + ONE) * f + ONE
    return _from_bits(_bits(p) + (_bits(k) << np.int32(23)))  # pyright: ignore[reportCallIssue]


@_exact
def _softplus_fp32(v):
    """log(1 + e**v) = max(v, 0) + log1p(u), u = e**-|v|, and log1p(u) = 2 atanh(u / (2 + u)): exact for tiny u too."""
    u = _exp_fp32(-abs(v))
    s = u / (TWO + u)
    q = s * s
    log1p = TWO * s * ((((A4 * q + A3) * q + A2) * q + A1) * q + ONE)
    soft = (ZERO if v < ZERO else v) + log1p
    return v if v > SOFTPLUS_THRESHOLD else soft


@_exact
def _sigmoid_fp32(v):
    return ONE / (ONE + _exp_fp32(-v))


@_exact
def _softplus_float64(v):
    return v if v > 20.0 else math.log1p(math.exp(v))


@_exact
def _sigmoid_float64(v):
    return 1.0 / (1.0 + math.exp(-v))


@_exact
def _silu_slope_fp32(v):
    """s (1 + v (1 - s)), where 1 - s = u s loses no digits for large v."""
    u = _exp_fp32(-v)
    s = ONE / (ONE + u)
    return s * (ONE + v * (u * s))


@_exact
def _silu_slope_float64(v):
    u = math.exp(-max(v, -700.0))
    s = 1.0 / (1.0 + u)
    return s * (1.0 + v * (u * s))


@_exact
def _softplus_slope_fp32(v):
    slope = ONE / (ONE + _exp_fp32(-v))
    return ONE if v > SOFTPLUS_THRESHOLD else slope


@_exact
def _softplus_slope_float64(v):
    return 1.0 if v > 20.0 else 1.0 / (1.0 + math.exp(-v))


@_exact
def _log2_e_times(a):
    return a * LOG2_E


@_exact
def _itself(a):
    return a


@_exact
def _exp_float64(v):
    return math.exp(v)


@_exact
def _exp_complex(v):
    return cmath.exp(v)


def _by_type(fp32: Callable, float64: Callable, complex_: Callable | None = None) -> Callable:
    """An overload that picks the function by the argument's type at compile time."""

    def pick(v):
        chosen = {types.float32: fp32, types.float64: float64}.get(v, complex_)
        return None if chosen is None else (lambda v: chosen(v))

    return pick


def decay(v):
    """exp(dt * a), of v = dt * prescaled(a). Only inside kernels."""
    raise NotImplementedError


def prescaled(a):
    """What `decay` wants a to be multiplied by beforehand: log2(e) in fp32, 1 otherwise. Only inside kernels."""
    raise NotImplementedError


def softplus(v):
    """log(1 + e**v), the identity above 20. Only inside kernels."""
    raise NotImplementedError


def sigmoid(v):
    """1 / (1 + e**-v). Only inside kernels."""
    raise NotImplementedError


def softplus_slope(v):
    """The derivative of `softplus`. Only inside kernels."""
    raise NotImplementedError


def silu_slope(v):
    """The derivative of v * sigmoid(v). Only inside kernels."""
    raise NotImplementedError


overload(decay)(_by_type(_exp2_fp32, _exp_float64, _exp_complex))
overload(prescaled)(_by_type(_log2_e_times, _itself, _itself))
overload(softplus)(_by_type(_softplus_fp32, _softplus_float64))
overload(sigmoid)(_by_type(_sigmoid_fp32, _sigmoid_float64))
overload(softplus_slope)(_by_type(_softplus_slope_fp32, _softplus_slope_float64))
overload(silu_slope)(_by_type(_silu_slope_fp32, _silu_slope_float64))
