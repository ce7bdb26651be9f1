"""`rms_norm`: the public op. Checks the arguments and picks an implementation.

Every implementation receives, positionally, `(x, weight, residual, eps, residual_in_fp32)` and returns
`(y, new_residual)`, where weight is in the accumulation dtype: fp32 (float64 for float64 inputs).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype, check_all, check_float
from seqkernels.dispatch import Registry

OP = "rms_norm"

REGISTRY = Registry(
    op=OP,
    entry="norm",
    modules={
        "triton": "seqkernels.rms_norm.gpu",
        "cpu": "seqkernels.rms_norm.cpu",
        "reference": "seqkernels.rms_norm.reference",
    },
)


def rms_norm(
    x: Float[Tensor, "*batch D"],
    weight: Float[Tensor, D],
    *,
    residual: Float[Tensor, "*batch D"] | None = None,
    eps: float = 1e-5,
    residual_in_fp32: bool = True,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """RMS norm over the last dimension, fused with the residual add (`reference.py` defines it).

    Args:
        x: input in fp32, bf16, fp16 or float64; sum and statistics are fp32 (float64 for float64).
        weight: scale per feature.
        residual: added to x before the norm; any accepted dtype.
        eps: added to the mean square under the root; must be positive.
        residual_in_fp32: return the sum in fp32 (float64 for float64), else in x's dtype.
        implementation: "auto", "triton", "cpu" or "reference".

    Returns:
        y in x's dtype, or (y, x + residual) when a residual is given.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    check_float(OP, "x", x)
    shape = x.shape
    if len(shape) < 1 or 0 in shape:
        raise ValueError(f"{OP}: x has shape {tuple(shape)}; accepted is (..., D), none of them 0")
    check_all(OP, "x", x, (("weight", weight, "D", shape[-1:]), ("residual", residual, "... D", shape)))
    if not eps > 0:
        raise ValueError(f"{OP}: eps={eps!r} must be positive")
    run = REGISTRY.choose(implementation, x, weight)
    real = accumulation_dtype(x.dtype)
    y, new_residual = run(x, weight if weight.dtype == real else weight.to(real), residual, eps, residual_in_fp32)
    return y if residual is None else (y, new_residual)
