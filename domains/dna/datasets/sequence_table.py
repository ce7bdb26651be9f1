"""`SequenceTable`: any CSV, TSV or Parquet of sequences and labels; GUE's folders are a case of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from domains.dna.datasets.sequence_corpus import SequenceCorpus, SequenceOptions
from domains.dna.tables import TABLE_SUFFIXES, Columns, Example, column_names, read_examples
from domains.dna.tokenizer import DnaTokenizer

# What files and the cells of a split column are called, by the split they mean.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "val", "validation", "dev"),
    "test": ("test", "testing"),
}


class SequenceTable(SequenceCorpus):
    """Sequences and labels from tables.

    A folder has one file a split: `train.csv`, `dev.csv` (or `valid`, `val`, `validation`) and `test.csv`; also TSV,
    Parquet, and the names that a hub gives them (`train-00000-of-00002.parquet`). One file may hold all splits, in a
    column.

    Args:
        path: a folder or a file (.csv, .tsv, either with .gz, or .parquet).
        sequence_column: None takes `sequence` or `seq`.
        label_column: None reads no labels, for language models.
        split_column: column that says train, valid or test; None takes `split` where one file has it.
        tokenizer: default `DnaTokenizer()`.
        max_bases: longer sequences are cut off there and counted; None keeps them whole.
        valid_fraction: share of the training sequences for validation where the data has none of its own.
        test_fraction: the same for test.
        seed: of that draw and of the strands.
        reverse_complement_augment: training sequences come from either strand with equal chance.
        on_leak: "warn", "error" or "ignore" where held-out sequences are in training too.

    Raises:
        FileNotFoundError: no such file, or a folder without a training file.
        ValueError: see `SequenceCorpus`; a column that is missing, a split of another name.
    """

    def __init__(
        self, path: str, *, sequence_column: str | None = None, label_column: str | None = "label",
        split_column: str | None = None, tokenizer: DnaTokenizer | None = None, max_bases: int | None = None,
        valid_fraction: float = 0.1, test_fraction: float = 0.0, seed: int = 0,
        reverse_complement_augment: bool = False, on_leak: str = "warn",
    ):  # fmt: skip
        options = SequenceOptions(
            tokenizer, max_bases, valid_fraction, test_fraction, seed, reverse_complement_augment, on_leak
        )
        columns = Columns(sequence_column, label_column, split_column)
        place = Path(path).expanduser()
        super().__init__(_from_folder(place, columns) if place.is_dir() else _from_file(place, columns), options)


def _from_folder(folder: Path, columns: Columns) -> dict[str, list[Example]]:
    files = files_of_splits(folder, TABLE_SUFFIXES)
    return {split: [one for path in paths for one in read_examples(path, columns)] for split, paths in files.items()}


def files_of_splits(folder: Path, suffixes: tuple[str, ...]) -> Mapping[str, list[Path]]:
    """The files of a folder by split, told from their names: `dev.csv`, `train-00000-of-00002.parquet`.

    Raises:
        FileNotFoundError: there is none for training; what is there is listed.
    """
    files = sorted(entry for entry in folder.iterdir() if entry.name.lower().endswith(suffixes))
    found: dict[str, list[Path]] = {}
    for path in files:
        words = path.name.lower().replace("-", ".").replace("_", ".").split(".")
        exact = (split for split, names in SPLIT_NAMES.items() if any(word in names for word in words))
        within = (split for split in ("train", "test") if split in path.name.lower())  # H3train.fna
        if (split := next(exact, None) or next(within, None)) is not None:
            found.setdefault(split, []).append(path)
    if "train" not in found:
        there = ", ".join(path.name for path in files[:8]) or f"no file *{', *'.join(suffixes)}"
        raise FileNotFoundError(f"no training file (train.csv or the like) in {folder}; there is {there}")
    return found


def _from_file(path: Path, columns: Columns) -> dict[str, list[Example]]:
    if not path.name.lower().endswith(TABLE_SUFFIXES):
        raise ValueError(f"{path}: a table is a folder or a file {', '.join('*' + s for s in TABLE_SUFFIXES)}")
    if path.exists() and columns.split is None and "split" in column_names(path):
        columns = Columns(columns.sequence, columns.label, "split")
    found: dict[str, list[Example]] = {}
    for example in read_examples(path, columns):
        found.setdefault(_split_called(example), []).append(example)
    return found


def _split_called(example: Example) -> str:
    for split, names in SPLIT_NAMES.items():
        if example.split.lower() in names:
            return split
    if not example.split:
        return "train"
    accepted = ", ".join(name for names in SPLIT_NAMES.values() for name in names)
    raise ValueError(f"{example.where}: the split is {example.split!r}; accepted: {accepted}")
