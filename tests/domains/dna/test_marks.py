"""Repeats and neighbours of N, position by position; the samples that carry them."""

from __future__ import annotations

import numpy as np

from domains.dna.datasets import GenomeWindows
from domains.dna.marks import MARK_NAMES, N_REACH_BASES, position_marks
from domains.dna.tokenizer import DnaTokenizer, as_bytes
from seqmodels.data.record import MarkedCorpus


def marks_of(letters: str) -> dict[str, list[int]]:
    """Where each class is."""
    raw = as_bytes(letters)
    marks = position_marks(raw, DnaTokenizer().encode(raw))
    return {name: np.flatnonzero(marks >> bit & 1).tolist() for bit, name in enumerate(MARK_NAMES)}


def test_classes_of_positions():
    assert marks_of("ACgtA") == {"repeat": [2, 3], "unique": [0, 1, 4], "n_adjacent": []}
    found = marks_of("A" * 30 + "NN" + "c" * 30)
    near = [*range(30 - N_REACH_BASES, 30), *range(32, 32 + N_REACH_BASES)]
    assert found["n_adjacent"] == near, "not N itself"
    assert found["repeat"] == list(range(32, 62))
    assert marks_of("N")["n_adjacent"] == []


def test_marks_lie_where_the_fasta_has_them(tmp_path):
    dice = np.random.default_rng(0)
    letters = "".join(dice.choice(list("ACGTacgt"), 600))
    (tmp_path / "my.fa").write_text(f">chr1\n{letters}\n")
    corpus = GenomeWindows(str(tmp_path / "my.fa"), window_bases=20)
    assert isinstance(corpus, MarkedCorpus)
    samples = corpus.marked("valid")
    assert len(samples) == 3
    for index in range(3):
        record = samples[index]
        start = int(record.id.split(":")[-1].split("-")[0])
        expected = [letter.islower() for letter in letters[start : start + 20]]
        assert (record.marks & 1).astype(bool).tolist() == expected
    assert corpus.split("valid")[0].marks is None, "asking for them changes nothing else"
    assert samples[0].ids.tolist() == corpus.split("valid")[0].ids.tolist()
