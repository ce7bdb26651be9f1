"""What ids mean in a published model: its table of symbols where there is one, and a tokenizer for any model.

A model without a tokenizer of ours still reads and writes ids: as numbers, or as letters where its table says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqmodels.data.whole_file import written_whole
from seqmodels.interop.report import ConversionError

LARGEST_TABLE = 64  # symbols that a report lists; word vocabularies are not letters


class IdTokenizer:
    """Ids as they are: decimal numbers in text, or single letters where a table gives them.

    Args:
        vocab_size: ids are 0..vocab_size-1.
        start_id: the id put before the first symbol.
        letters: letter -> id, for models of letters; other ids are written as "?". None writes numbers.

    Raises:
        ValueError: start_id or an id of letters is not below vocab_size.
    """

    unit = "token"
    file_suffix = ".txt"

    def __init__(self, *, vocab_size: int, start_id: int = 0, letters: Mapping[str, int] | None = None):
        outside = [token for token in (start_id, *(letters or {}).values()) if not 0 <= token < vocab_size]
        if outside:
            raise ValueError(f"id {outside[0]} is not in 0..{vocab_size - 1}")
        self.vocab_size, self.start_id = vocab_size, start_id
        self.letters = None if letters is None else dict(letters)

    def encode(self, raw: Any) -> np.ndarray:
        """Ids of letters, or of numbers (a sequence, or text with spaces or commas between them), as int64."""
        if isinstance(raw, str) and self.letters is not None:
            unknown = sorted(set(raw) - self.letters.keys())
            if unknown:
                raise ValueError(f"{unknown[0]!r} is none of this model's letters {''.join(self.letters)}")
            return np.array([self.letters[letter] for letter in raw], dtype=np.int64)
        words = raw.replace(",", " ").split() if isinstance(raw, str) else raw
        try:
            ids = np.array([int(word) for word in words], dtype=np.int64)
        except ValueError as error:
            raise ValueError(
                f"{error}: this model came without a tokenizer, so a prompt is ids, such as prompt='12 7 3'"
            ) from None
        if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
            raise ValueError(f"ids span {ids.min()}..{ids.max()}; this model has 0..{self.vocab_size - 1}")
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Letters, or numbers with spaces between them."""
        if self.letters is None:
            return " ".join(str(token) for token in np.asarray(ids).tolist())
        symbols = {token: letter for letter, token in self.letters.items()}
        return "".join(symbols.get(token, "?") for token in np.asarray(ids).tolist())

    def read_prompt(self, prompt: str) -> np.ndarray:
        """Ids of a prompt, see `encode`, or of a text file."""
        path = Path(prompt)
        return self.encode(path.read_text().strip() if path.suffix == ".txt" and path.is_file() else prompt)

    def write(self, path: str, sequences: Sequence[np.ndarray], *, names: Sequence[str]) -> list[str]:
        """Writes a name and a line for each sequence; the file appears whole or not at all."""
        if len(sequences) != len(names):
            raise ValueError(f"{len(sequences)} sequences but {len(names)} names")
        target = Path(path)
        with written_whole(target) as partial:
            partial.write_text("".join(f"# {name}\n{self.decode(ids)}\n" for name, ids in zip(names, sequences)))
        return [str(target)]

    def spec(self) -> dict[str, Any]:
        """Everything needed to build this tokenizer again, as plain data."""
        return {
            "_target_": "seqmodels.interop.tokens.IdTokenizer",
            "vocab_size": self.vocab_size,
            "start_id": self.start_id,
            "letters": self.letters,
        }


def symbols_of(folder: Path) -> dict[int, str]:
    """id -> symbol, from tokenizer.json or vocab.json in a folder of published weights; empty where neither is.

    Raises:
        ConversionError: the file is there and is not what it should be.
    """
    for name in ("tokenizer.json", "vocab.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            data = json.loads(path.read_text())
            vocabulary = data["model"]["vocab"] if name == "tokenizer.json" else data
            pairs = {int(token): str(symbol) for symbol, token in vocabulary.items()}
            added = data.get("added_tokens", []) if name == "tokenizer.json" else []
            pairs |= {int(entry["id"]): str(entry["content"]) for entry in added}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConversionError(f"{path} holds no table of symbols and ids: {error!r}") from error
        return dict(sorted(pairs.items()))
    return {}


def letters_of(symbols: Mapping[int, str]) -> dict[str, int] | None:
    """letter -> id, if the symbols are single letters and a few special tokens in brackets; None otherwise."""
    letters = {symbol: token for token, symbol in symbols.items() if len(symbol) == 1}
    special = [symbol for symbol in symbols.values() if len(symbol) > 1]
    is_alphabet = 0 < len(symbols) <= LARGEST_TABLE and all(symbol[0] in "[<" for symbol in special)
    return letters if letters and is_alphabet else None
