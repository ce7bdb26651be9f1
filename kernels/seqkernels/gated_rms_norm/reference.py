"""The definition of the gated RMS norm, in plain PyTorch.

What stands between Mamba-2's recurrence and its output projection (Dao & Gu 2024, section 7.1; in the released code
`norm_before_gate=False`): the output is gated first, then normalised in groups of channels,

    u = x silu(z)
    y = weight u / sqrt(mean over the group of u^2 + eps)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype


def unavailable(x: Tensor, weight: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def norm(
    x: Float[Tensor, "*batch E"], z: Float[Tensor, "*batch E"], weight: Float[Tensor, E], groups: int, eps: float
) -> Tensor:
    """Gate and normalise; see `seqkernels.gated_rms_norm.op` for the arguments."""
    real = accumulation_dtype(x.dtype)
    u = (x.to(real) * F.silu(z.to(real))).unflatten(-1, (groups, -1))
    u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + eps)
    return (u.flatten(-2) * weight).to(x.dtype)
