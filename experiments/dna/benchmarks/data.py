"""Small real data sets in the published layouts of GenomicBenchmarks and of the Nucleotide Transformer tasks.

    python experiments/dna/benchmarks/data.py --packages packages --genomes build/species/bacteria --apes apes/ \
        --to build/species/benchmarks

The published files cannot be downloaded everywhere; these have the same layout and are made of genomes that Debian
packages (see ../species/data.py for how to get them; here also `augustus-doc`). Test sequences lie in other parts of
the genome than training ones, and no two sequences of a set overlap.

| set | layout | classes | sequences |
|---|---|---|---|
| coding_vs_intergenic | GenomicBenchmarks, intervals (.csv.gz) | M. tuberculosis H37Rv, genes and what lies between | 128 bases |
| escherichia_or_klebsiella | GenomicBenchmarks, sequences (.txt) | E. coli, K. pneumoniae | 128 bases |
| splice_sites_all | Nucleotide Transformer, FASTA | 0 acceptor, 1 donor, 2 neither (another AG or GT of a gene); D. melanogaster | 120 bases |
| shuffled | Nucleotide Transformer, Parquet | 0 human (chromosome 22), 1 the same with its dinucleotides shuffled | 256 bases |
"""  # noqa: E501

from __future__ import annotations

import argparse
import gzip
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

GENES = "usr/lib/python3/dist-packages/pytransit/genomes/H37Rv.prot_table"
GENBANK = "usr/share/doc/augustus/tutorial/results/genes.gb"
TEST_SHARE = 0.2  # the last part of each genome
CODING_BASES, BACTERIA_BASES, SPLICE_BASES, SHUFFLED_BASES = 128, 128, 120, 256
A_CLASS = {"coding": 4000, "bacteria": 4000, "splice": 3000, "shuffled": 3000}  # sequences of a class, test included
Gene = tuple[str, list[tuple[int, int]]]  # sense strand, and exons on it (0-based, half-open)


# ---------------------------------------------------------------------------------------- GenomicBenchmarks layout


def coding_vs_intergenic(packages: Path, genome: Path, to: Path) -> None:
    """Windows inside of genes, on the gene's strand, and windows between genes, on either strand."""
    from domains.dna.fasta import Genome

    name, length = next(iter(Genome({"m_tuberculosis": str(genome / "m_tuberculosis.2bit")}).lengths.items()))
    genes = []
    for line in (packages / GENES).read_text().splitlines():
        cells = line.split("\t")
        genes.append((int(cells[1]) - 1, int(cells[2]), cells[3]))
    rng = np.random.default_rng(0)
    coding = [(start, strand) for begin, end, strand in genes for start in cut(begin, end, CODING_BASES)]
    is_gene = np.zeros(length + 1, dtype=np.int8)
    for begin, end, _ in genes:
        is_gene[begin:end] = 1
    edges = np.flatnonzero(np.diff(np.concatenate([[1], is_gene[:length], [1]])))
    gaps = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    between = [(start, "+-"[int(rng.integers(2))]) for begin, end in gaps for start in cut(begin, end, CODING_BASES)]
    border = round(length * (1 - TEST_SHARE))
    limit = min(len(between), A_CLASS["coding"])
    for label, windows in (("coding", coding), ("intergenic", between)):
        kept = [windows[row] for row in sorted(rng.permutation(len(windows))[:limit].tolist())]
        for split in ("train", "test"):
            rows = [one for one in kept if (one[0] >= border) == (split == "test")]
            lines = [f"{n},{name},{start},{start + CODING_BASES},{strand}" for n, (start, strand) in enumerate(rows)]
            table = to / "coding_vs_intergenic" / split / f"{label}.csv.gz"
            table.parent.mkdir(parents=True, exist_ok=True)
            text = "\n".join(["id,region,start,end,strand", *lines]) + "\n"
            table.write_bytes(gzip.compress(text.encode(), mtime=0))


def cut(begin: int, end: int, size: int) -> Iterator[int]:
    """Starts of windows side by side, as many as fit, in the middle of a stretch."""
    count = (end - begin) // size
    if count:
        first = begin + (end - begin - count * size) // 2
        yield from range(first, first + count * size, size)


def escherichia_or_klebsiella(genomes: Path, to: Path) -> None:
    """Two related bacteria, sequences as they stand in their genomes; packed, see `unpack`."""
    from domains.dna.fasta import Genome

    lines = []
    for label, name in (("escherichia", "e_coli"), ("klebsiella", "k_pneumoniae")):
        genome = Genome({name: str(genomes / f"{name}.2bit")})
        contig, length = next(iter(genome.lengths.items()))
        starts = np.linspace(0, length - BACTERIA_BASES, A_CLASS["bacteria"]).astype(int)
        for start in starts.tolist():
            split = "test" if start >= length * (1 - TEST_SHARE) else "train"
            letters = genome.fetch(contig, start, start + BACTERIA_BASES, "+").tobytes().decode()
            lines.append(f"{split}\t{label}\t{letters}")
    to.mkdir(parents=True, exist_ok=True)
    packed = gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)
    (to / "escherichia_or_klebsiella.tsv.gz").write_bytes(packed)


def unpack(packed: Path, to: Path) -> Path:
    """The published layout, a small file a sequence, from one file that travels easily."""
    for number, line in enumerate(gzip.decompress(packed.read_bytes()).decode().splitlines()):
        split, label, letters = line.split("\t")
        target = to / split / label / f"{number}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(letters)
    return to


# --------------------------------------------------------------------------------- Nucleotide Transformer layout


