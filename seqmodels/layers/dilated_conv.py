"""Gated dilated causal convolutions (WaveNet: van den Oord et al. 2016, arXiv:1609.03499): the convolutional baseline.

One layer is one cycle of dilations d = 1, 2, 4, ...; each block of it looks W positions back in steps of d:

    a_t, b_t = sum_j W_j x_{t - j d}, j = 0..W-1        (section 2.1)
    z_t      = tanh(a_t) sigmoid(b_t)                   (eq. 2)
    x_t     += out_proj z_t                             (section 2.4)

The layer's output is the sum of what its blocks add: WaveNet's skip connections and its residual path are one path
here, the residual stream of the stack around it. W = 2 and dilations up to 512 see 1024 positions; n cycles see
n * 1023 + 1, and nothing before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from seqkernels.checks import accumulation_dtype, check_cu_seqlens
from torch import Tensor, nn

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.state import State, concat_states, select_state

DilatedConvState: TypeAlias = tuple[Tensor, ...]  # a block's last (W-1) * dilation inputs each, (B, T, D) fp32


class GatedConvolution(nn.Module):
    """One dilation: taps side by side, one matrix product for filter and gate, one back to the model's width."""

    def __init__(self, d_model: int, kernel_size: int, dilation: int, expand: int, bias: bool):
        super().__init__()
        self.dilation, self.reach = dilation, (kernel_size - 1) * dilation
        self.kernel_size = kernel_size
        self.in_proj = nn.Linear(kernel_size * d_model, 2 * expand * d_model, bias=bias)
        self.out_proj = nn.Linear(expand * d_model, d_model, bias=bias)

    def forward(
        self, x_BLD: Float[Tensor, "B L D"], past_BTD: Float[Tensor, "B T D"] | None
    ) -> tuple[Float[Tensor, "B L D"], Float[Tensor, "B T D"]]:
        """What the block adds, and its last inputs."""
        B, L, D = x_BLD.shape
        past_BTD = x_BLD.new_zeros(B, self.reach, D) if past_BTD is None else past_BTD
        inputs = torch.cat([past_BTD.to(x_BLD.dtype), x_BLD], dim=1)
        taps = [inputs[:, first : first + L] for first in range(0, self.reach + 1, self.dilation)]  # oldest first
        filtered, gate = self.in_proj(torch.cat(taps, dim=-1)).chunk(2, dim=-1)
        added_BLD = self.out_proj(torch.tanh(filtered) * torch.sigmoid(gate))
        return added_BLD, inputs[:, L:].to(accumulation_dtype(x_BLD.dtype), copy=True)


class DilatedConv(SequenceLayer):
    """One cycle of gated dilated causal convolutions, O(L) time and parallel in time.

    The state is what the convolutions look back on: (kernel_size - 1) * sum(dilations) * d_model fp32 values a row.

    Args:
        d_model: width D of input and output.
        kernel_size: taps W of every convolution, at least 2.
        dilations: distance between taps, one number a block, in the order of the blocks.
        expand: width of the gated branch as a multiple of d_model.
        bias: whether the matrices have biases.

    Raises:
        ValueError: a size or a dilation below 1, kernel_size below 2, or no dilations.
    """

    def __init__(
        self,
        d_model: int,
        *,
        kernel_size: int = 2,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        expand: int = 1,
        bias: bool = True,
    ):
        super().__init__()
        require_positive(d_model=d_model, expand=expand)
        if kernel_size < 2:
            raise ValueError(f"kernel_size={kernel_size}: must be at least 2")
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations={list(dilations)}: give at least one, each at least 1")
        self.dilations = tuple(dilations)
        self.blocks = nn.ModuleList(
            GatedConvolution(d_model, kernel_size, dilation, expand, bias) for dilation in dilations
        )
        self.residual_projections = tuple(f"blocks.{index}.out_proj" for index in range(len(self.blocks)))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """torch's initialisation, biases at zero; what the blocks add together is as large as what one would."""
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            linear.reset_parameters()
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        for name in self.residual_projections:
            self.get_parameter(f"{name}.weight").div_(math.sqrt(len(self.blocks)))

    @property
    def receptive_field(self) -> int:
        """How many positions an output depends on, its own included."""
        return 1 + sum(block.reach for block in self.blocks)  # type: ignore[misc, arg-type]

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: DilatedConvState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """See `SequenceLayer.forward`. Packed sequences run one after the other."""
        if cu_seqlens is None:
            return self._run(x_BLD, state)
        nseq = check_cu_seqlens("DilatedConv", cu_seqlens, x_BLD.shape[0], x_BLD.shape[1])
        pasts = [None if state is None else select_state(state, [row]) for row in range(nseq)]
        pairs = [
            self._run(x_BLD[:, first:last], past)
            for (first, last), past in zip(pairwise(cu_seqlens.tolist()), pasts, strict=True)
        ]
        return torch.cat([y for y, _ in pairs], dim=1), concat_states([new for _, new in pairs])

    def _run(
        self, x_BLD: Float[Tensor, "B L D"], state: DilatedConvState | None
    ) -> tuple[Float[Tensor, "B L D"], DilatedConvState]:
        pasts = [None] * len(self.blocks) if state is None else state
        y_BLD: Tensor | None = None
        new_state = []
        for block, past_BTD in zip(self.blocks, pasts, strict=True):
            added_BLD, last_BTD = block(x_BLD, past_BTD)
            x_BLD = x_BLD + added_BLD
            y_BLD = added_BLD if y_BLD is None else y_BLD + added_BLD
            new_state.append(last_BTD)
        assert y_BLD is not None, "there is at least one block"
        return y_BLD, tuple(new_state)

    def extra_repr(self) -> str:
        return f"dilations={list(self.dilations)}, receptive_field={self.receptive_field}"
