"""Real genomes for the species study, collected into one folder small enough to travel (18 MB).

    mkdir debs && cd debs && apt-get download ragout-examples tnseq-transit kleborate-examples r-cran-seqinr
    for deb in *.deb; do dpkg-deb -x "$deb" packages; done           # nothing is installed
    python experiments/dna/species/data.py --packages packages --apes apes/ --to build/species

`bacteria/<name>.2bit`: eight bacteria, the first 2,000,000 bases of the main chromosome (all of shorter ones; H37Rv
whole, for ../benchmarks), 17 Mb. `apes/<species>/chr<n>.2bit`: homologous pieces 03 to 08 of chromosome 22 of four
great apes (Ensembl EPO), called chr3 to chr8, 58 Mb.

2bit without masks: letters are upper-case, so a model cannot read how an assembly was masked; N stay N. The eight
vertebrates are in the repository (`example:vertebrates`).
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

BACTERIA_BASES = 2_000_000
APES = ("chimpanzee", "gorilla", "human", "orangutan")
PIECES = range(3, 9)
TWOBIT_SIGNATURE = 0x1A412743
BACTERIA = {
    "c_trachomatis": "usr/lib/R/site-library/seqinr/sequences/ct.fasta.gz",
    "e_coli": "usr/share/doc/ragout/examples/E.Coli/references/MG1655-K12.fasta.gz",
    "h_pylori": "usr/share/doc/ragout/examples/H.Pylori/references/G27.fasta.gz",
    "k_pneumoniae": "usr/share/doc/kleborate/examples/data/NTUH-K2044.fna.xz",
    "m_smegmatis": "usr/lib/python3/dist-packages/pytransit/genomes/mc2_155_tamu.fna",
    "m_tuberculosis": "usr/lib/python3/dist-packages/pytransit/genomes/H37Rv.fna",
    "s_aureus": "usr/share/doc/ragout/examples/S.Aureus/references/N315.fasta.gz",
    "v_cholerae": "usr/share/doc/ragout/examples/V.Cholerae/references/O395.fasta.gz",
}


def records(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bases in upper case) of each record of a FASTA, plain, gzipped or xz."""
    openers = {".gz": gzip.open, ".xz": lzma.open}
    with openers.get(path.suffix, open)(path, "rb") as file:
        text = file.read()
    for part in text.split(b">")[1:]:
        header, _, body = part.partition(b"\n")
        yield header.decode().split()[0], b"".join(body.split()).upper()


def write_twobit(path: Path, named: dict[str, bytes]) -> None:
    """Version 0, little-endian, no masks; letters other than A, C, G, T become N."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body, index = b"", b""
    at = 16 + sum(1 + len(name) + 4 for name in named)
    for name, letters in named.items():
        index += bytes([len(name)]) + name.encode() + struct.pack("<I", at + len(body))
        body += _record(np.frombuffer(letters, dtype=np.uint8))
    path.write_bytes(struct.pack("<IIII", TWOBIT_SIGNATURE, 0, len(named), 0) + index + body)


def _record(letters: np.ndarray) -> bytes:
    code_of = np.zeros(256, dtype=np.uint8)
    code_of[list(b"TCAG")] = range(4)
    unknown = ~np.isin(letters, list(b"ACGT"))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], unknown, [0]]).astype(np.int8)))
    starts, sizes = edges[::2].astype("<u4"), (edges[1::2] - edges[::2]).astype("<u4")
    codes = np.concatenate([code_of[letters], np.zeros(-len(letters) % 4, dtype=np.uint8)]).reshape(-1, 4)
    packed = (codes << np.array([6, 4, 2, 0], dtype=np.uint8)).sum(axis=1).astype(np.uint8)
    head = struct.pack("<II", len(letters), len(starts)) + starts.tobytes() + sizes.tobytes()
    return head + struct.pack("<II", 0, 0) + packed.tobytes()


def collect_bacteria(packages: Path, to: Path) -> None:
    """The longest record of each, so that plasmids stay out."""
    missing = [path for path in BACTERIA.values() if not (packages / path).is_file()]
    if missing:
        raise SystemExit(f"{packages} lacks {', '.join(missing)}: unpack the packages named above into it")
    for name, path in BACTERIA.items():
        longest = max((letters for _, letters in records(packages / path)), key=len)
        whole = name == "m_tuberculosis"
        write_twobit(to / f"{name}.2bit", {name: longest if whole else longest[:BACTERIA_BASES]})


def collect_apes(source: Path, to: Path, pieces: range = PIECES) -> None:
    """One file a piece, as `dna_species_folders` reads them."""
    for species in APES:
        found = dict(records(source / f"{species}.fa.gz"))
        for piece in pieces:
            name = f"chr22_seg{piece:02d}"
            write_twobit(to / species / f"chr{piece}.2bit", {name: found[name]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that the Debian packages lie in, unpacked")
    parser.add_argument("--apes", type=Path, required=True, help="folder with human.fa.gz, chimpanzee.fa.gz …")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "species")
    options = parser.parse_args()
    collect_bacteria(options.packages, options.to / "bacteria")
    collect_apes(options.apes, options.to / "apes")
    files = list(options.to.rglob("*.2bit"))
    print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB in {options.to}")


if __name__ == "__main__":
    main()
