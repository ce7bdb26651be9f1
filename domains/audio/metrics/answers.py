"""What a trained classifier answers about clips: the probabilities and features that scores are made of.

    loaded = load("runs/digit_classifier", objective="classify")
    answers = classifier_answers(loaded.model, batches)        # of collate_for("classify", loaded.tokenizer)
    inception_score(answers.probabilities_NO), frechet_distance(answers.features_NF, real.features_NF)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from seqmodels.data.record import Batch
    from seqmodels.model import SequenceModel


class Answers(NamedTuple):
    """Of N clips, in the order of the batches.

    Attributes:
        probabilities_NO: softmax over the classes, float64 (a score of pairs takes logarithms of the smallest).
        features_NF: what the classifier's last linear map reads: the pooled hidden state, float32.
    """

    probabilities_NO: Float[np.ndarray, "N O"]
    features_NF: Float[np.ndarray, "N F"]


def classifier_answers(model: SequenceModel, batches: Iterable[Batch]) -> Answers:
    """Runs a classifier over batches, without gradients.

    Args:
        model: with a `ClassificationHead`, on its device; it is left in the mode it was in.
        batches: padded on the right, as `seqmodels.data.collate.classify` makes them. Labels are not used.

    Raises:
        ValueError: the model is no classifier with pooling, or there are no batches.
    """
    import torch

    from seqmodels.heads.classification import ClassificationHead
    from seqmodels.inference.generate import evaluation

    head = model.head
    if not isinstance(head, ClassificationHead):
        raise ValueError(
            f"scores of clips need a classifier (head=classification), and this model has a {type(head).__name__}"
        )
    device = next(model.parameters()).device
    probabilities: list[np.ndarray] = []
    features: list[np.ndarray] = []

    def keep(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        features.append(inputs[0].float().cpu().numpy())

    hook = head.classifier.register_forward_pre_hook(keep)
    try:
        with evaluation(model):
            for batch in batches:
                moved = batch.to(device)
                logits_BO, _ = model(moved.input_ids_BL, lengths_B=moved.lengths_B)
                probabilities.append(torch.softmax(logits_BO.double(), dim=-1).cpu().numpy())
    finally:
        hook.remove()
    if not probabilities:
        raise ValueError("there are no clips to score")
    return Answers(np.concatenate(probabilities), np.concatenate(features))
