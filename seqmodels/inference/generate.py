"""Continue sequences: read the prompt in one pass (prefill), then one symbol at a time, the state carried along.

prompt ids -> ids and their exact log-likelihood. Recurrent layers cost the same for every symbol; attention without a
window reads its whole past, in a cache that is given room for all symbols at the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from seqmodels.inference.decode import Decoder
from seqmodels.inference.graph import warm_up_steps
from seqmodels.inference.sampling import Sampling, uniforms
from seqmodels.layers.base import require_positive
from seqmodels.layers.state import State, reserve_state, select_state, state_bytes
from seqmodels.model import SequenceModel

CHUNK_LEN = 256  # symbols made between two looks at them
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


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a model has read before the first new symbol: made once, continued as often as one likes.

    Attributes:
        logits_BV: fp32 logits of the first symbol to draw.
        state: the model's state.
    """

    logits_BV: Float[Tensor, "B V"]
    state: State

    def rows(self, count: int) -> Prefix:
        """`count` rows that continue it: as many as it has, or copies of its only one."""
        if len(self.logits_BV) == count:
            return self
        assert len(self.logits_BV) == 1, f"{len(self.logits_BV)} prefixes cannot be continued by {count} rows"
        return Prefix(self.logits_BV.expand(count, -1), select_state(self.state, [0] * count))

    def of(self, numbers: Sequence[int]) -> Prefix:
        """One row for each of these sample numbers: they take turns, number n continues row n modulo their count."""
        turns = [number % len(self.logits_BV) for number in numbers]
        return Prefix(self.logits_BV[turns], select_state(self.state, turns))


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
    chunk_len: int = CHUNK_LEN,
) -> Generated:
    """Draws exactly `num_tokens` symbols after the prompt.

    Args:
        model: a causal model with a next-token head.
        num_tokens: symbols to make, at least 1.
        start_id: the tokenizer's start_id, read before the prompt.
        prompt_ids: (P,) for every row, or (B, P) one a row; P may be 0. None is no prompt. One prompt is read once,
            whatever the number of rows.
        batch_size: rows to make; ignored for a (B, P) prompt, which says it.
        class_ids: for a model that is told classes (`ClassConditioned`), the class of every row, or one for all.
        sampling: temperature, top-k, top-p and seed; None draws from the model's own distribution with seed 0.
        on_tokens: called with every `chunk_len` new symbols as they come: to write them out, or to show progress.
        chunk_len: symbols between two calls of `on_tokens`.

    Returns:
        The symbols and their log-likelihoods, on the model's device: 12 bytes a symbol. `generate_pieces` keeps none.

    Raises:
        ValueError: num_tokens, batch_size or chunk_len below 1, a prompt of another shape, prompt or allowed ids
            outside the vocabulary, classes that the model does not know or is not told (or none, though it is), or a
            model that predicts no next symbols.
    """
    require_positive(num_tokens=num_tokens, batch_size=batch_size, chunk_len=chunk_len)
    prefix = read_prefix(
        model, start_id=start_id, prompt_ids=prompt_ids, class_ids=class_ids, batch_size=batch_size
    )
    B = len(prefix.logits_BV) if prompt_ids is not None and prompt_ids.ndim == 2 else batch_size
    pieces = generate_pieces(model, num_tokens, prefix=prefix, rows=range(B), sampling=sampling, chunk_len=chunk_len)
    ids_BL = torch.empty(B, num_tokens, dtype=torch.int64, device=prefix.logits_BV.device)
    log_likelihood_BL = torch.empty(B, num_tokens, device=ids_BL.device)
    for first, piece in zip(range(0, num_tokens, chunk_len), pieces, strict=True):
        chunk = slice(first, first + chunk_len)
        ids_BL[:, chunk], log_likelihood_BL[:, chunk] = piece.ids_BL, piece.log_likelihood_BL
        if on_tokens is not None:
            on_tokens(ids_BL[:, chunk])
    return Generated(ids_BL, log_likelihood_BL)


