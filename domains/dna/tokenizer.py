"""DNA letters to token ids and back, one id a base, and THE complement table of the project.

In: bases as text, bytes or a uint8 array of ASCII codes (what `Fasta.fetch` returns). Out: uint8 token ids.
The ids are the published ones of HyenaDNA and Caduceus, so that released weights load unchanged:

| id | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 |
|---|---|---|---|---|---|---|---|---|---|---|---|---|
| token | [CLS] | [SEP] | [BOS] | [MASK] | [PAD] | [RESERVED] | [UNK] | A | C | G | T | N |

Policy, each case counted by `DnaTokenizer.count`:
- lower case (soft-masked repeats) is read as upper case; `soft_mask` tells where it was.
- N stays N (id 11); the data sets take it out of the loss.
- U is read as T.
- the ten two- and three-base IUPAC codes become N, or are refused with `iupac="error"`.
- "." stands for padding (id 4); anything else is refused with its position.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64, UInt8

if TYPE_CHECKING:
    from domains.dna.sequence_writer import FastaWriter

log = logging.getLogger(__name__)

CLS, SEP, BOS, MASK, PAD, RESERVED, UNK, A, C, G, T, N = range(12)
BASE_IDS = (A, C, G, T)
VOCAB_SIZE = 12

IUPAC_CODES = b"RYSWKMBDHV"
# The one complement table: a letter and, under it, the letter across the double helix (IUPAC-IUB 1984).
# U is the RNA spelling of T; its complement is A, whose complement is T.
_LETTERS = b"ACGTUNRYSWKMBDHV."
_COMPLEMENT = b"TGCAANYRSWMKVHDB."
_INVALID = 255


def _complement_of_bytes() -> bytes:
    table = bytearray(range(256))
    for letter, partner in zip(_LETTERS.decode(), _COMPLEMENT.decode()):
        table[ord(letter)] = ord(partner)
        table[ord(letter.lower())] = ord(partner.lower())
    return bytes(table)


def _ids_of_bytes(iupac_id: int) -> bytes:
    table = bytearray([_INVALID]) * 256
    known = dict(zip("ACGTUN.", (A, C, G, T, T, N, PAD))) | dict.fromkeys(IUPAC_CODES.decode(), iupac_id)
    for letter, token_id in known.items():
        table[ord(letter)] = table[ord(letter.lower())] = token_id
    return bytes(table)


COMPLEMENT_OF_BYTE: bytes = _complement_of_bytes()
_LETTER_OF_ID = b"????.??ACGTN"
# ids follow from the letters: complement(A) is whatever letter pairs with A above.
COMPLEMENT_OF_ID: UInt8[np.ndarray, " V"] = np.arange(VOCAB_SIZE, dtype=np.uint8)
for _id in (*BASE_IDS, N):
    COMPLEMENT_OF_ID[_id] = _LETTER_OF_ID.index(COMPLEMENT_OF_BYTE[_LETTER_OF_ID[_id]])


def complement_ids() -> list[int]:
    """The complement table as plain data: what RC-equivariant models of DNA take as `complement_ids`."""
    return COMPLEMENT_OF_ID.tolist()


def _translate(raw: UInt8[np.ndarray, " S"], table: bytes) -> UInt8[np.ndarray, " S"]:
    """`table[raw]`, four times faster than numpy's indexing and writable (torch wants that)."""
    return np.frombuffer(bytearray(np.ascontiguousarray(raw)).translate(table), dtype=np.uint8)


def as_bytes(raw: str | bytes | bytearray | np.ndarray) -> UInt8[np.ndarray, " S"]:
    """Bases in any spelling as a uint8 array of ASCII codes; not copied where that can be helped."""
    if isinstance(raw, str):
        try:
            raw = raw.encode("ascii")
        except UnicodeEncodeError as error:
            raise ValueError(f"DNA holds the letter {raw[error.start]!r} at position {error.start}") from None
    if isinstance(raw, (bytes, bytearray)):
        return np.frombuffer(raw, dtype=np.uint8)
    if isinstance(raw, np.ndarray) and raw.dtype == np.uint8 and raw.ndim == 1:
        return raw
    raise TypeError(f"bases must be str, bytes or a 1-d uint8 array of ASCII codes, not {type(raw).__name__}")


def reverse_complement(raw: str | bytes | np.ndarray) -> UInt8[np.ndarray, " S"]:
    """The other strand, read 5' to 3', as ASCII codes; case and IUPAC codes are kept (R becomes Y)."""
    return _translate(as_bytes(raw)[::-1], COMPLEMENT_OF_BYTE)


def reverse_complement_ids(ids: np.ndarray, length: int | None = None) -> np.ndarray:
    """The other strand of token ids.

    Args:
        ids: (L,) token ids of any integer type.
        length: only the first `length` ids are sequence; what follows (right padding) stays where it is.
            None takes all of them.
    """
    length = len(ids) if length is None else length
    flipped = ids.copy()
    flipped[:length] = COMPLEMENT_OF_ID[ids[:length][::-1]]
    return flipped


