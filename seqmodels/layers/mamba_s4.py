"""Mamba-S4: the Mamba block (Gu and Dao 2023, arXiv:2312.00752, figure 3) around a time-invariant S4D core.

    xz   = in_proj x                       (B, L, 2E)  two branches: signal and gate
    x    = silu(conv1d(x))                 (B, L, E)   causal, one filter a channel
    y    = K * x + D x                     (B, L, E)   S4D in place of the selective scan: A, B, C and dt are
                                                       parameters, not functions of the input
    out  = out_proj(y * silu(z))           (B, L, D)

The paper's ablation on raw audio (section E.4.1, figure 10) ends here: complex modes, neither B, C nor dt selective.
It was best on waveforms, and as outer blocks of the U-Net around any centre. The paper does not print the state size
of these blocks; 64 is S4's and SaShiMi's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from seqkernels import causal_conv1d
from torch import Tensor, nn

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.s4d import S4DKernel, S4DState


class MambaS4State(NamedTuple):
    """What MambaS4 carries between pieces.

    Attributes:
        conv: (B, W-1, E) fp32, the convolution's last inputs, oldest first.
        ssm: h of the last position, fp32, as in `S4DState`.
    """

    conv: Float[Tensor, "B Wm1 E"]
    ssm: Float[Tensor, "B E N *re_im"]


class MambaS4(SequenceLayer):
    """Gated block with a short convolution and a long, time-invariant one. Memory: see `diagonal_lti`.

    Args:
        d_model: width D of input and output.
        d_state: real state size N of each channel: N/2 conjugate pairs, or N real modes.
        d_conv: width W of the short convolution, 2 to 8.
        expand: inner width E = expand * d_model.
        init: "lin", "inv" or "real": where the modes A start; see `S4DKernel`.
        discretisation: "zoh" or "bilinear".
        dt_min: smallest step size at initialisation.
        dt_max: largest step size at initialisation.
        rate: multiplies the step sizes: the sampling rate of training over that of the data. The short convolution
            counts in samples and does not follow it.
        conv_bias: whether the short convolution has a bias.
        bias: whether in_proj and out_proj have biases.

    Raises:
        ValueError: a size is below 1, d_conv is not in 2..8, or as `S4DKernel`.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        init: str = "lin",
        discretisation: str = "zoh",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        rate: float = 1.0,
        conv_bias: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        require_positive(d_model=d_model, expand=expand)
        if not 2 <= d_conv <= 8:
            raise ValueError(f"d_conv={d_conv}: must be from 2 to 8")
        self.d_model, self.d_inner = d_model, expand * d_model
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias)
        # Holds the weight as Mamba does, (E, 1, W), and its initialisation; the op in seqkernels does the work.
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, bias=conv_bias)
        self.kernel = S4DKernel(
            self.d_inner,
            d_state=d_state,
            init=init,
            discretisation=discretisation,
            dt_min=dt_min,
            dt_max=dt_max,
            rate=rate,
        )
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Projections, convolution and D as in Mamba, the core as in S4D."""
        for linear in (self.in_proj, self.out_proj):
            linear.reset_parameters()
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv1d.reset_parameters()
        self.kernel.reset_parameters()
        nn.init.ones_(self.D)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: MambaS4State | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], MambaS4State]:
        """See `SequenceLayer.forward`. Backward reaches x, every parameter and the incoming state."""
        x_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        x_BLE, conv_state = causal_conv1d(
            x_BLE,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            initial_state=None if state is None else state.conv,
            cu_seqlens=cu_seqlens,
            return_final_state=True,
        )
        core_state = None if state is None else S4DState(state.ssm)
        y_BLE, new_core_state = self.kernel(x_BLE, core_state, cu_seqlens=cu_seqlens)
        y_BLE = torch.addcmul(y_BLE, x_BLE.to(y_BLE.dtype), self.D.to(y_BLE.dtype)) * F.silu(z_BLE.to(y_BLE.dtype))
        return self.out_proj(y_BLE.to(x_BLE.dtype)), MambaS4State(conv_state, new_core_state.ssm)
