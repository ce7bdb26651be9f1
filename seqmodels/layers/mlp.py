"""The position-wise two-layer network between mixers: no memory, every position by itself.

    plain:  y = fc2 f(fc1 x)                        f = GELU, ReLU^2, SiLU
    gated:  u, g = halves of fc1 x;  y = fc2 (u f(g))    "GLU variants" (Shazeer 2020, arXiv:2002.05202, eq. 6)

Names and the order of the halves (value first, gate second) are those of the published hybrids, so their weights
load unchanged.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float, Int
from seqkernels.checks import check_cu_seqlens
from torch import Tensor, nn

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.state import State


def _relu_squared(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {  # name: (is gated, f)
    "gelu": (False, F.gelu),
    "relu2": (False, _relu_squared),
    "silu": (False, F.silu),
    "swiglu": (True, F.silu),
    "geglu": (True, F.gelu),
}


class MLP(SequenceLayer):
    """Two linear maps with a non-linearity or a gate between them. Its state is `()`.

    Args:
        d_model: width D of input and output.
        hidden: width between the maps; None takes ratio * d_model.
        ratio: hidden / d_model where hidden is None. None: 4, and 8/3 for gated ones, which have three matrices
            instead of two and so the same number of parameters.
        multiple_of: hidden is rounded up to a multiple of this (published gated ones: 128); 1 leaves it.
        activation: "gelu", "relu2", "silu" (plain), "swiglu", "geglu" (gated).
        bias: whether both maps have biases.

    Raises:
        ValueError: a size below 1, a ratio not above 0, hidden and ratio both given, or an unknown activation.
    """

    residual_projections = ("fc2",)

    def __init__(
        self,
        d_model: int,
        *,
        hidden: int | None = None,
        ratio: float | int | None = None,
        multiple_of: int = 1,
        activation: str = "gelu",
        bias: bool = False,
    ):
        super().__init__()
        require_positive(d_model=d_model, multiple_of=multiple_of)
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: must be one of {', '.join(ACTIVATIONS)}")
        if hidden is not None and ratio is not None:
            raise ValueError(f"hidden={hidden} and ratio={ratio}: give one of them")
        self.activation = activation
        self.is_gated, self._function = ACTIVATIONS[activation]
        if hidden is None:
            ratio = (8 / 3 if self.is_gated else 4.0) if ratio is None else ratio
            if not ratio > 0:
                raise ValueError(f"ratio={ratio}: must be above 0")
            hidden = max(int(ratio * d_model), 1)
        require_positive(hidden=hidden)
        self.hidden = -(-hidden // multiple_of) * multiple_of
        self.fc1 = nn.Linear(d_model, (2 if self.is_gated else 1) * self.hidden, bias=bias)
        self.fc2 = nn.Linear(self.hidden, d_model, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch's initialisation of the matrices, as published; biases start at zero."""
        for linear in (self.fc1, self.fc2):
            linear.reset_parameters()
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], tuple[()]]:
        """See `SequenceLayer.forward`; positions do not see each other, so packing changes nothing."""
        if cu_seqlens is not None:
            check_cu_seqlens("MLP", cu_seqlens, x_BLD.shape[0], x_BLD.shape[1])
        hidden = self.fc1(x_BLD)
        if self.is_gated:
            value, gate = hidden.chunk(2, dim=-1)
            return self.fc2(value * self._function(gate)), ()
        return self.fc2(self._function(hidden)), ()

    def extra_repr(self) -> str:
        return f"hidden={self.hidden}, activation={self.activation!r}"
