"""Sequences longer than memory: hidden states and log-likelihoods, piece by piece, the state carried along.

A causal model gives in pieces what it gives in one pass, to rounding; memory grows with the piece and not with the
sequence. A model that reads from both ends cannot carry anything: `windows` reads each piece with its surroundings, and
what lies farther away does not reach it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from seqmodels.inference.generate import evaluation
from seqmodels.layers.base import require_positive
from seqmodels.layers.state import map_state, state_tensors
from seqmodels.model import SequenceModel


class Piece(NamedTuple):
    """What a model makes of Q symbols in their place.

    Attributes:
        hidden_QD: after reading each symbol (and, in a model that is not causal, those after it), fp32.
        log_likelihood_Q: log p of each symbol given all before it, nats; None where a model predicts no next ones.
    """

    hidden_QD: Float[Tensor, "Q D"]
    log_likelihood_Q: Float[Tensor, " Q"] | None


class Stream:
    """One sequence through a causal model, in as many pieces as one likes.

    Args:
        model: causal; with a next-token head it also gives log-likelihoods.
        start_id: what a language model reads before the first symbol (the tokenizer's start_id); classifiers are
            trained without one.

    Raises:
        ValueError: the model is not causal.
    """

    def __init__(self, model: SequenceModel, *, start_id: int):
        if not model.backbone.is_causal:
            raise ValueError("a model that reads from both ends has no state to carry; read it in windows")
        self._model = model
        self._predicts = model.head.objective == "next_token"
        self._device = model.backbone.embedding.weight.device
        self._state = None
        self._before_1D: Tensor | None = None  # hidden state of the symbol before the next piece
        if self._predicts:
            self._before_1D = self._run(torch.tensor([start_id]))[-1:]

    def read(self, ids_Q: Integer[Tensor, " Q"] | np.ndarray) -> Piece:
        """The next Q >= 1 symbols."""
        ids_Q = torch.as_tensor(np.asarray(ids_Q, dtype=np.int64)).to(self._device)
        hidden_QD = self._run(ids_Q)
        if self._before_1D is None:
            return Piece(hidden_QD.float(), None)
        with evaluation(self._model):
            outputs_QP = self._model.head(torch.cat([self._before_1D, hidden_QD[:-1]])[None])[0]
            log_likelihood_Q = self._model.head.log_prob(outputs_QP, ids_Q)
        self._before_1D = hidden_QD[-1:].clone()
        return Piece(hidden_QD.float(), log_likelihood_Q)

    def tensors(self) -> dict[str, Tensor]:
        """All that is carried, on the CPU: to go on later with `restore`."""
        carried = {f"state.{n}": tensor for n, tensor in enumerate(state_tensors(self._state))}
        if self._before_1D is not None:
            carried["before"] = self._before_1D
        return {name: tensor.detach().cpu().contiguous() for name, tensor in carried.items()}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        """Goes on where the stream stood that `tensors` was called on."""
        if self._state is None:
            self._run(torch.zeros(1, dtype=torch.int64))  # makes a state of the right structure
        places = iter(range(len(carried)))
        self._state = map_state(lambda _: carried[f"state.{next(places)}"].to(self._device), self._state)
        if "before" in carried:
            self._before_1D = carried["before"].to(self._device)

    def _run(self, ids_Q: Tensor) -> Tensor:
        with evaluation(self._model):
            hidden_1QD, self._state = self._model.backbone(ids_Q.to(self._device)[None], self._state)
        return hidden_1QD[0]


def windows(
    model: SequenceModel, fetch: Callable[[int, int], np.ndarray], start: int, end: int, *, piece: int, context: int
) -> Iterator[Piece]:
    """Symbols start..end-1 through a model that reads from both ends, each piece with `context` symbols on either side.

    Args:
        model: any.
        fetch: ids of symbols [from, to), asked for within the sequence only after clipping to 0; it clips the end.
        start: first symbol wanted.
        end: one past the last.
        piece: symbols kept of each pass.
        context: symbols read before and after them.
    """
    require_positive(piece=piece)
    device = model.backbone.embedding.weight.device
    for first in range(start, end, piece):
        last = min(first + piece, end)
        begin = max(0, first - context)
        ids_T = torch.as_tensor(np.asarray(fetch(begin, last + context), dtype=np.int64)).to(device)
        with evaluation(model):
            hidden_1TD, _ = model.backbone(ids_T[None])
        yield Piece(hidden_1TD[0, first - begin : last - begin].float(), None)
