"""A DNA model behind the interface of sequence-analysis tools such as tangermeme: one-hot in, numbers out.

X_N4L, the bases A, C, G, T in the rows, goes in as it is: where a column is no pure base (a mixture, a gradient's
point), the embeddings are mixed with the same weights, so the answer is differentiable in X. A column of zeros is N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from domains.dna.tokenizer import BASE_IDS, DnaTokenizer, N
from seqmodels.layers.rc_equivariant import RCPSEmbedding

OUTPUTS = ("log_likelihood", "logits", "embedding")


class OneHotModel(nn.Module):
    """X_N4L to one row of numbers a sequence.

    Args:
        loaded_model: of `seqmodels.inference.load`; a DNA model.
        output: "log_likelihood" of each sequence (N, 1), of a language model; "logits" of a classifier (N, classes);
            "embedding" (N, D), the mean of the hidden states.

    Raises:
        ValueError: an unknown output, or one that this model does not have.
    """

    def __init__(self, loaded_model: Any, *, output: str = "log_likelihood"):
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"output={output!r} must be one of {', '.join(OUTPUTS)}")
        if not isinstance(loaded_model.tokenizer, DnaTokenizer):
            raise ValueError(f"one-hot DNA needs a DNA model; this one reads {type(loaded_model.tokenizer).__name__}")
        objective = loaded_model.model.head.objective
        needed = {"log_likelihood": "next_token", "logits": "classify"}.get(output, objective)
        if objective != needed:
            raise ValueError(f"output={output!r} needs a model trained for {needed!r}; this one was for {objective!r}")
        self.model, self.output = loaded_model.model, output
        self.start_id = loaded_model.tokenizer.start_id

    def forward(self, X_N4L: Float[Tensor, "N 4 L"]) -> Float[Tensor, "N outputs"]:
        """Numbers of each sequence.

        Raises:
            ValueError: X is not (N, 4, L).
        """
        if X_N4L.dim() != 3 or X_N4L.shape[1] != 4 or not X_N4L.shape[2]:
            raise ValueError(f"X has shape {tuple(X_N4L.shape)}; one-hot DNA is (N, 4, L): A, C, G, T in the rows")
        weights_NL4 = X_N4L.float().transpose(1, 2)
        ids_NL = torch.where(weights_NL4.sum(-1) > 0, weights_NL4.argmax(-1) + BASE_IDS[0], N)
        language = self.model.head.objective == "next_token"
        read_NL, mixed_NL4 = ids_NL, weights_NL4
        if language:  # reads the start, then all but the last
            read_NL = torch.cat([torch.full_like(ids_NL[:, :1], self.start_id), ids_NL], dim=1)
            mixed_NL4 = F.pad(weights_NL4, (0, 0, 1, 0))
        hidden_NLD = self._hidden(read_NL, mixed_NL4)
        if self.output == "embedding":
            return hidden_NLD[:, int(language) :].mean(dim=1)
        if self.output == "logits":
            lengths_N = torch.full(ids_NL.shape[:1], ids_NL.shape[1], device=ids_NL.device)
            return self.model.head(hidden_NLD, lengths_N)
        log_p_NLV = self.model.head(hidden_NLD[:, :-1]).float().log_softmax(dim=-1)
        of_bases_NL4 = log_p_NLV[..., BASE_IDS[0] : BASE_IDS[-1] + 1]
        return (of_bases_NL4 * weights_NL4).sum(dim=(1, 2))[:, None]

    def _hidden(self, ids_NL: Tensor, weights_NL4: Tensor) -> Tensor:
        """Hidden states with the embeddings of bases mixed by `weights`; a row of zeros keeps its id's embedding."""
        embedding: Any = self.model.backbone.embedding
        table_4D = embedding.weight[BASE_IDS[0] : BASE_IDS[-1] + 1]
        if self.model.backbone.strands == 2:  # looked up as rows of either strand: A, C, G, T backwards is complement
            weights_NL4 = torch.cat([weights_NL4, weights_NL4.flip(1, 2)])

        def mix(looked_up_NLD: Tensor) -> Tensor:
            pure_NL1 = (weights_NL4.sum(dim=-1, keepdim=True) == 0).to(looked_up_NLD.dtype)
            return looked_up_NLD * pure_NL1 + weights_NL4.to(table_4D.dtype) @ table_4D

        with _looked_up_through(embedding, mix):
            hidden_NLD, _ = self.model.backbone(ids_NL)
        return hidden_NLD


@contextmanager
def _looked_up_through(embedding: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What the backbone looks up is changed on its way, in a model of one strand or of both."""
    if not isinstance(embedding, RCPSEmbedding):
        handle = embedding.register_forward_hook(lambda _module, _inputs, looked_up_NLD: change(looked_up_NLD))
        try:
            yield
        finally:
            handle.remove()
        return
    strands = embedding.strands  # what the backbone calls: not `forward`, so hooks do not see it
    embedding.strands = lambda ids_BL, cu_seqlens=None: change(strands(ids_BL, cu_seqlens))  # type: ignore[method-assign]
    try:
        yield
    finally:
        del embedding.strands
