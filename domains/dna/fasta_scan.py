"""Reads a FASTA once from end to end: is it DNA, what is in it, can it be indexed? The answer is cached.

In: a path (plain text or bgzip). Out: a `Scan` with the name, length and letter counts of every record and all runs of
N, or a `ValueError` that names file, line and byte. A file that is right but cannot be addressed by a .fai
(`;` comments, blank lines, lines of uneven length) gets a clean copy in the cache folder, one line a record.

The cache folder is `$SEQMODELS_CACHE`, else `$XDG_CACHE_HOME/seqmodels`, else `~/.cache/seqmodels`; entries are keyed
by path and hold the file's size and time stamp, so an edited file is read anew.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from domains.dna.tokenizer import COUNTED, IUPAC_CODES, POLICY_OF_BYTE
from seqmodels.data.whole_file import written_whole

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 24
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors put it before UTF-8 text
_SCAN_VERSION = 2
_BASES, _N, _IUPAC = (COUNTED.index(what) for what in ("bases", "n", "iupac"))
_DNA = b"ACGTUN" + IUPAC_CODES
_NEWLINE, _RETURN = 10, 13

# What a byte inside a sequence is: 0 one of ACGTU, 1 read as N (N and IUPAC codes), 2 white space, 3 not DNA.
_KIND = np.full(256, 3, dtype=np.uint8)
_KIND[list(_DNA + _DNA.lower())] = 1
_KIND[list(b"ACGTUacgtu")] = 0
_KIND[list(b" \t\r\n")] = 2

_FOREIGN = {  # first bytes of files that are often called .fa
    b"\x1f\x8b": "plain gzip, which cannot be read from the middle; decompress it, or: gunzip -c X.gz | bgzip > Y.gz",
    b"BZh": "bzip2; decompress it",
    b"\xfd7zXZ": "xz; decompress it",
    b"(\xb5/\xfd": "zstandard; decompress it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"\x43\x27\x41\x1a": "2bit; open it with TwoBit (Genome tells the two apart)",
    b"\x1a\x41\x27\x43": "2bit; open it with TwoBit (Genome tells the two apart)",
    b"@": "FASTQ (or SAM), not FASTA; convert it",
    b"\xff\xfe": "UTF-16 text; save it as ASCII",
    b"\xfe\xff": "UTF-16 text; save it as ASCII",
}


@dataclass(frozen=True)
class Scan:
    """What one pass over a FASTA found.

    Attributes:
        names: record names (the first word of each header), in file order.
        lengths: bases of each record.
        counts: of each record, the columns of `tokenizer.COUNTED`.
        runs: (K, 3) `record, start, end` of every maximal run of letters read as N, 0-based half-open.
        irregular: why a .fai cannot address the file ("line 7 is a ; comment"), or "" where it can.
    """

    names: tuple[str, ...]
    lengths: Int64[np.ndarray, " R"]
    counts: Int64[np.ndarray, "R 5"]
    runs: Int64[np.ndarray, "K 3"]
    irregular: str


# ---------------------------------------------------------------------------------------------------------- cache


def cache_folder() -> Path:
    """The first of the cache folders (module text) that can be written; last resort is the temporary folder."""
    explicit = os.environ.get("SEQMODELS_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    choices = [Path(explicit)] if explicit else []
    choices.append((Path(base) if base else Path("~/.cache").expanduser()) / "seqmodels")
    choices.append(Path(tempfile.gettempdir()) / f"seqmodels-{os.getuid() if hasattr(os, 'getuid') else 'cache'}")
    for folder in choices:
        try:
            (folder / "fasta").mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder / "fasta", os.W_OK):
            return folder / "fasta"
    raise ValueError(f"no cache folder can be written (tried {', '.join(map(str, choices))}); set SEQMODELS_CACHE")


def cache_path(path: Path, suffix: str) -> Path:
    """Where the cache keeps something derived from `path`."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / f"{digest}-{path.name}{suffix}"


