# type: ignore
"""Elementary functions for Triton kernels, in as few instructions as the GPU has for them.

`tl.exp` and `/` guard against denormals and rescale (about ten instructions for a sigmoid); here the hardware's
approximations are used as they are, flushing denormals: relative error about 2e-7. The interpreter has no PTX and
takes the plain functions.
"""

import triton
import triton.language as tl

from seqkernels.triton_runtime import interpreting

INTERPRETED = tl.constexpr(interpreting())


@triton.jit
def exp2(x):
    """2 to the x, fp32."""
    if INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def reciprocal(x):
    """1 / x, fp32."""
    if INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def exp(x):
    """e to the x, fp32."""
    return exp2(x * 1.4426950408889634)


@triton.jit
def sigmoid(x, PRECISE: tl.constexpr = False):
    """1 / (1 + exp(-x)), fp32; `PRECISE` for inputs that are fp32 themselves: what rounding loses is put back."""
    if PRECISE and not INTERPRETED:
        exponent = x * -1.4426950408889634
        lost = tl.math.fma(x, -1.4426950408889634, -exponent) + x * -1.925963033500e-8  # of the product, of log2(e)
        one_plus = 1.0 + tl.math.fma(exp2(exponent), lost * 0.6931471805599453, exp2(exponent))
        first = reciprocal(one_plus)
        # Newton, except where exp(-x) is infinite: there 0 is exact already.
        return tl.where(one_plus < 1e37, tl.math.fma(first, tl.math.fma(-one_plus, first, 1.0), first), first)
    return reciprocal(1.0 + exp2(x * -1.4426950408889634))
