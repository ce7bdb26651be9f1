"""Tables of sequences as they come: CSV, TSV (`.gz` too), Parquet, and FASTA whose headers end with the label.

In: a path. Out: `Example`s, one a row, in the order of the file; each knows where it came from, for messages.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domains.dna.names import close_names
from domains.dna.text_file import open_text

TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
SEQUENCE_COLUMNS = ("sequence", "seq")
ID_COLUMNS = ("id", "name")


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence of a table.

    Attributes:
        where: file and line or row.
        letters: the bases.
        label: its class by name, or None.
        split: what the table says about its split, or "".
    """

    where: str
    letters: bytes
    label: str | None = None
    split: str = ""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table to read.

    Attributes:
        sequence: the bases; None takes `sequence` or `seq`.
        label: the class; None reads no labels.
        split: which split a row belongs to; None where the table does not say, or a column called `split` is absent.
    """

    sequence: str | None = None
    label: str | None = "label"
    split: str | None = None


def read_examples(path: Path, columns: Columns) -> Iterator[Example]:
    """The rows of a table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing (those there are listed), or a row is broken; says file and line.
        ImportError: Parquet without pyarrow.
    """
    if not path.exists():
        raise FileNotFoundError(f"no table {path}")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _text_rows(path)
    names = next(rows)[1]
    sequence = columns.sequence or next((name for name in SEQUENCE_COLUMNS if name in names), SEQUENCE_COLUMNS[0])
    for column in (sequence, columns.label, columns.split):
        if column is not None and column not in names:
            raise ValueError(f"{path} has no column {column!r}{close_names(column, names)}")
    for where, row in rows:
        label = None if columns.label is None else _as_label(row[columns.label])
        if label == "":
            raise ValueError(f"{where}: the column {columns.label!r} is empty")
        split = "" if columns.split is None else str(row[columns.split]).strip()
        yield Example(where, _as_letters(row[sequence], where), label, split)


def column_names(path: Path) -> Sequence[str]:
    """The columns of a table."""
    return list(next(_parquet_rows(path) if path.suffix == ".parquet" else _text_rows(path))[1])


def read_rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where, row) of a CSV or TSV that must have these columns."""
    rows = _text_rows(path)
    names = next(rows)[1]
    for column in needed:
        if column not in names:
            raise ValueError(f"{path} has no column {column!r}{close_names(column, names)}")
    yield from rows


def read_labelled_fasta(path: Path) -> Iterator[Example]:
    """FASTA whose headers end with the label, one digit (`>chr1:5-300|1`): Nucleotide Transformer tasks, version 1.

    Raises:
        ValueError: file and line of a header without a label, or text before the first one.
    """
    header, begun, parts = "", 0, list[bytes]()
    with open_text(path, newline="") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if line.startswith(">"):
                if begun:
                    yield Example(f"{path}, line {begun}", b"".join(parts), header[-1])
                header, begun, parts = line, number, []
                if not header[-1].isdigit():
                    raise ValueError(
                        f"{path}, line {number}: the header {header[:60]!r} does not end with a label, one digit"
                    )
            elif line and not begun:
                raise ValueError(f"{path}, line {number}: text before the first header; a FASTA begins with >name")
            else:
                parts.append(_as_letters(line, f"{path}, line {number}"))
    if not begun:
        raise ValueError(f"{path}: no record in it")
    yield Example(f"{path}, line {begun}", b"".join(parts), header[-1])


def _as_label(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with a gap arrives as floats
    return str(value).strip()


def _as_letters(value: Any, where: str) -> bytes:
    try:
        return str(value or "").strip().encode("ascii")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: the sequence holds {error.object[error.start]!r}, which is not DNA") from None


def _text_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """First the header (as a mapping of its names), then every row."""
    csv.field_size_limit(sys.maxsize)  # its own limit is 131,072 letters a cell
    with open_text(path, newline="") as file:
        head = file.readline()
        file.seek(0)
        rows = csv.reader(file, delimiter="\t" if "\t" in head else ",")
        names = [name.strip() for name in next(rows, [])]
        if not names:
            raise ValueError(f"{path}: the file is empty; its first line should name the columns")
        yield f"{path}, line 1", dict.fromkeys(names)
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"{where}: {len(row)} cells, the first line has {len(names)}")
            yield where, dict(zip(names, row))


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"{path}: Parquet needs pyarrow: pip install pyarrow (or write the table as CSV)", name="pyarrow"
        ) from error
    try:
        file = pq.ParquetFile(path)
    except Exception as error:
        raise ValueError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None
    with file:
        yield f"{path}, schema", dict.fromkeys(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
