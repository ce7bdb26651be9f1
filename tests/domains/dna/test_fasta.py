"""FASTA files are read as pyfaidx and samtools read them, whatever their layout, or refused with file and line."""

from __future__ import annotations

import gzip
import hashlib
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyfaidx
import pytest

from domains.dna import fasta_scan
from domains.dna.fasta import Fasta, Genome, find_fasta

EXAMPLES = Path(__file__).parents[3] / "domains" / "dna" / "examples" / "vertebrates"


@pytest.mark.parametrize("bgzip", [False, True], ids=["plain", "bgzip"])
@pytest.mark.parametrize("width", [1, 7, 60, 10_000])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_any_stretch_is_read(write_fasta, random_bases, width: int, end: str, bgzip: bool):
    records = {"a": random_bases(997, 1, "ACGTacgtN"), "b": random_bases(60, 2), "c": random_bases(1, 3)}
    fasta = Fasta(write_fasta(records, "x.fa.gz" if bgzip else "x.fa", width=width, end=end, bgzip=bgzip))
    assert fasta.lengths == {"a": 997, "b": 60, "c": 1}
    assert fasta.kind == ("bgzip" if bgzip else "plain")
    rng = np.random.default_rng(0)
    for name, letters in records.items():
        assert bytes(fasta.fetch(name)).decode() == letters
        for start, end_ in np.sort(rng.integers(0, len(letters) + 1, (50, 2)), axis=1).tolist():
            assert bytes(fasta.fetch(name, start, end_)).decode() == letters[start:end_]


def test_agrees_with_pyfaidx_on_both_strands(tmp_path):
    plain = tmp_path / "hg38.fa"
    plain.write_bytes(gzip.decompress((EXAMPLES / "hg38.fa.gz").read_bytes()))
    other = pyfaidx.Fasta(str(plain), as_raw=False)
    ours, blocks = Fasta(plain), Fasta(shutil.copy(EXAMPLES / "hg38.fa.gz", tmp_path))
    rng = np.random.default_rng(0)
    for start in rng.integers(0, 200_000, 100).tolist():
        end = start + int(rng.integers(1, 3000))
        expected = other["chr16"][start:end]
        assert bytes(ours.fetch("chr16", start, end)).decode() == expected.seq
        assert bytes(ours.fetch("chr16", start, end, "-")).decode() == (-expected).seq
        assert bytes(blocks.fetch("chr16", start, end)).decode() == expected.seq
    other.close()


# What is in the file, what it must read as, and what the log must say.
ODD_BUT_RIGHT = {
    "no last newline": (b">a\nACGT\nAC", {"a": "ACGTAC"}, ""),
    "comments": (b";first\n>a\nACGT\n;inside\nACGT\n>b\nGG\n", {"a": "ACGTACGT", "b": "GG"}, "line 1 is a ; comment"),
    "blank lines": (b"\n>a\nACGT\n\nAC\n\n>b\nGG\n\n\n", {"a": "ACGTAC", "b": "GG"}, "line 1 is blank"),
    "uneven lines": (b">a\nACGT\nACGTACGT\nA\n>b\nG\nGG\n", {"a": "ACGTACGTACGTA", "b": "GGG"}, "line 3 has another"),
    "short line inside": (b">a\nACGT\nAC\nACGT\n", {"a": "ACGTACACGT"}, "line 3 has another"),
    "CRLF and LF mixed": (b">a\r\nACGT\r\nACGT\nACGT\r\n", {"a": "ACGTACGTACGT"}, "line 3 has another"),
    "CRLF blank lines": (b">a\r\nACGT\r\n\r\nACGT\r\n", {"a": "ACGTACGT"}, "line 3 is blank"),
    "spaces": (b">a\nACGT ACGT\nACGT\t\n", {"a": "ACGTACGTACGT"}, "white space"),
    "byte-order mark": (b"\xef\xbb\xbf>a\nACGT\n", {"a": "ACGT"}, "byte-order mark"),
    "lower case": (b">a\nacgtNNnn\nACGT\n", {"a": "acgtNNnnACGT"}, ""),
    "long header": (b">a " + b"x" * 5000 + b"\nACGT\n", {"a": "ACGT"}, ""),
    "empty record": (b">a\n>b\nACGT\n>c\n", {"a": "", "b": "ACGT", "c": ""}, ""),
    "IUPAC": (b">a\nACGTRYKMACGTACGTSWBDHVNACGTACGT\n", {"a": "ACGTRYKMACGTACGTSWBDHVNACGTACGT"}, ""),
}


