"""FASTA files to bases: any stretch of any record, from any worker process, at memory speed.

In: a path (plain text, or bgzip `.gz`), a record name, 0-based half-open coordinates, a strand.
Out: uint8 ASCII codes as they stand in the file, case included.

    fasta = Fasta("genome.fa")
    fasta.fetch("chr20", 1_000_000, 1_001_024, "-")

pyfaidx (plain) or samtools through pysam (bgzip) makes the index once; reading is our own slice of a memory map. No
file handle with a position exists that forked workers could share: a shared handle of pyfaidx or pysam returns wrong
bases without any error. A pickled `Fasta` carries no data and maps the file again where it arrives (spawn, forkserver).
"""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from domains.dna import fasta_scan
from domains.dna.names import close_names
from domains.dna.tokenizer import COUNTED, reverse_complement
from domains.dna.twobit import TwoBit, is_twobit

log = logging.getLogger(__name__)

FASTA_SUFFIXES = (".fa", ".fasta", ".fna", ".fa.gz", ".fasta.gz", ".fna.gz", ".fa.bgz", ".fna.bgz")
SUFFIXES = (*FASTA_SUFFIXES, ".2bit")
EXAMPLE_PREFIX = "example:"
_CACHED_BLOCKS = 64  # decompressed bgzip blocks kept by each process: 64 x 64 KiB = 4 MiB

FastaSource = str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, Any]


