"""The language-model head: hidden_BLD -> logits_BLV, and the cross-entropy of the next symbol."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqmodels.backbones.stack import EMBEDDING_STD, round_up
from seqmodels.data.record import IGNORE_INDEX, Batch
from seqmodels.heads.base import Head, LossSums

LOSS_CHUNK_ELEMENTS = 2**24  # logits whose fp32 copies exist at one time: 64 MiB each


class NextTokenHead(Head):
    """One linear map to the vocabulary; `lm_head.weight` of published state dicts.

    Args:
        d_model: width of the hidden states.
        vocab_size: V, the number of logits.
        tied: share the backbone's embedding table (`SequenceModel` sees to it).
        pad_vocab_to: rows of an own table are rounded up to a multiple of this, as in the embedding. Padding rows
            never appear in the logits.
    """

    published_name: ClassVar[str] = "lm_head"
    objective: ClassVar[str] = "next_token"

    def __init__(self, *, d_model: int, vocab_size: int, tied: bool = True, pad_vocab_to: int = 8):
        super().__init__()
        self.vocab_size, self.tied = vocab_size, tied
        self.weight = nn.Parameter(torch.empty(round_up(vocab_size, pad_vocab_to), d_model))
        nn.init.normal_(self.weight, std=EMBEDDING_STD)

    def tie(self, embedding: nn.Embedding) -> None:
        """Makes the embedding's table this head's own parameter.

        Raises:
            ValueError: the two tables differ in shape.
        """
        if embedding.weight.shape != self.weight.shape:
            raise ValueError(
                f"a tied head needs the embedding's shape: embedding {tuple(embedding.weight.shape)}, "
                f"head {tuple(self.weight.shape)}; give both the same d_model, vocab_size and pad_vocab_to, "
                "or set head.tied=false"
            )
        self.weight = embedding.weight

    def forward(
        self, hidden_BLD: Float[Tensor, "B L D"], lengths_B: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B L V"]:
        """Logits of the next symbol at every position; padding is ignored by the loss, not here."""
        return F.linear(hidden_BLD, self.weight)[..., : self.vocab_size]

    def loss(self, logits: Float[Tensor, "B L V"], batch: Batch) -> LossSums:
        """Cross-entropy in nats over targets that are not `IGNORE_INDEX`, times `weights_BL` if given.

        Raises:
            ValueError: the batch has no targets.
        """
        if batch.target_ids_BL is None:
            raise ValueError(
                f"a next-token head needs target_ids_BL, which this batch lacks (records {batch.record_ids[:3]}); "
                "use a collate for language modelling, or a classification head for labeled data"
            )
        targets_T = batch.target_ids_BL.flatten()
        weights_T = (targets_T != IGNORE_INDEX).float()
        if batch.weights_BL is not None:
            weights_T = weights_T * batch.weights_BL.flatten().float()
        chunk = max(1, LOSS_CHUNK_ELEMENTS // self.vocab_size)
        pieces = zip(logits.flatten(0, 1).split(chunk), targets_T.split(chunk), weights_T.split(chunk))
        # Each chunk's fp32 copies live only while it is worked on; backward makes them again.
        several = len(targets_T) > chunk and torch.is_grad_enabled()
        sums = [_again_in_backward(*p) if several else _sums(*p) for p in pieces]
        loss_sum, correct = (torch.stack(column).sum() for column in zip(*sums))  # type: ignore[arg-type]
        return LossSums(loss_sum, weights_T.sum(), {"accuracy": correct.detach()})


def _again_in_backward(*piece: Tensor) -> tuple[Tensor, Tensor]:
    return checkpoint(_sums, *piece, use_reentrant=False, preserve_rng_state=False)  # nothing random inside


def _sums(logits_TV: Tensor, targets_T: Tensor, weights_T: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sums of cross-entropy and of correct predictions, over T positions."""
    nats_T = F.cross_entropy(logits_TV.float(), targets_T, reduction="none", ignore_index=IGNORE_INDEX)
    correct_T = (logits_TV.detach().argmax(dim=-1) == targets_T).float()
    return (nats_T * weights_T).sum(), (correct_T * weights_T).sum()
