"""Fine-tuning: the backbone of a trained model under a new head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from seqmodels.model import SequenceModel
from seqmodels.training.checkpoint import CheckpointError, find_checkpoint, read_weights

BACKBONE = "backbone."
INSIDE = "backbone.backbone."  # of a backbone that is told classes; the table of classes counts as new
CLASSES = "backbone.class_embedding."


@dataclass(frozen=True, slots=True)
class Transfer:
    """What was taken from where.

    Attributes:
        source: the checkpoint folder.
        mapped: parameters of the backbone that were loaded.
        fresh: parameters of the new head (and of a table of classes), which start from their initialisation.
        unused: parameters of the checkpoint's own head.
    """

    source: Path
    mapped: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        fresh = f", new: {', '.join(self.fresh)}" if self.fresh else ""
        unused = f", left behind: {', '.join(self.unused)}" if self.unused else ""
        return f"{len(self.mapped)} tensors of the backbone from {self.source}{fresh}{unused}"


def load_backbone(model: SequenceModel, source: str | Path) -> Transfer:
    """Loads the backbone's weights from a run or checkpoint folder; the whole backbone, or nothing.

    Args:
        model: on any device; a head tied to the embedding follows it.
        source: a run folder (its best checkpoint) or a checkpoint folder.

    Raises:
        CheckpointError: the backbones differ: parameters that only one of them has, or other shapes, are named.
    """
    folder = find_checkpoint(source, "best")
    weights = read_weights(folder)
    ours, theirs = _of_backbone(model.state_dict()), _of_backbone(weights)
    differences = backbone_differences(ours, theirs)
    if differences:
        raise CheckpointError(
            f"{folder} holds another architecture than the model to be trained:\n  "
            + "\n  ".join(differences)
            + "\nGive the backbone the same sizes, or leave out its overrides to take them from the checkpoint"
        )
    inside = getattr(model.backbone, "backbone", model.backbone)
    inside.load_state_dict({name.removeprefix(BACKBONE): tensor for name, tensor in theirs.items()})
    head_names = tuple(name for name in model.state_dict() if _plain(name) not in ours)
    tied = {name for name, tensor in model.named_parameters(remove_duplicate=False) if _is_shared(inside, tensor)}
    return Transfer(
        folder,
        mapped=tuple(theirs),
        fresh=tuple(name for name in head_names if name not in tied),
        unused=tuple(name for name in weights if _plain(name) not in theirs and name not in tied),
    )


def backbone_differences(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], show: int = 6) -> list[str]:
    """One line a difference between two state dicts, at most `show` of each kind."""
    shapes = [
        f"{name}: {_shape(theirs[name])} in the checkpoint, {_shape(tensor)} in the model"
        for name, tensor in ours.items()
        if name in theirs and theirs[name].shape != tensor.shape
    ]
    missing = [f"{name}: only in the model" for name in ours if name not in theirs]
    extra = [f"{name}: only in the checkpoint" for name in theirs if name not in ours]
    lines: list[str] = []
    for kind in (shapes, missing, extra):
        lines += kind[:show] + ([f"… and {len(kind) - show} more like this"] if len(kind) > show else [])
    return lines


def _of_backbone(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors by the names they have where nothing is told a class."""
    return {
        _plain(name): tensor
        for name, tensor in weights.items()
        if name.startswith(BACKBONE) and not name.startswith(CLASSES)
    }


def _plain(name: str) -> str:
    return BACKBONE + name.removeprefix(INSIDE) if name.startswith(INSIDE) else name


def _shape(tensor: Tensor) -> str:
    return "x".join(str(size) for size in tensor.shape)


def _is_shared(backbone: nn.Module, tensor: Tensor) -> bool:
    return any(tensor is parameter for parameter in backbone.parameters())
