"""The definition of the RMS norm fused with the residual add, in plain PyTorch.

Root Mean Square Layer Normalization, Zhang & Sennrich 2019 (arXiv 1910.07467), eq. 4, with eps under the root:
y = r / sqrt(mean(r^2) + eps) * weight, where r = x + residual. Sum and statistics are fp32 (float64 for float64).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype


def unavailable(x: Tensor, weight: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def norm(
    x: Float[Tensor, "*batch D"],
    weight: Float[Tensor, D],
    residual: Float[Tensor, "*batch D"] | None,
    eps: float,
    residual_in_fp32: bool,
) -> tuple[Tensor, Tensor]:
    """Add the residual and normalise; see `seqkernels.rms_norm.op` for the arguments.

    Returns:
        y in x's dtype, and the sum: fp32 (float64 for float64) if `residual_in_fp32`, else x's dtype.
    """
    accumulate = accumulation_dtype(x.dtype)
    total = x.to(accumulate)
    if residual is not None:
        total = total + residual.to(accumulate)
    y = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight
    return y.to(x.dtype), total.to(accumulate if residual_in_fp32 else x.dtype)
