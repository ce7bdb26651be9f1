"""A backbone that is told a class: which digit, which speaker, which instrument, which species.

    backbone = ClassConditioned(Stack(...), num_classes=10)
    hidden_BLD, state = backbone(ids_BL, backbone.begin(labels_B))

A learned vector of the class is added to the embedded symbol at every position, so it need not be remembered over
long sequences. Which class it is belongs to the state: prefill, steps, pieces and packed sequences need not know of it,
and two pieces of a sequence cannot be told different classes by mistake.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqmodels.backbones.base import Backbone
from seqmodels.backbones.stack import EMBEDDING_STD
from seqmodels.layers.base import require_positive
from seqmodels.layers.state import State


class ConditionedState(NamedTuple):
    """What a conditioned backbone carries.

    Attributes:
        labels_B: class of each sequence, int64.
        inner: state of the backbone inside; None before the first symbol.
    """

    labels_B: Int[Tensor, " B"]
    inner: State


class ClassConditioned(Backbone):
    """Adds a vector of the class to every position's embedding.

    Args:
        backbone: causal, with a `condition_BD` argument (`Stack`, `UNet`).
        num_classes: labels are 0..num_classes-1.

    Raises:
        ValueError: fewer than one class, a backbone that reads from both ends or takes no condition.
    """

    def __init__(self, backbone: Backbone, *, num_classes: int):
        super().__init__()
        require_positive(num_classes=num_classes)
        if not backbone.is_causal or "condition_BD" not in inspect.signature(backbone.forward).parameters:
            raise ValueError(f"{type(backbone).__name__} cannot be conditioned on a class: a causal Stack or UNet can")
        self.backbone, self.num_classes = backbone, num_classes
        self.class_embedding = nn.Embedding(num_classes, backbone.d_model)
        nn.init.normal_(self.class_embedding.weight, std=EMBEDDING_STD)
        self.d_model, self.vocab_size = backbone.d_model, backbone.vocab_size

    @property
    def embedding(self) -> nn.Embedding:  # type: ignore[override]
        """The table of ids of the backbone inside."""
        return self.backbone.embedding

    @property
    def is_causal(self) -> bool:
        return self.backbone.is_causal

    @property
    def steps_per_cycle(self) -> int:
        return self.backbone.steps_per_cycle

    def begin(self, labels_B: Int[Tensor, " B"] | None) -> ConditionedState:
        """The state of B sequences of these classes before their first symbol.

        Raises:
            ValueError: no labels, or labels outside 0..num_classes-1 (looked at on the CPU only: a GPU would wait).
        """
        if labels_B is None:
            raise ValueError(
                f"this model is told one of {self.num_classes} classes for every sequence, and here are sequences"
                " without: take labelled data, or say which class"
            )
        if labels_B.device.type == "cpu" and not bool(((labels_B >= 0) & (labels_B < self.num_classes)).all()):
            raise ValueError(f"labels {labels_B.tolist()[:8]}: this model knows classes 0 to {self.num_classes - 1}")
        return ConditionedState(labels_B.to(self.class_embedding.weight.device, torch.int64), None)

    def forward(
        self,
        ids_BL: Int[Tensor, "B L"],
        state: ConditionedState | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], ConditionedState]:
        """See `Backbone.forward`; the first piece's state is that of `begin`.

        Raises:
            ValueError: no state, or one for another number of sequences.
        """
        if state is None:
            state = self.begin(None)
        count = ids_BL.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        if len(state.labels_B) != count:
            raise ValueError(f"{len(state.labels_B)} labels for {count} sequences: one a sequence is needed")
        condition_BD = self.class_embedding(state.labels_B)
        hidden_BLD, inner = self.backbone(ids_BL, state.inner, cu_seqlens=cu_seqlens, condition_BD=condition_BD)
        return hidden_BLD, ConditionedState(state.labels_B, inner)
