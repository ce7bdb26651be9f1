"""Text as users have it, and what is said of a file that cannot be read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from domains.dna.tables import Columns, read_examples
from domains.dna.text_file import open_text


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_the_first_bytes_say_what_it_is(tmp_path, name, packed):
    text = b"\xef\xbb\xbfone\xe9\ntwo\n"
    (tmp_path / name).write_bytes(gzip.compress(text) if packed else text)
    with open_text(tmp_path / name) as file:
        assert list(file) == ["one\ufffd\n", "two\n"]
    with open_text(tmp_path / name, errors="surrogateescape") as file:
        assert file.read().encode(errors="surrogateescape") == text[3:]


def damaged(path: Path, what: str) -> Path:
    text = b"sequence,label\n" + b"ACGT,1\n" * 2000
    packed = bytearray(gzip.compress(text))
    if what == "cut off":
        packed = packed[:-20]
    elif what == "block":
        packed[10] = 0xFF
    elif what == "check sum":
        packed[-8] ^= 0xFF
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize("what", ["cut off", "block", "check sum"])
def test_a_damaged_table_is_named(tmp_path, what):
    path = damaged(tmp_path / "x.csv.gz", what)
    with pytest.raises(ValueError, match=r"x\.csv\.gz: damaged or cut off"):
        list(read_examples(path, Columns()))
