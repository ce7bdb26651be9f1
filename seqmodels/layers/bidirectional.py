"""Both directions: a causal layer run along the sequence, and one against it (BiMamba of Caduceus, arXiv:2403.03234).

    y = fwd(x) + reverse(rev(reverse(x)))          or the product, position by position

Names are the published ones, `mamba_fwd` and `mamba_rev`, whatever the layer is, so released weights load unchanged;
published models share in_proj and out_proj between the directions ("tied"), which is most of the parameters.

Padding: reversed, a right-padded row begins in its padding, and a layer with memory would carry that into the
sequence. Layers are not told lengths; `SequenceModel` runs batches of unequal lengths packed end to end whenever its
backbone is not causal, and here every packed sequence is reversed in its own place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqmodels.layers.base import LayerFactory, SequenceLayer
from seqmodels.layers.rc_equivariant import refuse_state, reverse_positions
from seqmodels.layers.state import State

STRATEGIES = ("add", "ew_multiply")


class Bidirectional(SequenceLayer):
    """Two causal layers, one for each direction. It has no state: whole sequences only.

    Args:
        d_model: width D of input and output.
        layer: makes the causal layer of one direction from d_model.
        strategy: how the directions are combined: "add", or "ew_multiply" for the element-wise product.
        tied: names of the sub-modules that both directions share; Caduceus ties in_proj and out_proj. An empty list
            shares nothing.
        halve: divides what comes out by 2, so that adding gives a mean. Caduceus does not.

    Raises:
        ValueError: an unknown strategy, a layer that is not causal, or a name in `tied` that the layer has not.
    """

    is_causal = False

    def __init__(
        self,
        d_model: int,
        *,
        layer: LayerFactory,
        strategy: str = "add",
        tied: Sequence[str] = ("in_proj", "out_proj"),
        halve: bool = False,
    ):
        super().__init__()
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy={strategy!r}: must be one of {', '.join(STRATEGIES)}")
        self.strategy, self.halve = strategy, halve
        self.mamba_fwd, self.mamba_rev = layer(d_model), layer(d_model)
        kind = type(self.mamba_fwd).__name__
        if not self.mamba_fwd.is_causal:
            raise ValueError(f"{kind} sees both directions already: give Bidirectional a causal layer")
        children = dict(self.mamba_fwd.named_children())
        for name in tied:
            if name not in children:
                has = ", ".join(children) or "none"
                raise ValueError(f"tied: {kind} has no sub-module {name!r} for both directions to share; it has {has}")
            # The module, not its parameters: moving to another device or off `meta` then cannot separate the two.
            setattr(self.mamba_rev, name, children[name])
        self.needs_gpu = self.mamba_fwd.needs_gpu
        own = [f"mamba_rev.{name}" for name in self.mamba_rev.residual_projections if name.split(".")[0] not in tied]
        self.residual_projections = (*(f"mamba_fwd.{name}" for name in self.mamba_fwd.residual_projections), *own)

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], tuple[()]]:
        """See `SequenceLayer.forward`; every row (or packed sequence) is a whole sequence.

        Raises:
            ValueError: a state is given.
        """
        refuse_state(state)
        fwd_BLD, _ = self.mamba_fwd(x_BLD, cu_seqlens=cu_seqlens)
        rev_BLD, _ = self.mamba_rev(reverse_positions(x_BLD, cu_seqlens), cu_seqlens=cu_seqlens)
        combine = torch.add if self.strategy == "add" else torch.mul
        y_BLD = combine(fwd_BLD, reverse_positions(rev_BLD, cu_seqlens))
        return (y_BLD / 2 if self.halve else y_BLD), ()

    def extra_repr(self) -> str:
        return f"strategy={self.strategy!r}, halve={self.halve}"