@pytest.mark.parametrize("bgzip", [False, True], ids=["plain", "bgzip"])
@pytest.mark.parametrize("case", ODD_BUT_RIGHT)
def test_odd_files_are_read_right(tmp_path, caplog, case: str, bgzip: bool):
    content, expected, logged = ODD_BUT_RIGHT[case]
    path = tmp_path / "odd.fa"
    if bgzip:
        import pysam

        with pysam.BGZFile(str(path), "wb", None) as file:
            file.write(content)
    else:
        path.write_bytes(content)
    for _ in range(2):  # the second time from what the first left behind
        fasta = Fasta(path)
        assert {name: bytes(fasta.fetch(name)).decode() for name in fasta.names} == expected
        assert fasta.lengths == {name: len(letters) for name, letters in expected.items()}
    assert logged in caplog.text
    assert bool(logged) == (fasta.kind == "clean copy") or (bgzip and case == "empty record")


BROKEN = {
    "empty": (b"", "is empty"),
    "only blank": (b"\n\n", "no record"),
    "no header": (b"ACGT\nACGT\n", "line 1: text before the first header"),
    "a text": (b"Dear all,\n", "line 1: text before the first header"),
    "headers only": (b">a\n>b\n", "headers but no sequence"),
    "header without name": (b">a\nACGT\n> \nACGT\n", "line 3: a header without a name"),
    "protein": (b">p\nMKVLAEFQ\n", "line 2, column 4: 'L'.*protein"),
    "protein of DNA letters": (b">p\nMKVRSSHMKVDD\n", "protein"),
    "stop codon": (b">a\nACGT\nAC*T\n", r"line 3, column 3: '\*'"),
    "alignment": (b">a\nAC-GT\n", "line 2, column 3: '-': gaps"),
    "digit": (b">a\n1 ACGT\n", "line 2, column 1: '1'"),
    "binary": (b">a\nAC\x00\x01\n", "line 2, column 3: byte 0x00: binary"),
    "all binary": (bytes(range(128, 256)), "binary"),
    "bytes with carriage returns": (bytes([0xE6, 0x00, 0x0D, 0x41]) * 100, "binary"),
    "binary header": (b">a\0\0\nACGT\n", "line 1: binary"),
    "duplicate": (b">a\nAC\n>b\nAC\n>a x\nGG\n", "line 5: the name 'a' is taken already by line 1"),
    "old Mac": (b">a\rACGT\r>b\rGG\r", "CR alone"),
    "old Mac sequence": (b">a\nACGT\rACGT\n", "CR alone"),
    "plain gzip": (gzip.compress(b">a\nACGT\n"), "plain gzip.*bgzip"),
    "bzip2": (b"BZh91AY", "bzip2"),
    "FASTQ": (b"@r\nACGT\n+\nIIII\n", "FASTQ"),
    "2bit": (b"\x43\x27\x41\x1a\0\0\0\0", "2bit"),
    "UTF-16": (">a\nACGT\n".encode("utf-16"), "UTF-16"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_their_place(tmp_path, case: str):
    content, message = BROKEN[case]
    path = tmp_path / "broken.fa"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        Fasta(path)
    assert str(path) in str(caught.value)
    assert not path.with_suffix(".fa.fai").exists()


def test_cut_off_bgzip_is_refused(tmp_path):
    whole = (EXAMPLES / "rn6.fa.gz").read_bytes()
    path = tmp_path / "cut.fa.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.fa\.gz: the end mark of bgzip is missing"):
        Fasta(path)
    path.write_bytes(whole[:20_000] + b"\xff" * 50 + whole[20_050:])
    with pytest.raises(ValueError, match=r"cut\.fa\.gz: (damaged|not a whole) bgzip block at byte \d+"):
        Fasta(path)


def test_missing_file_and_folder(tmp_path, write_fasta):
    write_fasta({"a": "ACGT"}, "genome.fa")
    with pytest.raises(FileNotFoundError, match=r"genom\.fa; close: genome\.fa"):
        Fasta(tmp_path / "genom.fa")
    with pytest.raises(FileNotFoundError, match="no folder"):
        Fasta(tmp_path / "nowhere" / "x.fa")
    with pytest.raises(ValueError, match="is a folder"):
        Fasta(tmp_path)


def test_wrong_names_and_coordinates(write_fasta):
    fasta = Fasta(write_fasta({"chr1": "ACGTACGT", "chr2": "AC"}))
    with pytest.raises(ValueError, match="no record 'chr3'; close: chr"):
        fasta.fetch("chr3")
    for start, end in ((-1, 4), (3, 2), (0, 9)):
        with pytest.raises(ValueError, match=r"not inside 0-8"):
            fasta.fetch("chr1", start, end)
    with pytest.raises(ValueError, match="strand"):
        fasta.fetch("chr1", 0, 2, "?")


def test_counts_and_runs_of_n(write_fasta, random_bases):
    letters = random_bases(300, 4) + "N" * 70 + "acgtRacgt" + "n" * 3
    fasta = Fasta(write_fasta({"a": letters, "b": "NNAC"}, width=50))
    assert fasta.counts("a") == {"bases": 382, "n": 73, "lower_case": 11, "iupac": 1, "uracil": 0}
    assert fasta.counts() == {"bases": 386, "n": 75, "lower_case": 11, "iupac": 1, "uracil": 0}
    windows = np.sort(np.random.default_rng(1).integers(0, 383, (200, 2)), axis=1)
    expected = [sum(letter in "NnR" for letter in letters[start:end]) for start, end in windows.tolist()]
    assert fasta.count_n("a", windows[:, 0], windows[:, 1]).tolist() == expected
    assert fasta.count_n("b", np.array([0, 1, 2]), np.array([4, 2, 4])).tolist() == [2, 1, 0]


def test_runs_of_n_belong_to_their_record(write_fasta):
    """Runs of different lengths in every record: none is counted for a neighbour."""
    records = {"a": "NNNACNNNNNAC", "b": "ACGT", "c": "ANCNNGNNNNTNA", "d": "NA"}
    fasta = Fasta(write_fasta(records))
    for name, letters in records.items():
        places = [(start, end) for end in range(len(letters) + 1) for start in range(end + 1)]
        starts, ends = np.array(places).T
        assert fasta.count_n(name, starts, ends).tolist() == [letters[a:b].count("N") for a, b in places]


def test_long_files_are_scanned_in_pieces(tmp_path, random_bases, monkeypatch: pytest.MonkeyPatch):
    """Lines, records and runs of N that pieces cut through give what one piece gives."""
    letters = random_bases(3000, 5) + "N" * 500 + random_bases(700, 6)
    lines = [letters[i : i + 70] for i in range(0, len(letters), 70)]
    path = tmp_path / "x.fa"
    path.write_text(">a\n" + "\n".join(lines) + "\n>b\n" + letters)
    whole = fasta_scan.read_through(path)
    monkeypatch.setattr(fasta_scan, "CHUNK_BYTES", 333)
    pieces = fasta_scan.read_through(path)
    assert pieces.names == whole.names == ("a", "b")
    assert pieces.runs.tolist() == whole.runs.tolist() == [[0, 3000, 3500], [1, 3000, 3500]]
    assert pieces.counts.tolist() == whole.counts.tolist() == [[4200, 500, 0, 0, 0]] * 2
    assert pieces.irregular == whole.irregular == ""


# ------------------------------------------------------------------------------------------------------- index


def test_index_is_that_of_pyfaidx(write_fasta, random_bases):
    path = write_fasta({"a": random_bases(130), "b": random_bases(7)})
    Fasta(path)
    assert Path(f"{path}.fai").read_text() == "a\t130\t13\t60\t61\nb\t7\t159\t7\t8\n"
    assert [entry.name for entry in path.parent.iterdir() if "part" in entry.name] == []


@pytest.mark.parametrize("change", ["older", "size", "names"])
def test_stale_index_is_made_again(write_fasta, random_bases, change: str):
    path = write_fasta({"a": random_bases(130)})
    Fasta(path)
    index = Path(f"{path}.fai")
    if change == "older":  # the same names and lengths in another layout; only the time stamps tell
        write_fasta({"a": random_bases(130)}, width=50)
        os.utime(index, ns=(0, 0))
    elif change == "size":
        index.write_text("a\t130\t13\t60\t62\n")
    else:
        index.write_text("z\t130\t13\t60\t61\n")
    assert bytes(Fasta(path).fetch("a")).decode() == random_bases(130)
    layout = "50\t51" if change == "older" else "60\t61"
    assert index.read_text() == f"a\t130\t13\t{layout}\n"


def test_edited_file_is_scanned_again(write_fasta):
    assert Fasta(write_fasta({"a": "ACGT"})).counts()["n"] == 0
    path = write_fasta({"a": "ACGNN"})
    assert Fasta(path).counts()["n"] == 2
    path.write_text(">a\nMKLE\n")
    with pytest.raises(ValueError, match="protein"):
        Fasta(path)


def test_file_changed_while_open_is_refused(write_fasta):
    path = write_fasta({"a": "ACGTACGT"})
    fasta = Fasta(path)
    path.write_text(">a\nGGGGGGGGGGGGG\n")
    with pytest.raises(ValueError, match="changed after it was opened"):
        fasta.fetch("a")


def test_unwritable_folder_uses_the_cache(write_fasta, own_cache, monkeypatch: pytest.MonkeyPatch):
    path = write_fasta({"a": "ACGTACGT"}, "ro/x.fa")
    real = os.access
    monkeypatch.setattr(os, "access", lambda where, mode: Path(where) != path.parent and real(where, mode))
    for _ in range(2):
        assert bytes(Fasta(path).fetch("a", 2, 5)) == b"GTA"
    assert [entry.name for entry in path.parent.iterdir()] == ["x.fa"]
    assert len(list(own_cache.rglob("*x.fa.fai"))) == 1


def test_damaged_cache_is_replaced(write_fasta, own_cache):
    path = write_fasta({"a": "ACGTNN"})
    Fasta(path)
    (entry,) = own_cache.rglob("*.scan.npz")
    entry.write_bytes(entry.read_bytes()[:100])
    assert Fasta(path).counts()["n"] == 2


# --------------------------------------------------------------------------------------------- worker processes

SHARED: dict[str, Fasta] = {}


def _digest(fasta: Fasta, seed: int) -> str:
    """Of 300 random reads, two thirds of them on the minus strand."""
    rng, total = np.random.default_rng(seed), hashlib.sha256()
    for start in rng.integers(0, 200_000, 300).tolist():
        total.update(bytes(fasta.fetch("chr16", start, start + 700, "+" if start % 3 == 0 else "-")))
    return total.hexdigest()


def _digest_shared(key_and_seed: tuple[str, int]) -> str:
    return _digest(SHARED[key_and_seed[0]], key_and_seed[1])


def _digest_pickled(pickled_and_seed: tuple[bytes, int]) -> str:
    return _digest(pickle.loads(pickled_and_seed[0]), pickled_and_seed[1])


@pytest.mark.parametrize("kind", ["plain", "bgzip"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_read_the_same_bases(tmp_path, kind: str, method: str):
    """The handle is used before the fork, and by all workers at once: the case in which shared handles go wrong."""
    path = tmp_path / "hg38.fa.gz"
    shutil.copy(EXAMPLES / "hg38.fa.gz", path)
    if kind == "plain":
        plain = tmp_path / "hg38.fa"
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        path = plain
    fasta = Fasta(path)
    seeds = range(16)
    expected = [_digest(fasta, seed) for seed in seeds]
    SHARED[kind] = fasta
    workers = 8 if method == "fork" else 2
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context(method)) as pool:
        if method == "fork":
            found = list(pool.map(_digest_shared, [(kind, seed) for seed in seeds]))
        else:
            found = list(pool.map(_digest_pickled, [(pickle.dumps(fasta), seed) for seed in seeds]))
    assert found == expected


def test_pickle_carries_no_bases(tmp_path):
    path = shutil.copy(EXAMPLES / "monDom5.fa.gz", tmp_path)
    fasta = Fasta(path)
    fasta.fetch("chr6")
    assert len(pickle.dumps(fasta)) < 20_000


# ------------------------------------------------------------------------------------------------------ genomes


def test_names_stay_or_get_their_file(write_fasta):
    write_fasta({"chr1": "AC", "chr2": "GGG"}, "g/one.fa")
    write_fasta({"chr1": "TTTT"}, "g/two.fasta.gz", bgzip=True)
    folder = write_fasta({"chr9": "A"}, "g/three.fna").parent
    genome = Genome(folder)
    assert genome.lengths == {"one/chr1": 2, "chr2": 3, "chr9": 1, "two/chr1": 4}
    assert bytes(genome.fetch("two/chr1", 1, 3, "-")) == b"AA"
    assert genome.describe("two/chr1") == "two.fasta.gz:chr1"
    assert genome.counts()["bases"] == 10
    assert Genome([folder / "one.fa", str(folder / "t*")]).lengths.keys() == {"one/chr1", "chr2", "chr9", "two/chr1"}
    assert Genome({"x": folder / "one.fa", "y": folder / "two.fasta.gz"}).lengths.keys() == {"x/chr1", "chr2", "y/chr1"}
    with pytest.raises(ValueError, match=r"no record 'one/chr3'.*close: one/chr1"):
        genome.fetch("one/chr3")


def test_embedded_examples_are_found():
    genome = Genome("example:vertebrates")
    counts = genome.counts()
    assert (counts["files"], counts["bases"], counts["n"], counts["iupac"]) == (8, 1_740_469, 36_003, 0)
    assert [stem for stem, _ in find_fasta("example:vertebrates/hg38")] == ["hg38"]
    with pytest.raises(ValueError, match="example:vertebrates"):
        Genome("example:bacteria")
    with pytest.raises(ValueError, match="galGal4, hg38"):
        Genome("example:vertebrates/dodo")


def test_nothing_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no FASTA in the folder"):
        Genome(tmp_path)
    with pytest.raises(FileNotFoundError, match="no FASTA file matches"):
        Genome(str(tmp_path / "*.fa"))
    with pytest.raises(ValueError, match="empty list"):
        Genome([])
