"""2bit files (UCSC's download format) to bases, with the same methods as `Fasta`.

In: a path, a record name, 0-based half-open coordinates, a strand.
Out: uint8 ASCII codes: N where the file has N blocks, lower case where it has soft-mask blocks.

    TwoBit("hg38.2bit").fetch("chr20", 1_000_000, 1_001_024, "-")

The layout is that of UCSC's FAQformat, both byte orders, versions 0 and 1 (64-bit offsets): a header, an index of names
and offsets, and for each record its length, N blocks, mask blocks and the bases, four in a byte (T 0, C 1, A 2, G 3,
the first in the highest bits). The file is memory-mapped; what crosses to a worker is the path, as for `Fasta`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

from domains.dna.names import close_names
from domains.dna.tokenizer import COUNTED, reverse_complement

SIGNATURE = 0x1A412743
_LETTERS = np.frombuffer(b"TCAG", dtype=np.uint8)
# The four letters of every byte as one number of 32 bits, so that decoding is one look-up a byte.
_FOUR_LETTERS: UInt32[np.ndarray, " 256"] = np.ascontiguousarray(
    _LETTERS[(np.arange(256)[:, None] >> np.array([6, 4, 2, 0])) & 3]
).view(np.uint32)[:, 0]
_LOWER = 0x20


@dataclass(frozen=True)
class _Blocks:
    """Stretches of a record, sorted: starts, ends, and how many letters lie in the ones before each."""

    starts: Int64[np.ndarray, " K"]
    ends: Int64[np.ndarray, " K"]
    letters_before: Int64[np.ndarray, " K+1"]

    @classmethod
    def of(cls, starts: np.ndarray, sizes: np.ndarray) -> _Blocks:
        order = np.argsort(starts, kind="stable")
        starts, sizes = starts[order].astype(np.int64), sizes[order].astype(np.int64)
        return cls(starts, starts + sizes, np.concatenate([[0], np.cumsum(sizes)]))

    def flags(self, start: int, end: int, value: int) -> UInt8[np.ndarray, " S"] | None:
        """`value` at every base of [start, end) inside a block, 0 elsewhere; None where no block is."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        last = int(np.searchsorted(self.starts, end, side="left"))
        if first >= last:
            return None
        edges = np.stack([self.starts[first:last], self.ends[first:last]], axis=1).reshape(-1).clip(start, end)
        stretches = np.diff(edges, prepend=start, append=end)
        return np.repeat(np.resize(np.array([0, value], dtype=np.uint8), len(stretches)), stretches)

    def count(self, starts: np.ndarray, ends: np.ndarray) -> Int64[np.ndarray, " windows"]:
        """Letters inside blocks in each window."""
        return self._before(np.asarray(ends)) - self._before(np.asarray(starts))

    def _before(self, position: np.ndarray) -> np.ndarray:
        if not len(self.starts):
            return np.zeros(np.shape(position), dtype=np.int64)
        begun = self.starts.searchsorted(position, side="right")
        beyond = np.maximum(self.ends[begun - 1] - position, 0)
        return self.letters_before[begun] - np.where(begun > 0, beyond, 0)


@dataclass(frozen=True)
class _Record:
    n: _Blocks
    soft: _Blocks
    packed: int  # offset of the bases


