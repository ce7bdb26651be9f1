"""How likely a model finds given sequences: log p of every symbol, in one pass or streamed piece by piece."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from seqmodels.inference.generate import evaluation
from seqmodels.layers.base import require_positive
from seqmodels.layers.state import State
from seqmodels.model import SequenceModel


def token_log_likelihood(
    model: SequenceModel,
    ids_BL: Integer[Tensor, "B L"],
    *,
    start_id: int | Int[Tensor, " B"],
    lengths_B: Int[Tensor, " B"] | None = None,
    chunk_len: int | None = None,
    state: State = None,
) -> tuple[Float[Tensor, "B L"], State]:
    """log p(ids[t] | start, ids[:t]) in nats, for every position, without gradients.

    To score a sequence that does not fit, call it piece by piece: pass the returned state, and as `start_id` the
    last id of the piece before. Chunks and pieces give what one pass gives.

    Args:
        model: a causal model with a next-token head.
        ids_BL: the symbols, any integer dtype, on any device (each chunk moves to the model's).
        start_id: what the model reads before the first symbol: the tokenizer's start_id, or one id a row.
        lengths_B: real positions of each row; padding gets 0.
        chunk_len: positions per forward pass; memory grows with this, not with L. None takes all at once.
        state: continue from here; None starts afresh.

    Returns:
        (B, L) fp32 log-likelihoods on the model's device, and the state after the last symbol but one (the last
        has not been read yet: it is the next piece's start).

    Raises:
        ValueError: ids are not (B, L) with L >= 1, chunk_len is below 1, or the model predicts no next symbols.
    """
    if model.head.objective != "next_token" or not model.backbone.is_causal:
        raise ValueError("log-likelihood needs a causal model with a next-token head, which this model is not")
    if ids_BL.dim() != 2 or ids_BL.shape[1] < 1:
        raise ValueError(f"ids have shape {tuple(ids_BL.shape)}; they must be (B, L) with L >= 1")
    B, L = ids_BL.shape
    chunk_len = L if chunk_len is None else chunk_len
    require_positive(chunk_len=chunk_len)
    device = model.backbone.embedding.weight.device
    previous_B = torch.as_tensor(start_id, device=device, dtype=torch.int64).expand(B)
    log_likelihood_BL = torch.empty(B, L, device=device)
    with evaluation(model):
        for first in range(0, L, chunk_len):
            targets_BQ = ids_BL[:, first : first + chunk_len].to(device, torch.int64)
            inputs_BQ = torch.cat([previous_B[:, None], targets_BQ[:, :-1]], dim=1)
            outputs_BQP, state = model(inputs_BQ, state)
            log_p_T = model.head.log_prob(outputs_BQP.flatten(0, 1), targets_BQ.flatten())
            log_likelihood_BL[:, first : first + chunk_len] = log_p_T.view_as(targets_BQ)
            previous_B = targets_BQ[:, -1]
    if lengths_B is not None:
        is_real_BL = torch.arange(L, device=device) < lengths_B.to(device)[:, None]
        log_likelihood_BL.masked_fill_(~is_real_BL, 0.0)
    return log_likelihood_BL, state
