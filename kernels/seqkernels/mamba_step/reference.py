"""The definition of the fused decode step of a Mamba block, in plain PyTorch: the other references at L = 1.

Everything between the block's two big projections (Gu & Dao 2023, figure 3 and algorithm 2), for one position:
conv -> silu -> x_proj to (dt, B, C) -> dt_proj -> softplus -> scan step -> skip D -> gate silu(z).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seqkernels.causal_conv1d.reference import conv
from seqkernels.checks import accumulation_dtype
from seqkernels.selective_scan.reference import scan


def unavailable(xz_B2E: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def step(
    xz_B2E: Float[Tensor, "B 2*E"],
    conv_state: Float[Tensor, "B W-1 E"],
    state_BEN: Float[Tensor, "B E N"],
    conv_weight_EW: Float[Tensor, "E W"],
    conv_bias_E: Float[Tensor, E] | None,
    x_proj_weight: Float[Tensor, "R+2*N E"],
    dt_proj_weight_ER: Float[Tensor, "E R"],
    dt_bias_E: Float[Tensor, E],
    a_EN: Float[Tensor, "E N"],
    d_E: Float[Tensor, E],
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance one position; see `seqkernels.mamba_step.op` for the arguments.

    Returns:
        y_BE in xz's dtype, the new convolution state, the new scan state.
    """
    N, R = a_EN.shape[1], dt_proj_weight_ER.shape[1]
    accumulate = accumulation_dtype(xz_B2E.dtype)
    x_B1E, z_B1E = xz_B2E.to(accumulate)[:, None].chunk(2, dim=-1)
    x_B1E, new_conv_state = conv(x_B1E, conv_weight_EW, conv_bias_E, "silu", conv_state, None)
    dt_b_c = F.linear(x_B1E, x_proj_weight.to(accumulate))
    dt_B1R, b_B1N, c_B1N = dt_b_c.split([R, N, N], dim=-1)
    dt_B1E = F.linear(dt_B1R, dt_proj_weight_ER.to(accumulate))
    b_B1GN, c_B1GN = b_B1N[:, :, None], c_B1N[:, :, None]
    y_B1E, new_state = scan(x_B1E, dt_B1E, a_EN, b_B1GN, c_B1GN, d_E, z_B1E, dt_bias_E, True, state_BEN, None)
    if inplace:
        new_conv_state, new_state = conv_state.copy_(new_conv_state), state_BEN.copy_(new_state)
    return y_B1E[:, 0].to(xz_B2E.dtype), new_conv_state, new_state
