"""RMSNorm with the residual addition in front of it, as pre-norm stacks use it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from seqkernels import rms_norm
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, eq. 4), statistics in fp32.

    Args:
        d_model: width of the last dimension.
        eps: added to the mean square.
        implementation: which seqkernels implementation; "auto" chooses.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, *, implementation: str = "auto"):
        super().__init__()
        self.eps = eps
        self.implementation = implementation
        self.weight = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x_BLD: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        y_BLD = rms_norm(x_BLD, self.weight, eps=self.eps, implementation=self.implementation)
        assert isinstance(y_BLD, Tensor)  # a pair only with a residual
        return y_BLD

    def add(
        self, x_BLD: Float[Tensor, "*batch D"], residual_BLD: Tensor, *, residual_in_fp32: bool = True
    ) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
        """Adds x to the residual stream and normalises the sum, in one pass.

        Returns:
            (norm(x + residual) in x's dtype, x + residual in fp32 or, with residual_in_fp32=False, x's dtype).
        """
        y_BLD, sum_BLD = rms_norm(
            x_BLD,
            self.weight,
            residual=residual_BLD,
            eps=self.eps,
            residual_in_fp32=residual_in_fp32,
            implementation=self.implementation,
        )
        return y_BLD, sum_BLD

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}"
