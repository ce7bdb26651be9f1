"""Are held-out bases copies of training bases? What does reading further back bring, base by base?  (on a CPU)

    python experiments/dna/audit.py --run OUT/dna_run [--data build/dna] [--windows 4] [--csv FILE]

The leak report of `seqmodels train` compares coordinates; this compares sequence, and asks a trained model:

copies    the share of held-out bases that lie in a stretch of k bases found letter for letter in the training part, on
          either strand
bits      bits/base of the model inside and outside of such stretches, in `--windows` windows of 16,384 of each split
reading   bits/base on the very same bases, by how many bases lie before them in a window of 1,024; beside it what the
          model says of them in windows of 16,384, and the standard error of the difference (over windows of 1,024)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `python experiments/...` puts only this folder on the path

from experiments.dna import data as dna_data  # noqa: E402
from experiments.dna import language_model as lm  # noqa: E402

COPY_BASES = (32, 128)
PIECE = 2**23  # training stretches looked up at a time: bounds memory
MULTIPLIER = 0x9E3779B97F4A7C15
COLUMNS = ["what", "split", "copy_bases", "where", "bases", "share", "bits_per_base", "bits_long_window",
           "error_of_difference", "run", "gpu", "torch", "triton", "commit", "date"]  # fmt: skip
Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------- copies


def fingerprints(bases: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit number for each stretch of k letters, and whether it is made of A, C, G and T alone.

    Args:
        bases: 0..3, anything above for other letters.
        k: a power of two.
    """
    found, multiplier, length = bases.astype(np.uint64) + np.uint64(1), MULTIPLIER, 1
    while length < k:  # of a stretch of 2m: first half * multiplier**m + second half
        found = found[:-length] * np.uint64(multiplier) + found[length:]
        multiplier, length = multiplier * multiplier % 2**64, 2 * length
    unknown = np.concatenate([[0], np.cumsum(bases > 3, dtype=np.int64)])
    return found, unknown[k:] == unknown[:-k]


