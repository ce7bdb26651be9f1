"""Generated DNA to one FASTA while it is made: one draft a sequence, put in its place when it is whole."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from domains.dna.tokenizer import DnaTokenizer

log = logging.getLogger(__name__)

FASTA_COLUMNS = 60  # line width


class FastaWriter:
    """Satisfies `seqmodels.data.sequence_writer.SequenceWriter`: every sequence a record, in the order of finishing.

    The FASTA appears under its name when all is done. Until then finished records lie in `<name>.partial.fa` and
    unfinished ones each in `<name>_<row>.partial.fa`. All are removed when the disk is full; after Ctrl-C or another
    error they stay, and the log says where; after a kill they stay as they are.

    Special tokens become N and are counted in the log.

    Args:
        tokenizer: decodes ids.
        path: of the FASTA; missing folders are made.
    """

    def __init__(self, tokenizer: DnaTokenizer, path: str) -> None:
        self._tokenizer, self._target = tokenizer, Path(path)
        self._drafts: dict[int, Path] = {}
        self._columns: dict[int, int] = {}  # letters on the last line of a draft
        self._replaced = 0
        self.paths: list[str] = []

    def __enter__(self) -> FastaWriter:
        with self._said_plainly():
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._partial.write_bytes(b"")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with self._said_plainly():
                os.replace(self._partial, self._target)
            self.paths.append(str(self._target))
            if self._replaced:
                log.warning("%s: %d special tokens were written as N", self._target, self._replaced)
            return
        made = [path for path in (self._partial, *self._drafts.values()) if path.exists() and path.stat().st_size]
        if not isinstance(error, OSError) and made:
            where = ", ".join(map(str, made[:3])) + (", ..." if len(made) > 3 else "")
            log.warning("stopped: what was made is kept in %s", where)
        for path in (self._partial, *self._drafts.values()):
            if isinstance(error, OSError) or path not in made:
                path.unlink(missing_ok=True)

    def append(self, row: int, ids: np.ndarray) -> None:
        """The next ids of a row."""
        letters = self._tokenizer.decode(ids)
        clean = letters.replace(".", "N").replace("?", "N")
        self._replaced += letters.count(".") + letters.count("?")
        with self._said_plainly():
            if row not in self._drafts:
                self._drafts[row] = self._target.with_name(f"{self._target.stem}_{row}.partial.fa")
                self._columns[row] = 0
                self._drafts[row].write_text(f">sequence_{row} unfinished\n", encoding="ascii")
            with open(self._drafts[row], "a", encoding="ascii") as file:
                self._columns[row] = _write_lines(file, clean, self._columns[row])

    def finish(self, row: int, *, name: str, facts: Mapping[str, str]) -> str:
        """Puts a whole row behind the records that are finished, under its name and facts; returns the path."""
        draft = self._drafts[row]
        header = " ".join([name, *(f"{key}={value}" for key, value in facts.items())])
        with self._said_plainly(), open(draft, encoding="ascii") as source:
            source.readline()
            with open(self._partial, "a", encoding="ascii", errors="replace") as file:
                file.write(f">{header}\n")
                shutil.copyfileobj(source, file)
                file.write("\n" if self._columns[row] else "")
        draft.unlink()
        del self._drafts[row], self._columns[row]
        return str(self._target)

    @property
    def _partial(self) -> Path:
        return self._target.with_name(f"{self._target.stem}.partial.fa")

    @contextlib.contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "the disk is full" if is_full else error.strerror or str(error)
            raise type(error)(error.errno, f"{self._target}: not written: {reason}; nothing was left behind") from error


def _write_lines(file: IO[str], letters: str, column: int) -> int:
    """Goes on where a line has `column` letters; returns how many the last one has now."""
    first = letters[: FASTA_COLUMNS - column]
    rest = letters[len(first) :]
    lines = [first, *(rest[i : i + FASTA_COLUMNS] for i in range(0, len(rest), FASTA_COLUMNS))]
    file.write("\n".join(lines))
    return len(lines[-1]) if len(lines) > 1 else column + len(first)