class Fasta:
    """One FASTA file, checked once and then read at random places.

    Opening reads the whole file the first time (checks and counts, result cached) and afterwards only its index. Files
    that a .fai cannot address (comments, blank lines, uneven lines) are read through a clean copy in the cache folder;
    the log says so.

    Args:
        path: plain or bgzip FASTA.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no DNA FASTA; says file, line and byte. Plain gzip is refused, as it cannot be read from
            the middle.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = str(path)
        file = Path(path)
        if not file.exists():
            raise FileNotFoundError(f"no FASTA file {self.path}{_similar_files(file)}")
        self._scan = fasta_scan.scan(file)
        self._data_path = _readable_form(file, self._scan)
        self._fingerprint = fasta_scan.fingerprint(self._data_path)
        self._bgzip = fasta_scan.is_bgzip(self._data_path)
        self._index, self._block_starts = _load_index(self._data_path, self._scan, self._bgzip)
        self._row = {name: row for row, name in enumerate(self._scan.names)}
        self.lengths: dict[str, int] = dict(zip(self._scan.names, self._scan.lengths.tolist()))
        first_run = np.searchsorted(self._scan.runs[:, 0], np.arange(len(self._row) + 1))
        self._run_slices = list(zip(first_run[:-1].tolist(), first_run[1:].tolist()))
        # Letters in the runs before each run; workers look it up instead of adding up again for every window.
        self._run_letters = np.concatenate([[0], np.cumsum(self._scan.runs[:, 2] - self._scan.runs[:, 1])])
        self._data: np.ndarray | None = None
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """Record names in file order."""
        return self._scan.names

    @property
    def kind(self) -> str:
        """How the bases are read: "plain", "bgzip", or "clean copy" of a file that cannot be indexed."""
        if self._scan.irregular:
            return "clean copy"
        return "bgzip" if self._bgzip else "plain"

    def counts(self, name: str | None = None) -> dict[str, int]:
        """bases, n, lower_case, iupac, uracil of one record or, with None, of the file."""
        counts = self._scan.counts
        row = counts.sum(axis=0) if name is None else counts[self._row[self.known(name)]]
        return dict(zip(COUNTED, row.tolist()))

    def known(self, name: str) -> str:
        """`name`, or ValueError naming records that are spelled alike."""
        if name not in self._row:
            raise ValueError(f"{self.path} has no record {name!r}{close_names(name, self.names)}")
        return name

    def fetch(self, name: str, start: int = 0, end: int | None = None, strand: str = "+") -> UInt8[np.ndarray, " S"]:
        """Bases start..end-1 of a record as ASCII codes; with strand "-" their reverse complement.

        May be a read-only view of the file; copy before writing to it.
        """
        length = self.lengths[self.known(name)]
        end = length if end is None else end
        if not 0 <= start <= end <= length:
            raise ValueError(f"{self.path}: {name}:{start}-{end} is not inside 0-{length}")
        bases = self._forward(self._row[name], start, end)
        if strand == "+":
            return bases
        if strand == "-":
            return reverse_complement(bases)
        raise ValueError(f'strand={strand!r}; accepted: "+" or "-"')

    def count_n(self, name: str, starts: np.ndarray, ends: np.ndarray) -> Int64[np.ndarray, " windows"]:
        """Letters read as N (N and IUPAC codes) in each window [start, end), from the index alone."""
        first, last = self._run_slices[self._row[self.known(name)]]
        if first == last:
            return np.zeros(len(starts), dtype=np.int64)
        run_starts, run_ends = self._scan.runs[first:last, 1], self._scan.runs[first:last, 2]

        def letters_before(position: np.ndarray) -> np.ndarray:
            begun = run_starts.searchsorted(position, side="right")  # runs that begin at or before the position
            beyond = np.maximum(run_ends[begun - 1] - position, 0)  # what the last of them has after it
            return self._run_letters[first + begun] - np.where(begun > 0, beyond, 0)

        return letters_before(np.asarray(ends)) - letters_before(np.asarray(starts))

    def _forward(self, row: int, start: int, end: int) -> UInt8[np.ndarray, " S"]:
        if start == end:
            return np.empty(0, dtype=np.uint8)
        offset, line_bases, line_bytes = self._index[row].tolist()
        first, last = start // line_bases, (end - 1) // line_bases
        begin = offset + first * line_bytes
        stop = offset + last * line_bytes + (end - last * line_bases)
        text = self._text(begin, stop)
        if first == last:
            return text[start - first * line_bases :]
        full = last - first  # every line before the last one is full
        joined = np.empty((full + 1) * line_bases, dtype=np.uint8)
        rows = text[: full * line_bytes].reshape(full, line_bytes)
        joined[: full * line_bases].reshape(full, line_bases)[:] = rows[:, :line_bases]
        tail = text[full * line_bytes :]
        joined[full * line_bases : full * line_bases + len(tail)] = tail
        return joined[start - first * line_bases : end - first * line_bases]

    def _text(self, begin: int, stop: int) -> UInt8[np.ndarray, " bytes"]:
        """Bytes begin..stop-1 of the (decompressed) text."""
        data = self._mapped()
        if not self._bgzip:
            return data[begin:stop]
        text_starts = self._block_starts[:, 1]
        first = int(np.searchsorted(text_starts, begin, side="right")) - 1
        last = int(np.searchsorted(text_starts, stop, side="left"))
        text = b"".join([self._block(data, number) for number in range(first, last)])
        skip = begin - int(text_starts[first])
        return np.frombuffer(text, dtype=np.uint8)[skip : skip + stop - begin]

    def _block(self, data: np.ndarray, number: int) -> bytes:
        if (block := self._blocks.get(number)) is not None:
            return block
        position = int(self._block_starts[number, 0])
        size = int(data[position + 16]) + 256 * int(data[position + 17]) + 1
        block = fasta_scan.inflate(data[position : position + size], self._data_path, position)
        self._blocks[number] = block
        if len(self._blocks) > _CACHED_BLOCKS:
            self._blocks.popitem(last=False)
        return block

    def _mapped(self) -> np.ndarray:
        if self._data is None:
            if fasta_scan.fingerprint(self._data_path) != self._fingerprint:
                raise ValueError(f"{self._data_path} was changed after it was opened; start again")
            # As a plain array: every slice of a memmap object costs 10 us of bookkeeping.
            self._data = np.memmap(self._data_path, dtype=np.uint8, mode="r").view(np.ndarray)
        return self._data

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_data": None, "_blocks": OrderedDict()}

    def __repr__(self) -> str:
        return f"Fasta({self.path!r}, {len(self.names)} records, {sum(self.lengths.values())} bases, {self.kind})"


def open_sequences(path: str | os.PathLike) -> Fasta | TwoBit:
    """A reader of one file, FASTA or 2bit, told apart by its first bytes."""
    return TwoBit(path) if is_twobit(path) else Fasta(path)


class Genome:
    """One or more FASTA or 2bit files under one set of names: what the data sets read from.

    A record keeps its name where that is unique; else the file's stem goes before it: `canFam3/chr6`, `monDom5/chr6`.

    Args:
        source: a path, a glob (`species/*.fa`), a folder, `example:vertebrates` (the embedded data), a list of these,
            or a mapping from a name of your own (used in place of the stem) to any of these.
    """

    _named_by_hand = False  # names come from elsewhere than the files, and say more than they

    def __init__(self, source: FastaSource):
        files = find_fasta(source)
        self.files = [open_sequences(path) for _, path in files]
        self.records: dict[str, tuple[int, str]] = {}
        self.stem_of: dict[str, str] = {}
        seen = Counter(name for opened in self.files for name in opened.names)
        for number, ((stem, path), opened) in enumerate(zip(files, self.files)):
            for name in opened.names:
                key = name if seen[name] == 1 else f"{stem}/{name}"
                if key in self.records:
                    raise ValueError(f"{path}: record {key!r} comes twice; give the files different names")
                self.records[key] = (number, name)
                self.stem_of[key] = stem

    @classmethod
    def of_chromosomes(cls, files: Mapping[str, Mapping[str, Path]]) -> Genome:
        """A genome whose names come from elsewhere than the files: species -> chromosome -> a file, its first record.

        The keys are `human/21`; `stem_of` gives the species.
        """
        genome = cls.__new__(cls)
        genome._named_by_hand = True
        named = [(species, name, path) for species, paths in files.items() for name, path in paths.items()]
        genome.files = [open_sequences(path) for _, _, path in named]
        genome.records = {f"{s}/{name}": (i, genome.files[i].names[0]) for i, (s, name, _) in enumerate(named)}
        genome.stem_of = {f"{species}/{name}": species for species, name, _ in named}
        return genome

    @property
    def lengths(self) -> dict[str, int]:
        """Bases of every record."""
        return {key: self.files[number].lengths[name] for key, (number, name) in self.records.items()}

    def fetch(self, key: str, start: int = 0, end: int | None = None, strand: str = "+") -> UInt8[np.ndarray, " S"]:
        """As `Fasta.fetch`."""
        number, name = self._find(key)
        return self.files[number].fetch(name, start, end, strand)

    def count_n(self, key: str, starts: np.ndarray, ends: np.ndarray) -> Int64[np.ndarray, " windows"]:
        """As `Fasta.count_n`."""
        number, name = self._find(key)
        return self.files[number].count_n(name, starts, ends)

    def counts(self) -> dict[str, int]:
        """files, sequences, bases, n, lower_case, iupac, uracil of everything."""
        total = {"files": len(self.files), "sequences": len(self.records)}
        for fasta in self.files:
            for what, count in fasta.counts().items():
                total[what] = total.get(what, 0) + count
        return total

    def describe(self, key: str) -> str:
        """`hg38.fa.gz:chr16`: how messages name a record."""
        if self._named_by_hand:
            return key
        number, name = self.records[key]
        return f"{os.path.basename(self.files[number].path)}:{name}"

    def _find(self, key: str) -> tuple[int, str]:
        if key not in self.records:
            raise ValueError(f"no record {key!r} in {self.files[0].path} …{close_names(key, self.records)}")
        return self.records[key]


# ---------------------------------------------------------------------------------------------------- finding files


def find_fasta(source: FastaSource) -> list[tuple[str, Path]]:
    """(stem, path) of every FASTA or 2bit that `source` names (see `Genome`), sorted within a folder or glob.

    Raises FileNotFoundError where nothing is found.
    """
    if isinstance(source, Mapping):
        return [(str(name), path) for name, inner in source.items() for _, path in find_fasta(inner)]
    if not isinstance(source, (str, os.PathLike)):
        found = [entry for inner in source for entry in find_fasta(inner)]
        if not found:
            raise ValueError("an empty list of FASTA files")
        return found
    paths = _paths_of(str(source))
    return [(stem_of(path), path) for path in paths]


def _paths_of(text: str) -> list[Path]:
    if text.startswith(EXAMPLE_PREFIX):
        return _example_paths(text)
    path = Path(text).expanduser()
    if path.is_dir():
        paths = sorted(entry for entry in path.iterdir() if entry.name.lower().endswith(SUFFIXES))
        if not paths:
            raise FileNotFoundError(f"no FASTA in the folder {text} (looked for *{', *'.join(SUFFIXES)})")
        return paths
    if path.exists() or not glob.has_magic(text):
        return [path]
    paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if os.path.isfile(name)]
    paths = [path for path in paths if path.name.lower().endswith(SUFFIXES)]  # a glob also finds .fai, .gzi
    if not paths:
        raise FileNotFoundError(f"no FASTA file matches {text}")
    return paths


def _example_paths(text: str) -> list[Path]:
    """`example:vertebrates` or one of its files, `example:vertebrates/hg38`, from the installed package."""
    root = Path(str(resources.files("domains.dna"))) / "examples"
    folder, _, one = text.removeprefix(EXAMPLE_PREFIX).partition("/")
    known = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    if folder not in known:
        raise ValueError(f"{text!r}: embedded data sets are {', '.join(EXAMPLE_PREFIX + name for name in known)}")
    paths = sorted((root / folder).glob("*.fa.gz"))
    chosen = [path for path in paths if not one or stem_of(path) == one]
    if not chosen:
        raise ValueError(f"{text!r}: {folder} holds {', '.join(map(stem_of, paths))}")
    return chosen


def stem_of(path: Path) -> str:
    """`hg38` of `data/hg38.fa.gz`."""
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return path.stem


def _similar_files(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent} either)"
    names = [entry.name for entry in path.parent.iterdir() if entry.name.lower().endswith(SUFFIXES)]
    return close_names(path.name, names)


# ------------------------------------------------------------------------------------------------------------ index


def _readable_form(path: Path, scan: fasta_scan.Scan) -> Path:
    """The file itself, or the clean copy of one that a .fai cannot address."""
    if not scan.irregular:
        return path
    copy = fasta_scan.cache_path(path, ".clean.fa")
    log.warning("%s: %s, so it cannot be indexed; reading a clean copy of it, %s", path, scan.irregular, copy)
    if not copy.exists() or copy.stat().st_mtime_ns < path.stat().st_mtime_ns:
        fasta_scan.write_clean_copy(path, copy)
    return copy


def _load_index(path: Path, scan: fasta_scan.Scan, bgzip: bool) -> tuple[np.ndarray, np.ndarray]:
    """(records, 3) offset, bases and bytes a line of each record; (blocks, 2) file and text offset of bgzip blocks."""
    beside = Path(f"{path}.fai")
    cached = fasta_scan.cache_path(path, ".fai")
    for index in (beside, cached):
        try:
            return _read_index(index, path, scan, bgzip)
        except (OSError, ValueError) as reason:
            if index.exists():
                log.info("%s is not used: %s", index, reason)
    for index in (beside, cached):
        try:
            _build_index(path, index, bgzip)
        except OSError:
            if index is cached:
                raise
            log.info("%s cannot be written; the index goes to %s", beside, cached)
            continue
        return _read_index(index, path, scan, bgzip)
    raise AssertionError("unreachable")


def _build_index(path: Path, index: Path, bgzip: bool) -> None:
    if not os.access(index.parent, os.W_OK):
        raise PermissionError(f"{index.parent} cannot be written")
    with fasta_scan.written_whole(index) as partial:
        if not bgzip:
            import pyfaidx  # both only here: most runs find the index made

            pyfaidx.Faidx(str(path), indexname=str(partial), rebuild=True).close()
            return
        import pysam

        with fasta_scan.written_whole(index.with_suffix(".gzi")) as partial_gzi:
            pysam.faidx(str(path), "--fai-idx", str(partial), "--gzi-idx", str(partial_gzi))  # pyright: ignore


def _read_index(index: Path, path: Path, scan: fasta_scan.Scan, bgzip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Reads and checks a .fai; ValueError says why it does not belong to this file."""
    if index.stat().st_mtime_ns < path.stat().st_mtime_ns:
        raise ValueError("it is older than the file")
    rows = [line.split("\t") for line in index.read_text().splitlines()]
    if any(len(row) < 5 for row in rows):
        raise ValueError("it is no .fai")
    lengths = [int(row[1]) for row in rows]
    if [row[0] for row in rows] != list(scan.names) or lengths != scan.lengths.tolist():
        raise ValueError("it names other records or lengths")
    layout = np.array([[int(cell) for cell in row[2:5]] for row in rows], dtype=np.int64)
    blocks = _read_blocks(index.with_suffix(".gzi")) if bgzip else np.empty((0, 2), dtype=np.int64)
    if not bgzip:
        _check_size(path, layout, scan.lengths)
    return layout, blocks


def _check_size(path: Path, layout: np.ndarray, lengths: np.ndarray) -> None:
    """The last record must end where the file ends, but for a line end."""
    (offset, line_bases, line_bytes), length = layout[-1].tolist(), int(lengths[-1])
    last = (length - 1) // line_bases if length else 0
    end = offset + length + last * (line_bytes - line_bases)
    if not 0 <= path.stat().st_size - end <= max(line_bytes - line_bases, 2):
        raise ValueError("it does not fit the size of the file")


def _read_blocks(gzi: Path) -> np.ndarray:
    """A .gzi: a count, then (compressed offset, text offset) of every block but the first; little-endian uint64."""
    numbers = np.fromfile(gzi, dtype="<u8").astype(np.int64)
    if not len(numbers) or len(numbers) != 1 + 2 * numbers[0]:
        raise ValueError(f"{gzi} is no .gzi")
    return np.concatenate([np.zeros((1, 2), dtype=np.int64), numbers[1:].reshape(-1, 2)])
