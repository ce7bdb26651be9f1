"""How fast do token ids come from a FASTA? Appends rows to experiments/results/loading.csv.

    python experiments/loading/bench.py ../shared/data/human_chr20_grch37.fa.gz

In: one FASTA, bgzip or plain; the other form is made in a temporary folder. Each figure is the median of several
repeats of reading random windows, encoded to ids, in million bases a second:

- `windows`: `GenomeWindows` in this process, the whole path from file to `Record`;
- `worker`: the same through one DataLoader worker, ids arriving in this process as tensors;
- `pyfaidx`, `pysam`: the same windows through these libraries and our encoding, for comparison.
"""

from __future__ import annotations

import argparse
import csv
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyfaidx
import pysam
import torch
from torch.utils.data import DataLoader, Dataset

from domains.dna.datasets import GenomeWindows
from domains.dna.fasta import Fasta
from domains.dna.intervals import HeldOutRegions
from domains.dna.tokenizer import DnaTokenizer

RESULTS = Path(__file__).parents[1] / "results" / "loading.csv"
COLUMNS = (
    "date", "machine", "versions", "commit", "source", "reader", "window_bases", "windows", "repeats",
    "mbases_per_s", "spread",
)  # fmt: skip


class _Ids(Dataset):
    """Only the ids of each window, as a tensor."""

    def __init__(self, corpus: GenomeWindows, first: int, count: int):
        self.train, self.first, self.count = corpus.split("train"), first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.train[self.first + index].ids)


def both_forms(source: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The FASTA as plain text and as bgzip, both on the same disk."""
    plain, packed = folder / "genome.fa", folder / "genome.fa.gz"
    opener: Any = pysam.BGZFile if source.suffix == ".gz" else open
    with opener(str(source), "rb") as file:
        text = file.read()
    plain.write_bytes(text)
    with pysam.BGZFile(str(packed), "wb", None) as file:
        file.write(text)
    yield from (("plain", plain), ("bgzip", packed))


def readers(path: Path, corpus: GenomeWindows, windows: int) -> dict[str, Callable[[int], None]]:
    """For each reader a function that reads `windows` windows, other ones in each repeat."""
    tokenizer = DnaTokenizer()
    train = corpus.split("train")

    def places(repeat: int) -> list[tuple[str, int, int]]:
        drawn = [train.window(repeat * windows + index) for index in range(windows)]
        return [(window.contig, window.start, window.end) for window in drawn]

    def ours(repeat: int) -> None:
        for index in range(windows):
            train[repeat * windows + index]

    def with_pyfaidx(repeat: int) -> None:
        for name, start, end in places(repeat):
            tokenizer.encode(handle[name][start:end])

    def with_pysam(repeat: int) -> None:
        for name, start, end in places(repeat):
            tokenizer.encode(samtools.fetch(name, start, end))

    samtools = pysam.FastaFile(str(path))
    found = {"windows": ours, "pysam": with_pysam}
    if path.suffix != ".gz":
        handle = pyfaidx.Fasta(str(path), as_raw=True, read_ahead=0, rebuild=False)
        found["pyfaidx"] = with_pyfaidx
    return found


def measure(read: Callable[[int], None], bases: int, repeats: int) -> tuple[float, float]:
    """Median and spread (largest minus smallest) of million bases a second; a first run warms the disk cache."""
    read(0)
    rates = []
    for repeat in range(repeats):
        start = time.perf_counter()
        read(repeat)
        rates.append(bases / (time.perf_counter() - start) / 1e6)
    return statistics.median(rates), max(rates) - min(rates)


def measure_worker(corpus: GenomeWindows, windows: int, repeats: int) -> tuple[float, float]:
    """The same for one DataLoader worker, from the arrival of its first window on."""
    rates = []
    for repeat in range(repeats):
        loader = iter(DataLoader(_Ids(corpus, repeat * windows, windows + 1), batch_size=None, num_workers=1))
        next(loader)
        start = time.perf_counter()
        arrived = sum(len(ids) for ids in loader)
        rates.append(arrived / (time.perf_counter() - start) / 1e6)
    return statistics.median(rates), max(rates) - min(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fasta", type=Path, help="a FASTA, plain or bgzip")
    parser.add_argument("--window-bases", type=int, nargs="+", default=[1_048_576, 131_072, 1024])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    fixed = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} cores, {platform.system()}",
        "versions": f"python {platform.python_version()}, numpy {np.__version__}, torch {torch.__version__}, "
        f"pysam {pysam.__version__}, pyfaidx {pyfaidx.__version__}",
        "commit": commit,
        "repeats": arguments.repeats,
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for source, path in both_forms(arguments.fasta, Path(folder)):
            start = time.perf_counter()
            bases = sum(Fasta(path).lengths.values())
            print(f"{source}: opened for the first time (checks, counts, index) in {time.perf_counter() - start:.2f} s")
            print(f"{source}: {bases / 1e6:.1f} million bases")
            for window_bases in arguments.window_bases:
                windows = max(24, min(2000, 32_000_000 // window_bases))
                corpus = GenomeWindows(
                    str(path), window_bases=window_bases, splits=HeldOutRegions(valid=0, test=0),
                    windows_per_epoch=arguments.repeats * windows + 1,
                )  # fmt: skip
                results = {
                    name: measure(read, windows * window_bases, arguments.repeats)
                    for name, read in readers(path, corpus, windows).items()
                } | {"worker": measure_worker(corpus, windows, arguments.repeats)}
                for reader, (median, spread) in results.items():
                    print(f"  {source:6} {reader:8} {window_bases:>9} bases: {median:8.1f} ± {spread / 2:.1f} Mb/s")
                    rows.append(fixed | {
                        "source": source, "reader": reader, "window_bases": window_bases, "windows": windows,
                        "mbases_per_s": f"{median:.1f}", "spread": f"{spread:.1f}",
                    })  # fmt: skip
    new = not RESULTS.exists()
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows appended to {RESULTS}")


if __name__ == "__main__":
    main()
