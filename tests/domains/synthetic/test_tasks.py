"""Every answer of a task can be found from the symbols before it by a solver that knows only the rule in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domains.synthetic.tasks import AssociativeRecall, InductionHeads, Phonebook, SelectiveCopying, Task
from seqmodels.data.record import IGNORE_INDEX


def solve_copying(ids: list[int], task: SelectiveCopying) -> dict[int, int]:
    data = [symbol for symbol in ids[: task.length] if symbol != 0]
    return {task.length + 1 + number: symbol for number, symbol in enumerate(data)}


def solve_induction(ids: list[int], task: InductionHeads) -> dict[int, int]:
    trigger = task.vocab_size - 1
    return {len(ids) - 1: ids[ids.index(trigger) + 1]}


def solve_recall(ids: list[int], task: AssociativeRecall) -> dict[int, int]:
    """A query is a key that stands for the second time at an even place after the pairs; nothing else is."""
    pairs = dict(zip(ids[: 2 * task.pairs : 2], ids[1 : 2 * task.pairs : 2]))
    answers = {}
    for place in range(2 * task.pairs, len(ids), 2):
        if ids[place] in pairs:
            answers[place + 1] = pairs[ids[place]]
    return answers


def solve_phonebook(ids: list[int], task: Phonebook) -> dict[int, int]:
    """Reads lines back from the end of the text; the book says what each name's number is."""
    text = " ".join(map(str, ids))
    lines = [list(map(int, line.split())) for line in f" {text} ".replace(" 0 ", " 0\n ").split("\n")]
    lines = [[symbol for symbol in line if symbol != 0] for line in lines]
    numbers = {tuple(line[:2]): line[3:] for line in lines if len(line) == 13}
    answers, end = {}, len(ids)
    asked = 1 + (task.examples if task.ask_examples else 0)
    starts = [place for place in range(end) if ids[place] == task.COLON and ids[place + 1] != task.LINE_END]
    for place in starts[-asked:]:
        number = numbers[ids[place - 2], ids[place - 1]]
        answers |= {place + 1 + digit: symbol for digit, symbol in enumerate(number)}
    return answers


CASES = {
    "copying": (SelectiveCopying(length=40, data_tokens=5), solve_copying),
    "copying_dense": (SelectiveCopying(length=6, data_tokens=6, vocab_size=4), solve_copying),
    "induction": (InductionHeads(length=32), solve_induction),
    "induction_shortest": (InductionHeads(length=4, vocab_size=3), solve_induction),
    "recall_quarter": (AssociativeRecall(length=64, pairs=16, vocab_size=4096), solve_recall),
    "recall_few": (AssociativeRecall(length=64, pairs=3, vocab_size=4096), solve_recall),
    "phonebook": (Phonebook(entries=6), solve_phonebook),
    "phonebook_reversed": (Phonebook(entries=3, examples=2, reversed_form=True), solve_phonebook),
    "phonebook_alone": (Phonebook(entries=1, examples=0), solve_phonebook),
    "phonebook_examples": (Phonebook(entries=7, examples=3, ask_examples=True), solve_phonebook),
}


