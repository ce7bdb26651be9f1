"""Lightning's checkpoint dictionary to and from our checkpoint folders (see checkpoint.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from seqmodels.training.checkpoint import read_training_state, read_weights, write_checkpoint

MODEL_PREFIX = "model."  # SequenceTask holds the SequenceModel as `.model`
META_KEY = "seqmodels_meta"


class FolderCheckpointIO(CheckpointIO):
    """Splits what Lightning wants to save into weights, meta and training state, and puts it together again.

    Lightning's own loop counters are left out: a run's place is its step and its position in the data, and `Rhythm`
    sets the counters from these two.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write `checkpoint` as the folder `path`."""
        rest = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "loops", META_KEY)}
        weights = {name.removeprefix(MODEL_PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        write_checkpoint(Path(path), weights=weights, meta=checkpoint[META_KEY], training_state=rest)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the folder `path`; nothing is unpickled but tensors and plain values, whatever is asked for."""
        weights = read_weights(Path(path))
        named = {MODEL_PREFIX + name: tensor for name, tensor in weights.items()}
        return {**read_training_state(Path(path)), "state_dict": named}

    def remove_checkpoint(self, path: Any) -> None:
        """Not used: `checkpoint.prune` removes old ones."""
        raise NotImplementedError(f"{path}: seqmodels.training.checkpoint.prune removes checkpoints, nobody else")
