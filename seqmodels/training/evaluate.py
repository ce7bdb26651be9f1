"""Loss and metrics of a model over a stream of batches: exact sums, and a confusion matrix where there are classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from seqmodels.data.record import Batch
from seqmodels.heads.base import LossSums
from seqmodels.model import SequenceModel


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured.

    Attributes:
        sums: of loss (nats) and metrics, float64.
        sequences: rows seen.
        confusion_OO: (true class, predicted class) counts of a classifier, or None.
    """

    sums: LossSums
    sequences: int
    confusion_OO: Int[Tensor, "O O"] | None = None

    def metrics(self, unit: str) -> dict[str, float]:
        """loss (nats), bits_per_<unit>, accuracy, and with classes macro_recall: the mean over classes that occur."""
        metrics = {(f"bits_per_{unit}" if k == "bits" else k): v for k, v in self.sums.metrics().items()}
        if self.confusion_OO is not None:
            per_class_O = self.confusion_OO.sum(dim=1)
            recall_O = self.confusion_OO.diagonal() / per_class_O.clamp(min=1)
            metrics["macro_recall"] = float(recall_O[per_class_O > 0].mean())
        return metrics


def evaluate(
    model: SequenceModel,
    batches: Iterable[Batch],
    *,
    precision: str = "auto",
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    on_batch: Callable[[int], object] = lambda sequences: None,
) -> Evaluation:
    """Runs a model over batches without gradients; batch size and padding do not change the result.

    Args:
        model: on its device; it is left in the mode it was in.
        batches: e.g. `seqmodels.data.loader.evaluation_batches(...)`.
        precision: "auto", "bf16-mixed" or "32-true", as in `TrainerSettings`.
        reduce: adds a tensor up over processes.
        on_batch: called with the number of rows after every batch, for progress.

    Raises:
        ValueError: there are no batches.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(device, precision):
            tally = _Tally()
            for batch in batches:
                tally.add(model, batch.to(device, non_blocking=True))
                on_batch(len(batch.record_ids))
    finally:
        model.train(was_training)
    return tally.total(reduce, device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision setting on a device."""
    enabled = resolve_precision(device, precision) == "bf16-mixed"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def resolve_precision(device: torch.device, precision: str) -> str:
    """What "auto" means on a device: bf16 autocast on a GPU that has it, else fp32."""
    if precision != "auto":
        return precision
    return "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"


class _Tally:
    def __init__(self) -> None:
        self.sums: LossSums | None = None
        self.sequences = 0
        self.confusion_OO: Tensor | None = None

    def add(self, model: SequenceModel, batch: Batch) -> None:
        logits, _ = model(batch.input_ids_BL, model.begin(batch.labels_B), lengths_B=batch.lengths_B)
        sums = model.head.loss(logits, batch).detach()
        self.sums = sums if self.sums is None else self.sums + sums
        self.sequences += len(batch.record_ids)
        if batch.labels_B is not None and model.head.objective == "classify":
            O = logits.shape[-1]  # noqa: E741
            cells_B = batch.labels_B * O + logits.argmax(dim=-1)
            counts_OO = torch.bincount(cells_B, minlength=O * O).reshape(O, O)
            self.confusion_OO = counts_OO if self.confusion_OO is None else self.confusion_OO + counts_OO

    def total(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> Evaluation:
        if self.sums is None:
            raise ValueError("there is nothing to evaluate: the split holds no sequence that can be read")
        sums = LossSums(
            reduce(self.sums.loss_sum),
            reduce(self.sums.count),
            {name: reduce(value) for name, value in self.sums.metric_sums.items()},
        )
        sequences = int(reduce(torch.tensor(float(self.sequences), device=device, dtype=torch.float64)))
        confusion_OO = None if self.confusion_OO is None else reduce(self.confusion_OO).cpu()
        return Evaluation(sums, sequences, confusion_OO)
