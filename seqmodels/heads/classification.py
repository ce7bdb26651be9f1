"""One label a sequence: hidden_BLD -> pooled_BD -> logits_BO."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqmodels.data.record import Batch
from seqmodels.heads.base import Head, LossSums

POOLINGS = ("last", "mean")


class ClassificationHead(Head):
    """Pools the real positions of each row, then one linear map to the classes.

    Args:
        d_model: width of the hidden states.
        num_classes: O, the number of logits, at least 2.
        pooling: "last" takes a row's last real position, "mean" averages its real positions in fp32.

    Raises:
        ValueError: fewer than two classes, or an unknown pooling.
    """

    published_name: ClassVar[str] = "head"
    objective: ClassVar[str] = "classify"

    def __init__(self, *, d_model: int, num_classes: int, pooling: str = "mean"):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: classification needs at least 2 classes")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling={pooling!r}: must be one of {', '.join(POOLINGS)}")
        self.num_classes, self.pooling = num_classes, pooling
        self.classifier = nn.Linear(d_model, num_classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, hidden_BLD: Float[Tensor, "B L D"], lengths_B: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B O"]:
        return self.classifier(pool(hidden_BLD, lengths_B, self.pooling))

    def loss(self, logits: Float[Tensor, "B O"], batch: Batch) -> LossSums:
        """Cross-entropy in nats, one a row.

        Raises:
            ValueError: the batch has no labels.
        """
        return label_loss(logits, batch)


def label_loss(logits_BO: Float[Tensor, "B O"], batch: Batch) -> LossSums:
    """Cross-entropy of logits against labels_B, in nats and fp32, and how many are right.

    Raises:
        ValueError: the batch has no labels.
    """
    if batch.labels_B is None:
        raise ValueError(
            f"a classification head needs labels_B, which this batch lacks (records {batch.record_ids[:3]}); "
            "use a labeled data set, or a next-token head"
        )
    logits_BO = logits_BO.float()
    loss_sum = F.cross_entropy(logits_BO, batch.labels_B, reduction="sum")
    correct = (logits_BO.detach().argmax(dim=-1) == batch.labels_B).float().sum()
    return LossSums(loss_sum, torch.full_like(correct, len(batch.labels_B)), {"accuracy": correct})


def pool(
    hidden_BLD: Float[Tensor, "B L D"], lengths_B: Int[Tensor, " B"] | None, pooling: str
) -> Float[Tensor, "B D"]:
    """One vector a row from its real positions (all L where lengths_B is None), in hidden's dtype."""
    if lengths_B is None:
        lengths_B = torch.full(hidden_BLD.shape[:1], hidden_BLD.shape[1], device=hidden_BLD.device)
    if pooling == "last":
        rows_B = torch.arange(hidden_BLD.shape[0], device=hidden_BLD.device)
        return hidden_BLD[rows_B, lengths_B - 1]
    is_real_BL = torch.arange(hidden_BLD.shape[1], device=hidden_BLD.device) < lengths_B[:, None]
    # where, not times: whatever stands in the padding, NaN included, must not come through
    total_BD = hidden_BLD.masked_fill(~is_real_BL[..., None], 0.0).sum(dim=1, dtype=torch.float32)
    return (total_BD / lengths_B[:, None]).to(hidden_BLD.dtype)
