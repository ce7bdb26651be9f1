"""Ids as published, the complement table as a table an expert can read, and the laws of both."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.dna import tokenizer as dna
from domains.dna.fasta import Fasta
from seqmodels.data.record import Tokenizer

IUPAC_TABLE = """
A T   adenine - thymine
C G   cytosine - guanine
G C
T A
U A   RNA's spelling of T
N N   any
R Y   A or G - T or C
Y R
S S   C or G
W W   A or T
K M   G or T - C or A
M K
B V   not A - not T
V B
D H   not C - not G
H D
. .   padding
"""
DNA_TEXT = st.text(alphabet="ACGTN", max_size=200)


def test_ids_are_the_published_ones():
    assert (dna.CLS, dna.SEP, dna.BOS, dna.MASK, dna.PAD, dna.RESERVED, dna.UNK) == (0, 1, 2, 3, 4, 5, 6)
    assert dna.DnaTokenizer().encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    assert dna.DnaTokenizer.vocab_size == 12
    assert dna.DnaTokenizer.start_id == 2
    assert isinstance(dna.DnaTokenizer(), Tokenizer)


@pytest.mark.parametrize("row", IUPAC_TABLE.strip().splitlines())
def test_complement_table(row: str):
    letter, partner = row.split()[:2]
    assert bytes(dna.reverse_complement(letter)) == partner.encode()
    assert bytes(dna.reverse_complement(letter.lower())) == partner.lower().encode()


def test_complement_of_ids_agrees_with_that_of_letters():
    assert dna.COMPLEMENT_OF_ID.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11]


def test_reverse_complement_by_hand():
    assert bytes(dna.reverse_complement("AACGTTTn")) == b"nAAACGTT"
    assert bytes(dna.reverse_complement("GATTACA")) == b"TGTAATC"


@given(DNA_TEXT)
def test_decode_undoes_encode(text: str):
    tokenizer = dna.DnaTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(alphabet="ACGTNRYSWKMBDHVacgtnryswkmbdhv", max_size=200))
def test_reverse_complement_twice_is_the_sequence(text: str):
    assert bytes(dna.reverse_complement(dna.reverse_complement(text))) == text.encode()


@given(DNA_TEXT, st.integers(0, 5))
def test_padding_stays_on_its_side(text: str, padding: int):
    tokenizer = dna.DnaTokenizer()
    ids = tokenizer.encode(text + "." * padding)
    flipped = dna.reverse_complement_ids(ids, length=len(text))
    assert tokenizer.decode(flipped) == bytes(dna.reverse_complement(text)).decode() + "." * padding
    assert dna.reverse_complement_ids(flipped, length=len(text)).tolist() == ids.tolist()


def test_policy_is_applied_and_counted():
    tokenizer = dna.DnaTokenizer()
    text = "ACGTacgtNnRyUu"
    assert tokenizer.decode(tokenizer.encode(text)) == "ACGTACGTNNNNTT"
    assert tokenizer.count(text) == {"bases": 14, "n": 2, "lower_case": 7, "iupac": 2, "uracil": 2}
    assert dna.soft_mask(text).tolist() == [letter.islower() for letter in text]


@pytest.mark.parametrize(
    ("text", "message"),
    [("ACGE", "'E' at position 3"), ("A-", "'-' at position 1"), ("AC\n", r"'\\n' at position 2"), ("Ç", "position 0")],
)
def test_other_letters_are_refused_with_their_place(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        dna.DnaTokenizer().encode(text)


def test_iupac_can_be_refused():
    tokenizer = dna.DnaTokenizer(iupac="error")
    assert tokenizer.encode("ACGTN").tolist() == [7, 8, 9, 10, 11]
    with pytest.raises(ValueError, match=r"'R' at position 4.*iupac=\"n\""):
        tokenizer.encode("ACGTR")
    with pytest.raises(ValueError, match="accepted"):
        dna.DnaTokenizer(iupac="skip")


def test_ids_can_go_to_torch():
    assert dna.DnaTokenizer().encode("ACGT").flags.writeable  # torch.from_numpy warns on read-only arrays


def test_prompt_is_letters_or_a_file(write_fasta):
    tokenizer = dna.DnaTokenizer()
    assert tokenizer.read_prompt("acg t").tolist() == [7, 8, 9, 10]
    assert tokenizer.read_prompt(str(write_fasta({"a": "GATTACA", "b": "CC"}))).tolist() == [9, 7, 10, 10, 7, 8, 7]
    with pytest.raises(ValueError, match="neither DNA letters nor an existing FASTA"):
        tokenizer.read_prompt("hello")
    with pytest.raises(FileNotFoundError, match=r"absent\.fa"):
        tokenizer.read_prompt("absent.fa")


def test_written_fasta_is_read_back(tmp_path, caplog: pytest.LogCaptureFixture):
    tokenizer = dna.DnaTokenizer()
    first = tokenizer.encode("ACGT" * 40)
    second = np.append(tokenizer.encode("GG"), dna.BOS)
    paths = tokenizer.write(str(tmp_path / "out" / "x.fa"), [first, second], names=["one", "two"])
    lines = (tmp_path / "out" / "x.fa").read_text().splitlines()
    assert [len(line) for line in lines] == [4, 60, 60, 40, 4, 3]
    fasta = Fasta(paths[0])
    assert bytes(fasta.fetch("one")) == b"ACGT" * 40
    assert bytes(fasta.fetch("two")) == b"GGN"
    assert "1 special tokens" in caplog.text


def test_spec_builds_the_same_tokenizer():
    spec = dna.DnaTokenizer(iupac="error").spec()
    assert spec.pop("_target_") == "domains.dna.tokenizer.DnaTokenizer"
    assert dna.DnaTokenizer(**spec).iupac == "error"
