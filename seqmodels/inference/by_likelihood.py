"""A language model that is told classes, turned round: which class makes a sequence likeliest (Bayes' rule).

    model = ByLikelihood(loaded.model, start_id=tokenizer.start_id)      # trained with condition=class
    logits_BO, _ = model(ids_BL, lengths_B=lengths_B)                    # log p(sequence | class) in nats

With every class equally frequent, p(class | x) is proportional to p(x | class), so these are the logits of a
classifier. Every symbol of the training sequences teaches such a model, not one label a sequence: where labelled
sequence is scarce, generative classifiers need less of it (Ng & Jordan 2001). It costs one forward pass a class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seqmodels.backbones.class_conditioned import ClassConditioned
from seqmodels.data.record import Batch
from seqmodels.heads.base import Head, LossSums
from seqmodels.heads.classification import label_loss
from seqmodels.layers.rc_equivariant import involution, refuse_state, reverse_complement_ids
from seqmodels.layers.state import State
from seqmodels.model import SequenceModel


class ByLikelihood(SequenceModel):
    """Classifies with a class-conditioned language model; shares the model's weights, has none of its own.

    Args:
        model: trained with condition=class, with a head for next symbols.
        start_id: what the model reads before the first symbol.
        counted_ids: symbols whose likelihood counts (bases and not N); the others are context only. None counts all.
        complement_ids: the id across the helix from each id, to take the mean over both strands of DNA; None reads the
            given strand alone.

    Raises:
        ValueError: the model is told no class, or complement_ids does not pair the ids.
    """

    def __init__(
        self,
        model: SequenceModel,
        *,
        start_id: int,
        counted_ids: Sequence[int] | None = None,
        complement_ids: Sequence[int] | None = None,
    ):
        if not isinstance(model.backbone, ClassConditioned) or model.head.objective != "next_token":
            raise ValueError(
                "classes by likelihood need a language model that is told classes (train with condition=class), which"
                " this model is not"
            )
        super().__init__(model.backbone, _Posterior())
        self.next_symbol, self.start_id = model.head, start_id
        size, device = model.backbone.vocab_size, model.backbone.embedding.weight.device
        counted = torch.zeros(size, dtype=torch.bool)
        counted[list(range(size) if counted_ids is None else counted_ids)] = True
        self.register_buffer("is_counted", counted, persistent=False)
        pairs = None if complement_ids is None else involution(complement_ids, size)
        self.register_buffer("complement_ids", pairs, persistent=False)
        self.to(device).train(model.training)

    def begin(self, labels_B: Int[Tensor, " B"] | None) -> State:
        """Nothing: this model is not told the class that it is to find out."""
        return None

    def forward(
        self,
        ids_BL: Int[Tensor, "B L"],
        state: State = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
        lengths_B: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B O"], State]:
        """log p(sequence | class) in nats for every class, fp32; whole sequences, padded on the right.

        Raises:
            ValueError: packed sequences, or a state.
        """
        refuse_state(state)
        if cu_seqlens is not None:
            raise ValueError("classes by likelihood take one sequence a row, not packed ones")
        logits_BO = self._log_likelihoods(ids_BL, lengths_B)
        if isinstance(self.complement_ids, Tensor):
            other_ids_BL = reverse_complement_ids(ids_BL, self.complement_ids, None, lengths_B)
            logits_BO = (logits_BO + self._log_likelihoods(other_ids_BL, lengths_B)) / 2
        return logits_BO, ()

    def _log_likelihoods(self, ids_BL: Int[Tensor, "B L"], lengths_B: Int[Tensor, " B"] | None) -> Float[Tensor, "B O"]:
        assert isinstance(self.backbone, ClassConditioned)
        B, L = ids_BL.shape
        inputs_BL = torch.cat([ids_BL.new_full((B, 1), self.start_id), ids_BL[:, :-1]], dim=1)
        is_counted_BL = self.is_counted[ids_BL]  # type: ignore[index]
        if lengths_B is not None:
            is_counted_BL = is_counted_BL & (torch.arange(L, device=ids_BL.device) < lengths_B[:, None])
        columns = []
        for label in range(self.backbone.num_classes):
            hidden_BLD, _ = self.backbone(inputs_BL, self.backbone.begin(ids_BL.new_full((B,), label)))
            outputs_TP = self.next_symbol(hidden_BLD).flatten(0, 1)
            log_p_BL = self.next_symbol.log_prob(outputs_TP, ids_BL.flatten()).view(B, L)
            columns.append(log_p_BL.masked_fill(~is_counted_BL, 0.0).sum(dim=1))
        return torch.stack(columns, dim=1)


class _Posterior(Head):
    """Log-likelihoods as logits: they need no map, only the loss of a classifier."""

    published_name: ClassVar[str] = "posterior"
    objective: ClassVar[str] = "classify"

    def forward(self, hidden_BLD: Float[Tensor, "B L D"], lengths_B: Int[Tensor, " B"] | None = None) -> Tensor:
        raise NotImplementedError("the model makes the logits from the likelihoods of symbols")

    def loss(self, logits: Float[Tensor, "B O"], batch: Batch) -> LossSums:
        return label_loss(logits, batch)
