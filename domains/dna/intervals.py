"""Regions of a genome: intervals, BED files, and how records are divided into train, valid and test.

All coordinates are 0-based half-open, as in BED: `chr1 0 100` is the first hundred bases.
In: record lengths (`Genome.lengths`). Out: `Interval` regions of each split; `windows.py` puts windows into them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import numpy as np

from domains.dna.names import close_names, find_contig, matches
from domains.dna.text_file import open_text

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Interval:
    """Bases start..end-1 of a record, 0-based half-open; `strand` "-" means their reverse complement.

    `name` is BED's fourth column: a label, often the split.
    """

    contig: str
    start: int
    end: int
    strand: str = "+"
    name: str = ""

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.contig}:{self.start}-{self.end}({self.strand})"


# ---------------------------------------------------------------------------------------------------------- BED


def read_bed(
    path: str | Path, lengths: Mapping[str, int], *, label_column: int = 4, skipped: Counter[str] | None = None
) -> list[Interval]:
    """Intervals of a BED file (3 columns or more, tab or space; `.gz` too) on records of these lengths.

    Header lines (`#`, `track`, `browser`) and blank lines are skipped. Chromosome aliases (20, chr20) are resolved.

    Args:
        path: the file.
        lengths: bases of every record.
        label_column: the column, counted from 1, that becomes `Interval.name`; rows without it have the name "".
        skipped: where given, rows on records that are not there are counted here by their record instead of refused.

    Raises:
        ValueError: file and line of an interval that is no interval, reversed, empty, past the end of its record, or on
            a record that is not there (names spelled alike are listed).
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no BED file {path}")
    intervals = []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip() or line.startswith(("#", "track", "browser")):
                continue
            cells = line.rstrip("\r\n").split("\t") if "\t" in line else line.split()
            if skipped is not None and find_contig(cells[0], lengths) is None:
                skipped[cells[0]] += 1
                continue
            try:
                intervals.append(_bed_row(cells, lengths, label_column))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not intervals:
        absent = f"; {sum(skipped.values())} rows are on sequences that are not there" if skipped else ""
        raise ValueError(f"{path}: no interval in it{absent}")
    return intervals


def _bed_row(cells: Sequence[str], lengths: Mapping[str, int], label_column: int) -> Interval:
    if len(cells) < 3 or not (cells[1].strip().isdigit() and cells[2].strip().isdigit()):
        shown = "\t".join(cells).strip()[:80]
        raise ValueError(f"not a BED interval (chromosome, start, end): {shown!r}")
    start, end = int(cells[1]), int(cells[2])
    contig = find_contig(cells[0], lengths)
    if contig is None:
        raise ValueError(f"there is no sequence {cells[0]!r}{close_names(cells[0], lengths)}")
    if start >= end:
        what = "is empty" if start == end else "is reversed (start after end)"
        raise ValueError(f"the interval {cells[0]}:{start}-{end} {what}; BED is 0-based half-open")
    if end > lengths[contig]:
        raise ValueError(f"{cells[0]}:{start}-{end} runs past the end of {contig} ({lengths[contig]} bases)")
    strand = cells[5] if len(cells) > 5 else "+"
    if label_column != 4 and strand not in ("+", "-"):
        strand = "+"  # a table of its own kind, where column six is something else
    if strand not in ("+", "-", ".", ""):
        raise ValueError(f'the strand is {strand!r}; accepted: "+", "-", "."')
    name = cells[label_column - 1].strip() if len(cells) >= label_column else ""
    return Interval(contig, start, end, "-" if strand == "-" else "+", name)


# ------------------------------------------------------------------------------------------------------- splits


class Splitter(Protocol):
    """Divides records into regions for "train", "valid" and "test"."""

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]: ...