def fingerprint(path: Path) -> tuple[int, int]:
    """(size in bytes, time of the last change in ns): tells an edited or replaced file."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def scan(path: Path) -> Scan:
    """The cached result of `read_through`, or a new one."""
    stored = cache_path(path, ".scan.npz")
    key = np.array([_SCAN_VERSION, *fingerprint(path)], dtype=np.int64)
    try:
        with open(stored, "rb") as file, np.load(file, allow_pickle=False) as saved:
            if np.array_equal(saved["key"], key):
                names = tuple(bytes(saved["names"]).decode().split("\n"))
                return Scan(names, saved["lengths"], saved["counts"], saved["runs"], str(saved["irregular"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # absent, or cut off by a full disk: read the file again
    log.info("%s: reading it through once (checks, counts)", path)
    found = read_through(path)
    with written_whole(stored) as partial, open(partial, "wb") as file:
        names = np.frombuffer("\n".join(found.names).encode(), dtype=np.uint8)
        np.savez(file, key=key, names=names, lengths=found.lengths, counts=found.counts, runs=found.runs,
                 irregular=np.array(found.irregular))  # fmt: skip
    return found


# ------------------------------------------------------------------------------------------------- bytes of a file


def is_bgzip(path: Path) -> bool:
    """True for bgzip (BGZF), the gzip flavour made of blocks that can be read from the middle."""
    with open(path, "rb") as file:
        head = file.read(18)
    return head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC"


def unpacked(path: Path) -> Path:
    """The file itself; of a plain gzip file, which cannot be read from the middle, a copy in the cache folder.

    Raises:
        ValueError: the gzip file is damaged or cut off.
    """
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b" or is_bgzip(path):
            return path
    copy = cache_path(path, ".unpacked.fa")
    if copy.exists() and copy.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return copy
    log.info("%s: unpacking it into %s", path, copy)
    try:
        with written_whole(copy) as partial, gzip.open(path) as packed, open(partial, "wb") as out:
            shutil.copyfileobj(packed, out, CHUNK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: the gzip file is damaged or cut off ({error})") from None
    return copy


def bgzf_blocks(data: UInt8[np.ndarray, " bytes"], path: Path) -> Iterator[bytes]:
    """The decompressed blocks of a whole BGZF file in order."""
    position, total = 0, len(data)
    while position < total:
        head = bytes(data[position : position + 18])
        size = int.from_bytes(head[16:18], "little") + 1
        if len(head) < 18 or head[:4] != b"\x1f\x8b\x08\x04" or position + size > total:
            raise ValueError(f"{path}: not a whole bgzip block at byte {position}: the file is damaged or cut off")
        yield inflate(data[position : position + size], path, position)
        position += size


def inflate(block: UInt8[np.ndarray, " bytes"], path: Path, position: int) -> bytes:
    """One BGZF block decompressed (SAM specification, section 4.1: 18 bytes of header, 8 of trailer)."""
    try:
        text = zlib.decompress(block[18:-8].data, wbits=-15, bufsize=65536)
    except zlib.error as error:
        raise ValueError(f"{path}: damaged bgzip block at byte {position} ({error})") from None
    if zlib.crc32(text) != int.from_bytes(block[-8:-4].data, "little"):
        raise ValueError(f"{path}: damaged bgzip block at byte {position} (the check sum is wrong)")
    return text


def _pieces(path: Path) -> Iterator[bytes]:
    """The text of the file, a few MB at a time."""
    if not is_bgzip(path):
        with open(path, "rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield piece
        return
    data = np.memmap(path, dtype=np.uint8, mode="r")
    if bytes(data[-len(BGZF_END) :]) != BGZF_END:
        raise ValueError(f"{path}: the end mark of bgzip is missing: the file is cut off; make it again with bgzip")
    held: list[bytes] = []
    for block in bgzf_blocks(data, path):
        held.append(block)
        if len(held) * 65536 >= CHUNK_BYTES:
            yield b"".join(held)
            held.clear()
    yield b"".join(held)


def _whole_lines(path: Path) -> Iterator[UInt8[np.ndarray, " bytes"]]:
    """The text in pieces that end at a line end (the last one: at the end of the file)."""
    held: list[bytes] = []
    for piece in _pieces(path):
        cut = piece.rfind(b"\n") + 1
        if cut == 0:
            held.append(piece)  # inside a very long line
            continue
        yield np.frombuffer(b"".join([*held, piece[:cut]]), dtype=np.uint8)
        held = [piece[cut:]]
    if rest := b"".join(held):
        yield np.frombuffer(rest, dtype=np.uint8)


# --------------------------------------------------------------------------------------------------------- reading


@dataclass
class _Record:
    name: str
    line: int  # 1-based line of its header
    length: int = 0
    line_bases: int = 0  # of its full lines; 0 before the first line
    line_bytes: int = 0
    ended: bool = False  # a line shorter than the others came: it must be the last one
    counts: Int64[np.ndarray, " 5"] = field(default_factory=lambda: np.zeros(len(COUNTED), dtype=np.int64))
    runs: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class _Lines:
    """The lines of one piece of text: where they start, how many bytes and letters they have."""

    text: UInt8[np.ndarray, " bytes"]
    first: int  # 1-based number of the first line in the file
    starts: Int64[np.ndarray, " lines"]
    stops: Int64[np.ndarray, " lines"]  # without the line end
    widths: Int64[np.ndarray, " lines"]  # with the line end

    @classmethod
    def of(cls, text: UInt8[np.ndarray, " bytes"], first: int) -> _Lines:
        ends = np.flatnonzero(text == _NEWLINE)
        starts = np.concatenate([[0], ends + 1])
        if starts[-1] == len(text):
            starts = starts[:-1]
        else:
            ends = np.append(ends, len(text))
        returned = (ends > starts) & (text[np.maximum(ends - 1, 0)] == _RETURN)
        widths = np.minimum(ends + 1, len(text)) - starts
        return cls(text, first, starts, ends - returned, widths)

    def where(self, byte: int) -> str:
        row = int(np.searchsorted(self.starts, byte, side="right")) - 1
        return f"line {self.first + row}, column {byte - int(self.starts[row]) + 1}"


class _Reader:
    def __init__(self, path: Path):
        self.path = path
        self.records: list[_Record] = []
        self.line_of: dict[str, int] = {}
        self.irregular = ""

    def refuse(self, where: str, what: str) -> ValueError:
        return ValueError(f"{self.path}, {where}: {what}")

    def read(self, lines: _Lines) -> None:
        """Takes in one piece of text: headers, and the stretches of sequence between them."""
        filled = lines.stops > lines.starts
        first_bytes = np.where(filled, lines.text[lines.starts], 0)
        special = np.flatnonzero((first_bytes == ord(">")) | (first_bytes == ord(";")) | ~filled)
        begin = 0
        for row in [*special.tolist(), len(lines.starts)]:
            if row > begin:
                self.sequence(lines, begin, row)
            begin = row + 1
            if row == len(lines.starts):
                break
            if first_bytes[row] == ord(">"):
                self.header(lines, row)
            else:
                kind = "a ; comment" if filled[row] else "blank"
                self.irregular = self.irregular or f"line {lines.first + row} is {kind}"

    def header(self, lines: _Lines, row: int) -> None:
        number = lines.first + row
        raw = bytes(lines.text[lines.starts[row] + 1 : lines.stops[row]])
        if b"\r" in raw:
            raise self.refuse(f"line {number}", r"old Macintosh line ends (CR alone); convert: tr '\r' '\n' < X > Y")
        if b"\0" in raw:
            raise self.refuse(f"line {number}", "binary data in the header: this is no FASTA")
        words = raw.decode("utf-8", errors="replace").split()
        if not words or raw[:1].isspace():
            raise self.refuse(f"line {number}", "a header without a name; write >name")
        name = words[0]
        if name in self.line_of:
            raise self.refuse(f"line {number}", f"the name {name!r} is taken already by line {self.line_of[name]}")
        self.line_of[name] = number
        self.records.append(_Record(name, number))

    def sequence(self, lines: _Lines, begin: int, end: int) -> None:
        """Lines begin..end-1, all of them sequence of the current record."""
        start, stop = int(lines.starts[begin]), int(lines.starts[end - 1] + lines.widths[end - 1])
        text = lines.text[start:stop]
        histogram = _histogram(text)
        if not self.records and not (histogram[:9].any() or histogram[127:].any()):
            what = "text before the first header; a FASTA begins with >name"
            raise self.refuse(f"line {lines.first + begin}", what)
        self.check_letters(lines, start, text, histogram)
        record = self.records[-1]
        counts = histogram @ POLICY_OF_BYTE
        if counts[_N] or counts[_IUPAC]:
            record.runs += _runs_of_n(text, record.length)
        if histogram[[*b" \t"]].any():
            self.irregular = self.irregular or f"white space inside lines from line {lines.first + begin} on"
        record.counts += counts
        record.length += int(counts[_BASES])
        if not self.irregular:
            self.check_layout(lines, begin, end, record)

    def check_letters(self, lines: _Lines, start: int, text: np.ndarray, histogram: np.ndarray) -> None:
        wrong = np.flatnonzero((_KIND == 3) & (histogram > 0))
        lone_return = histogram[_RETURN] and histogram[_RETURN] != np.count_nonzero(
            (text[:-1] == _RETURN) & (text[1:] == _NEWLINE)
        ) + int(text[-1] == _RETURN)
        controls = int(histogram[:32].sum() - histogram[[9, _NEWLINE, _RETURN]].sum())  # tabs and line ends are text
        if lone_return and not controls:
            raise self.refuse(lines.where(start), r"line ends of CR alone; convert: tr '\r' '\n' < X > Y")
        if not len(wrong):
            return
        byte = start + int(np.argmax(_KIND[text] == 3))
        raise self.refuse(lines.where(byte), _what_is_wrong(int(lines.text[byte]), wrong))

    def check_layout(self, lines: _Lines, begin: int, end: int, record: _Record) -> None:
        """A .fai needs every line of a record alike, but for a shorter last one."""
        bases = lines.stops[begin:end] - lines.starts[begin:end]
        widths = lines.widths[begin:end]
        if not record.line_bases:
            record.line_bases, record.line_bytes = int(bases[0]), int(widths[0])
        odd = np.flatnonzero((bases != record.line_bases) | (widths != record.line_bytes))
        row = None
        if record.ended:
            row = 0
        elif len(odd) and (odd[0] < len(bases) - 1 or bases[odd[0]] > record.line_bases):
            row = int(odd[0])
        elif len(odd):
            record.ended = True
            line_end = record.line_bytes - record.line_bases
            if widths[-1] - bases[-1] not in (0, line_end):  # CRLF and LF mixed
                row = len(bases) - 1
        if row is not None:
            self.irregular = f"line {lines.first + begin + row} has another length than the lines of its record"


def _histogram(text: UInt8[np.ndarray, " bytes"]) -> Int64[np.ndarray, " 256"]:
    """Counts of each byte; two at a time, which halves the work."""
    if len(text) < 65536:
        return np.bincount(text, minlength=256)
    even = len(text) & ~1
    pairs = np.bincount(np.frombuffer(text[:even].tobytes(), dtype=np.uint16), minlength=65536).reshape(256, 256)
    counts = pairs.sum(axis=0) + pairs.sum(axis=1)
    if len(text) > even:
        counts[text[-1]] += 1
    return counts


def _runs_of_n(text: UInt8[np.ndarray, " bytes"], offset: int) -> list[tuple[int, int]]:
    kind = _KIND[text]
    is_n = np.concatenate([[0], kind[kind != 2] == 1, [0]]).astype(np.int8)
    edges = np.flatnonzero(np.diff(is_n)) + offset
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs that touch, because a piece of text ended inside, as one."""
    merged: list[tuple[int, int]] = []
    for start, end in runs:
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _what_is_wrong(byte: int, wrong: np.ndarray) -> str:
    if byte < 32 or byte > 126:
        return f"byte 0x{byte:02x}: binary data, not DNA"
    letter = chr(byte)
    if letter in "-.":
        return f"{letter!r}: gaps of an alignment; remove them first"
    if {chr(value).upper() for value in wrong} & set("EFILPQZ"):
        return f"{letter!r}: not a DNA letter; this looks like protein"
    return f"{letter!r}: not a DNA letter; accepted are ACGTUN and the IUPAC codes, upper or lower case"


