"""Text files as users have them: plain or gzip whatever the name says, with or without a byte-order mark."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

GZIP = b"\x1f\x8b"


@contextmanager
def open_text(path: str | Path, *, errors: str = "replace", newline: str | None = None) -> Iterator[IO[str]]:
    """A text file to read.

    Args:
        path: plain or gzip, told apart by the first bytes.
        errors: what becomes of bytes that are no UTF-8, as for `open`.
        newline: as for `open`.

    Raises:
        ValueError: gzip that is damaged or cut off, found while reading inside.
    """
    with open(path, "rb") as file:
        opener = gzip.open if file.read(2) == GZIP else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", errors=errors, newline=newline) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged or cut off ({error})") from None