def drawn(task: Task, count: int = 50, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    sequences = task.draw(count, torch.Generator().manual_seed(seed))
    return sequences.ids_BL.numpy(), sequences.target_ids_BL.numpy()


@pytest.mark.parametrize("case", CASES)
def test_a_solver_finds_every_answer_and_no_other(case):
    task, solve = CASES[case]
    for ids, targets in zip(*drawn(task)):
        asked = {int(place): int(targets[place]) for place in np.flatnonzero(targets != IGNORE_INDEX)}
        found = solve(ids.tolist(), task)
        if isinstance(task, AssociativeRecall):  # filler may repeat a key by chance; it is not asked for
            found = {place: symbol for place, symbol in found.items() if place in asked}
        assert found == asked
        assert len(asked) == task.num_answers


@pytest.mark.parametrize("case", CASES)
def test_symbols_are_of_the_vocabulary_and_as_many_as_promised(case):
    task, _ = CASES[case]
    ids, targets = drawn(task)
    assert ids.shape == targets.shape == (50, task.num_symbols)
    assert ids.min() >= 0
    assert ids.max() < task.vocab_size
    assert ids.dtype == targets.dtype == np.int64


@pytest.mark.parametrize("case", CASES)
def test_the_generator_decides(case):
    task, _ = CASES[case]
    first, again, other = drawn(task)[0], drawn(task)[0], drawn(task, seed=1)[0]
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_copying_places_are_uniform_and_answers_are_not_read():
    task = SelectiveCopying(length=10, data_tokens=2, vocab_size=5)
    ids, targets = drawn(task, 4000)
    share_by_place = (ids[:, :10] != 0).mean(axis=0)
    np.testing.assert_allclose(share_by_place, 0.2, atol=0.03)
    assert (ids[:, 10:] == 4).all(), "only markers after the data"
    assert set(np.unique(targets[:, 11:])) == {1, 2, 3}


def test_induction_trigger_stands_anywhere_but_twice_only():
    task = InductionHeads(length=8, vocab_size=6)
    ids, _ = drawn(task, 3000)
    assert ((ids == 5).sum(axis=1) == 2).all()
    assert (ids[:, -2] == 5).all()
    first = (ids == 5).argmax(axis=1)
    np.testing.assert_allclose(np.bincount(first, minlength=5) / 3000, 0.2, atol=0.03)


def test_recall_pairs_are_distinct_and_near_offsets_are_likelier():
    task = AssociativeRecall(length=256, pairs=8, vocab_size=512)
    ids, targets = drawn(task, 500)
    keys, values = ids[:, 0:16:2], ids[:, 1:16:2]
    assert all(len(set(row)) == 8 for row in keys)
    assert all(len(set(row)) == 8 for row in values)
    assert keys.min() >= 1
    assert keys.max() < 256 <= values.min()
    asked_by_place = (targets != IGNORE_INDEX).sum(axis=0)
    assert asked_by_place[:16].sum() == 0
    assert asked_by_place[16::2].sum() == 0, "queries stand at even places, answers right behind them"
    near, far = asked_by_place[17:25].sum(), asked_by_place[-8:].sum()
    assert near > 5 * far, "p(offset) ~ 1/offset"
    first_key_offsets = (np.array([np.flatnonzero(row[16:] == row[0])[0] for row in ids]) // 2).astype(float)
    # The first of the draws without replacement follows the weights themselves: P(offset 1) = 1 / sum(1/k^0.99)
    expected = 1 / (np.arange(1, 121) ** -0.99).sum()
    assert abs((first_key_offsets == 0).mean() - expected) < 0.06


def test_phonebook_numbers_and_names():
    task = Phonebook(entries=30, names=8)
    ids, _ = drawn(task, 40)
    book = ids[:, : 30 * 14].reshape(40, 30, 14)
    assert set(np.unique(book[:, :, 3])) == {8, 9, 10, 11}, "first digits 6 to 9, ids 2 higher"
    assert set(np.unique(book[:, :, 4:13])) == set(range(2, 12))
    assert all(len({tuple(line[:2]) for line in lines}) == 30 for lines in book)
    assert (book[..., 2] == 1).all()
    assert (book[..., 13] == 0).all()


def test_reversed_phonebook_says_the_question_first():
    task = Phonebook(entries=4, reversed_form=True)
    ids, _ = drawn(task)
    np.testing.assert_array_equal(ids[:, :3], ids[:, -13:-10])
    assert task.num_symbols == Phonebook(entries=4).num_symbols + 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectiveCopying(length=3, data_tokens=4), "data_tokens=4"),
        (lambda: SelectiveCopying(vocab_size=3), "vocab_size=3"),
        (lambda: InductionHeads(length=3), "length=3"),
        (lambda: InductionHeads(vocab_size=2), "vocab_size=2"),
        (lambda: AssociativeRecall(length=65, pairs=2), "length=65"),
        (lambda: AssociativeRecall(length=64, pairs=17), "pairs=17: 1 to 16"),
        (lambda: AssociativeRecall(length=64, pairs=16, vocab_size=32), "pairs=16: 1 to 15"),
        (lambda: AssociativeRecall(power=0.0), "power"),
        (lambda: Phonebook(entries=2, examples=2), "entries=2: at least examples"),
        (lambda: Phonebook(entries=20, names=4), "at most names"),
        (lambda: Phonebook(examples=-1), "examples=-1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message):
    with pytest.raises(ValueError, match=message.replace("^", r"\^")):
        make()
