"""What flows from a file to a model: one `Record` per sample, one `Batch` per step.

A dataset maps a `SampleKey` to a `Record`; a collate function (seqmodels/data/collate.py) turns records into a
`Batch`. Both are plain dataclasses, so a reader sees every field with its shape and unit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE_INDEX = -100  # a target that takes no part in the loss; torch's cross-entropy default


class SampleKey(NamedTuple):
    """Names one sample for ever: the same (dataset seed, epoch, index) gives the same record on any worker or rank."""

    epoch: int
    index: int


@dataclass(frozen=True, slots=True)
class Record:
    """One sample as token ids.

    Attributes:
        id: where it came from, for messages: `hg38.fa.gz:chr16:0-1024(+)`, `7_theo_3.flac:0-8000`.
        ids: (L,) unsigned token ids.
        label: class index in 0..O-1, or None for unlabeled data.
        target_ids: (L,) token ids to predict where they differ from `ids`; `IGNORE_INDEX` where nothing is
            predicted (N, padding). None means every id is a target. int64.
        weights: (L,) loss weight of each position, or None for all ones.
        marks: (L,) uint8, bit k set where the position is of the class `MarkedCorpus.mark_names[k]`; None unless
            asked for.
    """

    id: str
    ids: np.ndarray
    label: int | None = None
    target_ids: np.ndarray | None = None
    weights: np.ndarray | None = None
    marks: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """What a training step sees. Positions at and beyond a row's length are padding on the right.

    Attributes:
        input_ids_BL: int64 ids the model reads.
        target_ids_BL: int64 ids it should predict at the same positions; `IGNORE_INDEX` where nothing counts.
            None for tasks with one label a sequence.
        labels_B: int64 class of each sequence, or None.
        lengths_B: int64 number of real positions of each row (1..L).
        weights_BL: loss weight of each position, or None for all ones.
        record_ids: one name a row, for error messages.
        marks_BL: int64 bits, the classes of each position (see `Record.marks`); 0 in padding. For evaluation only.
    """

    input_ids_BL: Int[Tensor, "B L"]
    lengths_B: Int[Tensor, " B"]
    record_ids: tuple[str, ...]
    target_ids_BL: Int[Tensor, "B L"] | None = None
    labels_B: Int[Tensor, " B"] | None = None
    weights_BL: Float[Tensor, "B L"] | None = None
    marks_BL: Int[Tensor, "B L"] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""
        moved = {
            field.name: value.to(device, non_blocking=non_blocking)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@runtime_checkable
class SequenceDataset(Protocol):
    """A finite list of samples, addressed by `SampleKey` (a bare int means epoch 0)."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey | int) -> Record: ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text, bases or samples to ids and back, and to the domain's file format.

    Attributes:
        vocab_size: ids are 0..vocab_size-1.
        start_id: the id put before the first symbol, so that L symbols give L predictions.
        unit: what one id stands for, singular, as reports print it ("base", "sample").
        file_suffix: the suffix of files that `write` makes (".fa", ".wav").

    A tokenizer with ids that make no sense in a generated sequence (padding, masks) also has `drawn_ids`, the ids that
    generation may draw; one for masked models has `mask_id`, which stands for a hidden symbol. One of symbols that
    pair across a double helix has `complement_ids`, the partner of each id.
    One whose files can be written while their ids are made has `writer(path, lengths)`, see sequence_writer.py.
    """

    vocab_size: int
    start_id: int
    unit: str
    file_suffix: str

    def encode(self, raw: Any) -> np.ndarray: ...

    def decode(self, ids: np.ndarray) -> Any: ...

    def read_prompt(self, prompt: str) -> np.ndarray: ...

    def write(self, path: str, sequences: Sequence[np.ndarray], *, names: Sequence[str]) -> list[str]: ...

    def spec(self) -> dict[str, Any]: ...


@runtime_checkable
class Corpus(Protocol):
    """A domain's data set: splits of samples, one tokenizer, and an account of what was read.

    Attributes:
        tokenizer: how ids were made; saved with every checkpoint.
        class_names: names of labels 0..O-1, sorted; empty for unlabeled data.
    """

    tokenizer: Tokenizer
    class_names: tuple[str, ...]

    def split(self, name: str) -> SequenceDataset:
        """The samples of "train", "valid" or "test"; raises ValueError naming the splits there are."""
        ...

    def report(self) -> Mapping[str, int | float | str]:
        """Counts for the user: sequences, bases or samples, N, lower case, dropped, resampled."""
        ...


@runtime_checkable
class MarkedCorpus(Corpus, Protocol):
    """A corpus that knows classes of positions (repeats of a genome), which a language model can be judged by.

    Attributes:
        mark_names: names of the classes; a position may be of several.
    """

    mark_names: tuple[str, ...]

    def marked(self, name: str) -> SequenceDataset:
        """The samples of `split(name)`, their records with `marks`."""
        ...

    def region_ids(self, split: str) -> Iterable[np.ndarray]:
        """Ids of whole stretches of a split, for baselines that read from end to end."""
        ...
