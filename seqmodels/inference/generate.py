"""Continue sequences: read the prompt in one pass (prefill), then one symbol at a time, the state carried along.

prompt ids -> ids and their exact log-likelihood. Recurrent layers cost the same for every symbol; attention without a
window reads its whole past, in a cache that is given room for all symbols at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from seqmodels.inference.decode import Decoder
from seqmodels.inference.graph import warm_up_steps
from seqmodels.inference.sampling import Sampling, uniforms
from seqmodels.layers.base import require_positive
from seqmodels.layers.state import State, reserve_state
from seqmodels.model import SequenceModel

PREFILL_CHUNK = 2**16  # prompt positions per forward pass: bounds memory, not the prompt


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
    class_ids: int | Sequence[int] | Int[Tensor, " B"] | None = None,
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
        class_ids: for a model that is told classes (`ClassConditioned`), the class of every row, or one for all.
        sampling: temperature, top-k, top-p and seed; None draws from the model's own distribution with seed 0.
        on_tokens: called with every `chunk_len` new symbols as they come: to write them out, or to show progress.
        chunk_len: symbols between two calls of `on_tokens`.

    Returns:
        The symbols and their log-likelihoods, on the model's device.

    Raises:
        ValueError: num_tokens, batch_size or chunk_len below 1, a prompt of another shape, prompt or allowed ids
            outside the vocabulary, classes that the model does not know or is not told (or none, though it is), or a
            model that predicts no next symbols.
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
    noise = uniforms(sampling.seed, B, chunk_len, device)
    with evaluation(model):
        logits_BV, state = _prefill(model, inputs_BL, _beginning(model, class_ids, B))
        state = reserve_state(state, num_tokens + warm_up_steps(model.backbone.steps_per_cycle))
        decoder = Decoder(model, logits_BV, state, sampling, chunk_len)
        for first in range(0, num_tokens, chunk_len):
            chunk = slice(first, min(first + chunk_len, num_tokens))
            ids_BL[:, chunk], log_likelihood_BL[:, chunk] = decoder.run(next(noise)[: chunk.stop - first])
            if on_tokens is not None:
                on_tokens(ids_BL[:, chunk])
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


def _beginning(model: SequenceModel, class_ids: int | Sequence[int] | Tensor | None, rows: int) -> State:
    """The state before the first symbol of rows of these classes."""
    if class_ids is None:
        return model.begin(None)
    labels = torch.as_tensor(class_ids, dtype=torch.int64, device="cpu")
    if labels.dim() > 1 or (labels.dim() == 1 and len(labels) != rows):
        raise ValueError(f"class_ids has shape {tuple(labels.shape)}: give one for all, or one for each of {rows} rows")
    state = model.begin(labels.expand(rows))
    if state is None:
        raise ValueError("this model was trained without classes (condition=class), so it cannot make one of them")
    return state


def _prefill(model: SequenceModel, inputs_BL: Int[Tensor, "B L"], state: State) -> tuple[Float[Tensor, "B V"], State]:
    """Reads start and prompt; logits of the last position alone, so a long prompt costs no (L, V) memory."""
    hidden_BQD = None
    for piece_BQ in inputs_BL.split(PREFILL_CHUNK, dim=1):
        hidden_BQD, state = model.backbone(piece_BQ, state)
    assert hidden_BQD is not None
    return model.head.vocabulary_logits(model.head(hidden_BQD[:, -1:]).squeeze(1)).float(), state