def read_prefix(
    model: SequenceModel,
    *,
    start_id: int,
    prompt_ids: Integer[Tensor, "*B P"] | np.ndarray | None = None,
    class_ids: int | Sequence[int] | Int[Tensor, " B"] | None = None,
    batch_size: int = 1,
) -> Prefix:
    """Reads the start and the prompt in passes of at most `PREFILL_CHUNK` positions.

    Arguments and errors: see `generate`.

    Returns:
        One row a prompt or class; a single one where there is one prompt and one class for all.
    """
    _require_language_model(model)
    rows = 1 if class_ids is None or np.ndim(class_ids) == 0 else batch_size  # type: ignore[arg-type]
    inputs_BL = _inputs(model, start_id, prompt_ids, rows)
    with evaluation(model):
        return _prefill(model, inputs_BL, _beginning(model, class_ids, len(inputs_BL)))


def generate_pieces(
    model: SequenceModel,
    num_tokens: int,
    *,
    prefix: Prefix,
    rows: Sequence[int] = range(1),
    sampling: Sampling | None = None,
    chunk_len: int = CHUNK_LEN,
) -> Iterator[Generated]:
    """The symbols that `generate` makes, `chunk_len` of each row at a time; what was handed out is not kept.

    Args:
        model: a causal model with a next-token head.
        num_tokens: symbols to make of each row, at least 1.
        prefix: what to continue; one for all rows, or one each.
        rows: their numbers: row r draws from the stream (seed, r), whatever other rows are made with it.
        sampling: see `generate`.
        chunk_len: the most symbols of a piece; the last may be shorter.

    Raises:
        ValueError: see `generate`.
    """
    require_positive(num_tokens=num_tokens, rows=len(rows), chunk_len=chunk_len)
    _require_language_model(model)
    sampling = sampling or Sampling()
    _check_vocabulary("allowed_ids", torch.tensor(sampling.allowed_ids or []), model)

    def pieces() -> Iterator[Generated]:
        noise = uniforms(sampling.seed, rows, chunk_len, prefix.logits_BV.device)
        with evaluation(model):
            begun = prefix.rows(len(rows))
            state = reserve_state(begun.state, num_tokens + warm_up_steps(model.backbone.steps_per_cycle))
            decoder = Decoder(model, begun.logits_BV, state, sampling, chunk_len)
        del begun, state  # the decoder has its own
        for first in range(0, num_tokens, chunk_len):
            with evaluation(model):  # not around the yield: the caller's own mode is none of our business
                piece = Generated(*decoder.run(next(noise)[: num_tokens - first]))
            yield piece

    return pieces()


def rows_that_fit(model: SequenceModel, prefix: Prefix, num_tokens: int, *, most: int, free_bytes: int) -> int:
    """How many rows of `num_tokens` symbols half of the free memory holds: 1 .. most.

    Counts what grows with the rows: the state with room for all symbols (kept once, and twice more while it is copied
    into place), and logits with what drawing makes of them.

    Args:
        model: a causal model with a next-token head.
        prefix: one row.
        num_tokens: symbols to make of each row.
        most: the answer is never more.
        free_bytes: memory that is free on the model's device.
    """
    positions = num_tokens + warm_up_steps(model.backbone.steps_per_cycle)
    with evaluation(model):
        row_bytes = 3 * state_bytes(reserve_state(prefix.state, positions))
    row_bytes += 80 * prefix.logits_BV.shape[1]
    return max(1, min(most, free_bytes // 2 // row_bytes))


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device; 1 GiB where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 2**30)


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


def _require_language_model(model: SequenceModel) -> None:
    if model.head.objective != "next_token" or not model.backbone.is_causal:
        raise ValueError("generation needs a causal model with a next-token head, which this model is not")


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


def _prefill(model: SequenceModel, inputs_BL: Int[Tensor, "B L"], state: State) -> Prefix:
    """Reads start and prompt; logits of the last position alone, so a long prompt costs no (L, V) memory."""
    hidden_BQD = None
    for piece_BQ in inputs_BL.split(PREFILL_CHUNK, dim=1):
        hidden_BQD, state = model.backbone(piece_BQ, state)
    assert hidden_BQD is not None
    return Prefix(model.head.vocabulary_logits(model.head(hidden_BQD[:, -1:]).squeeze(1)).float(), state)
