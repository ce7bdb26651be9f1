"""The definition of a block's decode step, in plain PyTorch: residual add, norm, in_proj, `mamba_step`, out_proj."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype
from seqkernels.mamba_block_step.weights import BlockWeights
from seqkernels.mamba_step import reference as between
from seqkernels.rms_norm import reference as rms_norm


def unavailable(x_BD: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def step(
    x_BD: Float[Tensor, "B D"],
    residual_BD: Float[Tensor, "B D"] | None,
    conv_state: Float[Tensor, "B W-1 E"],
    state_BEN: Float[Tensor, "B E N"],
    weights: BlockWeights,
    eps: float,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Advance one position; see `seqkernels.mamba_block_step.op` for the arguments.

    Returns:
        out_BD in x's dtype, the new residual, the new convolution state, the new scan state.
    """
    real, w = accumulation_dtype(x_BD.dtype), weights
    normed_BD, total_BD = rms_norm.norm(x_BD.to(real), w.norm_D, residual_BD, eps, True)
    in_bias, out_bias = (None if bias is None else bias.to(real) for bias in (w.in_bias_2E, w.out_bias_D))
    xz_B2E = F.linear(normed_BD, w.in_proj.to(real), in_bias)
    projections = (w.x_proj.to(real), w.dt_proj_ER.to(real))
    y_BE, conv_state, state_BEN = between.step(
        xz_B2E, conv_state, state_BEN, w.conv_EW, w.conv_bias_E, *projections, w.dt_bias_E, w.a_EN, w.d_E, inplace
    )
    out_BD = F.linear(y_BE, w.out_proj_DE.to(real), out_bias)
    return out_BD.to(x_BD.dtype), total_BD, conv_state, state_BEN
