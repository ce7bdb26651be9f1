"""Continue sequences: read the prompt in one pass (prefill), then one symbol at a time, the state carried along.

prompt ids -> ids and their exact log-likelihood. The cost per symbol does not depend on what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from seqmodels.layers.base import require_positive
from seqmodels.layers.state import State
from seqmodels.model import SequenceModel

PREFILL_CHUNK = 2**16  # prompt positions per forward pass: bounds memory, not the prompt


@dataclass(frozen=True)
class Sampling:
    """How the next symbol is drawn from its distribution.

    Args:
        temperature: logits are divided by this; 0 takes the most likely symbol. At least 0.
        top_k: draw among the k most likely symbols; None among all.
        top_p: draw among the fewest symbols that hold this share of the probability, in (0, 1]; None among all.
        seed: row b of a batch draws from the stream (seed, b), on any device and in any batch size.
        allowed_ids: draw only among these symbols (bases, say, and no special tokens); None among all.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    allowed_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: must be 0 (greedy) or positive and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or null for all symbols")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1], or null for all symbols")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")
        if self.allowed_ids is not None and len(self.allowed_ids) == 0:
            raise ValueError("allowed_ids is empty: name at least one symbol, or null for all")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    def pick(self, logits_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Draws one symbol a row from fp32 logits and float64 uniforms in [0, 1), by inverting the CDF."""
        if self.allowed_ids is not None:
            logits_BK = logits_BV[:, self.allowed_ids]
            logits_BV = torch.full_like(logits_BV, -torch.inf)
            logits_BV[:, self.allowed_ids] = logits_BK
        if self.is_greedy:
            return logits_BV.argmax(dim=-1)
        if self.temperature != 1:
            logits_BV = logits_BV / self.temperature
        probabilities_BV = torch.softmax(logits_BV.double(), dim=-1)
        if self.top_k is not None and self.top_k < logits_BV.shape[-1]:
            kept_BK, symbols_BK = probabilities_BV.topk(self.top_k, dim=-1)
            probabilities_BV = torch.zeros_like(probabilities_BV).scatter_(-1, symbols_BK, kept_BK)
        if self.top_p is not None and self.top_p < 1:
            probabilities_BV = _nucleus(probabilities_BV, self.top_p)
        cumulative_BV = probabilities_BV.cumsum(dim=-1)
        # right=True: a symbol of probability 0 has the CDF of the one before it and is never taken
        threshold_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
        return torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)


@dataclass(frozen=True, slots=True)
class Generated:
    """What `generate` made.

    Attributes:
        ids_BL: the new symbols, without the prompt, int64.
        log_likelihood_BL: log p of each at temperature 1 over the whole vocabulary, whatever was sampled from; nats.
    """

    ids_BL: Int[Tensor, "B L"]
    log_likelihood_BL: Float[Tensor, "B L"]

    @property
    def log_likelihood_B(self) -> Float[Tensor, " B"]:
        """log p of each row given its prompt, summed in float64."""
        return self.log_likelihood_BL.sum(dim=-1, dtype=torch.float64)


def generate(
    model: SequenceModel,
    num_tokens: int,
    *,
    start_id: int,
    prompt_ids: Integer[Tensor, "*B P"] | np.ndarray | None = None,
    batch_size: int = 1,
    sampling: Sampling | None = None,
    on_tokens: Callable[[Int[Tensor, "B Q"]], None] | None = None,
    chunk_len: int = 256,
) -> Generated:
    """Draws exactly `num_tokens` symbols after the prompt.

    Args:
        model: a causal model with a next-token head.
        num_tokens: symbols to make, at least 1.
        start_id: the tokenizer's start_id, read before the prompt.
        prompt_ids: (P,) for every row, or (B, P) one a row; P may be 0. None is no prompt.
        batch_size: rows to make; ignored for a (B, P) prompt, which says it.
        sampling: temperature, top-k, top-p and seed; None draws from the model's own distribution with seed 0.
        on_tokens: called with every `chunk_len` new symbols as they come: to write them out, or to show progress.
        chunk_len: symbols between two calls of `on_tokens`.

    Returns:
        The symbols and their log-likelihoods, on the model's device.

    Raises:
        ValueError: num_tokens, batch_size or chunk_len below 1, a prompt of another shape, prompt or allowed ids
            outside the vocabulary, or a model that predicts no next symbols.
    """
    require_positive(num_tokens=num_tokens, batch_size=batch_size, chunk_len=chunk_len)
    if model.head.objective != "next_token" or not model.backbone.is_causal:
        raise ValueError("generation needs a causal model with a next-token head, which this model is not")
    sampling = sampling or Sampling()
    _check_vocabulary("allowed_ids", torch.tensor(sampling.allowed_ids or []), model)
    inputs_BL = _inputs(model, start_id, prompt_ids, batch_size)
    B, device = inputs_BL.shape[0], inputs_BL.device
    ids_BL = torch.empty(B, num_tokens, dtype=torch.int64, device=device)
    log_likelihood_BL = torch.empty(B, num_tokens, device=device)
    noise = _uniforms(sampling.seed, B, chunk_len, device)
    with evaluation(model):
        logits_BV, state = _prefill(model, inputs_BL)
        for first in range(0, num_tokens, chunk_len):
            uniform_QB = next(noise)
            for position in range(first, min(first + chunk_len, num_tokens)):
                if position > 0:
                    logits_B1V, state = model(ids_BL[:, position - 1 : position], state)
                    logits_BV = logits_B1V.squeeze(1).float()
                picked_B = sampling.pick(logits_BV, uniform_QB[position - first])
                ids_BL[:, position] = picked_B
                log_p_BV = torch.log_softmax(logits_BV, dim=-1)
                log_likelihood_BL[:, position] = log_p_BV.gather(-1, picked_B[:, None]).squeeze(-1)
            if on_tokens is not None:
                on_tokens(ids_BL[:, first : first + chunk_len])
    return Generated(ids_BL, log_likelihood_BL)


@contextmanager
def evaluation(model: torch.nn.Module) -> Iterator[None]:
    """No gradients, and evaluation mode for as long as it lasts."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _inputs(
    model: SequenceModel, start_id: int, prompt_ids: Tensor | np.ndarray | None, batch_size: int
) -> Int[Tensor, "B L"]:
    """start_id, then the prompt, for every row, on the model's device."""
    device = model.backbone.embedding.weight.device
    if isinstance(prompt_ids, np.ndarray):
        prompt_ids = torch.from_numpy(prompt_ids.astype(np.int64))
    prompt = torch.empty(0, dtype=torch.int64) if prompt_ids is None else prompt_ids
    if prompt.dim() not in (1, 2):
        raise ValueError(f"a prompt has shape (P,) or (B, P), not {tuple(prompt.shape)}")
    prompt_BP = prompt.expand(batch_size, -1) if prompt.dim() == 1 else prompt
    _check_vocabulary("prompt ids", prompt_BP, model)
    start_B1 = torch.full((prompt_BP.shape[0], 1), start_id, dtype=torch.int64, device=device)
    return torch.cat([start_B1, prompt_BP.to(device, torch.int64)], dim=1)


