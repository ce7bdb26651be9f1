"""From a corpus and a model's spec to a run folder. Open in this order: fit.py, module.py, rhythm.py, checkpoint.py."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqmodels.data.loader import DataSettings
    from seqmodels.training.checkpoint import CheckpointError, find_checkpoint
    from seqmodels.training.evaluate import Evaluation
    from seqmodels.training.fit import ModelSpec, TrainResult, train
    from seqmodels.training.settings import Recipe, TrainerSettings

_HOME = {
    "CheckpointError": "seqmodels.training.checkpoint",
    "DataSettings": "seqmodels.data.loader",
    "Evaluation": "seqmodels.training.evaluate",
    "ModelSpec": "seqmodels.training.fit",
    "Recipe": "seqmodels.training.settings",
    "TrainResult": "seqmodels.training.fit",
    "TrainerSettings": "seqmodels.training.settings",
    "find_checkpoint": "seqmodels.training.checkpoint",
    "train": "seqmodels.training.fit",
}
__all__ = [
    "CheckpointError",
    "DataSettings",
    "Evaluation",
    "ModelSpec",
    "Recipe",
    "TrainResult",
    "TrainerSettings",
    "find_checkpoint",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
