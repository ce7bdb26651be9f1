"""Loss and metrics of a model over a stream of batches: exact sums, and a confusion matrix where there are classes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from seqmodels.data.record import Batch
from seqmodels.data.whole_file import written_whole
from seqmodels.heads.base import LossSums
from seqmodels.layers.state import State
from seqmodels.model import SequenceModel
from seqmodels.training.truncated import pieces

PIECE = 2**16  # symbols of a sample that are read at once: bounds the memory of logits, not the sample


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured.

    Attributes:
        sums: of loss (nats) and metrics, float64.
        sequences: rows seen.
        confusion_OO: (true class, predicted class) counts of a classifier, or None.
        by_mark: unweighted sums over the targets of each class of positions (repeats, …), and "all" of them; without
            classes that hold none. Empty where batches carry no marks.
    """

    sums: LossSums
    sequences: int
    confusion_OO: Int[Tensor, "O O"] | None = None
    by_mark: Mapping[str, LossSums] = field(default_factory=dict)

    def metrics(self, unit: str) -> dict[str, float]:
        """loss (nats), bits_per_<unit>, accuracy, and with classes macro_recall: the mean over classes that occur."""
        metrics = _named(self.sums, unit)
        if self.confusion_OO is not None:
            per_class_O = self.confusion_OO.sum(dim=1)
            recall_O = self.confusion_OO.diagonal() / per_class_O.clamp(min=1)
            metrics["macro_recall"] = float(recall_O[per_class_O > 0].mean())
        return metrics

    def metrics_by_mark(self, unit: str) -> dict[str, dict[str, float | int]]:
        """For each class of positions its number of targets, loss (nats), bits_per_<unit> and accuracy."""
        return {name: {"targets": int(sums.count), **_named(sums, unit)} for name, sums in self.by_mark.items()}


def evaluate(
    model: SequenceModel,
    batches: Iterable[Batch],
    *,
    precision: str = "auto",
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    on_batch: Callable[[int], object] = lambda sequences: None,
    mark_names: Sequence[str] = (),
    on_row: Callable[[str, LossSums], object] | None = None,
) -> Evaluation:
    """Runs a model over batches without gradients; batch size and padding do not change the result.

    Args:
        model: on its device; it is left in the mode it was in.
        batches: e.g. `seqmodels.data.loader.evaluation_batches(...)`.
        precision: "auto", "bf16-mixed" or "32-true", as in `TrainerSettings`.
        reduce: adds a tensor up over processes.
        on_batch: called with the number of rows after every batch, for progress.
        mark_names: classes of positions, in the order of the bits of `Batch.marks_BL`.
        on_row: called with the name and the sums of every row; several times in turn for a row read in pieces.

    Raises:
        ValueError: there are no batches.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(device, precision):
            tally = _Tally(mark_names, on_row)
            for batch in batches:
                tally.add(model, batch.to(device, non_blocking=True))
                on_batch(len(batch.record_ids))
    finally:
        model.train(was_training)
    return tally.total(reduce, device)


class RowTable:
    """Sums of every sequence by its name, for `evaluate(on_row=table.add)`; pieces of one, and copies, are added up."""

    def __init__(self) -> None:
        self.sums: dict[str, LossSums] = {}

    def add(self, name: str, sums: LossSums) -> None:
        """A row, or a piece of one."""
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def write(self, path: str | Path, unit: str) -> None:
        """A table, tab-separated: sequence, targets, loss (nats), bits_per_<unit>, … in the order of evaluation."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(name, sums, _named(sums, unit)) for name, sums in self.sums.items()]
        with written_whole(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerow(["sequence", "targets", *(rows[0][2] if rows else ())])
            for name, sums, metrics in rows:
                table.writerow([name, f"{float(sums.count):g}", *(f"{value:.6f}" for value in metrics.values())])


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
    def __init__(self, mark_names: Sequence[str], on_row: Callable[[str, LossSums], object] | None) -> None:
        self.mark_names, self.on_row = mark_names, on_row
        self.by_mark: dict[str, LossSums] = {}
        self.sums: LossSums | None = None
        self.sequences = 0
        self.confusion_OO: Tensor | None = None

    def add(self, model: SequenceModel, batch: Batch) -> None:
        """A batch; samples longer than `PIECE` symbols in pieces, where a model can carry its state on."""
        self.sequences += len(batch.record_ids)
        state = model.begin(batch.labels_B)
        if model.head.objective != "next_token" or batch.input_ids_BL.shape[1] <= PIECE:
            self._add(model, batch, state)
            return
        for piece in pieces(batch, PIECE):
            state = self._add(model, piece, state)

    def _add(self, model: SequenceModel, batch: Batch, state: State) -> State:
        logits, state = model(batch.input_ids_BL, state, lengths_B=batch.lengths_B)
        sums = model.head.loss(logits, batch).detach()
        self.sums = sums if self.sums is None else self.sums + sums
        if batch.marks_BL is not None and self.mark_names:
            self._add_marks(model, logits, batch, batch.marks_BL)
        if self.on_row is not None:
            for row, name in enumerate(batch.record_ids):
                self.on_row(name, model.head.loss(logits[row : row + 1], _one_row(batch, row)).detach())
        if batch.labels_B is not None and model.head.objective == "classify":
            O = logits.shape[-1]  # noqa: E741
            cells_B = batch.labels_B * O + logits.argmax(dim=-1)
            counts_OO = torch.bincount(cells_B, minlength=O * O).reshape(O, O)
            self.confusion_OO = counts_OO if self.confusion_OO is None else self.confusion_OO + counts_OO
        return state

    def _add_marks(self, model: SequenceModel, logits: Tensor, batch: Batch, marks_BL: Tensor) -> None:
        classes = {"all": torch.ones_like(marks_BL)}
        classes |= {name: marks_BL >> bit & 1 for bit, name in enumerate(self.mark_names)}
        for name, of_class_BL in classes.items():
            sums = model.head.loss(logits, replace(batch, weights_BL=of_class_BL.float())).detach()
            self.by_mark[name] = self.by_mark[name] + sums if name in self.by_mark else sums

    def total(self, reduce: Callable[[Tensor], Tensor], device: torch.device) -> Evaluation:
        if self.sums is None:
            raise ValueError("there is nothing to evaluate: the split holds no sequence that can be read")
        sums = _reduced(self.sums, reduce)
        by_mark = {name: _reduced(part, reduce) for name, part in self.by_mark.items()}
        sequences = int(reduce(torch.tensor(float(self.sequences), device=device, dtype=torch.float64)))
        confusion_OO = None if self.confusion_OO is None else reduce(self.confusion_OO).cpu()
        return Evaluation(sums, sequences, confusion_OO, {k: part for k, part in by_mark.items() if part.count > 0})


def _one_row(batch: Batch, row: int) -> Batch:
    tensors = {field.name: value for field in fields(batch) if isinstance(value := getattr(batch, field.name), Tensor)}
    rows = {name: tensor[row : row + 1] for name, tensor in tensors.items()}
    return replace(batch, record_ids=batch.record_ids[row : row + 1], **rows)


def _named(sums: LossSums, unit: str) -> dict[str, float]:
    return {(f"bits_per_{unit}" if name == "bits" else name): value for name, value in sums.metrics().items()}


def _reduced(sums: LossSums, reduce: Callable[[Tensor], Tensor]) -> LossSums:
    metric_sums = {name: reduce(value) for name, value in sums.metric_sums.items()}
    return LossSums(reduce(sums.loss_sum), reduce(sums.count), metric_sums)
