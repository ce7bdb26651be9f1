"""The masked-language-model head: hidden_BLD -> logits_BLV, and the cross-entropy of the symbols that were hidden."""

from __future__ import annotations

from typing import ClassVar

from seqmodels.data.masking import Masking
from seqmodels.heads.next_token import NextTokenHead


class MaskedTokenHead(NextTokenHead):
    """One linear map to the vocabulary, of the symbol that stands at the position itself.

    The same parameters and the same loss as for next symbols (targets are `IGNORE_INDEX` wherever nothing was
    hidden); another objective, because the logits at t answer for position t and a bidirectional backbone may see
    everything but the hidden symbol.

    Args:
        d_model: width of the hidden states.
        vocab_size: V, the number of logits.
        tied: share the backbone's embedding table.
        pad_vocab_to: rows of an own table are rounded up to a multiple of this, as in the embedding.
        masking: how much of the input is hidden, and how; None for the published rates.
    """

    objective: ClassVar[str] = "masked_token"

    def __init__(
        self,
        *,
        d_model: int,
        vocab_size: int,
        tied: bool = True,
        pad_vocab_to: int = 8,
        masking: Masking | None = None,
    ):
        super().__init__(d_model=d_model, vocab_size=vocab_size, tied=tied, pad_vocab_to=pad_vocab_to)
        self.masking = masking or Masking()
