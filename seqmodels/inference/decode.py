"""The inner loop of generation: draw a symbol, account for it, step the model; a CUDA graph on a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqmodels.inference.graph import MOST_GRAPHS, cuda_graph, warm_up_steps
from seqmodels.inference.sampling import Sampling
from seqmodels.layers.state import State, assign_state, map_state, state_tensors, updating_in_place
from seqmodels.model import SequenceModel

log = logging.getLogger(__name__)


class Decoder:
    """Draws symbols `chunk_len` at a time from where a prompt ended.

    All it works on is allocated once: one step reads and writes the same memory, so a GPU replays it as one graph.

    Args:
        model: a causal model with a next-token head, in evaluation mode.
        logits_BV: fp32 logits of the first symbol to draw.
        state: the model's state after the prompt, with room for all that is to be drawn (`reserve_state`); it is
            copied.
        sampling: how symbols are drawn.
        chunk_len: the most symbols that one call of `run` draws.
    """

    def __init__(
        self, model: SequenceModel, logits_BV: Float[Tensor, "B V"], state: State, sampling: Sampling, chunk_len: int
    ):
        B, device = logits_BV.shape[0], logits_BV.device
        self.model, self.sampling = model, sampling
        self.penalty_V = sampling.penalty_V(logits_BV.shape[1], device)
        self.logits_BV, self.state = logits_BV.clone(), map_state(torch.clone, state)
        rows = max(chunk_len, warm_up_steps(model.backbone.steps_per_cycle))  # warming up draws too
        self.uniform_QB = torch.zeros(rows, B, dtype=torch.float64, device=device)
        self.ids_QB = torch.zeros(rows, B, dtype=torch.int64, device=device)
        self.log_p_QB = torch.zeros(rows, B, device=device)
        self.position_1 = torch.zeros(1, dtype=torch.int64, device=device)
        self.step = self._step if device.type != "cuda" else self._graph()

    def _graph(self) -> Callable[[], None]:
        """The step as a CUDA graph, or several in turn where layers run at different rates; else itself."""
        cycle = self.model.backbone.steps_per_cycle
        if cycle > MOST_GRAPHS:
            log.info("steps are launched one by one: a cycle has %d, more than the %d graphs made", cycle, MOST_GRAPHS)
            return self._step
        changed = [self.logits_BV, self.position_1, *state_tensors(self.state)]
        try:
            return cuda_graph(self._step, changed, cycle)
        except RuntimeError as error:
            log.warning("steps are launched one by one, which is slow: no CUDA graph of them (%s)", error)
            return self._step

    @torch.no_grad()
    def run(self, uniform_QB: Float[Tensor, "Q B"]) -> tuple[Int[Tensor, "B Q"], Float[Tensor, "B Q"]]:
        """Draws Q symbols a row: ids, and log p of each at temperature 1 over the whole vocabulary, in nats."""
        drawn = len(uniform_QB)
        self.uniform_QB[:drawn] = uniform_QB
        self.position_1.zero_()
        for _ in range(drawn):
            self.step()
        return self.ids_QB[:drawn].T.clone(), self.log_p_QB[:drawn].T.clone()

    @torch.no_grad()
    def _step(self) -> None:
        uniform_B = self.uniform_QB.index_select(0, self.position_1).squeeze(0)
        allowed_BV = self.logits_BV if self.penalty_V is None else self.logits_BV + self.penalty_V
        picked_B = self.sampling.pick(allowed_BV, uniform_B)
        log_p_BV = torch.log_softmax(self.logits_BV, dim=-1)
        self.ids_QB.index_copy_(0, self.position_1, picked_B[None])
        self.log_p_QB.index_copy_(0, self.position_1, log_p_BV.gather(-1, picked_B[:, None]).T)
        self.position_1 += 1
        with updating_in_place():
            outputs_B1P, state = self.model(picked_B[:, None], self.state)
        assign_state(self.state, state)
        self.logits_BV.copy_(self.model.head.vocabulary_logits(outputs_B1P.squeeze(1)))
