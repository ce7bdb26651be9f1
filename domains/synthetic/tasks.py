"""Four tasks that tell sequence layers apart, each a rule that draws B sequences and their answers at once.

    task = InductionHeads(length=256)
    sequences = task.draw(64, torch.Generator().manual_seed(0))      # .ids_BL, .target_ids_BL

| task | needs | source |
|---|---|---|
| SelectiveCopying | keep some symbols, let others pass: input-dependent steps | Mamba (2312.00752), E.1 |
| InductionHeads | recall what followed a symbol, at any distance | Mamba, E.1, table 11 |
| AssociativeRecall | MQAR: recall many pairs: large states, or attention | 2312.04927; Mamba-2 (2405.21060), D.1 |
| Phonebook | look one long entry up among many | Jelassi et al. (2402.01032); 2406.07887 |

A sequence has L symbols; `target_ids_BL` holds the answers where they are to be predicted and `IGNORE_INDEX` elsewhere.
As everywhere, position t is predicted from the symbols before t (seqmodels/data/collate.py makes the shift). Symbol 0
stands before every sequence.

Draws come from the generator given, on its device: one sample on a CPU and a batch on a GPU are the same code (but
not the same numbers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from seqmodels.data.record import IGNORE_INDEX


@dataclass(frozen=True, slots=True)
class Sequences:
    """B drawn sequences.

    Attributes:
        ids_BL: int64 symbols, 0..V-1.
        target_ids_BL: int64 answers, `IGNORE_INDEX` where nothing is asked.
    """

    ids_BL: Int[Tensor, "B L"]
    target_ids_BL: Int[Tensor, "B L"]


class Task(ABC):
    """A rule that draws sequences.

    Attributes:
        name: how reports call it.
        vocab_size: V, symbols are 0..V-1.
    """

    name: ClassVar[str]
    vocab_size: int

    @property
    @abstractmethod
    def num_symbols(self) -> int:
        """L, the symbols of every sequence."""

    @property
    @abstractmethod
    def num_answers(self) -> int:
        """Positions of a sequence that are predicted."""

    @abstractmethod
    def draw(self, count: int, generator: Generator) -> Sequences:
        """`count` sequences on the generator's device."""


@dataclass(frozen=True)
class SelectiveCopying(Task):
    """Data symbols lie at random places in noise; after it they are asked for, in order.

        . . 7 . 3 . . . 9 . ? ? ? ?      (noise 0, data 1..V-2, marker V-1)
                              7 3 9      answers: each predicted once its marker has been read

    The model never reads its own answers, only markers. One marker more than data stands at the end: the last symbol
    is predicted, not read.

    Args:
        length: positions of noise and data.
        data_tokens: data symbols among them.
        vocab_size: V, with noise and marker.

    Raises:
        ValueError: fewer positions than data, no data, or a vocabulary below 4.
    """

    name: ClassVar[str] = "selective_copying"
    length: int = 4096
    data_tokens: int = 16
    vocab_size: int = 16

    def __post_init__(self) -> None:
        _require(self.vocab_size >= 4, f"vocab_size={self.vocab_size}: noise, marker and two data symbols need 4")
        _require(1 <= self.data_tokens <= self.length, f"data_tokens={self.data_tokens}: 1 to length={self.length}")

    @property
    def num_symbols(self) -> int:
        return self.length + self.data_tokens + 1

    @property
    def num_answers(self) -> int:
        return self.data_tokens

    def draw(self, count: int, generator: Generator) -> Sequences:
        marker = self.vocab_size - 1
        data_BM = _integers(1, marker, (count, self.data_tokens), generator)
        places_BM = _distinct(count, self.length, self.data_tokens, generator).sort(dim=-1).values
        ids_BL = _full((count, self.num_symbols), marker, generator)
        ids_BL[:, : self.length] = 0
        ids_BL.scatter_(1, places_BM, data_BM)
        target_ids_BL = _nothing_asked(ids_BL)
        target_ids_BL[:, self.length + 1 :] = data_BM
        return Sequences(ids_BL, target_ids_BL)


