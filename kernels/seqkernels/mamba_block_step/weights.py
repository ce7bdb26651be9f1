"""The weights of a Mamba block as its decode step takes them."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class BlockWeights(NamedTuple):
    """Published names and shapes; the projections in the dtype of the activations, the others in fp32 (or float64).

    Attributes:
        norm_D: scale of the RMS norm in front.
        in_proj: rows for the signal (E), then the gate (E).
        in_bias_2E: its bias, or None.
        conv_EW: filter of the causal convolution.
        conv_bias_E: its bias, or None.
        x_proj: rows for dt (R), B (N), C (N).
        dt_proj_ER: from rank R to a step size per channel.
        dt_bias_E: added to the step size before its softplus.
        a_EN: state matrix, real.
        d_E: skip weights.
        out_proj_DE: back to the model's width.
        out_bias_D: its bias, or None.
    """

    norm_D: Float[Tensor, " D"]
    in_proj: Float[Tensor, "2*E D"]
    in_bias_2E: Float[Tensor, " 2*E"] | None
    conv_EW: Float[Tensor, "E W"]
    conv_bias_E: Float[Tensor, " E"] | None
    x_proj: Float[Tensor, "R+2*N E"]
    dt_proj_ER: Float[Tensor, "E R"]
    dt_bias_E: Float[Tensor, " E"]
    a_EN: Float[Tensor, "E N"]
    d_E: Float[Tensor, " E"]
    out_proj_DE: Float[Tensor, "D E"]
    out_bias_D: Float[Tensor, " D"] | None
