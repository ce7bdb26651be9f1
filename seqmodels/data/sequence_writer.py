"""Sequences written while they are made: what a tokenizer's `writer(path, lengths)` gives, and what stands in for it.

    with writer_of(tokenizer, "out.wav", [16000, 16000]) as writer:
        writer.append(0, ids)                                  # any rows, any number of ids at a time
        writer.finish(0, name="first", facts={"seed": "0"})    # in the order in which they are to stand

A domain gives its tokenizer a `writer` so that a sequence may be longer than memory, and can be looked at on the way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from seqmodels.data.record import Tokenizer


@runtime_checkable
class SequenceWriter(Protocol):
    """Writes rows of known lengths piece by piece. A context manager.

    What bears its final name is whole, always. Where the block is left by an OSError (a full disk), what is unfinished
    is removed; where it is left by anything else (Ctrl-C), it is kept under another name, which the log says.

    A writer whose format can be drawn also has `picture(captions) -> path`: one figure of the files written.

    Attributes:
        paths: files that stand whole under their names, in the order of finishing; one may hold many sequences.
    """

    paths: list[str]

    def __enter__(self) -> SequenceWriter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def append(self, row: int, ids: np.ndarray) -> None:
        """The next ids of a row."""
        ...

    def finish(self, row: int, *, name: str, facts: Mapping[str, str]) -> str:
        """Writes a row, all of whose ids have come, under its name with these facts; returns the file it is in."""
        ...


class GatheringWriter(AbstractContextManager["GatheringWriter"]):
    """For tokenizers that can only `write` everything at once: keeps all ids in memory until the end.

    Args:
        tokenizer: its `write` makes the file, which appears when the block is left without an error.
        path: of the file.
        rows: number of sequences.
    """

    def __init__(self, tokenizer: Tokenizer, path: str, rows: int) -> None:
        self._tokenizer, self._path = tokenizer, path
        self._ids: list[list[np.ndarray]] = [[] for _ in range(rows)]
        self._finished: list[tuple[str, int]] = []
        self.paths: list[str] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            names, rows = [name for name, _ in self._finished], [row for _, row in self._finished]
            sequences = [np.concatenate(self._ids[row]) for row in rows]
            self.paths[:] = self._tokenizer.write(self._path, sequences, names=names)

    def append(self, row: int, ids: np.ndarray) -> None:
        """The next ids of a row."""
        self._ids[row].append(ids)

    def finish(self, row: int, *, name: str, facts: Mapping[str, str]) -> str:
        """Notes the row's place, name and facts."""
        self._finished.append((" ".join([name, *(f"{key}={value}" for key, value in facts.items())]), row))
        return self._path


def writer_of(tokenizer: Any, path: str, lengths: Sequence[int]) -> SequenceWriter:
    """The tokenizer's own writer, or one that gathers everything in memory."""
    if hasattr(tokenizer, "writer"):
        return tokenizer.writer(path, lengths)
    return GatheringWriter(tokenizer, path, len(lengths))
