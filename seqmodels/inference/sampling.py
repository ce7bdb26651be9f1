"""How the next symbol is drawn: temperature, top-k, top-p, allowed symbols; reproducible on any device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the next symbol is drawn from its distribution.

    Args:
        temperature: logits are divided by this; 0 takes the most likely symbol. At least 0.
        top_k: draw among the k most likely symbols (which of equally likely ones is left open); None among all.
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

    def penalty_V(self, vocab_size: int, device: torch.device) -> Float[Tensor, " V"] | None:
        """What to add to logits so that only allowed symbols are drawn: 0 or -inf. None where all are allowed."""
        if self.allowed_ids is None:
            return None
        penalty_V = torch.full((vocab_size,), -torch.inf)
        penalty_V[list(self.allowed_ids)] = 0
        return penalty_V.to(device)

    def pick(self, logits_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Draws one symbol a row from fp32 logits and float64 uniforms in [0, 1), by inverting the CDF.

        Takes no account of `allowed_ids`: add `penalty_V` to the logits first, once prepared for every step.
        """
        if self.is_greedy:
            return logits_BV.argmax(dim=-1)
        if self.temperature != 1:
            logits_BV = logits_BV / self.temperature
        if self.top_k is None or self.top_k >= logits_BV.shape[-1]:
            return self._invert_cdf(logits_BV, uniform_B)
        # In the order of the vocabulary, so that a uniform picks what it would with the others' probabilities zeroed;
        # but everything in float64 is done for k symbols, which at a large vocabulary is most of the time of a draw.
        symbols_BK = logits_BV.topk(self.top_k, dim=-1, sorted=False).indices.sort(dim=-1).values
        place_B = self._invert_cdf(logits_BV.gather(-1, symbols_BK), uniform_B)
        return symbols_BK.gather(-1, place_B[:, None]).squeeze(-1)

    def _invert_cdf(self, logits_BV: Float[Tensor, "B V"], uniform_B: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
        """Draws one place a row, after top-p."""
        probabilities_BV = torch.softmax(logits_BV.double(), dim=-1)
        if self.top_p is not None and self.top_p < 1:
            probabilities_BV = _nucleus(probabilities_BV, self.top_p)
        cumulative_BV = probabilities_BV.cumsum(dim=-1)
        # right=True: a symbol of probability 0 has the CDF of the one before it and is never taken
        threshold_B1 = (uniform_B * cumulative_BV[:, -1])[:, None]
        return torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)


def uniforms(
    seed: int, rows: Sequence[int], chunk_len: int, device: torch.device
) -> Iterator[Float[Tensor, "Q B"]]:
    """float64 uniforms in [0, 1), chunk_len at a time; row r's stream depends on (seed, r) alone.

    Drawn on the CPU so that a seed means the same on every device. The factor keeps u * total below total after
    rounding, so that inverting the CDF never runs off its end.
    """
    streams = [np.random.default_rng([seed, row]) for row in rows]
    while True:
        uniform_BQ = np.stack([stream.random(chunk_len) for stream in streams]) * (1 - 2.0**-52)
        yield torch.from_numpy(np.ascontiguousarray(uniform_BQ.T)).to(device)


def _nucleus(probabilities_BV: Float[Tensor, "B V"], top_p: float) -> Float[Tensor, "B V"]:
    """Keeps the fewest most likely symbols whose (renormalised) probability reaches top_p; zeroes the rest."""
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV  # mass of what is more likely
    keep_BV = before_BV < top_p * sorted_BV.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probabilities_BV).scatter_(-1, order_BV, sorted_BV * keep_BV)
