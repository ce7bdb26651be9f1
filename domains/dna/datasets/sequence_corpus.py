"""Whole sequences with labels, kept in memory: what GenomicBenchmarks, NT tasks, GUE and tables of one's own become.

In: for each split its `Example`s. Out: a `Corpus` of `Record`s. Class ids are the positions of the sorted class names
of the training sequences (names that are all whole numbers sort as numbers), so they do not depend on the file system.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from domains.dna.datasets.genome_corpus import check_on_leak, say_leak
from domains.dna.datasets.window_samples import base_targets, epoch_and_index
from domains.dna.intervals import SPLITS
from domains.dna.tables import Example
from domains.dna.tokenizer import DnaTokenizer, reverse_complement, reverse_complement_ids
from seqmodels.data.record import Record, SampleKey

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SequenceOptions:
    """What is done with sequences once they are read.

    Attributes:
        tokenizer: None for `DnaTokenizer()`.
        max_bases: longer sequences are cut off behind so many bases, and counted; None keeps them whole.
        valid_fraction: share of the training sequences drawn for validation where the data has none of its own.
        test_fraction: the same for test.
        seed: of that draw and of the strands.
        reverse_complement_augment: training sequences come from either strand with equal chance.
        on_leak: "warn", "error" or "ignore" where a held-out sequence, or its reverse complement, is in training too.
    """

    tokenizer: DnaTokenizer | None = None
    max_bases: int | None = None
    valid_fraction: float = 0.1
    test_fraction: float = 0.0
    seed: int = 0
    reverse_complement_augment: bool = False
    on_leak: str = "warn"

    def __post_init__(self) -> None:
        check_on_leak(self.on_leak)
        if self.max_bases is not None and self.max_bases < 1:
            raise ValueError(f"max_bases={self.max_bases} must be at least 1, or null for whole sequences")
        fractions = (self.valid_fraction, self.test_fraction)
        if not (min(fractions) >= 0 and sum(fractions) < 1):
            raise ValueError(
                f"valid_fraction={fractions[0]} and test_fraction={fractions[1]} must be 0 or more, their sum below 1"
            )


class LabelledSequences:
    """Sequences of one split as a dataset.

    Args:
        where: of each sequence, for messages.
        ids: token ids of all sequences, end to end.
        starts: where each begins, and the end of the last.
        labels: class of each, or None.
        strand_seed: draw the strand with these dice; None takes every sequence as it is.
    """

    def __init__(
        self,
        where: Sequence[str],
        ids: np.ndarray,
        starts: np.ndarray,
        *,
        labels: np.ndarray | None,
        strand_seed: int | None = None,
    ):
        self.where, self.ids, self.starts, self.labels, self.strand_seed = where, ids, starts, labels, strand_seed

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, key: SampleKey | int) -> Record:
        epoch, index = epoch_and_index(key, len(self))
        ids, where = self.ids[self.starts[index] : self.starts[index + 1]], self.where[index]
        if self.strand_seed is not None and np.random.default_rng([self.strand_seed, epoch, index]).random() < 0.5:
            ids, where = reverse_complement_ids(ids), f"{where} (-)"
        label = None if self.labels is None else int(self.labels[index])
        return Record(where, ids, label, base_targets(ids))


class SequenceCorpus:
    """A `Corpus` of whole sequences.

    Args:
        examples: of each split; "train" must be there. A missing "valid" or "test" is drawn from training by the
            options' fractions.
        options: see `SequenceOptions`.

    Raises:
        ValueError: an empty sequence, a letter that is not DNA, a label that training does not have, fewer than two
            classes; says file and line.
    """

    def __init__(self, examples: Mapping[str, Iterable[Example]], options: SequenceOptions):
        self.options, self.tokenizer = options, options.tokenizer or DnaTokenizer()
        held = {split: list(found) for split, found in examples.items()}
        held = {split: found for split, found in held.items() if found}
        if not held.get("train"):
            raise ValueError("there is no training sequence in the data")
        self._divide(held)
        self.class_names = _class_names(held["train"])
        self._report: dict[str, int | float | str] = {"sequences": sum(map(len, held.values()))}
        self._report |= dict.fromkeys(self.tokenizer.count(b""), 0)
        self._datasets = {split: self._dataset(split, held[split]) for split in SPLITS if split in held}
        if self.class_names:
            self._report["classes"] = len(self.class_names)
        self._check_leaks(held)

    def split(self, name: str) -> LabelledSequences:
        """The sequences of "train", "valid" or "test"; ValueError where there are none."""
        if name not in SPLITS:
            raise ValueError(f"there is no split {name!r}; there are: {', '.join(SPLITS)}")
        if name not in self._datasets:
            raise ValueError(
                f"the data has no {name} sequences, and {name}_fraction={getattr(self.options, f'{name}_fraction', 0)}"
                " takes none from training"
            )
        return self._datasets[name]

    def report(self) -> dict[str, int | float | str]:
        """Counts: sequences, bases, n, lower_case, iupac, uracil, classes; of each split its sequences, those cut off
        at max_bases, and the share of held-out sequences that training holds too."""
        return dict(self._report)

    def _divide(self, held: dict[str, list[Example]]) -> None:
        """Draws the splits that are not there from the training sequences."""
        rows = np.random.default_rng(self.options.seed).permutation(len(held["train"]))
        count, examples = len(rows), held["train"]
        for split in ("valid", "test"):
            take = round(getattr(self.options, f"{split}_fraction") * count)
            if split not in held and take:
                held[split] = [examples[row] for row in sorted(rows[:take].tolist())]
                rows = rows[take:]
        if len(rows) < count:
            held["train"] = [examples[row] for row in sorted(rows.tolist())]

    def _dataset(self, split: str, examples: Sequence[Example]) -> LabelledSequences:
        limit = self.options.max_bases
        for example in examples:
            if not example.letters:
                raise ValueError(f"{example.where}: the sequence is empty")
        letters = [example.letters[:limit] for example in examples]
        lengths = np.array([len(one) for one in letters], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        raw = np.frombuffer(b"".join(letters), dtype=np.uint8)
        for what, count in self.tokenizer.count(raw).items():
            self._report[what] = int(self._report[what]) + count
        self._report[f"{split}_sequences"] = len(examples)
        self._report[f"{split}_longest"] = int(lengths.max())
        if cut := sum(len(example.letters) > len(one) for example, one in zip(examples, letters)):
            self._report[f"{split}_cut_off"] = cut
        augment = split == "train" and self.options.reverse_complement_augment
        return LabelledSequences(
            [example.where for example in examples], self._encode(examples, letters, raw), starts,
            labels=self._labels(examples), strand_seed=self.options.seed if augment else None,
        )  # fmt: skip

    def _encode(self, examples: Sequence[Example], letters: Sequence[bytes], raw: np.ndarray) -> np.ndarray:
        try:
            return self.tokenizer.encode(raw)
        except ValueError:
            for example, one in zip(examples, letters):  # which one it was
                try:
                    self.tokenizer.encode(one)
                except ValueError as error:
                    raise ValueError(f"{example.where}: {error}") from None
            raise

    def _labels(self, examples: Sequence[Example]) -> np.ndarray | None:
        if not self.class_names:
            return None
        id_of = {name: number for number, name in enumerate(self.class_names)}
        for example in examples:
            if example.label not in id_of:
                raise ValueError(
                    f"{example.where}: the label {example.label!r} does not occur in training, where the labels are"
                    f" {', '.join(self.class_names)}"
                )
        return np.array([id_of[example.label or ""] for example in examples], dtype=np.int64)

    def _check_leaks(self, held: Mapping[str, Sequence[Example]]) -> None:
        if self.options.on_leak == "ignore" or len(held) < 2:
            return
        training, leaking = {_fingerprint(example.letters) for example in held["train"]}, []
        for split in [split for split in ("valid", "test") if split in held]:
            share = sum(_fingerprint(example.letters) in training for example in held[split]) / len(held[split])
            self._report[f"{split}_leak_share"] = share
            if share:
                leaking.append(f"{share:.1%} of the {split} sequences")
        if leaking:
            what = f"{' and '.join(leaking)} are in training too, as they are or as reverse complement"
            say_leak(self.options.on_leak, what, "remove the doubles")


def _class_names(examples: Sequence[Example]) -> tuple[str, ...]:
    names = {example.label for example in examples if example.label is not None}
    if not names:
        return ()
    if len(names) < 2:
        raise ValueError(f"classification needs two classes or more; all training sequences are {next(iter(names))!r}")
    numbers = all(name.lstrip("-").isdigit() for name in names)
    return tuple(sorted(names, key=int if numbers else str))


def _fingerprint(letters: bytes) -> bytes:
    """The same for a sequence and its reverse complement, in either case of letters."""
    upper = letters.upper()
    other = reverse_complement(upper).tobytes()
    return blake2b(min(upper, other), digest_size=16).digest()