class TwoBit:
    """One 2bit file, its index checked when opened.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no 2bit file, or is cut off; says where.
    """

    kind = "2bit"

    def __init__(self, path: str | os.PathLike):
        self.path = str(path)
        if not Path(path).exists():
            raise FileNotFoundError(f"no 2bit file {self.path}")
        self._fingerprint = _fingerprint(self.path)
        self._data: np.ndarray | None = None
        self._records: dict[str, _Record] = {}
        self._order, wide, count = self._read_header()
        self._offsets = self._read_index(count, 8 if wide else 4)
        self.names = tuple(self._offsets)
        self.lengths: dict[str, int] = {name: self._number(at, name) for name, at in self._offsets.items()}

    def counts(self, name: str | None = None) -> dict[str, int]:
        """bases, n, lower_case, iupac, uracil of one record or, with None, of the file (the last two are always 0)."""
        total: dict[str, int] = dict.fromkeys([*COUNTED], 0)
        for one in self.names if name is None else (self.known(name),):
            record = self._record(one)
            total["bases"] += self.lengths[one]
            total["n"] += int(record.n.letters_before[-1])
            total["lower_case"] += int(record.soft.letters_before[-1])
            if name is None and len(self.names) > 1:
                self._records.pop(one)  # the blocks of a whole genome are 100 MB as Python keeps them
        return total

    def known(self, name: str) -> str:
        """`name`, or ValueError naming records that are spelled alike."""
        if name not in self._offsets:
            raise ValueError(f"{self.path} has no record {name!r}{close_names(name, self.names)}")
        return name

    def fetch(self, name: str, start: int = 0, end: int | None = None, strand: str = "+") -> UInt8[np.ndarray, " S"]:
        """Bases start..end-1 of a record as ASCII codes; with strand "-" their reverse complement."""
        length = self.lengths[self.known(name)]
        end = length if end is None else end
        if not 0 <= start <= end <= length:
            raise ValueError(f"{self.path}: {name}:{start}-{end} is not inside 0-{length}")
        if strand not in ("+", "-"):
            raise ValueError(f'strand={strand!r}; accepted: "+" or "-"')
        record = self._record(name)
        first, last = start // 4, -(-end // 4)
        packed = self._mapped()[record.packed + first : record.packed + last]
        bases = _FOUR_LETTERS.take(packed).view(np.uint8)[start - 4 * first : end - 4 * first]
        if (unknown := record.n.flags(start, end, 1)) is not None:
            bases[unknown.view(bool)] = ord("N")
        if (lower := record.soft.flags(start, end, _LOWER)) is not None:
            bases |= lower
        return bases if strand == "+" else reverse_complement(bases)

    def count_n(self, name: str, starts: np.ndarray, ends: np.ndarray) -> Int64[np.ndarray, " windows"]:
        """N in each window [start, end), from the blocks alone."""
        return self._record(self.known(name)).n.count(starts, ends)

    # ------------------------------------------------------------------------------------------------ the layout

    def _read_header(self) -> tuple[str, bool, int]:
        head = self._bytes(0, 16, "the header")
        orders = {order: np.frombuffer(head, dtype=f"{order}u4").tolist() for order in "<>"}
        order = next((order for order, words in orders.items() if words[0] == SIGNATURE), None)
        if order is None:
            raise ValueError(f"{self.path}: not a 2bit file (its first bytes are {head[:4].hex(' ')})")
        _, version, count, _ = orders[order]
        if version not in (0, 1):
            raise ValueError(f"{self.path}: 2bit version {version}; versions 0 and 1 can be read")
        if not count:
            raise ValueError(f"{self.path}: no record in it")
        return order, version == 1, count

    def _read_index(self, count: int, offset_bytes: int) -> dict[str, int]:
        offsets: dict[str, int] = {}
        at, size = 16, os.path.getsize(self.path)
        text = self._bytes(16, min(size, 16 + count * (256 + offset_bytes)), "the index")
        byte_order = "little" if self._order == "<" else "big"
        for number in range(count):
            here = at - 16
            stop = here + 1 + (text[here] if here < len(text) else 0)
            if stop + offset_bytes > len(text):
                raise ValueError(f"{self.path}: the file is cut off in the index, at record {number + 1} of {count}")
            name = text[here + 1 : stop].decode("utf-8", errors="replace")
            if name in offsets:
                raise ValueError(f"{self.path}: the name {name!r} comes twice in the index")
            offsets[name] = int.from_bytes(text[stop : stop + offset_bytes], byte_order)
            at = 16 + stop + offset_bytes
        return offsets

    def _record(self, name: str) -> _Record:
        if (record := self._records.get(name)) is not None:
            return record
        length, at = self.lengths[name], self._offsets[name] + 4
        blocks = []
        for what in ("N blocks", "mask blocks"):
            count = self._number(at, name)
            numbers = self._bytes(at + 4, at + 4 + 8 * count, f"the {what} of {name}")
            pairs = np.frombuffer(numbers, dtype=f"{self._order}u4").reshape(2, count)
            blocks.append(_Blocks.of(pairs[0], pairs[1]))
            if count and int(blocks[-1].ends.max()) > length:
                raise ValueError(f"{self.path}: damaged: {what} of {name} run past its end ({length} bases)")
            if np.any(blocks[-1].starts[1:] < blocks[-1].ends[:-1]):
                raise ValueError(f"{self.path}: damaged: {what} of {name} overlap")
            at += 4 + 8 * count
        self._bytes(at + 4, at + 4 + -(-length // 4), f"the bases of {name}", read=False)
        self._records[name] = _Record(blocks[0], blocks[1], at + 4)
        return self._records[name]

    def _number(self, at: int, name: str) -> int:
        return int(np.frombuffer(self._bytes(at, at + 4, f"record {name}"), dtype=f"{self._order}u4")[0])

    def _bytes(self, begin: int, end: int, what: str, *, read: bool = True) -> bytes:
        size = self._fingerprint[0]
        if end > size:
            raise ValueError(f"{self.path}: the file is cut off: {what} should end at byte {end}, the file at {size}")
        return self._mapped()[begin:end].tobytes() if read else b""

    def _mapped(self) -> np.ndarray:
        if self._data is None:
            if _fingerprint(self.path) != self._fingerprint:
                raise ValueError(f"{self.path} was changed after it was opened; start again")
            if not self._fingerprint[0]:
                raise ValueError(f"{self.path}: the file is empty")
            self._data = np.memmap(self.path, dtype=np.uint8, mode="r").view(np.ndarray)
        return self._data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None, "_records": {}}

    def __repr__(self) -> str:
        return f"TwoBit({self.path!r}, {len(self.names)} records, {sum(self.lengths.values())} bases)"


def _fingerprint(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def is_twobit(path: str | os.PathLike) -> bool:
    """True for a file that begins as 2bit, whatever its name and byte order."""
    try:
        with open(path, "rb") as file:
            head = file.read(4)
    except OSError:
        return False
    return head in (SIGNATURE.to_bytes(4, "little"), SIGNATURE.to_bytes(4, "big"))