class HeldOutRegions:
    """Part of every record is held out: its end, or blocks spread over it.

    Args:
        valid: fraction of each record for validation, 0 <= valid < 1.
        test: fraction of each record for test; valid + test < 1.
        layout: "tail" takes `train | valid | test` from start to end; "blocks" cuts the record into blocks of
            `block_bases` and deals them out at random, so that every part of a record is represented.
        block_bases: length of a block; windows never cross from one split into another, so make it many windows long.
        seed: of the dealing.
    """

    def __init__(
        self,
        *,
        valid: float = 0.1,
        test: float = 0.1,
        layout: str = "tail",
        block_bases: int = 1_000_000,
        seed: int = 0,
    ):
        if not (0 <= valid < 1 and 0 <= test < 1 and valid + test < 1):
            raise ValueError(f"valid={valid} and test={test} must be fractions with a sum below 1")
        if layout not in ("tail", "blocks"):
            raise ValueError(f'layout={layout!r}; accepted: "tail", "blocks"')
        if block_bases < 1:
            raise ValueError(f"block_bases={block_bases} must be at least 1")
        self.valid, self.test, self.layout, self.block_bases, self.seed = valid, test, layout, block_bases, seed

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]:
        found: dict[str, list[Interval]] = {split: [] for split in SPLITS}
        for order, (contig, length) in enumerate(lengths.items()):
            cut = self._tail if self.layout == "tail" else self._blocks
            for split, start, end in cut(length, order):
                if start < end:
                    found[split].append(Interval(contig, start, end))
        return found

    def _tail(self, length: int, order: int) -> Iterator[tuple[str, int, int]]:
        first = round(length * (1 - self.valid - self.test))
        second = round(length * (1 - self.test))
        yield from (("train", 0, first), ("valid", first, second), ("test", second, length))

    def _blocks(self, length: int, order: int) -> Iterator[tuple[str, int, int]]:
        count = max(1, round(length / self.block_bases))
        borders = [length * number // count for number in range(count + 1)]
        held = [round(count * self.valid), round(count * self.test)]
        names = ["valid"] * held[0] + ["test"] * held[1]
        names += ["train"] * (count - len(names))
        names = [names[i] for i in np.random.default_rng([self.seed, order]).permutation(count)]
        begin = 0
        for number in range(1, count + 1):  # neighbours of one split make one region
            if number == count or names[number] != names[begin]:
                yield names[begin], borders[begin], borders[number]
                begin = number


class HeldOutChromosomes:
    """Whole records are held out, by name or glob (`chr20`, `chr[57]`, `galGal4/*`); aliases (20, chr20) match.

    Args:
        valid: names or globs of the validation records.
        test: names or globs of the test records.
        train: names or globs of the training records, of those not held out.
    """

    def __init__(self, *, valid: Sequence[str] = (), test: Sequence[str] = (), train: Sequence[str] = ("*",)):
        self.patterns = {"valid": _as_list(valid), "test": _as_list(test), "train": _as_list(train)}

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]:
        found: dict[str, list[Interval]] = {split: [] for split in SPLITS}
        taken: dict[str, str] = {}
        for split, patterns in self.patterns.items():
            for pattern in patterns:
                matching = [contig for contig in lengths if matches(contig, pattern)]
                if not matching:
                    raise ValueError(f"{split}={pattern!r} matches no sequence{close_names(pattern, lengths)}")
                for contig in matching:
                    if split != "train" and taken.get(contig, split) != split:
                        raise ValueError(f"{contig} is in both {taken[contig]} and {split}")
                    taken.setdefault(contig, split)
        for contig, length in lengths.items():
            if contig in taken and length:
                found[taken[contig]].append(Interval(contig, 0, length))
        return found


class BedRegions:
    """Regions from a BED with a column that says the split (`chr1 0 131072 train`).

    Args:
        path: the BED file, `.gz` too.
        train: labels of the column that are training regions, globs allowed (`fold[0-5]`); likewise `valid` and `test`.
            Rows with other labels are left out.
        label_column: the column with the labels, counted from 1; 4 in HG38's human-sequences.bed.
        on_missing: rows on sequences that the genome does not have: "error", or "skip" to leave them out and say how
            many (a BED of a whole genome with the FASTA of one chromosome).
    """

    def __init__(
        self,
        path: str,
        *,
        train: Sequence[str] = ("train",),
        valid: Sequence[str] = ("valid", "val", "validation"),
        test: Sequence[str] = ("test",),
        label_column: int = 4,
        on_missing: str = "error",
    ):
        if label_column < 4:
            raise ValueError(f"label_column={label_column}: columns 1 to 3 are the interval, labels stand further on")
        if on_missing not in ("error", "skip"):
            raise ValueError(f'on_missing={on_missing!r}; accepted: "error", "skip"')
        self.path, self.label_column, self.on_missing = path, label_column, on_missing
        self.labels = {"train": _as_list(train), "valid": _as_list(valid), "test": _as_list(test)}

    def regions(self, lengths: Mapping[str, int]) -> dict[str, list[Interval]]:
        skipped: Counter[str] | None = Counter() if self.on_missing == "skip" else None
        rows = read_bed(self.path, lengths, label_column=self.label_column, skipped=skipped)
        if skipped:
            names = ", ".join(list(skipped)[:8]) + (" …" if len(skipped) > 8 else "")
            log.warning("%s: %d rows are on sequences that are not there: %s", self.path, skipped.total(), names)
        split_of = {row.name: self._split_of(row.name) for row in rows}
        found = {split: [row for row in rows if split_of[row.name] == split] for split in SPLITS}
        if not found["train"]:
            seen = ", ".join(repr(name) for name in sorted(split_of)[:8])
            raise ValueError(
                f"{self.path}: no row is labelled {self.labels['train']}; column {self.label_column} holds {seen}"
            )
        return found

    def _split_of(self, label: str) -> str | None:
        fitting = [split for split in SPLITS if any(fnmatchcase(label, pattern) for pattern in self.labels[split])]
        if len(fitting) > 1:
            raise ValueError(f"{self.path}: the label {label!r} is in both {fitting[0]} and {fitting[1]}")
        return fitting[0] if fitting else None


def _as_list(patterns: str | Sequence[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