def copied(held_out: np.ndarray, training: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Which held-out bases lie in a stretch of k that occurs in `training` or in its reverse complement."""
    prints, known = fingerprints(held_out, k)
    asked, shared = Sieve(prints[known]), []
    for strand in (one for bases in training for one in (bases, reverse_complement(bases))):
        for first in range(0, len(strand) - k + 1, PIECE):
            theirs, real = fingerprints(strand[first : first + PIECE + k - 1], k)
            shared.append(np.unique(theirs[real & asked.may_hold(theirs)]))
    candidates = np.unique(np.concatenate(shared))  # still with false ones, which sieves let through
    hits = known & Sieve(candidates).may_hold(prints)
    hits[hits] = np.isin(prints[hits], candidates)
    steps = np.zeros(len(held_out) + 1, np.int64)
    np.add.at(steps, np.flatnonzero(hits), 1)
    np.add.at(steps, np.flatnonzero(hits) + k, -1)
    return np.cumsum(steps)[:-1] > 0


class Sieve:
    """Most of what is not among `prints` is turned away at once, by the first 27 bits: sorting is for the rest."""

    def __init__(self, prints: np.ndarray) -> None:
        self.bits = np.zeros(2**27, bool)
        self.bits[prints >> np.uint64(37)] = True

    def may_hold(self, prints: np.ndarray) -> np.ndarray:
        """False: certainly not among them."""
        return self.bits[prints >> np.uint64(37)]


def reverse_complement(bases: np.ndarray) -> np.ndarray:
    """Of 0..3 in the order A, C, G, T; what lies above stays."""
    return np.where(bases < 4, 3 - bases, bases)[::-1].astype(bases.dtype)


def letters(corpus: Any, split: str) -> list[np.ndarray]:
    """A, C, G, T as 0..3 and other letters as 255, one array a region."""
    table = np.full(256, 255, np.uint8)
    for place, letter in enumerate(b"ACGT"):
        table[[letter, letter + 32]] = place
    fetch = corpus.genome.fetch
    regions = ((region.contig, region.start, region.end) for region in corpus.regions[split])
    return [table[np.frombuffer(bytes(fetch(*region)), np.uint8)] for region in regions]


# ----------------------------------------------------------------------------------------------------------- the model


def bits_of(loaded: Any, ids: np.ndarray) -> np.ndarray:
    """Bits of every base, each row read with nothing before it."""
    import torch

    from seqmodels.inference.likelihood import token_log_likelihood

    rows = torch.from_numpy(np.ascontiguousarray(ids)).long()
    found, _ = token_log_likelihood(loaded.model, rows, start_id=loaded.tokenizer.start_id)
    return -found.cpu().numpy() / np.log(2)


def reading_rows(short: np.ndarray, long: np.ndarray) -> Iterator[Row]:
    """Same bases (windows, position): bits after `position` bases, and in long windows."""
    edge, length = 0, short.shape[1]
    for end in (16, 64, 256, 512, length) if length > 512 else (length // 4, length):
        ours, theirs = short[:, edge:end], long[:, edge:end]
        by_window = (ours - theirs).mean(axis=1)
        yield dict(
            what="reading", where=f"{edge}-{end - 1} before", bases=ours.size,
            bits_per_base=round(float(ours.mean()), 4), bits_long_window=round(float(theirs.mean()), 4),
            error_of_difference=round(float(by_window.std(ddof=1) / len(by_window) ** 0.5), 4),
        )  # fmt: skip
        edge = end


def rows_of(data: dna_data.HumanData, run: Path, *, windows: int, lengths: tuple[int, int]) -> Iterator[Row]:
    """All rows."""
    from seqmodels.inference import load

    short_length, long_length = lengths
    corpus, loaded = lm.corpus(data, min(1024, data.unit)), load(run, "cpu", which="last")
    regions = {split: letters(corpus, split) for split in lm.SPLIT_NAMES}
    joined = np.concatenate([apart(found) for found in regions.values()])
    masks = {k: copied(joined, letters(corpus, "train"), k) for k in COPY_BASES}
    first = 0
    for split, name in lm.SPLIT_NAMES.items():
        here = slice(first, first := first + len(apart(regions[split])))
        bases, inside = joined[here], {k: mask[here] for k, mask in masks.items()}
        for k, mask in inside.items():
            share = float(mask[bases < 4].mean())
            yield dict(what="copies", split=name, copy_bases=k, bases=int((bases < 4).sum()), share=round(share, 5))
        starts = chosen(regions[split], windows, long_length)
        spots = np.stack([np.arange(start, start + long_length) for start in starts])
        ids = corpus.tokenizer.encode(np.frombuffer(b"ACGTN", np.uint8)[np.minimum(bases[spots], 4)].reshape(-1))
        ids = ids.reshape(spots.shape)
        bits = np.concatenate([bits_of(loaded, row[None]) for row in ids])
        yield from ({**row, "split": name} for row in bits_rows(bits, bases[spots] < 4, masks_at(inside, spots)))
        if split == "valid":
            short = np.concatenate([bits_of(loaded, row.reshape(-1, short_length)) for row in ids])
            yield from ({**row, "split": name} for row in reading_rows(short, bits.reshape(short.shape)))


def masks_at(masks: Mapping[int, np.ndarray], spots: np.ndarray) -> dict[int, np.ndarray]:
    """The masks in windows."""
    return {k: mask[spots] for k, mask in masks.items()}


def bits_rows(bits: np.ndarray, real: np.ndarray, masks: Mapping[int, np.ndarray]) -> Iterator[Row]:
    """Bits inside and outside of copies; `real`: A, C, G or T."""
    for k, mask in masks.items():
        for where, chosen_ones in (("inside", mask & real), ("outside", real & ~mask)):
            if chosen_ones.any():
                found = dict(bases=int(chosen_ones.sum()), share=round(float(chosen_ones.mean()), 5))
                found["bits_per_base"] = round(float(bits[chosen_ones].mean()), 4)
                yield dict(what="bits", copy_bases=k, where=where, **found)


def apart(regions: Sequence[np.ndarray]) -> np.ndarray:
    """Regions joined by letters that are none, so that no stretch crosses from one to the next."""
    return np.concatenate([np.append(region, np.full(max(COPY_BASES), 255, np.uint8)) for region in regions])


def chosen(regions: Sequence[np.ndarray], windows: int, length: int) -> list[int]:
    """Where in the joined regions evenly spaced windows begin, at multiples of their length."""
    every, offset = [], 0
    for region in regions:
        every += [offset + start for start in range(0, len(region) - length + 1, length)]
        offset += len(region) + max(COPY_BASES)
    return [every[place * len(every) // windows] for place in range(min(windows, len(every)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="run folder of a causal DNA model")
    parser.add_argument("--run-name", default="", help="what the table calls it")
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "dna", help="folder made by data.py")
    parser.add_argument("--windows", type=int, default=4, help="of each split, for the model")
    parser.add_argument("--csv", type=Path, default=ROOT / "build" / "dna_results" / "dna_audit.csv")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    options = parser.parse_args()
    from seqkernels.bench import append_csv

    with tempfile.TemporaryDirectory(prefix="dna-") as work:
        data = dna_data.unpack_human(options.data, Path(work))
        about = dict(run=options.run_name or options.run.name, **lm.machine(), **lm.stamp(options.commit))
        for row in rows_of(data, options.run, windows=options.windows, lengths=(1024, 2**14)):
            append_csv(options.csv, [{name: (row | about).get(name, "") for name in COLUMNS}])
            print(row, flush=True)


if __name__ == "__main__":
    main()
