"""Real DNA that the studies of this folder read: collected here, unpacked where it is used.

    python experiments/dna/data.py human --chr20 human_chr20_grch37.fa.gz --apes apes/ --to build/dna

`human` copies two compressed files, small enough to travel: chromosome 20 of GRCh37 (Debian `vt-examples`) and the
human pieces of chromosome 22 (Ensembl EPO through Debian `maffilter-examples`; soft-masked, eight records).
`unpack_human` makes of them one plain FASTA and a BED with its splits. All borders are multiples of 2^20, so that
windows of any power of two up to 1,048,576 lie on the very same held-out bases:

| split | where | bases |
|---|---|---|
| train | chromosome 20, the first 54 x 2^20 | 56.6 M, 53.1 M of them not N |
| valid | chromosome 20, the next 4 x 2^20 | 4.2 M |
| test | the first 2 x 2^20 of each of the eight pieces of chromosome 22 | 16.8 M |
"""

from __future__ import annotations

import argparse
import gzip
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "domains" / "dna" / "examples" / "vertebrates"
UNIT = 2**20
CHR20, APE = "chr20.fa.gz", "human.fa.gz"


@dataclass(frozen=True)
class HumanData:
    """A FASTA and the BED with its splits (fourth column: train, valid, test).

    Attributes:
        unit: every border in the BED is a multiple of it, so it is also the longest window.
    """

    fasta: Path
    bed: Path
    unit: int = UNIT

    def words(self) -> list[str]:
        """How `seqmodels train` is told of it."""
        return ["domain=dna_hg38", f"domain.dataset.fasta={self.fasta}", f"domain.dataset.splits.path={self.bed}"]


def records(path: Path) -> Iterator[tuple[str, bytes]]:
    """(name, lines of bases) of each record of a gzipped FASTA."""
    for text in gzip.decompress(path.read_bytes()).split(b">")[1:]:
        header, _, body = text.partition(b"\n")
        yield header.decode().split()[0], body


def collect_human(chr20: Path, apes: Path, to: Path) -> list[Path]:
    """Copies the two files into `to`; they stay compressed."""
    to.mkdir(parents=True, exist_ok=True)
    wanted = {to / CHR20: chr20, to / APE: apes / APE if apes.is_dir() else apes}
    for target, source in wanted.items():
        shutil.copyfile(source, target)
    return list(wanted)


def unpack_human(folder: Path, to: Path) -> HumanData:
    """One plain FASTA and its BED in `to`, from the files that `collect_human` left in `folder`.

    Raises:
        FileNotFoundError: they are not there.
    """
    for name in (CHR20, APE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: python experiments/dna/data.py human --to {folder}")
    chromosome, pieces = list(records(folder / CHR20)), list(records(folder / APE))
    return _write(chromosome[0], pieces, to, unit=UNIT, borders=(54, 58), test_units=2)


def tiny_human(to: Path) -> HumanData:
    """The same in small, from two of the embedded contigs: human for chromosome 20, rhesus for 22."""
    (human,), (rhesus,) = (list(records(EXAMPLES / f"{name}.fa.gz")) for name in ("hg38", "rheMac3"))
    return _write(("20", human[1]), [("chr22_seg01", rhesus[1])], to, unit=4096, borders=(40, 42), test_units=2)


def _write(
    chromosome: tuple[str, bytes], pieces: list[tuple[str, bytes]], to: Path, *, unit: int, borders: tuple[int, int],
    test_units: int,
) -> HumanData:  # fmt: skip
    """Records as they are. `borders`: units of the chromosome before validation begins, and before it ends."""
    to.mkdir(parents=True, exist_ok=True)
    name, (train_end, valid_end) = chromosome[0], (border * unit for border in borders)
    rows = [(name, 0, train_end, "train"), (name, train_end, valid_end, "valid")]
    rows += [(piece, 0, test_units * unit, "test") for piece, _ in pieces]
    data = HumanData(to / "human.fa", to / "human.bed", unit)
    with data.fasta.open("wb") as file:
        for record, body in [chromosome, *pieces]:
            file.write(b">" + record.encode() + b"\n" + body)
    data.bed.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    of = parser.add_subparsers(required=True, dest="what")
    human = of.add_parser("human", help="chromosome 20 and the human pieces of 22")
    human.add_argument("--chr20", type=Path, required=True, help="FASTA of chromosome 20, (b)gzipped")
    human.add_argument("--apes", type=Path, required=True, help="human.fa.gz of the ape alignment, or its folder")
    human.add_argument("--to", type=Path, default=ROOT / "build" / "dna")
    options = parser.parse_args()
    for path in collect_human(options.chr20, options.apes, options.to):
        print(f"{path.stat().st_size / 2**20:6.1f} MiB  {path}")


if __name__ == "__main__":
    main()
