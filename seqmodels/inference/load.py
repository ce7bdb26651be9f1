"""A run folder, or one of its checkpoints, to a model that is ready to use. Needs no YAML and unpickles nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqmodels.data.record import Tokenizer
from seqmodels.instantiate import build
from seqmodels.model import SequenceModel
from seqmodels.training.checkpoint import CheckpointError, find_checkpoint, read_meta, read_weights
from seqmodels.training.transfer import backbone_differences


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A trained model with what is needed to feed it and to read its answers.

    Attributes:
        model: in evaluation mode, on the device asked for.
        tokenizer: the one it was trained with.
        class_names: names of the labels 0..O-1; empty for a language model.
        meta: the rest of `model.json`: step, metrics, versions, specs.
        folder: the checkpoint folder that was read.
    """

    model: SequenceModel
    tokenizer: Tokenizer
    class_names: tuple[str, ...]
    meta: Mapping[str, Any]
    folder: Path


def load(
    path: str | Path, device: str | torch.device | None = None, *, which: str = "best", objective: str | None = None
) -> LoadedModel:
    """Loads a trained model.

    Args:
        path: a run folder (`runs/x`) or a checkpoint folder (`runs/x/checkpoints/step-00000200`).
        device: where to put the model; None is the GPU where there is one, else the CPU.
        which: of a run folder, the checkpoint with the best validation ("best") or the newest ("last").
        objective: "next_token" or "classify" where the caller can use only that; None takes either.

    Raises:
        ValueError: there is no such device or no complete checkpoint, the folder names code outside this project, its
            weights do not fit the model it describes (the differing names are listed), or the objective is another.
    """
    folder = find_checkpoint(path, which)
    meta = read_meta(folder)
    device = _device(device)
    with device:
        model: SequenceModel = build(meta["model"])
    if objective is not None and model.head.objective != objective:
        raise CheckpointError(
            f"{folder} holds a model that was trained to {_WORDS[model.head.objective]}; "
            f"this needs one that was trained to {_WORDS[objective]}"
        )
    weights = read_weights(folder, device)
    differences = backbone_differences(model.state_dict(), weights)
    if differences:
        raise CheckpointError(
            f"the weights in {folder} are not those of its model.json:\n  " + "\n  ".join(differences)
        )
    model.load_state_dict(weights)
    tokenizer: Tokenizer = build(meta["tokenizer"])
    return LoadedModel(model.eval(), tokenizer, tuple(meta["class_names"]), meta, folder)


def _device(wanted: str | torch.device | None) -> torch.device:
    """The device asked for; None is the GPU where there is one, else the CPU."""
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ValueError(f"device={wanted!r} must be cpu or cuda (cuda:1 is the second GPU)") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device={str(wanted)!r}: torch finds {torch.cuda.device_count()} GPUs here; take cpu")
    return device


_WORDS = {
    "next_token": "predict the next symbol",
    "masked_token": "fill in hidden symbols",
    "classify": "classify whole sequences",
}