@dataclass(frozen=True)
class InductionHeads(Task):
    """A trigger stands once among random symbols, and again at the end: what followed it the first time?

        4 1 # 9 2 8 3 5 # 9      (ordinary 0..V-2, trigger # = V-1)
                          9      the answer

    Args:
        length: L, all symbols, the answer included.
        vocab_size: V, with the trigger.

    Raises:
        ValueError: length below 4, or a vocabulary below 3.
    """

    name: ClassVar[str] = "induction_heads"
    length: int = 256
    vocab_size: int = 16

    def __post_init__(self) -> None:
        _require(self.vocab_size >= 3, f"vocab_size={self.vocab_size}: a trigger and two ordinary symbols need 3")
        _require(self.length >= 4, f"length={self.length}: trigger, symbol, trigger, symbol need 4")

    @property
    def num_symbols(self) -> int:
        return self.length

    @property
    def num_answers(self) -> int:
        return 1

    def draw(self, count: int, generator: Generator) -> Sequences:
        trigger = self.vocab_size - 1
        ids_BL = _integers(0, trigger, (count, self.length), generator)
        first_B1 = _integers(0, self.length - 3, (count, 1), generator)
        ids_BL.scatter_(1, first_B1, trigger)
        ids_BL[:, -2] = trigger
        ids_BL[:, -1] = ids_BL.gather(1, first_B1 + 1).squeeze(1)
        target_ids_BL = _nothing_asked(ids_BL)
        target_ids_BL[:, -1] = ids_BL[:, -1]
        return Sequences(ids_BL, target_ids_BL)


