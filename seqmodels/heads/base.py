"""The contract of a head: hidden states to logits, logits and a batch to sums of losses."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqmodels.data.masking import Masking
from seqmodels.data.record import Batch


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums, not means, so that batches, ranks and accumulation steps add up to exactly what one big batch gives.

    Attributes:
        loss_sum: weighted sum of losses in nats, fp32, differentiable.
        count: the sum of weights: what to divide by. Without weights, the number of targets.
        metric_sums: more weighted sums with the same count ("accuracy": how much weight was predicted correctly).
    """

    loss_sum: Float[Tensor, ""]
    count: Float[Tensor, ""]
    metric_sums: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)

    def mean_loss(self) -> Float[Tensor, ""]:
        """Nats per target; 0 when nothing counts (a batch of padding alone gives no gradient, not NaN)."""
        return self.loss_sum / self.count.clamp(min=torch.finfo(torch.float32).tiny)

    def metrics(self) -> dict[str, float]:
        """{"loss": nats, "bits": bits per target, ...} as plain numbers; NaN when nothing counts."""
        count = self.count.item()
        sums = {"loss": self.loss_sum.detach(), **self.metric_sums}
        means = {name: value.item() / count if count else math.nan for name, value in sums.items()}
        return {**means, "bits": means["loss"] / math.log(2)}

    def detach(self) -> LossSums:
        """Without the graph and in float64, ready to be added up over a whole evaluation."""
        sums = {name: value.detach().double() for name, value in self.metric_sums.items()}
        return LossSums(self.loss_sum.detach().double(), self.count.detach().double(), sums)

    def __add__(self, other: LossSums) -> LossSums:
        if self.metric_sums.keys() != other.metric_sums.keys():
            raise ValueError(f"cannot add sums of {sorted(self.metric_sums)} and {sorted(other.metric_sums)}")
        sums = {name: value + other.metric_sums[name] for name, value in self.metric_sums.items()}
        return LossSums(self.loss_sum + other.loss_sum, self.count + other.count, sums)


class Head(nn.Module, ABC):
    """Turns hidden states into logits and says what training minimises.

    Class attributes:
        published_name: the attribute of the model that holds the head, and so the prefix of its parameters.
        objective: "next_token" (targets at every position), "masked_token" (targets where the input hides them) or
            "classify" (one label a sequence).
        strands: hidden states that it expects at a position, see `Backbone.strands`.
        metrics: what `loss` sums up beside the loss: the keys of `LossSums.metric_sums`.

    Attributes:
        masking: how symbols are hidden from the model; None for heads that hide none.
    """

    published_name: ClassVar[str]
    objective: ClassVar[str]
    strands: ClassVar[int] = 1
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    masking: Masking | None = None

    def counted(self, unit: str) -> str:
        """What one target is called in metrics (bits_per_<...>): a base, a masked_base, a sequence.

        Args:
            unit: what the tokenizer calls one symbol.
        """
        return {"next_token": unit, "masked_token": f"masked_{unit}"}.get(self.objective, "sequence")

    @abstractmethod
    def forward(self, hidden_BLD: Float[Tensor, "B L D"], lengths_B: Int[Tensor, " B"] | None = None) -> Tensor:
        """Logits; positions at and beyond a row's length (None: L) must not change them."""

    def log_prob(self, outputs_TP: Float[Tensor, "T P"], ids_T: Int[Tensor, " T"]) -> Float[Tensor, " T"]:
        """log p in nats of one id a position, from what `forward` gave there (heads that predict symbols)."""
        return -F.cross_entropy(outputs_TP.float(), ids_T, reduction="none")

    def vocabulary_logits(self, outputs: Float[Tensor, "*B P"]) -> Float[Tensor, "*B V"]:
        """Logits of every id of the vocabulary, from what `forward` gave: the same, unless a head gives less."""
        return outputs

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> LossSums:
        """Loss of logits against the batch's targets, in fp32 whatever the logits' dtype."""