def _check_vocabulary(what: str, ids: Tensor, model: SequenceModel) -> None:
    low, high = (int(ids.min()), int(ids.max())) if ids.numel() else (0, 0)
    if low < 0 or high >= model.backbone.vocab_size:
        raise ValueError(f"{what} run from {low} to {high}; the model knows 0 to {model.backbone.vocab_size - 1}")


def _prefill(model: SequenceModel, inputs_BL: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B V"], State]:
    """Reads start and prompt; logits of the last position alone, so a long prompt costs no (L, V) memory."""
    state: State = None
    hidden_BQD = None
    for piece_BQ in inputs_BL.split(PREFILL_CHUNK, dim=1):
        hidden_BQD, state = model.backbone(piece_BQ, state)
    assert hidden_BQD is not None
    return model.head(hidden_BQD[:, -1:]).squeeze(1).float(), state


def _uniforms(seed: int, rows: int, chunk_len: int, device: torch.device) -> Iterator[Float[Tensor, "Q B"]]:
    """float64 uniforms in [0, 1), chunk_len at a time; row b's stream depends on (seed, b) alone.

    Drawn on the CPU so that a seed means the same on every device. The factor keeps u * total below total after
    rounding, so that inverting the CDF never runs off its end.
    """
    streams = [np.random.default_rng([seed, row]) for row in range(rows)]
    while True:
        uniform_BQ = np.stack([stream.random(chunk_len) for stream in streams]) * (1 - 2.0**-52)
        yield torch.from_numpy(np.ascontiguousarray(uniform_BQ.T)).to(device)


def _nucleus(probabilities_BV: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Keeps the fewest most likely symbols whose (renormalised) probability reaches top_p; zeroes the rest."""
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV  # mass of what is more likely
    keep_BV = before_BV < top_p * sorted_BV.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities_BV).scatter_(-1, order_BV, sorted_BV * keep_BV)