@dataclass(frozen=True)
class AssociativeRecall(Task):
    """Multi-query associative recall: key-value pairs first, then every key is asked for once.

        k3 v8 k1 v5 | k1 ~ ~ ~ k3 ~      (keys 1..V/2-1, values V/2..V-1, ~ any symbol but 0)
                         v5       v8     answers: predicted right after the key; they are not shown

    Keys of one sequence are distinct, so are values. Queries stand at even offsets after the pairs; how far a key's
    query lies behind them follows p(offset) ~ offset^(power-1) without replacement, as published.

    Args:
        length: L, all symbols; even.
        pairs: key-value pairs, at most L/4. Mamba-2's hardest setting is L/4, its curriculum L/32 to L/4.
        vocab_size: V.
        power: exponent of the queries' distances.

    Raises:
        ValueError: an odd length, too many pairs for the length or the vocabulary, or power not above 0.
    """

    name: ClassVar[str] = "associative_recall"
    length: int = 256
    pairs: int = 64
    vocab_size: int = 8192
    power: float = 0.01

    def __post_init__(self) -> None:
        _require(self.length % 2 == 0, f"length={self.length}: must be even, pairs take two symbols")
        most = min(self.length // 4, self.vocab_size // 2 - 1)
        _require(
            1 <= self.pairs <= most,
            f"pairs={self.pairs}: 1 to {most} fit length={self.length} and vocab_size={self.vocab_size}"
            " (a pair takes four symbols, and keys are drawn from half of the vocabulary)",
        )
        _require(self.power > 0, f"power={self.power}: must be above 0")

    @property
    def num_symbols(self) -> int:
        return self.length

    @property
    def num_answers(self) -> int:
        return self.pairs

    def draw(self, count: int, generator: Generator) -> Sequences:
        middle, end_of_pairs = self.vocab_size // 2, 2 * self.pairs
        keys_BP = _distinct(count, middle - 1, self.pairs, generator) + 1
        values_BP = _distinct(count, self.vocab_size - middle, self.pairs, generator) + middle
        ids_BL = _integers(1, self.vocab_size, (count, self.length), generator)
        ids_BL[:, 0:end_of_pairs:2], ids_BL[:, 1:end_of_pairs:2] = keys_BP, values_BP
        slots = (self.length - end_of_pairs) // 2
        offsets = torch.arange(1, slots + 1, dtype=torch.float32, device=generator.device)
        queries_BP = end_of_pairs + 2 * _distinct(
            count, slots, self.pairs, generator, log_weights=(self.power - 1) * offsets.log()
        )
        ids_BL.scatter_(1, queries_BP, keys_BP)
        target_ids_BL = _nothing_asked(ids_BL).scatter_(1, queries_BP + 1, values_BP)
        return Sequences(ids_BL, target_ids_BL)


@dataclass(frozen=True)
class Phonebook(Task):
    """A book of "first last : 10 digits" lines, two of them repeated as examples, then a name whose number is asked.

        A3 B7 : 6 0 2 … /  A1 B2 : 9 1 … /  …  /  A1 B2 : 9 1 … /  …  /  A3 B7 : 6 0 2 …
                                                                                 the ten answers

    A name is a pair of symbols; a line end is symbol 0, the colon 1, digits 2..11, then first names and last names.
    The first digit is 6 to 9. Names of one book are distinct; examples and question are distinct lines of it. In the
    reversed form the question also stands in front of the book, so that a model can know what to listen for.

    Args:
        entries: lines of the book.
        examples: lines repeated before the question.
        reversed_form: put the question in front as well.
        names: first names, and as many last names.
        ask_examples: the examples' digits are answers too: more to learn from in each sequence.

    Raises:
        ValueError: fewer lines than examples and question need, more lines than names, or negative examples.
    """

    name: ClassVar[str] = "phonebook"
    entries: int = 20
    examples: int = 2
    reversed_form: bool = False
    names: int = 64
    ask_examples: bool = False

    LINE_END: ClassVar[int] = 0
    COLON: ClassVar[int] = 1
    DIGIT_0: ClassVar[int] = 2
    FIRST_NAME_0: ClassVar[int] = 12
    NUMBER_DIGITS: ClassVar[int] = 10
    LINE_SYMBOLS: ClassVar[int] = 14

    def __post_init__(self) -> None:
        _require(self.examples >= 0, f"examples={self.examples}: must be at least 0")
        _require(
            self.examples + 1 <= self.entries <= self.names**2,
            f"entries={self.entries}: at least examples + 1 = {self.examples + 1} lines, at most"
            f" names^2 = {self.names**2} distinct names",
        )

    @property
    def vocab_size(self) -> int:  # type: ignore[override] - follows from the names
        return self.FIRST_NAME_0 + 2 * self.names

    @property
    def num_symbols(self) -> int:
        question_in_front = 5 if self.reversed_form else 0
        return question_in_front + self.LINE_SYMBOLS * (self.entries + self.examples + 1) + 2 - 1

    @property
    def num_answers(self) -> int:
        return self.NUMBER_DIGITS * (1 + (self.examples if self.ask_examples else 0))

    def draw(self, count: int, generator: Generator) -> Sequences:
        book_BEK = self._book(count, generator)
        asked_BX = _distinct(count, self.entries, self.examples + 1, generator)
        again_BXK = book_BEK.gather(1, asked_BX[..., None].expand(-1, -1, self.LINE_SYMBOLS))
        blank_B1 = _full((count, 1), self.LINE_END, generator)
        front = [again_BXK[:, -1, :3], blank_B1, blank_B1] if self.reversed_form else []
        examples_BL = again_BXK[:, :-1].flatten(1)
        parts = [*front, book_BEK.flatten(1), blank_B1, examples_BL, blank_B1, again_BXK[:, -1, :-1]]
        ids_BL = torch.cat(parts, dim=1)
        target_ids_BL = _nothing_asked(ids_BL)
        target_ids_BL[:, -self.NUMBER_DIGITS :] = ids_BL[:, -self.NUMBER_DIGITS :]
        if self.ask_examples:
            self._ask_examples(ids_BL, target_ids_BL)
        return Sequences(ids_BL, target_ids_BL)

    def _book(self, count: int, generator: Generator) -> Int[Tensor, "B E K"]:
        """The lines of `count` books, 14 symbols each."""
        names_BE = _distinct(count, self.names**2, self.entries, generator)
        book_BEK = _full((count, self.entries, self.LINE_SYMBOLS), self.LINE_END, generator)
        book_BEK[..., 0] = self.FIRST_NAME_0 + names_BE // self.names
        book_BEK[..., 1] = self.FIRST_NAME_0 + self.names + names_BE % self.names
        book_BEK[..., 2] = self.COLON
        book_BEK[..., 3] = self.DIGIT_0 + _integers(6, 10, (count, self.entries), generator)
        others = (count, self.entries, self.NUMBER_DIGITS - 1)
        book_BEK[..., 4:13] = self.DIGIT_0 + _integers(0, 10, others, generator)
        return book_BEK

    def _ask_examples(self, ids_BL: Tensor, target_ids_BL: Tensor) -> None:
        """Marks the digits of the repeated lines as answers, in place."""
        first = self.num_symbols - (self.LINE_SYMBOLS - 1) - 1 - self.LINE_SYMBOLS * self.examples
        for line in range(self.examples):
            digits = slice(first + line * self.LINE_SYMBOLS + 3, first + line * self.LINE_SYMBOLS + 13)
            target_ids_BL[:, digits] = ids_BL[:, digits]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _full(shape: tuple[int, ...], value: int, generator: Generator) -> Tensor:
    return torch.full(shape, value, dtype=torch.int64, device=generator.device)


def _integers(low: int, high: int, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Uniform on low..high-1."""
    return torch.randint(low, high, shape, generator=generator, device=generator.device)


def _distinct(
    rows: int, population: int, count: int, generator: Generator, *, log_weights: Float[Tensor, " P"] | None = None
) -> Int[Tensor, "B K"]:
    """For each row, `count` different numbers of 0..population-1 in the order drawn, uniformly or by weight.

    The largest of log-weights plus Gumbel noise, in order, are draws without replacement (Vieira 2014).
    """
    noise_BP = torch.rand(rows, population, generator=generator, device=generator.device)
    if log_weights is not None:
        noise_BP = log_weights - torch.log(-torch.log(noise_BP.clamp(min=torch.finfo(torch.float32).tiny)))
    return noise_BP.topk(count, dim=-1).indices


def _nothing_asked(ids_BL: Tensor) -> Tensor:
    return torch.full_like(ids_BL, IGNORE_INDEX)
