"""The variants that experiments/dna/inference/run.py scores: what differs between human and chimpanzee, and what might.

    python experiments/dna/inference/data.py --vcf human_chimpanzee_seg08.vcf.gz --to build/inference

`observed.vcf.gz` is that file (38,824 real differences, SNVs and small indels, in Ensembl's EPO alignment of chromosome
22; REF is the human base). `every_base.vcf.gz` has its SNVs with all three other bases as ALT, in alphabetical order,
so that nothing in the file tells the observed one; records are in random order, so that its first n are a fair sample.
"""

from __future__ import annotations

import argparse
import gzip
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OBSERVED, EVERY_BASE = "observed.vcf.gz", "every_base.vcf.gz"
EXAMPLE_FASTA = ROOT / "domains" / "dna" / "examples" / "vertebrates" / "hg38.fa.gz"
EXAMPLE_VCF = ROOT / "experiments" / "demo" / "human_rhesus.vcf"


@dataclass(frozen=True)
class Inputs:
    """What the study reads: a genome with variants, a long chromosome, a region to mutate."""

    genome: Path
    observed: Path
    every_base: Path
    chromosome: Path
    region: str
    logo_region: str


def lines_of(path: Path) -> Iterator[str]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        yield from file


def head_of(vcf: Path, to: Path, records: int) -> int:
    """Header and first records of a VCF; returns how many there were."""
    written = 0
    with to.open("w") as file:
        for line in lines_of(vcf):
            if not line.startswith("#"):
                if written == records:
                    break
                written += 1
            file.write(line)
    return written


def collect(vcf: Path, to: Path) -> list[Path]:
    """Fills `to` with the two files."""
    to.mkdir(parents=True, exist_ok=True)
    observed, every_base = to / OBSERVED, to / EVERY_BASE
    if vcf.suffix == ".gz":
        shutil.copyfile(vcf, observed)
    else:
        observed.write_bytes(gzip.compress(vcf.read_bytes(), mtime=0))
    header = [line for line in lines_of(vcf) if line.startswith("#")]
    records = [line.split("\t") for line in lines_of(vcf) if not line.startswith("#")]
    snvs = [cells for cells in records if len(cells[3]) == len(cells[4]) == 1]
    for cells in snvs:
        cells[4] = ",".join(base for base in "ACGT" if base != cells[3])
    random.Random(0).shuffle(snvs)
    text = "".join([*header, *("\t".join(cells) for cells in snvs)])
    every_base.write_bytes(gzip.compress(text.encode(), mtime=0))
    return [observed, every_base]


def tiny(to: Path) -> Inputs:
    """The same in small, from embedded data: differences of human and rhesus, and a contig of 210 kb as chromosome."""
    observed, every_base = collect(EXAMPLE_VCF, to)
    return Inputs(EXAMPLE_FASTA, observed, every_base, EXAMPLE_FASTA, "chr16:190001-190024", "chr16:190001-190008")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vcf", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "inference")
    options = parser.parse_args()
    for path in collect(options.vcf, options.to):
        print(f"{path.stat().st_size / 2**20:6.2f} MiB  {path}")


if __name__ == "__main__":
    main()
