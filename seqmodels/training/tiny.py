"""Small things for tests and first tries: a corpus without files, a model that trains in a second.

result = train(TinyCorpus(), tiny_model(), tiny_recipe(max_steps=20), run_dir="runs/tiny")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from seqmodels.data.record import Record, SampleKey

if TYPE_CHECKING:
    from seqmodels.training import ModelSpec, Recipe


class TinyTokenizer:
    """Letters a to e, one id each."""

    vocab_size = 6
    start_id = 5
    mask_id = 5  # a masked model has no start
    unit = "letter"
    file_suffix = ".txt"

    def encode(self, raw: str) -> np.ndarray:
        return np.array([ord(letter) - ord("a") for letter in raw], dtype=np.uint8)

    def decode(self, ids: np.ndarray) -> str:
        return "".join(chr(ord("a") + int(i)) for i in ids)

    def read_prompt(self, prompt: str) -> np.ndarray:
        return self.encode(prompt)

    def write(self, path: str, sequences: Sequence[np.ndarray], *, names: Sequence[str]) -> list[str]:
        Path(path).write_text("".join(f"{name} {self.decode(ids)}\n" for name, ids in zip(names, sequences)))
        return [path]

    def spec(self) -> dict[str, Any]:
        return {"_target_": "seqmodels.training.tiny.TinyTokenizer"}


class TinySplit:
    """Sequences that count up through the letters with random pauses; a class is the size of the steps.

    Args:
        num_samples: length.
        seed: of the sequences.
        num_classes: 0 for unlabelled ones.
        length: letters of the longest; lengths vary below it where `ragged`.
        ragged: sequences of different lengths.
        bad: indices that cannot be read.
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int,
        num_classes: int = 0,
        length: int = 24,
        ragged: bool = False,
        bad: Sequence[int] = (),
    ) -> None:
        self.num_samples, self.seed, self.num_classes = num_samples, seed, num_classes
        self.length, self.ragged, self.bad = length, ragged, frozenset(bad)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, key: SampleKey | int) -> Record:
        key = key if isinstance(key, SampleKey) else SampleKey(0, key)
        if key.index in self.bad:
            raise ValueError(f"tiny.txt:{key.index}: cannot be read")
        dice = np.random.default_rng([self.seed, key.epoch, key.index])
        length = int(dice.integers(2, self.length + 1)) if self.ragged else self.length
        step = 1 + key.index % self.num_classes if self.num_classes else 1
        ids = (dice.integers(5) + np.cumsum(step * dice.integers(0, 2, length))) % 5
        label = key.index % self.num_classes if self.num_classes else None
        return Record(f"tiny.txt:{key.index}", ids.astype(np.uint8), label)


class TinyCorpus:
    """A `Corpus` made of dice: 30 training, 10 validation and 10 test sequences."""

    def __init__(self, num_classes: int = 0, *, bad: Sequence[int] = (), **split: Any) -> None:
        self.tokenizer = TinyTokenizer()
        self.class_names = tuple(f"steps_of_{number + 1}" for number in range(num_classes))
        sizes = {"train": 30, "valid": 10, "test": 10}
        self._splits = {
            name: TinySplit(size, seed=seed, num_classes=num_classes, bad=bad if name == "train" else (), **split)
            for seed, (name, size) in enumerate(sizes.items())
        }

    def split(self, name: str) -> TinySplit:
        if name not in self._splits:
            raise ValueError(f"split={name!r}: there are {', '.join(self._splits)}")
        return self._splits[name]

    def report(self) -> Mapping[str, int | float | str]:
        return {"sequences": sum(map(len, self._splits.values()))}


def tiny_model(head: str = "next_token", d_model: int = 16, n_layers: int = 1, **layer: Any) -> ModelSpec:
    """A Mamba of a few thousand parameters on the plain definition; head: next_token, masked_token, classification."""
    from seqmodels.training import ModelSpec

    heads = {
        "next_token": {"_target_": "seqmodels.heads.next_token.NextTokenHead"},
        "masked_token": {"_target_": "seqmodels.heads.masked_token.MaskedTokenHead"},
        "classification": {"_target_": "seqmodels.heads.classification.ClassificationHead"},
    }
    layer = {"d_state": 4, "implementation": "reference", **layer}
    layer = {"_target_": "seqmodels.layers.mamba.Mamba", "_partial_": True, **layer}
    backbone = {"d_model": d_model, "n_layers": n_layers, "layer": layer}
    return ModelSpec({"_target_": "seqmodels.backbones.stack.Stack", **backbone}, heads[head])


def tiny_recipe(
    *, batch_size: int = 4, num_workers: int = 0, seed: int = 0, lr: float = 0.01, **trainer: Any
) -> Recipe:
    """A recipe that logs, validates and saves often; `trainer` as in `TrainerSettings`."""
    import functools

    from torch.optim import AdamW

    from seqmodels.training import DataSettings, Recipe, TrainerSettings

    often = {"max_steps": 12, "val_every_steps": 4, "checkpoint_every_steps": 3, "log_every_steps": 2}
    return Recipe(
        TrainerSettings(**{**often, "accelerator": "cpu", **trainer}),
        DataSettings(batch_size=batch_size, num_workers=num_workers),
        optimizer=functools.partial(AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.1),
        seed=seed,
    )
