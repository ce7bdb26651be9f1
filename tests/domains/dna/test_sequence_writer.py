"""Generated DNA on its way to a FASTA: lines, order, headers, and what a stop leaves behind."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from domains.dna import sequence_writer
from domains.dna.fasta import Fasta
from domains.dna.sequence_writer import FastaWriter
from domains.dna.tokenizer import DnaTokenizer

TOKENIZER = DnaTokenizer()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("piece", [1, 7, 59, 60, 61, 1000])
@pytest.mark.parametrize("length", [1, 60, 119, 120, 250])
def test_pieces_make_lines_of_sixty(tmp_path, length, piece):
    letters = "".join(np.random.default_rng(0).choice(list("ACGT"), length))
    ids = TOKENIZER.encode(letters)
    with FastaWriter(TOKENIZER, str(tmp_path / "a.fa")) as writer:
        for first in range(0, length, piece):
            writer.append(0, ids[first : first + piece])
        writer.finish(0, name="x", facts={"seed": "3", "bits_per_base": "1.9"})
    lines = [letters[i : i + 60] for i in range(0, length, 60)]
    assert (tmp_path / "a.fa").read_text() == "\n".join([">x seed=3 bits_per_base=1.9", *lines, ""])
    assert names(tmp_path) == ["a.fa"]


def test_records_stand_in_the_order_of_finishing(tmp_path):
    with FastaWriter(TOKENIZER, str(tmp_path / "new" / "a.fa")) as writer:
        for row, letters in enumerate(("AAA", "CC", "G")):
            writer.append(row, TOKENIZER.encode(letters))
        for row in (2, 0, 1):
            writer.finish(row, name=f"row_{row}", facts={})
        assert not (tmp_path / "new" / "a.fa").exists()
    fasta = Fasta(writer.paths[0])
    assert [(name, bytes(fasta.fetch(name))) for name in fasta.names] == [
        ("row_2", b"G"), ("row_0", b"AAA"), ("row_1", b"CC"),
    ]  # fmt: skip


def test_after_ctrl_c_what_was_made_is_kept_beside_the_old_file(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "a.fa").write_text("old")
    writer = FastaWriter(TOKENIZER, str(tmp_path / "a.fa"))

    def stopped() -> None:
        with writer:
            for row in (0, 1):
                writer.append(row, TOKENIZER.encode("ACGT" * 20))
            writer.finish(0, name="whole", facts={})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert names(tmp_path) == ["a.fa", "a.partial.fa", "a_1.partial.fa"]
    assert (tmp_path / "a.fa").read_text() == "old"
    assert (tmp_path / "a.partial.fa").read_text() == f">whole\n{'ACGT' * 15}\n{'ACGT' * 5}\n"
    assert (tmp_path / "a_1.partial.fa").read_text().startswith(">sequence_1 unfinished\nACGT")
    assert "what was made is kept in" in caplog.text
    assert writer.paths == []


def test_a_full_disk_leaves_nothing_half_written_and_one_error(tmp_path, monkeypatch):
    (tmp_path / "a.fa").write_text("old")
    real, written = sequence_writer._write_lines, []

    def full_after_three(file, letters, column):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(letters)
        return real(file, letters, column)

    def write() -> None:
        with FastaWriter(TOKENIZER, str(tmp_path / "a.fa")) as writer:
            for row in range(5):
                writer.append(row, TOKENIZER.encode("ACGT"))
                writer.finish(row, name="x", facts={})

    monkeypatch.setattr(sequence_writer, "_write_lines", full_after_three)
    with pytest.raises(OSError, match=r"a\.fa: not written: the disk is full; nothing was left behind"):
        write()
    assert len(written) == 3
    assert names(tmp_path) == ["a.fa"]
    assert (tmp_path / "a.fa").read_text() == "old"


def test_a_fasta_prompt_says_what_is_read(write_fasta, caplog):
    caplog.set_level(logging.INFO)
    TOKENIZER.read_prompt(str(write_fasta({"a": "GATTACA", "b": "CC", "c": "C"})))
    assert ": a, 7 bases; 2 other records are not read" in caplog.text
