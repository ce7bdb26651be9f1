"""Ids as numbers, ids as letters, and tables of symbols."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seqmodels.data.record import Tokenizer
from seqmodels.instantiate import build
from seqmodels.interop.report import ConversionError
from seqmodels.interop.tokens import IdTokenizer, letters_of, symbols_of

PLANT = {"[PAD]": 0, "[MASK]": 1, "[UNK]": 2, "a": 3, "c": 4, "g": 5, "t": 6}


def test_numbers():
    tokenizer = IdTokenizer(vocab_size=50, start_id=1)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.encode("3, 7 49").tolist() == tokenizer.encode([3, 7, 49]).tolist() == [3, 7, 49]
    assert tokenizer.decode(np.array([3, 7, 49])) == "3 7 49"
    assert build(tokenizer.spec()).spec() == tokenizer.spec()
    with pytest.raises(ValueError, match=r"span 3\.\.50; this model has 0\.\.49"):
        tokenizer.encode("3 50")
    with pytest.raises(ValueError, match="a prompt is ids"):
        tokenizer.encode("hello")
    with pytest.raises(ValueError, match=r"id 50 is not in 0\.\.49"):
        IdTokenizer(vocab_size=50, start_id=50)


def test_letters(tmp_path):
    tokenizer = IdTokenizer(vocab_size=8, letters={"a": 3, "c": 4, "g": 5, "t": 6})
    assert tokenizer.encode("gatc").tolist() == [5, 3, 6, 4]
    assert tokenizer.decode(np.array([5, 3, 6, 4, 1])) == "gatc?"
    with pytest.raises(ValueError, match="'G' is none of this model's letters acgt"):
        tokenizer.encode("Gatc")
    (tmp_path / "prompt.txt").write_text("gat\n")
    assert tokenizer.read_prompt(str(tmp_path / "prompt.txt")).tolist() == [5, 3, 6]
    written = tokenizer.write(str(tmp_path / "out.txt"), [np.array([5, 3])], names=["one"])
    assert (tmp_path / "out.txt").read_text() == "# one\nga\n"
    assert written == [str(tmp_path / "out.txt")]


def test_tables_of_symbols(tmp_path):
    assert symbols_of(tmp_path) == {}
    added = [{"id": 7, "content": "[SEP]"}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": PLANT}, "added_tokens": added}))
    symbols = symbols_of(tmp_path)
    assert symbols == {0: "[PAD]", 1: "[MASK]", 2: "[UNK]", 3: "a", 4: "c", 5: "g", 6: "t", 7: "[SEP]"}
    assert letters_of(symbols) == {"a": 3, "c": 4, "g": 5, "t": 6}
    assert letters_of({0: "the", 1: "a"}) is None
    assert letters_of({}) is None
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ConversionError, match=r"tokenizer\.json holds no table"):
        symbols_of(tmp_path)
