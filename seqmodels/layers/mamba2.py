"""Mamba-2: a gated block around state-space duality (Dao and Gu 2024, arXiv:2405.21060; "the paper").

| name | paper | meaning |
|---|---|---|
| D | D | model width |
| E | ED | inner width, expand * D = H * P |
| H, P | h, P | heads and their width; one decay rate, step size and skip weight a head |
| N | N | state size per channel |
| G | | groups of heads that share B and C (section 7.2) |
| W | | width of the causal convolution |
| C | | channels of the convolution, E + 2GN |

Shapes of what the block makes on its way, for x_BLD:

    z, xbc, dt = in_proj x                (B, L, E | C | H)   all projections at once (section 7.1)
    x, b, c = silu(conv1d(xbc))           (B, L, H, P | G, N | G, N)
    dt     = softplus(dt + dt_bias)       (B, L, H)
    h_t    = exp(dt_t A) h_{t-1} + dt_t x_t b_t^T     (P, N) a head
    y_t    = h_t c_t + D x_t
    out    = out_proj(norm(y * silu(z)))  (B, L, D)           RMS norm in G groups

Parameter names and shapes are the published ones, so released weights load unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from seqkernels import causal_conv1d, gated_rms_norm, ssd
from seqkernels.checks import accumulation_dtype
from seqkernels.ssd.step import StepWeights, can_run, decode_step
from torch import Tensor, nn

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.state import may_update_in_place


class Mamba2State(NamedTuple):
    """What Mamba2 carries between pieces.

    Attributes:
        conv: (B, W-1, C) the convolution's last inputs, oldest first.
        ssm: (B, H, P, N) fp32, h of the last position.
    """

    conv: Float[Tensor, "B Wm1 C"]
    ssm: Float[Tensor, "B H P N"]


class GatedRMSNorm(nn.Module):
    """y = rms_norm(x * silu(z)) * weight in groups of channels, statistics in fp32 (the paper's section 7.1).

    Args:
        width: of the last dimension.
        groups: equal groups of channels, each normalised by itself.
        eps: added to the mean square.
        implementation: which seqkernels implementation; "auto" chooses.
    """

    def __init__(self, width: int, *, groups: int = 1, eps: float = 1e-5, implementation: str = "auto"):
        super().__init__()
        self.groups, self.eps, self.implementation = groups, eps, implementation
        self.weight = nn.Parameter(torch.ones(width))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x_BLE: Float[Tensor, "*batch E"], z_BLE: Float[Tensor, "*batch E"]) -> Tensor:
        settings = {"groups": self.groups, "eps": self.eps, "implementation": self.implementation}
        return gated_rms_norm(x_BLE, z_BLE, self.weight, **settings)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, groups={self.groups}, eps={self.eps}"


class Mamba2(SequenceLayer):
    """State-space layer with heads and a state of N numbers a channel, O(L) time on tensor cores, O(1) state.

    Args:
        d_model: width D of input and output.
        d_state: state size N per channel.
        d_conv: width W of the causal convolution, 2 to 8.
        expand: inner width E = expand * d_model.
        headdim: width P of a head; divides E.
        ngroups: groups G that share B and C; divides the number of heads.
        A_init_range: decay rates -A are drawn uniformly from it.
        dt_min: smallest step size at initialisation (time constants are about 1/(dt A) positions).
        dt_max: largest step size at initialisation.
        dt_init_floor: initial step sizes are clamped from below to this.
        norm_eps: of the gated norm before out_proj.
        conv_bias: whether the convolution has a bias.
        bias: whether in_proj and out_proj have biases.
        implementation: which implementation of the recurrence runs ("auto" chooses); with "reference", the
            convolution and the norm take their references too.

    Raises:
        ValueError: a size is below 1, d_conv is not in 2..8, headdim does not divide E or ngroups not the number of
            heads, not 0 < dt_min <= dt_max, or not 0 < low <= high for A_init_range.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_state: int = 128,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        ngroups: int = 1,
        A_init_range: Sequence[float | int] = (1.0, 16.0),
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        norm_eps: float = 1e-5,
        conv_bias: bool = True,
        bias: bool = False,
        implementation: str = "auto",
    ):
        super().__init__()
        require_positive(d_model=d_model, d_state=d_state, expand=expand, headdim=headdim, ngroups=ngroups)
        self.d_model, self.d_state, self.d_inner, self.headdim = d_model, d_state, expand * d_model, headdim
        self.nheads, self.ngroups = self.d_inner // headdim, ngroups
        self._check_sizes(d_conv)
        self.A_init_range = _checked_range("A_init_range", *map(float, A_init_range))
        self.dt_range = _checked_range("dt_min, dt_max", dt_min, dt_max)
        self.dt_init_floor, self.implementation = dt_init_floor, implementation
        around = "reference" if implementation == "reference" else "auto"  # the other ops have other names

        self.conv_channels = self.d_inner + 2 * ngroups * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.conv_channels + self.nheads, bias=bias)
        # Holds the published (C, 1, W) weight and its initialisation; the op in seqkernels does the work.
        self.conv1d = nn.Conv1d(
            self.conv_channels, self.conv_channels, d_conv, groups=self.conv_channels, bias=conv_bias
        )
        self.dt_bias = nn.Parameter(torch.empty(self.nheads))
        self.A_log = nn.Parameter(torch.empty(self.nheads))
        self.D = nn.Parameter(torch.empty(self.nheads))
        self.norm = GatedRMSNorm(self.d_inner, groups=ngroups, eps=norm_eps, implementation=around)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias)
        self._around = around
        for parameter in (self.dt_bias, self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.reset_parameters()

    def _check_sizes(self, d_conv: int) -> None:
        if not 2 <= d_conv <= 8:
            raise ValueError(f"d_conv={d_conv}: must be from 2 to 8")
        if self.d_inner % self.headdim:
            raise ValueError(
                f"headdim={self.headdim}: must divide the inner width expand * d_model = {self.d_inner}; "
                "choose another headdim, expand or d_model"
            )
        if self.nheads % self.ngroups:
            raise ValueError(f"ngroups={self.ngroups}: must divide the number of heads, {self.nheads}")

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The published initialisation (the authors' `mamba2.py`).

        dt_bias is softplus^-1 of a log-uniform draw, -A uniform in A_init_range. Linear biases start at zero.
        """
        for linear in (self.in_proj, self.out_proj):
            linear.reset_parameters()
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.conv1d.reset_parameters()
        self.norm.reset_parameters()
        low, high = (math.log(value) for value in self.dt_range)
        dt_H = torch.exp(torch.empty_like(self.dt_bias).uniform_(low, high)).clamp(min=self.dt_init_floor)
        self.dt_bias.copy_(dt_H + torch.log(-torch.expm1(-dt_H)))  # softplus^-1(y) = y + log(1 - e^-y)
        self.A_log.uniform_(*self.A_init_range).log_()
        nn.init.ones_(self.D)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: Mamba2State | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], Mamba2State]:
        """See `SequenceLayer.forward`. Backward reaches x, every parameter and the incoming state."""
        z_BLE, xbc_BLC, dt_BLH = self.in_proj(x_BLD).split([self.d_inner, self.conv_channels, self.nheads], dim=-1)
        if not torch.is_grad_enabled() and x_BLD.shape[1] == 1 and state is not None and cu_seqlens is None:
            y_BLE, new_state = self._step(xbc_BLC, dt_BLH, state)
        else:
            y_BLE, new_state = self._scan(xbc_BLC, dt_BLH, state, cu_seqlens)
        return self.out_proj(self.norm(y_BLE, z_BLE)), new_state

    def _scan(
        self, xbc_BLC: Tensor, dt_BLH: Tensor, state: Mamba2State | None, cu_seqlens: Tensor | None
    ) -> tuple[Float[Tensor, "B L E"], Mamba2State]:
        """Convolution and recurrence, for any L."""
        xbc_BLC, conv_state = causal_conv1d(
            xbc_BLC,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            activation="silu",
            initial_state=None if state is None else state.conv,
            cu_seqlens=cu_seqlens,
            return_final_state=True,
            implementation=self._around,
        )
        x_BLE, b_BLK, c_BLK = xbc_BLC.split([self.d_inner, *[self.ngroups * self.d_state] * 2], dim=-1)
        y_BLHP, ssm_state = ssd(
            x_BLE.unflatten(-1, (self.nheads, self.headdim)),
            dt_BLH,
            self._a_H(),
            b_BLK.unflatten(-1, (self.ngroups, self.d_state)),
            c_BLK.unflatten(-1, (self.ngroups, self.d_state)),
            d_H=self.D,
            dt_bias_H=self.dt_bias,
            dt_softplus=True,
            initial_state_BHPN=None if state is None else state.ssm,
            cu_seqlens=cu_seqlens,
            return_final_state=True,
            implementation=self.implementation,
        )
        return y_BLHP.flatten(-2), Mamba2State(conv_state, ssm_state)

    def _step(
        self, xbc_B1C: Float[Tensor, "B 1 C"], dt_B1H: Float[Tensor, "B 1 H"], state: Mamba2State
    ) -> tuple[Float[Tensor, "B 1 E"], Mamba2State]:
        """The same for one position without gradients: one kernel, or a few products; nothing waits for the GPU."""
        if can_run(xbc_B1C, self.implementation):
            conv_weight_CW = self.conv1d.weight.squeeze(1)
            weights = StepWeights(conv_weight_CW, self.conv1d.bias, self.dt_bias, self.A_log, self.D)
            y_BE, *new_state = decode_step(
                xbc_B1C.squeeze(1), dt_B1H.squeeze(1), *state, weights, groups=self.ngroups,
                inplace=may_update_in_place(),
            )  # fmt: skip
            return y_BE.unsqueeze(1), Mamba2State(*new_state)
        real = state.ssm.dtype
        window_BWC = torch.cat([state.conv, xbc_B1C.to(real)], dim=1)
        xbc_BC = (window_BWC * self.conv1d.weight.squeeze(1).T).sum(1)
        if self.conv1d.bias is not None:
            xbc_BC = xbc_BC + self.conv1d.bias
        # Rounded to the activations' dtype where the convolution of longer pieces rounds.
        xbc_BC = F.silu(xbc_BC).to(xbc_B1C.dtype).to(real)
        x_BE, b_BK, c_BK = xbc_BC.split([self.d_inner, *[self.ngroups * self.d_state] * 2], dim=-1)
        shape = (self.ngroups, self.nheads // self.ngroups)  # G, and R heads each
        x_BGRP = x_BE.unflatten(-1, (*shape, self.headdim))
        dt_BGR = F.softplus(dt_B1H[:, 0].to(real) + self.dt_bias).unflatten(-1, shape)
        decay_BGR = torch.exp(dt_BGR * self._a_H().view(shape))
        b_BGN, c_BGN = (t.unflatten(-1, (self.ngroups, self.d_state)) for t in (b_BK, c_BK))
        ssm_BGRPN = state.ssm.unflatten(1, shape)
        scale = ssm_BGRPN.mul_ if may_update_in_place() else ssm_BGRPN.mul
        ssm_BGRPN = scale(decay_BGR[..., None, None])
        ssm_BGRPN.addcmul_((dt_BGR[..., None] * x_BGRP)[..., None], b_BGN[:, :, None, None, :])
        y_BGRP = (ssm_BGRPN @ c_BGN[:, :, None, :, None]).squeeze(-1)
        y_BGRP = y_BGRP + self.D.view(*shape, 1) * x_BGRP
        y_B1E = y_BGRP.flatten(1).unsqueeze(1).to(xbc_B1C.dtype)
        return y_B1E, Mamba2State(window_BWC[:, 1:].contiguous(), ssm_BGRPN.flatten(1, 2))

    def _a_H(self) -> Float[Tensor, H]:
        """A = -exp(A_log), in fp32 also when the whole model was cast to bf16 by hand."""
        return -torch.exp(self.A_log.to(accumulation_dtype(self.A_log.dtype)))

    def extra_repr(self) -> str:
        return (
            f"d_state={self.d_state}, headdim={self.headdim}, nheads={self.nheads}, ngroups={self.ngroups}, "
            f"implementation={self.implementation!r}"
        )


def _checked_range(name: str, low: float, high: float) -> tuple[float, float]:
    if not 0 < low <= high:
        raise ValueError(f"{name} = {low}, {high}: needs 0 < lower bound <= upper bound")
    return low, high
