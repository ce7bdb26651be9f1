"""Symbols are numbers already: text like "3 0 12" to ids and back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class SymbolTokenizer:
    """Ids 0..V-1 written as whole numbers between spaces; satisfies `seqmodels.data.record.Tokenizer`.

    Args:
        vocab_size: V.
    """

    start_id = 0
    unit = "symbol"
    file_suffix = ".txt"

    def __init__(self, *, vocab_size: int):
        if vocab_size < 1:
            raise ValueError(f"vocab_size={vocab_size}: must be at least 1")
        self.vocab_size = vocab_size
        self.dtype = np.uint8 if vocab_size <= 2**8 else np.uint16 if vocab_size <= 2**16 else np.uint32

    def encode(self, raw: str | Sequence[int] | np.ndarray) -> np.ndarray:
        """Ids of "3 0 12", or of the numbers themselves, in the smallest unsigned type that holds V-1.

        Raises:
            ValueError: a word that is no number, or a number outside 0..V-1.
        """
        words = raw.split() if isinstance(raw, str) else raw
        try:
            ids = np.array(words if isinstance(words, np.ndarray) else [int(word) for word in words], dtype=np.int64)
        except ValueError as error:
            raise ValueError(f"symbols are whole numbers between spaces: {error}") from None
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            raise ValueError(f"symbols span {ids.min()}..{ids.max()}; this tokenizer has 0..{self.vocab_size - 1}")
        return ids.astype(self.dtype)

    def decode(self, ids: np.ndarray) -> str:
        """The ids as text."""
        return " ".join(str(int(symbol)) for symbol in ids)

    def read_prompt(self, prompt: str) -> np.ndarray:
        """Ids of the symbols that `prompt` spells."""
        return self.encode(prompt)

    def write(self, path: str, sequences: Sequence[np.ndarray], *, names: Sequence[str]) -> list[str]:
        """One line a sequence: its name, a tab, its symbols.

        Raises:
            ValueError: not one name a sequence.
        """
        if len(names) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences but {len(names)} names; one name a sequence is needed")
        target = Path(path) if Path(path).suffix else Path(path).with_suffix(self.file_suffix)
        target.write_text("".join(f"{name}\t{self.decode(ids)}\n" for name, ids in zip(names, sequences)))
        return [str(target)]

    def spec(self) -> dict[str, Any]:
        """What builds this tokenizer again."""
        return {"_target_": f"{__name__}.SymbolTokenizer", "vocab_size": self.vocab_size}
