"""Derives experiments/demo/human_rhesus.vcf from the embedded human and rhesus contigs; run it to get the same file.

Two kinds of single-base substitutions on `hg38.fa.gz` (record chr16), named by INFO/ORIGIN:

- `rhesus`: a real difference. REF is the human base, ALT the base that the rhesus contig has at the aligned place.
- `in_silico`: a made-up control: for each real one the same substitution (same REF, same ALT) at a position drawn
  among those with this REF up to 500 bases away. Kind of substitution and neighbourhood are matched, so what tells
  the two apart is the context of the position, not that transitions are more common.

Positions are 1-based in the embedded record; INFO/HG38_POS is the place on hg38's chromosome 16 by the record's header.
Only the last tenth of the contig is used, which no model of the demo trains on; the aligned rhesus bases lie in the
last tenth of the rhesus contig, so the ALT bases were not seen in training either.

    python experiments/demo/make_variants.py
"""

from __future__ import annotations

import gzip
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
GENOMES = HERE.parents[1] / "domains" / "dna" / "examples" / "vertebrates"
OUTPUT = HERE / "human_rhesus.vcf"
FIRST_HG38_BASE = 186_964  # 1-based start of the contig on chr16, from its FASTA header
HELD_OUT_FROM = 0.9  # share of the contig before the first position used
ANCHOR_BASES = 16  # exact matches of this length, found once in either contig, fix the alignment
FLANK_BASES = 10  # matching bases wanted on both sides of a difference: no indel, no repeat slip nearby
CONTROL_DISTANCE = 500
EDGE_BASES = 50  # no variants this close to the end of the contig


def read_contig(name: str) -> str:
    """The bases of one embedded contig, upper case."""
    with gzip.open(GENOMES / f"{name}.fa.gz", "rt") as file:
        return "".join(line.strip() for line in file if not line.startswith(">")).upper()


def unique_words(bases: str) -> dict[str, int]:
    """Words of `ANCHOR_BASES` without N that occur once, with their position."""
    places: dict[str, int] = {}
    for start in range(len(bases) - ANCHOR_BASES + 1):
        word = bases[start : start + ANCHOR_BASES]
        places[word] = -1 if word in places else start
    return {word: start for word, start in places.items() if start >= 0 and "N" not in word}


def differences(human: str, rhesus: str) -> list[tuple[int, str]]:
    """(human position, rhesus base) of substitutions with matching flanks on the diagonal of the anchor before them."""
    human_words, rhesus_words = unique_words(human), unique_words(rhesus)
    anchors = sorted((start, rhesus_words[word]) for word, start in human_words.items() if word in rhesus_words)
    found: dict[int, str] = {}
    for (at, other), (following, _) in zip(anchors, [*anchors[1:], (len(human), 0)]):
        shift = other - at
        for position in range(at + ANCHOR_BASES, min(following + ANCHOR_BASES, at + 200, len(human) - FLANK_BASES)):
            left, right = slice(position - FLANK_BASES, position), slice(position + 1, position + 1 + FLANK_BASES)
            left_there = slice(left.start + shift, left.stop + shift)
            right_there = slice(right.start + shift, right.stop + shift)
            if human[left] != rhesus[left_there] or human[right] != rhesus[right_there]:
                continue
            if rhesus[position + shift] not in ("N", human[position]):
                found[position] = rhesus[position + shift]
    return sorted(found.items())


def controls(human: str, real: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """For each real difference the same substitution nearby, never at the same place as another variant."""
    generator = random.Random(0)
    low, high = int(len(human) * HELD_OUT_FROM), len(human) - EDGE_BASES
    taken = {position for position, _ in real}
    made = []
    for near, base in real:
        window = range(max(low, near - CONTROL_DISTANCE), min(high, near + CONTROL_DISTANCE + 1))
        position = generator.choice([at for at in window if human[at] == human[near] and at not in taken])
        taken.add(position)
        made.append((position, base))
    return made


def main() -> None:
    """Write the VCF and say what is in it."""
    human, rhesus = read_contig("hg38"), read_contig("rheMac3")
    low, high = int(len(human) * HELD_OUT_FROM), len(human) - EDGE_BASES
    real = [(at, base) for at, base in differences(human, rhesus) if low <= at < high]
    rows = [(at, base, "rhesus") for at, base in real] + [(at, base, "in_silico") for at, base in controls(human, real)]
    lines = [
        "##fileformat=VCFv4.3",
        "##source=experiments/demo/make_variants.py",
        "##reference=domains/dna/examples/vertebrates/hg38.fa.gz",
        f"##contig=<ID=chr16,length={len(human)}>",
        '##INFO=<ID=ORIGIN,Number=1,Type=String,Description="rhesus: base of the aligned rheMac3 contig; '
        'in_silico: the same substitution made up nearby">',
        '##INFO=<ID=HG38_POS,Number=1,Type=Integer,Description="1-based position on chr16 of hg38">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
    ]
    for number, (at, base, origin) in enumerate(sorted(rows), 1):
        info = f"ORIGIN={origin};HG38_POS={at + FIRST_HG38_BASE}"
        lines.append(f"chr16\t{at + 1}\tv{number:03d}\t{human[at]}\t{base}\t.\t.\t{info}")
    OUTPUT.write_text("\n".join(lines) + "\n")
    print(f"{OUTPUT.name}: {len(real)} real human-rhesus differences and as many in-silico controls")


if __name__ == "__main__":
    main()
