"""A model is a backbone and a head: ids_BL -> hidden_BLD -> logits."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seqmodels.backbones.base import Backbone
from seqmodels.heads.base import Head
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.instantiate import locate
from seqmodels.layers.state import State


class SequenceModel(nn.Module):
    """Holds the head under the name that published weights use, so their state dicts load unchanged.

    Args:
        backbone: ids to hidden states.
        head: hidden states to logits; a tied `NextTokenHead` takes the backbone's embedding table.

    Raises:
        ValueError: a tied head's table has not the embedding's shape, the head is for another number of strands, or
            it predicts the next symbol and the backbone has already seen it.
    """

    def __init__(self, backbone: Backbone, head: Head):
        super().__init__()
        if backbone.strands != head.strands:
            raise ValueError(
                f"{type(backbone).__name__} gives {_STRANDS[backbone.strands]} and {type(head).__name__} reads "
                f"{_STRANDS[head.strands]}: an RC-equivariant backbone needs an RC head (head=rc_classification, "
                "head=rc_masked_token), and no other backbone does"
            )
        if head.objective == "next_token" and not backbone.is_causal:
            raise ValueError(
                f"{type(backbone).__name__} reads from both ends and so sees the symbol that {type(head).__name__} is "
                "to predict: take a causal backbone, or a head for labels (head=classification) or hidden symbols "
                "(head=masked_token)"
            )
        self.backbone = backbone
        self._head_name = head.published_name
        self._modules[self._head_name] = head  # not add_module: it refuses "head", which is also the property's name
        self.tie_weights()

    @property
    def head(self) -> Head:
        """The head, whatever name it is registered under."""
        return self._modules[self._head_name]  # type: ignore[return-value]

    def tie_weights(self) -> None:
        """Shares the embedding with a tied head; again after `to_empty`, which makes two tables of one."""
        head = self.head
        if isinstance(head, NextTokenHead) and head.tied:
            head.tie(self.backbone.embedding)

    def begin(self, labels_B: Int[Tensor, " B"] | None) -> State:
        """The state before the first symbol: what a model that is told classes starts from; None for every other.

        Raises:
            ValueError: the model is told classes, and `labels_B` is None or names others.
        """
        return self.backbone.begin(labels_B)

    def forward(
        self,
        ids_BL: Int[Tensor, "B L"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
        lengths_B: Int[Tensor, " B"] | None = None,
    ) -> tuple[Tensor, State]:
        """Logits, and the state after the last position. L = 1 with a state is one step of decoding.

        Args:
            ids_BL: int64 ids in 0..vocab_size-1.
            state: what the previous piece returned; at the start, what `begin` returned. None starts from zero.
            cu_seqlens: offsets of sequences packed into one row (B == 1); the state then has one row a sequence.
            lengths_B: real positions of each row, padding on the right; pooling heads need it, and so do backbones
                that are not causal (they never see the padding). The returned state of a padded row has seen its
                padding.
        """
        if lengths_B is not None and cu_seqlens is None and not self.backbone.is_causal:
            hidden_BLD, state = self._without_padding(ids_BL, lengths_B)
        else:
            hidden_BLD, state = self.backbone(ids_BL, state, cu_seqlens=cu_seqlens)
        return self.head(hidden_BLD, lengths_B), state

    def _without_padding(
        self, ids_BL: Int[Tensor, "B L"], lengths_B: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """Hidden states of the real positions, 0 elsewhere: what reads from both ends must not begin in padding.

        Rows of unequal length run packed end to end, which every layer can do and which costs no work on padding.
        """
        is_real_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device) < lengths_B.to(ids_BL.device)[:, None]
        if bool(is_real_BL.all()):
            return self.backbone(ids_BL)
        ends_B = is_real_BL.sum(dim=1).cumsum(dim=0)
        cu_seqlens = torch.cat([ends_B.new_zeros(1), ends_B]).to(torch.int32)
        packed_1TD, state = self.backbone(ids_BL[is_real_BL][None], cu_seqlens=cu_seqlens)
        hidden_BLD = packed_1TD.new_zeros(*ids_BL.shape, packed_1TD.shape[-1])
        return hidden_BLD.masked_scatter(is_real_BL[..., None], packed_1TD), state


CLASS_CONDITIONED = "seqmodels.backbones.class_conditioned.ClassConditioned"
_STRANDS = {1: "one strand", 2: "two strands"}


def model_spec(
    backbone: Mapping[str, Any],
    head: Mapping[str, Any],
    *,
    vocab_size: int,
    num_classes: int | None = None,
    condition: str | None = None,
) -> dict[str, Any]:
    """The plain-data description of a model with every run-time value filled in: what `model.json` stores.

    Args:
        backbone: a backbone's spec (`_target_` and its keywords), without vocab_size.
        head: a head's spec, without d_model, vocab_size or num_classes: its signature says which it takes.
        vocab_size: the tokenizer's.
        num_classes: number of labels of a classification data set.
        condition: "class" tells the backbone the label of every sequence (`ClassConditioned`); None tells it nothing.

    Returns:
        A spec for `seqmodels.instantiate.build`.

    Raises:
        ValueError: the head or the condition needs num_classes and there are none: the data has no labels. A condition
            that is not known, or on what the head is to find out.
    """
    backbone = {**backbone, "vocab_size": vocab_size}
    known = {"d_model": backbone["d_model"], "vocab_size": vocab_size, "num_classes": num_classes}
    target = locate(head["_target_"])
    wanted = inspect.signature(target).parameters
    if "num_classes" in wanted and not num_classes:
        raise ValueError(f"head {head['_target_']} needs labeled classes, and this data set has none")
    if condition is not None:
        if condition != "class":
            raise ValueError(f"condition={condition!r}: class, or null to tell the model nothing, are accepted")
        if not num_classes:
            raise ValueError("condition=class needs labelled data, and this data set has no classes")
        if getattr(target, "objective", None) == "classify":
            raise ValueError("condition=class tells the model the class that its head is to find out")
        backbone = {"_target_": CLASS_CONDITIONED, "backbone": backbone, "num_classes": num_classes}
    filled = {name: value for name, value in known.items() if name in wanted}
    return {"_target_": "seqmodels.model.SequenceModel", "backbone": backbone, "head": {**head, **filled}}
