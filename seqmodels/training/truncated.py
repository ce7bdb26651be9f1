"""Truncated back-propagation: a long sample in pieces, the state carried on, its gradient cut at every border.

A recording of an hour is one sample; memory is that of one piece. The model hears all that came before (the state goes
on), but learns from a symbol's effect only within its piece. Piece by piece, the forward pass is the one of the whole
sample; gradients of the pieces add up to one step. Nothing outlasts a batch, so a run resumes as exactly as any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from seqmodels.data.record import IGNORE_INDEX, Batch
from seqmodels.heads.base import LossSums
from seqmodels.layers.state import detach_state
from seqmodels.model import SequenceModel


def pieces(batch: Batch, length: int) -> list[Batch]:
    """A batch for next-symbol prediction in stretches of at most `length` positions, first to last."""
    cut = {
        field.name: value.split(length, dim=1)
        for field in dataclasses.fields(batch)
        if field.name.endswith("_BL") and (value := getattr(batch, field.name)) is not None
    }
    return [
        dataclasses.replace(batch, **{name: parts[number] for name, parts in cut.items()})
        for number in range(len(cut["input_ids_BL"]))
    ]


def target_weight(batch: Batch) -> Float[Tensor, ""]:
    """The sum of weights of all targets: what `LossSums.count` will be, before anything has run."""
    assert batch.target_ids_BL is not None
    is_target_BL = (batch.target_ids_BL != IGNORE_INDEX).float()
    return (is_target_BL if batch.weights_BL is None else is_target_BL * batch.weights_BL.float()).sum()


def require_truncatable(model: SequenceModel) -> None:
    """Truncation needs a state to carry and a loss at every position.

    Raises:
        ValueError: the model predicts no next symbols, or has no state.
    """
    if model.head.objective != "next_token" or not model.backbone.is_causal:
        raise ValueError(
            f"trainer.truncate needs a causal model that predicts next symbols; {type(model.backbone).__name__} with "
            f"{type(model.head).__name__} is none: set trainer.truncate=null"
        )


def backward_in_pieces(
    model: SequenceModel, batch: Batch, length: int, *, backward: Callable[[LossSums], None]
) -> LossSums:
    """Runs a batch piece by piece, calling `backward` on the sums of every piece but the last.

    Args:
        model: a causal model that predicts next symbols.
        batch: B rows, padding on the right.
        length: positions of a piece, at least 1.
        backward: makes gradients of a piece's loss; its graph is gone afterwards.

    Returns:
        Sums over the whole batch, of which only the last piece's are differentiable.
    """
    state, total = model.begin(batch.labels_B), None
    cut = pieces(batch, length)
    for number, piece in enumerate(cut):
        outputs, state = model(piece.input_ids_BL, detach_state(state))
        sums = model.head.loss(outputs, piece)
        if number < len(cut) - 1:
            backward(sums)
            sums = dataclasses.replace(sums, loss_sum=sums.loss_sum.detach())
        total = sums if total is None else total + sums
    assert total is not None
    return total
