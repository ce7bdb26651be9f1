"""Post-hoc conjoining: any model asked about both strands of DNA, and the mean of its two answers.

What Caduceus-Ph does at test time (arXiv:2403.03234, section 4.2): the model itself is not RC-equivariant, the mean
is, exactly. Two forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from seqmodels.layers.rc_equivariant import (
    involution,
    refuse_state,
    reverse_complement_ids,
    reverse_positions,
    reverse_rows,
)
from seqmodels.layers.state import State
from seqmodels.model import SequenceModel


class Conjoined(SequenceModel):
    """The mean of a model's logits for a sequence and for its reverse complement; shares the model's weights.

    A label's logits do not depend on the strand. Logits of hidden symbols are brought into the given strand's order
    and letters first, so those of the other strand are the complements', back to front.

    Args:
        model: with a head for labels or for hidden symbols.
        complement_ids: the id across the helix from each id; ids beyond its end pair with themselves.

    Raises:
        ValueError: the model predicts next symbols (the other strand's next is this one's previous), reads both
            strands already, or complement_ids does not pair the ids.
    """

    complement_ids: Int[Tensor, " V"]

    def __init__(self, model: SequenceModel, complement_ids: Sequence[int]):
        super().__init__(model.backbone, model.head)
        if model.head.objective == "next_token":
            raise ValueError("a model of next symbols cannot be conjoined: to the other strand they are the previous")
        if model.backbone.strands != 1:
            raise ValueError(f"{type(model.backbone).__name__} reads both strands already: there is nothing to conjoin")
        size = model.backbone.vocab_size
        self.register_buffer("complement_ids", involution(complement_ids, size), persistent=False)
        self.to(model.backbone.embedding.weight.device)
        self.train(model.training)

    def forward(
        self,
        ids_BL: Int[Tensor, "B L"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
        lengths_B: Int[Tensor, " B"] | None = None,
    ) -> tuple[Tensor, State]:
        """See `SequenceModel.forward`; whole sequences only."""
        refuse_state(state)
        other_ids_BL = reverse_complement_ids(ids_BL, self.complement_ids, cu_seqlens, lengths_B)
        logits, _ = super().forward(ids_BL, cu_seqlens=cu_seqlens, lengths_B=lengths_B)
        other_logits, _ = super().forward(other_ids_BL, cu_seqlens=cu_seqlens, lengths_B=lengths_B)
        if self.head.objective != "classify":
            other_logits = other_logits[..., self.complement_ids]
            if lengths_B is None:
                other_logits = reverse_positions(other_logits, cu_seqlens)
            else:
                other_logits = reverse_rows(other_logits, lengths_B)
        return (logits + other_logits) / 2, ()
