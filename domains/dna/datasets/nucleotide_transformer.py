"""`NucleotideTransformerTask`: one downstream task of the Nucleotide Transformer, FASTA, Parquet or CSV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from domains.dna.datasets.sequence_corpus import SequenceCorpus, SequenceOptions
from domains.dna.datasets.sequence_table import files_of_splits
from domains.dna.fasta import FASTA_SUFFIXES
from domains.dna.tables import TABLE_SUFFIXES, Columns, Example, column_names, read_examples, read_labelled_fasta
from domains.dna.tokenizer import DnaTokenizer

# Tasks that have been published under several names.
ALIASES = (
    ("enhancers", "enhancer"),
    ("enhancers_types", "enhancer_types", "enhancers_type"),
    ("promoter_no_tata", "promoter_non_tata", "promoter_notata"),
    ("splice_sites_acceptors", "splice_sites_acceptor"),
    ("splice_sites_donors", "splice_sites_donor"),
)


class NucleotideTransformerTask(SequenceCorpus):
    """A Nucleotide Transformer task, first version or revised.

    The folder holds one folder a task. In it: `*train*.fasta` and `*test*.fasta` (or .fna) with the label as the last
    character of each header, or tables (Parquet, CSV) with `sequence` and `label`. Tables that hold all tasks, with a
    column `task`, may lie in the folder itself. The tasks have no validation sequences: the published protocol draws a
    tenth of the training ones, by seed.

    Args:
        folder: with a folder for each task, or with tables of all tasks.
        task: `H3`, `enhancers`, `promoter_tata`, `splice_sites_all` …; other published spellings are accepted.
        tokenizer: default `DnaTokenizer()`.
        max_bases: longer sequences are cut off there and counted; None keeps them whole.
        valid_fraction: share of the training sequences for validation.
        seed: of that draw and of the strands.
        reverse_complement_augment: training sequences come from either strand with equal chance.
        on_leak: "warn", "error" or "ignore" where test sequences are in training too.

    Raises:
        FileNotFoundError: no such folder or task; the tasks there are listed.
        ValueError: see `SequenceCorpus`.
    """

    def __init__(
        self, folder: str, task: str, *, tokenizer: DnaTokenizer | None = None, max_bases: int | None = None,
        valid_fraction: float = 0.1, seed: int = 0, reverse_complement_augment: bool = False, on_leak: str = "warn",
    ):  # fmt: skip
        options = SequenceOptions(
            tokenizer, max_bases, valid_fraction, seed=seed, on_leak=on_leak,
            reverse_complement_augment=reverse_complement_augment,
        )  # fmt: skip
        place, names = Path(folder).expanduser(), spellings(task)
        if not place.is_dir():
            raise FileNotFoundError(f"no folder {place}")
        folders = {entry.name.lower(): entry for entry in place.iterdir() if entry.is_dir()}
        own = next((folders[name.lower()] for name in names if name.lower() in folders), None)
        if own is None and not any(entry.name.lower().endswith(TABLE_SUFFIXES) for entry in place.iterdir()):
            raise FileNotFoundError(
                f"{place} has no task {task!r}; there are: {', '.join(sorted(folders)) or 'no folders'}"
            )
        super().__init__(_of_task_folder(own) if own else _of_tables(place, names), options)
        self.task = task


def spellings(task: str) -> tuple[str, ...]:
    """A task's name and the other names it has been published under."""
    others = next((names for names in ALIASES if task.lower() in names), ())
    return tuple(dict.fromkeys((task, *others)))


def _of_task_folder(folder: Path) -> dict[str, Iterator[Example]]:
    files = files_of_splits(folder, (*FASTA_SUFFIXES, *TABLE_SUFFIXES))
    return {split: _read_all(paths) for split, paths in files.items()}


def _read_all(paths: list[Path]) -> Iterator[Example]:
    for path in paths:
        if path.name.lower().endswith(FASTA_SUFFIXES):
            yield from read_labelled_fasta(path)
        else:
            yield from read_examples(path, Columns())


def _of_tables(folder: Path, names: tuple[str, ...]) -> dict[str, list[Example]]:
    files = files_of_splits(folder, TABLE_SUFFIXES)
    found: dict[str, list[Example]] = {}
    tasks: set[str] = set()
    for split, paths in files.items():
        for path in paths:
            if "task" not in column_names(path):
                raise FileNotFoundError(f"{folder} has no task {names[0]!r}, and {path.name} no column 'task'")
            for example in read_examples(path, Columns(split="task")):
                tasks.add(example.split)
                if example.split.lower() in [name.lower() for name in names]:
                    found.setdefault(split, []).append(example)
    if not found:
        raise FileNotFoundError(f"{folder} has no task {names[0]!r}; there are: {', '.join(sorted(tasks))}")
    return found
