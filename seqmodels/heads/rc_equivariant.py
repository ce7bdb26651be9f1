"""Heads for reverse-complement equivariant backbones: hidden_BLC holds two strands, C = 2D (see layers/rc_equivariant).

One set of weights reads both strands. Logits of a symbol at every position are equivariant: on the other strand they
are those of the complements, back to front. A label is invariant: the same for a sequence and its reverse complement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqmodels.data.masking import Masking
from seqmodels.heads.classification import ClassificationHead, pool
from seqmodels.heads.masked_token import MaskedTokenHead
from seqmodels.layers.rc_equivariant import involution


class RCMaskedTokenHead(MaskedTokenHead):
    """Logits of the hidden symbol from both strands: W x_fwd + W[complement] x_other, channels of x_other reversed.

    Args:
        d_model: width D of one strand.
        vocab_size: V, the number of logits.
        complement_ids: the id across the helix from each id, as in the backbone.
        tied: share the backbone's embedding table.
        pad_vocab_to: rows of the table are rounded up to a multiple of this, as in the embedding.
        masking: how much of the input is hidden, and how; None for the published rates.

    Raises:
        ValueError: complement_ids does not pair the ids.
    """

    strands: ClassVar[int] = 2
    complement_ids: Int[Tensor, " V"]

    def __init__(
        self,
        *,
        d_model: int,
        vocab_size: int,
        complement_ids: Sequence[int],
        tied: bool = True,
        pad_vocab_to: int = 8,
        masking: Masking | None = None,
    ):
        sizes = {"d_model": d_model, "vocab_size": vocab_size, "pad_vocab_to": pad_vocab_to}
        super().__init__(**sizes, tied=tied, masking=masking)
        self.register_buffer("complement_ids", involution(complement_ids, len(self.weight)), persistent=False)

    def forward(
        self, hidden_BLD: Float[Tensor, "B L C"], lengths_B: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B L V"]:
        """The sum, not the mean, of the strands' logits, as released weights expect."""
        fwd_BLD, other_BLD = hidden_BLD.chunk(2, dim=-1)
        logits_BLV = F.linear(fwd_BLD, self.weight) + F.linear(other_BLD.flip(-1), self.weight[self.complement_ids])
        return logits_BLV[..., : self.vocab_size]


class RCClassificationHead(ClassificationHead):
    """The mean of both strands' logits, each strand pooled in its own reading direction.

    Args:
        d_model: width D of one strand.
        num_classes: O, the number of logits, at least 2.
        pooling: "mean" averages the real positions, "last" takes each strand's own last one.

    Raises:
        ValueError: fewer than two classes, or an unknown pooling.
    """

    strands: ClassVar[int] = 2

    def forward(
        self, hidden_BLD: Float[Tensor, "B L C"], lengths_B: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B O"]:
        fwd_BLD, other_BLD = hidden_BLD.chunk(2, dim=-1)
        pooled_other_BD = other_BLD[:, 0] if self.pooling == "last" else pool(other_BLD, lengths_B, self.pooling)
        return (self.classifier(pool(fwd_BLD, lengths_B, self.pooling)) + self.classifier(pooled_other_BD.flip(-1))) / 2
