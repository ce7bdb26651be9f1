"""The contract of a backbone: ids in, hidden states out, one state for all that it carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqmodels.layers.state import State


class Backbone(nn.Module, ABC):
    """Maps ids_BL to hidden_BLD under the same laws as a `SequenceLayer`.

    Class attributes:
        strands: how many hidden states of d_model channels stand at a position: 2 in reverse-complement equivariant
            backbones, which need a head for two strands.

    Attributes:
        d_model: width of the hidden states (of each strand).
        vocab_size: ids are 0..vocab_size-1.
        embedding: the table of ids; a tied head shares its weight.
    """

    strands: ClassVar[int] = 1
    d_model: int
    vocab_size: int
    embedding: nn.Embedding

    @property
    @abstractmethod
    def is_causal(self) -> bool:
        """Whether hidden[:, t] depends on ids[:, :t+1] alone."""

    @property
    def steps_per_cycle(self) -> int:
        """Steps of one position until the same layers run again: 1, unless some run at a lower rate than the input."""
        return 1

    def begin(self, labels_B: Int[Tensor, " B"] | None) -> State:
        """The state before the first symbol of B sequences of these classes: None, for what is told no class."""
        return None

    @abstractmethod
    def forward(
        self, ids_BL: Int[Tensor, "B L"], state: State = None, *, cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """Runs over L positions from `state` (None: the start); see `SequenceLayer.forward`."""


def add_condition(
    x_BLD: Float[Tensor, "B L D"],
    condition_BD: Float[Tensor, "S D"] | None,
    cu_seqlens: Int[Tensor, " nseq_plus_1"] | None,
) -> Float[Tensor, "B L D"]:
    """Adds a vector of each sequence to all of its positions; packed sequences have one row of `condition_BD` each."""
    if condition_BD is None:
        return x_BLD
    if cu_seqlens is None:
        return x_BLD + condition_BD[:, None]
    return x_BLD + condition_BD.repeat_interleave(cu_seqlens.diff().to(torch.int64), dim=0, output_size=x_BLD.shape[1])
