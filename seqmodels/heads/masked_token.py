"""The masked-language-model head: hidden_BLD -> logits_BLV, and the cross-entropy of the symbols that were hidden."""

from __future__ import annotations

from typing import ClassVar

from seqmodels.heads.next_token import NextTokenHead


class MaskedTokenHead(NextTokenHead):
    """One linear map to the vocabulary, of the symbol that stands at the position itself.

    The same parameters and the same loss as for next symbols (targets are `IGNORE_INDEX` wherever nothing was
    hidden); another objective, because the logits at t answer for position t and a bidirectional backbone may see
    everything but the hidden symbol. Arguments: see `NextTokenHead`.
    """

    objective: ClassVar[str] = "masked_token"
