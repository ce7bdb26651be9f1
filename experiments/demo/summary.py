"""The demo's report: headline scores, a section for each step, time and versions, how to go on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from stage import Result, Stage

from seqmodels.reporting import (
    Columns,
    Command,
    Facts,
    Paragraph,
    Report,
    ScoreBoard,
    Section,
    Timeline,
    machine,
    versions,
)
from seqmodels.reporting.markup import duration

DATA = (
    "DNA: eight contigs of the alpha-globin region (hg38, rheMac3, mm10, rn6, bosTau8, canFam3, monDom5, galGal4), "
    "1.74 million bases, from Debian's augustus-doc. Sound: digits 0–9 by five voices, 8 kHz, 32 seconds, from "
    "Debian's asterisk-core-sounds (Allison Smith, June Wallack, Carlo Flora, ivrvoice.ru; CC BY-SA 3.0, CC BY 3.0). "
    "`NOTICE` has the licences. Variants: `experiments/demo/make_variants.py` says how they were derived."
)
NEXT = {
    "Your own genome": "seqmodels train experiment=quickstart_dna domain.dataset.fasta=my.fa trainer.max_steps=2000",
    "Your own sound": "seqmodels train experiment=quickstart_audio domain.dataset.folder=wavs/ trainer.max_steps=2000",
    "Longer training of what the demo made": "seqmodels train resume={run}/dna trainer.max_steps=6000",
    "DNA out of the model": "seqmodels generate run={run}/dna length=1000 prompt=ACGTACGT",
    "What this machine can do": "seqmodels doctor",
}


def write_report(stage: Stage, results: Sequence[Result], seconds: float) -> Path:
    """Writes report.html into the demo's folder."""
    today = time.strftime("%d %B %Y").lstrip("0")
    facts = machine()
    device = facts["GPU"] if facts.get("GPU", "none used") != "none used" else f"{facts['cores']} CPU cores"
    run = stage.shown(stage.folder)
    quick = [Paragraph("A quick run of a few training steps: the numbers mean nothing.", "note")] if stage.quick else []
    report = Report(
        title="Real DNA and real sound, from file to model to output",
        kicker=f"seqmodels demo, {today}",
        lead=f"Small Mamba models were trained from nothing on this machine ({device}) in {duration(seconds)}: on the "
        "DNA of eight vertebrates and on spoken digits. Every result stands beside the simple models that it has to "
        "beat, measured on the same held-out data.",
        headline=[*quick, ScoreBoard([score for result in results for score in result.scores])],
        sections=[
            *(result.section() for result in results),
            Section(
                "Time, machine, versions",
                [Timeline({result.title: result.seconds for result in results}), Facts({**facts, **versions()}),
                 Paragraph(DATA)],
                aside=duration(seconds),
            ),
            Section("How to go on", [Columns([Command(c.format(run=run), what) for what, c in NEXT.items()])]),
        ],
        foot="One self-contained file: figures, sound and style are inside, nothing is loaded from anywhere.",
    )  # fmt: skip
    return report.write(stage.folder / "report.html")