def read_through(path: Path) -> Scan:
    """Checks and counts a whole FASTA; raises ValueError with file, line and byte where it is not one."""
    _check_first_bytes(path)
    reader, number = _Reader(path), 1
    for text in _whole_lines(path):
        if number == 1 and bytes(text[:3]) == BYTE_ORDER_MARK:
            text, reader.irregular = text[3:], "it begins with a byte-order mark"
        lines = _Lines.of(text, number)
        reader.read(lines)
        number += len(lines.starts)
    records = reader.records
    if not records:
        raise ValueError(f"{path}: no record in it; a FASTA begins with >name")
    if is_bgzip(path) and (empty := [record for record in records if not record.length]):
        reader.irregular = reader.irregular or f"the record of line {empty[0].line} is empty"  # samtools refuses it
    counts = np.array([record.counts for record in records])
    total = counts.sum(axis=0)
    if not total[_BASES]:
        raise ValueError(f"{path}: headers but no sequence")
    if 2 * total[_IUPAC] > total[_BASES]:
        raise ValueError(f"{path}: {total[_IUPAC]} of {total[_BASES]} letters are not ACGTUN; this looks like protein")
    runs = [(row, start, end) for row, record in enumerate(records) for start, end in _merged(record.runs)]
    return Scan(
        names=tuple(record.name for record in records),
        lengths=np.array([record.length for record in records], dtype=np.int64),
        counts=counts,
        runs=np.array(runs, dtype=np.int64).reshape(-1, 3),
        irregular=reader.irregular,
    )


def _check_first_bytes(path: Path) -> None:
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a FASTA file")
    with open(path, "rb") as file:
        head = file.read(18)
    if not head:
        raise ValueError(f"{path}: the file is empty")
    if is_bgzip(path):
        return
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise ValueError(f"{path}: not a FASTA that can be read: it is {what}")


def write_clean_copy(path: Path, target: Path) -> None:
    """The same records without comments, blank lines and white space, one line a record, so that a .fai fits."""
    with written_whole(target) as partial, open(partial, "wb") as out:
        opened = False
        for text in _whole_lines(path):
            lines = _Lines.of(text, 1)
            for start, stop in zip(lines.starts.tolist(), lines.stops.tolist()):
                line = bytes(text[start:stop]).removeprefix(BYTE_ORDER_MARK)
                if line.startswith(b";"):
                    continue
                if line.startswith(b">"):
                    out.write((b"\n" if opened else b"") + line + b"\n")
                    opened = True
                else:
                    out.write(b"".join(line.split()))
        out.write(b"\n")
