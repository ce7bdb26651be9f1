"""Windows of sequence around a variant: as the reference has it, and as it would be with each allele."""

from __future__ import annotations

import numpy as np

from domains.dna.fasta import Genome
from domains.dna.intervals import find_contig
from domains.dna.tokenizer import DnaTokenizer, as_bytes
from domains.dna.variants.vcf import Variant


class VariantWindows:
    """The reference window and the alternative windows of a variant.

    Args:
        genome: the reference.
        tokenizer: letters to ids.
        window_bases: length of every window (shorter only where the whole sequence is).
    """

    def __init__(self, genome: Genome, tokenizer: DnaTokenizer, window_bases: int):
        self.genome, self.tokenizer, self.window_bases = genome, tokenizer, window_bases
        self.lengths = genome.lengths

    def of(self, variant: Variant) -> tuple[np.ndarray | None, list[np.ndarray | None]]:
        """Ids of the reference window and of each ALT's; None and a status in `variant` where there is none."""
        contig = find_contig(variant.cells[0], self.lengths)
        problem = self._problem(variant, contig)
        for row, alt in enumerate(variant.alts):
            variant.statuses[row] = problem or self._problem_of_allele(alt)
        if "ok" not in variant.statuses:
            return None, [None] * len(variant.alts)
        assert contig is not None  # else _problem had said so
        scored = [alt.upper() for alt, status in zip(variant.alts, variant.statuses) if status == "ok"]
        left = (self.window_bases - max(map(len, [variant.ref, *scored]))) // 2
        reference = self._haplotype_window(contig, variant.start, variant.ref, variant.ref, left)
        return reference, [
            self._haplotype_window(contig, variant.start, variant.ref, alt.upper(), left) if status == "ok" else None
            for alt, status in zip(variant.alts, variant.statuses)
        ]

    def _problem(self, variant: Variant, contig: str | None) -> str:
        """The status that keeps the whole record from being scored, or ""."""
        if contig is None:
            return "no_such_contig"
        start, ref = variant.start, variant.ref
        if start < 0 or start + len(ref) > self.lengths[contig]:
            return "past_end"
        if set(ref) - set("ACGT"):
            return "not_acgt"  # N too: it does not count, so an allele in its place would look like a loss
        there = bytes(self.genome.fetch(contig, start, start + len(ref))).upper()
        if there.replace(b"U", b"T") != ref.encode():
            return "ref_mismatch"
        return "too_long" if len(ref) >= self.window_bases else ""

    def _problem_of_allele(self, alt: str) -> str:
        if alt == "*" or any(mark in alt for mark in "<>[]"):
            return "symbolic"
        if not alt or set(alt.upper()) - set("ACGT"):
            return "not_acgt"
        return "too_long" if len(alt) >= self.window_bases else "ok"

    def _haplotype_window(self, contig: str, start: int, ref: str, allele: str, left: int) -> np.ndarray:
        """`window_bases` of the sequence as it is with `allele` in place of `ref`, `left` bases before it."""
        total = self.lengths[contig] - len(ref) + len(allele)
        begin = max(0, min(start - left, total - self.window_bases))
        before = self.genome.fetch(contig, begin, start)
        room = self.window_bases - len(before) - len(allele)
        after_start = start + len(ref)
        after = self.genome.fetch(contig, after_start, min(after_start + room, self.lengths[contig]))
        return self.tokenizer.encode(np.concatenate([before, as_bytes(allele), after]))