def splice_sites_all(packages: Path, to: Path) -> None:
    """Acceptors and donors of real introns, and other AG and GT of the same genes, each in the middle."""
    genes = list(read_genbank(packages / GENBANK))
    rng = np.random.default_rng(1)
    half, last = SPLICE_BASES // 2, round(len(genes) * (1 - TEST_SHARE))
    for split, members in (("train", genes[:last]), ("test", genes[last:])):
        found: dict[int, list[str]] = {0: [], 1: [], 2: []}
        for letters, exons in members:
            # where the two bases of the intron's end begin
            acceptors = [begin - 2 for begin, _ in exons[1:]]
            donors = [end for _, end in exons[:-1]]
            for label, sites, motif in ((0, acceptors, "ag"), (1, donors, "gt")):
                here = [at for at in sites if letters[at : at + 2] == motif]
                found[label] += windows_around(letters, here, half)
                others = [hit.start() for hit in re.finditer(motif, letters)]
                others = [at for at in others if all(abs(at - site) > half for site in acceptors + donors)]
                drawn = rng.permutation(len(others))[: len(here) // 2 + len(here) % 2]
                found[2] += windows_around(letters, [others[row] for row in sorted(drawn.tolist())], half)
        lines = []
        for label, sequences in found.items():
            chosen = sequences[: A_CLASS["splice"]]
            lines += [f">{split}_{label}_{number}|{label}\n{one.upper()}" for number, one in enumerate(chosen)]
        target = to / "splice_sites_all" / f"{split}.fna"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines) + "\n")


def windows_around(letters: str, places: Iterable[int], half: int) -> list[str]:
    return [letters[at - half : at + half] for at in places if half <= at <= len(letters) - half]


def read_genbank(path: Path) -> Iterator[Gene]:
    """Sequence on the gene's strand and exons of every record with an intron."""
    from domains.dna.tokenizer import reverse_complement

    for text in path.read_text().split("LOCUS")[1:]:
        feature = re.search(r"CDS\s+(complement\()?join\(([^)]*)\)", text)
        if feature is None:
            continue
        letters = re.sub(r"[^a-z]", "", text.partition("ORIGIN")[2].split("//")[0])
        pairs = [part.split("..") for part in re.sub(r"\s", "", feature[2]).split(",")]
        exons = [(int(begin) - 1, int(end)) for begin, end in pairs]
        if feature[1]:
            letters = reverse_complement(letters).tobytes().decode()
            exons = [(len(letters) - end, len(letters) - begin) for begin, end in reversed(exons)]
        yield letters, exons


def shuffled(genome: Path, to: Path) -> None:
    """Real sequence and the same bases in another order with the same dinucleotides."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from domains.dna.fasta import Fasta

    rng = np.random.default_rng(2)
    fasta = Fasta(str(genome / "human.fa.gz"))
    for split, piece in (("train", "chr22_seg01"), ("test", "chr22_seg08")):
        count = round(A_CLASS["shuffled"] * (TEST_SHARE if split == "test" else 1 - TEST_SHARE))
        starts = np.linspace(0, fasta.lengths[piece] - SHUFFLED_BASES, count).astype(int)
        pieces = [fasta.fetch(piece, start, start + SHUFFLED_BASES).tobytes().decode() for start in starts.tolist()]
        real = [letters.upper() for letters in pieces if "N" not in letters.upper()]
        columns = {"sequence": real + [shuffle(one, rng) for one in real], "label": [0] * len(real) + [1] * len(real)}
        target = to / "shuffled" / f"{split}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), target, compression="zstd")


def shuffle(letters: str, rng: np.random.Generator) -> str:
    """A random order with the same counts of dinucleotides: a random Euler path (Altschul & Erickson 1985)."""
    after: dict[str, list[str]] = {}
    for one, two in pairwise(letters):
        after.setdefault(one, []).append(two)
    final = letters[-1]
    while True:  # last edges that all lead to the final letter
        last = {one: others[int(rng.integers(len(others)))] for one, others in after.items() if one != final}
        if all(leads_to(final, one, last) for one in last):
            break
    order: dict[str, list[str]] = {}
    for one, others in after.items():
        rest = list(others)
        if one in last:
            rest.remove(last[one])
        mixed = [rest[row] for row in rng.permutation(len(rest))]
        order[one] = [*mixed, last[one]] if one in last else mixed
    path, steps = [letters[0]], {one: iter(others) for one, others in order.items()}
    for _ in range(len(letters) - 1):
        path.append(next(steps[path[-1]]))
    return "".join(path)


def leads_to(final: str, one: str, last: dict[str, str]) -> bool:
    for _ in range(len(last) + 1):
        if one == final:
            return True
        one = last[one]
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder that the Debian packages lie in, unpacked")
    parser.add_argument("--genomes", type=Path, default=ROOT / "build" / "species" / "bacteria")
    parser.add_argument("--apes", type=Path, required=True, help="folder with human.fa.gz")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "species" / "benchmarks")
    options = parser.parse_args()
    coding_vs_intergenic(options.packages, options.genomes, options.to)
    escherichia_or_klebsiella(options.genomes, options.to)
    splice_sites_all(options.packages, options.to / "nucleotide_transformer")
    shuffled(options.apes, options.to / "nucleotide_transformer")
    for path in sorted(one for one in options.to.rglob("*") if one.is_file()):
        print(f"{path.stat().st_size / 1e3:8.0f} kB  {path.relative_to(options.to)}")


if __name__ == "__main__":
    main()
