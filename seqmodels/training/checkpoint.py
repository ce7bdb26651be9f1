"""The format of checkpoints: the one place that knows it. Needs torch and safetensors, not Lightning.

    <run>/checkpoints/step-00000200/
        model.safetensors    weights under their published names
        model.json           what they are: the model's spec, tokenizer, class names, step, metrics, versions
        training_state.pt    optimizer, schedule, position in the data (tensors and plain values only)
        manifest.json        size and SHA-256 of each of these, written last
    <run>/checkpoints/last, best    text files: the name of a folder

A checkpoint is written into a hidden folder, flushed to disk and put in place by one rename, so a kill at any byte
leaves either the whole checkpoint or none. A folder whose files do not match its manifest is never loaded. Nothing
here unpickles code: weights are safetensors, the training state is read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT_VERSION = 1
WEIGHTS, META, TRAINING_STATE, MANIFEST = "model.safetensors", "model.json", "training_state.pt", "manifest.json"
KEEP = 2  # newest checkpoints kept besides the best: one may turn out to be truncated

log = logging.getLogger("seqmodels")


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another kind than asked for."""


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return checkpoints / f"step-{step:08d}"


def write_checkpoint(
    folder: Path, *, weights: Mapping[str, Tensor], meta: Mapping[str, Any], training_state: Mapping[str, Any] | None
) -> None:
    """Writes a checkpoint folder atomically; a complete one that is there already is replaced.

    Args:
        folder: `<run>/checkpoints/step-…`.
        weights: the model's state dict; tensors that share memory are stored once.
        meta: plain JSON values, see the module's text.
        training_state: tensors, numbers, strings, lists and dicts only; None for a model that is handed on.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".draft-{folder.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    own, shared = _without_shared(weights)
    save_file(own, draft / WEIGHTS, metadata={"format": "pt"})
    (draft / META).write_text(json.dumps({"format": FORMAT_VERSION, **meta, "shared_weights": shared}, indent=2) + "\n")
    names = [WEIGHTS, META]
    if training_state is not None:
        torch.save(dict(training_state), draft / TRAINING_STATE)
        names.append(TRAINING_STATE)
    files = {name: _fingerprint(draft / name) for name in names}
    (draft / MANIFEST).write_text(json.dumps({"format": FORMAT_VERSION, "files": files}, indent=2) + "\n")
    for path in (*draft.iterdir(), draft):
        _flush(path)
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
    _flush(folder.parent)


def point(checkpoints: Path, name: str, folder: Path) -> None:
    """Lets `checkpoints/<name>` ("last", "best") name a checkpoint folder."""
    draft = checkpoints / f".draft-{name}"
    draft.write_text(folder.name + "\n")
    _flush(draft)
    draft.replace(checkpoints / name)


def prune(checkpoints: Path) -> None:
    """Removes all but the newest `KEEP` checkpoints and the best, and drafts that a kill left behind."""
    best = _pointed(checkpoints, "best")
    for folder in _newest_first(checkpoints)[KEEP:]:
        if folder != best:
            shutil.rmtree(folder, ignore_errors=True)
    for draft in checkpoints.glob(".draft-step-*"):
        shutil.rmtree(draft, ignore_errors=True)


def find_checkpoint(path: str | Path, which: str = "last", *, resumable: bool = False) -> Path:
    """The checkpoint folder meant by a run folder, or by a checkpoint folder itself.

    Args:
        path: `runs/x` or `runs/x/checkpoints/step-00000200`.
        which: of a run folder, the newest ("last") or the one with the best validation ("best", see
            `TrainerSettings.best_by`; the newest where nothing was validated).
        resumable: training is to go on from it. Else `training_state.pt`, two thirds of a checkpoint, may be missing:
            a model is handed on without it.

    Returns:
        A folder whose files match its manifest. Where the newest is damaged, the one before it, and a warning.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if which not in ("last", "best"):
        raise CheckpointError(f"checkpoint={which!r} must be last or best")
    if not path.is_dir():
        raise CheckpointError(f"there is no run folder {str(path)!r}{_runs_nearby(path)}")
    if (path / META).exists() or (path / MANIFEST).exists():
        problem = damage(path, resumable=resumable)
        if problem:
            raise CheckpointError(f"the checkpoint {path} cannot be used: {problem}")
        return path
    checkpoints = path / "checkpoints"
    candidates = _newest_first(checkpoints)
    best = _pointed(checkpoints, "best")
    if which == "best" and best is not None:
        candidates = [best, *(folder for folder in candidates if folder != best)]
    for folder in candidates:
        problem = damage(folder, resumable=resumable)
        if problem is None:
            return folder
        log.warning("the checkpoint %s cannot be used (%s); taking the one before it", folder, problem)
    why = "each is damaged, as said above" if candidates else "training stopped before the first one was saved"
    raise CheckpointError(f"{path} holds no complete checkpoint: {why}")


