"""What every layout answers: how a configuration describes a model, and what its tensors are called there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

NEXT_TOKEN = "seqmodels.heads.next_token.NextTokenHead"
EMBEDDING, LM_HEAD = "backbone.embedding.weight", "lm_head.weight"


class Layout(ABC):
    """One way of publishing models, read and written.

    Class attributes:
        name: as reports say it.
        model_types: values of config.json's model_type that it reads.
        as_pickle: the weights are a pickle of tensors instead of safetensors.
        writes_copies: tied tensors are written under each of their names.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]] = ()
    as_pickle: ClassVar[bool] = False
    writes_copies: ClassVar[bool] = True

    @abstractmethod
    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this layout."""

    @abstractmethod
    def spec(
        self, config: Mapping[str, Any], symbols: Mapping[int, str], names: Collection[str] = ()
    ) -> dict[str, Any]:
        """The spec of the `SequenceModel` that a config.json describes.

        Args:
            config: a config.json.
            symbols: id -> what it stands for, where that is known; empty otherwise.
            names: of the tensors, for what a layout's configuration leaves unsaid.

        Raises:
            ConversionError: something in it cannot be said here, so that the function would be another.
        """

    @abstractmethod
    def config(self, spec: Mapping[str, Any], special_ids: Mapping[str, int]) -> dict[str, Any]:
        """The config.json of one of our models.

        Args:
            spec: of a `SequenceModel`.
            special_ids: of the tokenizer: "start", and where there are such ids "pad".

        Raises:
            ConversionError: the layout has no place for something in it.
        """

    @abstractmethod
    def name_of(self, ours: str, spec: Mapping[str, Any]) -> str:
        """What one of our parameters is called there."""

    def spellings(self, names: Iterable[str]) -> dict[str, str]:
        """Names as they stand in a file -> as `name_of` gives them, where older files spell some differently."""
        return {name: name for name in names}

    def symbols(self, config: Mapping[str, Any]) -> dict[int, str]:
        """id -> what it stands for, where the layout says so without a tokenizer's file."""
        return {}

    def constants(self, spec: Mapping[str, Any]) -> dict[str, Tensor]:
        """Tensors that are stored there although the configuration already says what they hold."""
        return {}

    def notes(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        """What the user of an exported folder should know."""
        return ()


def next_token_head(vocab_size: int, d_model: int, *, tied: bool, pad_vocab_to: int) -> dict[str, Any]:
    """The spec of the language-model head that all of these layouts have."""
    return {
        "_target_": NEXT_TOKEN,
        "d_model": d_model,
        "vocab_size": vocab_size,
        "tied": tied,
        "pad_vocab_to": pad_vocab_to,
    }