def soft_mask(raw: str | bytes | np.ndarray) -> Bool[np.ndarray, " S"]:
    """True where a letter is lower case (a repeat, in a soft-masked genome)."""
    return (as_bytes(raw) & 0x20) != 0


COUNTED = ("bases", "n", "lower_case", "iupac", "uracil")


def _policy_of_bytes() -> Int64[np.ndarray, "256 5"]:
    letters = (b"ACGTUN" + IUPAC_CODES, b"N", b"", IUPAC_CODES, b"U")
    table = np.zeros((256, len(COUNTED)), dtype=np.int64)
    for column, upper in enumerate(letters):
        table[list(upper + upper.lower()), column] = 1
    table[list(letters[0].lower()), COUNTED.index("lower_case")] = 1
    return table


POLICY_OF_BYTE = _policy_of_bytes()  # which of COUNTED a byte adds to: histogram @ POLICY_OF_BYTE


class DnaTokenizer:
    """One token a base; see the module's text for ids and policy.

    Args:
        iupac: "n" reads the ten IUPAC ambiguity codes as N, "error" refuses them.
    """

    vocab_size = VOCAB_SIZE
    start_id = BOS
    pad_id = PAD
    mask_id = MASK
    unit = "base"
    file_suffix = ".fa"
    complement_ids = tuple(complement_ids())
    drawn_ids = BASE_IDS  # generation draws A, C, G, T: neither N nor special tokens

    def __init__(self, *, iupac: str = "n"):
        if iupac not in ("n", "error"):
            raise ValueError(f'iupac={iupac!r}; accepted: "n" (read as N) or "error" (refuse)')
        self.iupac = iupac
        self._table = _ids_of_bytes(N if iupac == "n" else _INVALID)

    def encode(self, raw: str | bytes | np.ndarray) -> UInt8[np.ndarray, " L"]:
        """Token ids of `raw`; ValueError names the first letter that is not DNA and where it stands."""
        raw = as_bytes(raw)
        ids = _translate(raw, self._table)
        if len(ids) and ids.max() == _INVALID:
            position = int(np.argmax(ids == _INVALID))
            letter = chr(raw[position])
            hint = '; iupac="n" reads it as N' if letter.upper().encode() in IUPAC_CODES else ""
            raise ValueError(f"{letter!r} at position {position} is not accepted as DNA (ACGTUN, either case){hint}")
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Letters of `ids`: ACGTN, "." for padding and "?" for the other special tokens."""
        ids = np.asarray(ids)
        if len(ids) and (ids.min() < 0 or ids.max() >= VOCAB_SIZE):
            raise ValueError(f"token ids must lie in 0..{VOCAB_SIZE - 1}, got {ids.min()}..{ids.max()}")
        return np.frombuffer(_LETTER_OF_ID, dtype=np.uint8)[ids].tobytes().decode()

    def count(self, raw: str | bytes | np.ndarray) -> dict[str, int]:
        """How often each part of the policy applies: bases, n, lower_case, iupac, uracil."""
        return dict(zip(COUNTED, (np.bincount(as_bytes(raw), minlength=256) @ POLICY_OF_BYTE).tolist()))

    def read_prompt(self, prompt: str) -> UInt8[np.ndarray, " L"]:
        """Ids of a prompt: letters as they are ("ACGT"), or the first record of a FASTA file."""
        if os.path.exists(prompt) or prompt.lower().endswith((".fa", ".fasta", ".fna", ".gz")):
            from domains.dna.fasta import Fasta  # fasta.py needs this file's complement table

            fasta = Fasta(prompt)
            first, *others = fasta.names
            ids = self.encode(fasta.fetch(first))
            unread = f"; {len(others)} other records are not read" if others else ""
            log.info("prompt      %s: %s, %s bases%s", prompt, first, f"{len(ids):,}", unread)
            return ids
        try:
            return self.encode("".join(prompt.split()))
        except ValueError as error:
            raise ValueError(f"prompt {prompt[:40]!r} is neither DNA letters nor an existing FASTA: {error}") from None

    def write(self, path: str, sequences: Sequence[np.ndarray], *, names: Sequence[str]) -> list[str]:
        """Writes one FASTA with all sequences, 60 letters a line; special tokens become N and are counted in the log.

        The file appears whole or not at all. Returns the paths written.
        """
        if len(sequences) != len(names):
            raise ValueError(f"{len(sequences)} sequences but {len(names)} names")
        with self.writer(path, [len(ids) for ids in sequences]) as writer:
            for row, (name, ids) in enumerate(zip(names, sequences)):
                writer.append(row, ids)
                writer.finish(row, name=name, facts={})
        return [path]

    def writer(self, path: str, lengths: Sequence[int]) -> FastaWriter:
        """A FASTA that is written while its ids are made: see `FastaWriter`."""
        from domains.dna.sequence_writer import FastaWriter

        return FastaWriter(self, path)

    def spec(self) -> dict[str, Any]:
        """Everything needed to build this tokenizer again, as plain data."""
        return {"_target_": "domains.dna.tokenizer.DnaTokenizer", "iupac": self.iupac}