def export_run(run_dir: Path, to: Path, which: str = "best") -> None:
    """A run folder to hand on: one checkpoint without the optimizer's state, the configuration and the log.

    Args:
        run_dir: of a training run.
        to: the new run folder; what stands there is replaced.
        which: "last" or "best", as in `find_checkpoint`.

    Raises:
        CheckpointError: the run holds no complete checkpoint.
    """
    folder = find_checkpoint(run_dir, which)
    assert run_dir.resolve() not in (to.resolve(), *to.resolve().parents), "a run is not exported into itself"
    shutil.rmtree(to, ignore_errors=True)
    target = to / "checkpoints" / folder.name
    meta = {key: value for key, value in read_meta(folder).items() if key not in ("format", "shared_weights")}
    write_checkpoint(target, weights=read_weights(folder), meta=meta, training_state=None)
    for name in ("last", "best"):
        point(target.parent, name, target)
    for name in ("config.yaml", "metrics.csv"):
        if (run_dir / name).exists():
            shutil.copyfile(run_dir / name, to / name)


def damage(folder: Path, *, resumable: bool = True) -> str | None:
    """Why a checkpoint folder cannot be trusted, in words; None when every file matches its manifest.

    What only resuming needs may be missing where nobody resumes.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"{MANIFEST} is missing or damaged"
    if resumable and TRAINING_STATE not in files:
        return f"{TRAINING_STATE} is missing, from which training would go on"
    for name, expected in files.items():
        path = folder / name
        if name == TRAINING_STATE and not resumable and not path.exists():
            continue
        if not path.is_file():
            return f"{name} is missing" + (", from which training would go on" if name == TRAINING_STATE else "")
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{name} is truncated: {size} of {expected['bytes']} bytes"
        if _fingerprint(path) != expected:
            return f"{name} was changed or damaged: its SHA-256 is not the manifest's"
    return None


def read_meta(folder: Path) -> dict[str, Any]:
    """`model.json` of a checkpoint folder.

    Raises:
        CheckpointError: it was written by a later version.
    """
    meta = json.loads((folder / META).read_text())
    if meta["format"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} has format {meta['format']} and this version reads up to {FORMAT_VERSION}:"
            " update seqmodels-mamba"
        )
    return meta


def read_weights(folder: Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The model's state dict, shared tensors under all their names."""
    weights = load_file(folder / WEIGHTS, device=str(device))
    for name, original in read_meta(folder)["shared_weights"].items():
        weights[name] = weights[original]
    return weights


def read_training_state(folder: Path) -> dict[str, Any]:
    """Optimizer, schedule and position, on the CPU."""
    return torch.load(folder / TRAINING_STATE, map_location="cpu", weights_only=True)


def _without_shared(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Each storage once, and the other names it goes by (tied embeddings)."""
    own: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first_name: dict[tuple, str] = {}
    for name, tensor in weights.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and place in first_name:
            shared[name] = first_name[place]
        else:
            first_name[place] = name
            own[name] = tensor.detach().contiguous()
    return own, shared


def _newest_first(checkpoints: Path) -> list[Path]:
    return sorted((folder for folder in checkpoints.glob("step-*") if folder.is_dir()), reverse=True)


def _pointed(checkpoints: Path, name: str) -> Path | None:
    try:
        folder = checkpoints / (checkpoints / name).read_text().strip()
    except OSError:
        return None
    return folder if folder != checkpoints and folder.is_dir() else None


def _fingerprint(path: Path) -> dict[str, int | str]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _runs_nearby(path: Path) -> str:
    import difflib

    siblings = [folder.name for folder in path.parent.glob("*") if (folder / "checkpoints").is_dir()]
    near = difflib.get_close_matches(path.name, siblings, n=3, cutoff=0.4) or sorted(siblings)[-3:]
    return f"; in {path.parent} there are {', '.join(near)}" if near else ""
