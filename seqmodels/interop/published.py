"""Folders of published weights: config.json and, beside it, safetensors or a pickle of tensors, whole or in shards.

Nothing is unpickled but tensors. What cannot be read is refused with the file and the reason.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from seqmodels.interop.report import ConversionError, listed

CONFIG = "config.json"
SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")  # the first that is there
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Published:
    """A folder of published weights, read.

    Attributes:
        folder: where it lies.
        config: its config.json.
        weights: its tensors by name, on the CPU, as stored.
        files: names of the weight files.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    files: tuple[str, ...]


def read_published(path: str | Path) -> Published:
    """Reads config.json and every tensor.

    Raises:
        FileNotFoundError: the folder, its config.json, its weights or a shard is missing.
        ConversionError: a file is damaged, is a placeholder, or holds more than tensors.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"source={str(path)!r}: there is no such folder. Published weights are read from a local folder with "
            f"{CONFIG} and the weights; download it first"
        )
    config = read_config(folder)
    found = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder} holds no weights: none of {', '.join(WEIGHT_FILES)} is there")
    files = _shards(folder, found) if found.endswith(".index.json") else (found,)
    weights: dict[str, Tensor] = {}
    for name in files:
        weights |= _tensors(folder / name)
    return Published(folder, config, weights, files)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as plain data.

    Raises:
        FileNotFoundError: there is none.
        ConversionError: it is not a JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        there = sorted(file.name for file in folder.iterdir())
        raise FileNotFoundError(
            f"{folder} holds no {CONFIG}, which says what the weights are; it holds {listed(there) or 'nothing'}"
        )
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{path} holds a {type(config).__name__}, not a JSON object")
    return config


def write_published(
    folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], *, as_pickle: bool
) -> None:
    """Writes config.json and one file of weights into an existing, empty folder.

    Args:
        folder: where.
        config: plain JSON values.
        weights: tensors by name; names may share memory.
        as_pickle: pytorch_model.bin, as state-spaces' own loader wants it, in place of model.safetensors.
    """
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if as_pickle:
        torch.save(dict(weights), folder / PICKLE)
    else:
        own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
        save_file(own, folder / SAFETENSORS, metadata={"format": "pt"})


def _shards(folder: Path, index: str) -> tuple[str, ...]:
    try:
        names = tuple(sorted(set(json.loads((folder / index).read_text())["weight_map"].values())))
    except (ValueError, KeyError, AttributeError) as error:
        raise ConversionError(f"{folder / index} is not an index of shards: {error!r}") from error
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder / index} names {len(names)} shards, of which {listed(missing)} is missing")
    return names


def _tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ConversionError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
    return _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ConversionError(f"{path} is damaged or truncated ({path.stat().st_size:,} bytes): {error}") from error


def _from_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = str(error).split("\n")[0][:200]
        raise ConversionError(
            f"{path} is not opened: it holds more than tensors, and unpickling it could run foreign code, or it is "
            f"no pickle at all ({what}). Use the safetensors version of these weights, or save its tensors alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:  # OSError: the zip's end points before its start
        what = str(error).split("\n")[0][:200]
        raise ConversionError(f"{path} is damaged or truncated ({path.stat().st_size:,} bytes): {what}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]  # as Lightning's checkpoints nest it
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConversionError(f"{path} does not hold tensors by name, but a {type(loaded).__name__}")
    return loaded
