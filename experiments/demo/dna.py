"""The DNA steps: a language model of eight vertebrate contigs, species of 1 kb windows, variants of a VCF."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import torch
from stage import ROOT, Result, Stage

from domains.dna.baselines import kmer_baseline
from domains.dna.datasets import GenomeWindows, SpeciesWindows
from domains.dna.tokenizer import BASE_IDS
from seqmodels.data.markov import MarkovRow, markov_bits
from seqmodels.inference import load
from seqmodels.reporting import (
    Columns,
    Command,
    ConfusionMatrix,
    Curve,
    Curves,
    Figure,
    Histogram,
    PredictionTrace,
    Reference,
    Score,
    Table,
    macro_recall,
)

WINDOW_BASES = 1024  # of every evaluation
MAX_ORDER = 11  # of the Markov models; the best lies well below
TRACE_FROM, TRACE_BASES = 900, 80  # positions in the first held-out window that the figure shows
TRACE_CAPTION = (
    f"What the model expects before each of {TRACE_BASES} bases that it has never seen (human contig, after "
    f"{TRACE_FROM} bases of context). The height of a peak is the probability of A, C, G or T; the letter below is the "
    "base that came."
)
NAMES = {
    "bosTau8": "cow",
    "canFam3": "dog",
    "galGal4": "chicken",
    "hg38": "human",
    "mm10": "mouse",
    "monDom5": "opossum",
    "rheMac3": "rhesus",
    "rn6": "rat",
}
HUMAN = ROOT / "domains" / "dna" / "examples" / "vertebrates" / "hg38.fa.gz"
VCF = Path(__file__).resolve().with_name("human_rhesus.vcf")
WORDS = {"rhesus": "real", "in_silico": "made up"}  # INFO/ORIGIN of the VCF
QUICK = ("trainer.max_steps=4", "trainer.val_every_steps=2", "trainer.val_batches=1", "trainer.log_every_steps=1")


def language_model(stage: Stage) -> Result:
    """Pretrains on bases; held-out bits a base beside uniform and Markov models."""
    stage.train("dna", "demo_dna", quick=QUICK)
    report = stage.evaluate("dna", f"domain.dataset.window_bases={WINDOW_BASES}")
    with stage.baseline(f"Markov models of order 0 to {MAX_ORDER} of the same split"):
        table = markov_table()
    best = min(table, key=lambda row: row.bits)
    bits = report["metrics"]["bits_per_base"]
    score = Score(
        "DNA language model",
        bits,
        "bits/base",
        [Reference("uniform", 2.0), Reference(f"Markov order {best.order}", best.bits)],
        note=f"Last tenth of each of eight vertebrate contigs, {report['sequences']} windows of {WINDOW_BASES} bases",
        name="Mamba",
    )
    paragraph = (
        f"On held-out DNA the model needs **{bits:.3f} bits a base**; guessing needs 2.000, and the best of "
        f"{len(table)} Markov models (order {best.order}, smoothing tuned on training data) {best.bits:.3f}. "
        f"{score.verdict()} All were trained on the first eight tenths of each contig and judged on the last."
    )
    steps, values = stage.metrics("dna", "train", "bits_per_base")
    curves = Curves(
        [
            Curve("training", steps, values, smooth=True),
            Curve("validation", *stage.metrics("dna", "valid", "bits_per_base"), dots=True),
        ],
        "bits a base",
        "training step",
        [Reference("uniform", 2.0), Reference(f"Markov order {best.order}, test", best.bits)],
    )
    shown = [row for row in table if row.order % 2 == 0 or row is best]
    rows = [("uniform", 2.0), *((f"Markov order {row.order}", row.bits) for row in shown), ("Mamba", bits)]
    blocks = [
        Columns([curves, Table(["model", "held-out bits/base"], rows, marked=[len(rows) - 1])]),
        Figure(trace(stage), TRACE_CAPTION),
        Command(stage.typed()),
    ]
    return Result("DNA language model", paragraph, blocks, [score], tuple(stage.commands))


def markov_table() -> list[MarkovRow]:
    """Held-out bits a base of Markov models, on the regions that the model is judged on."""
    corpus = GenomeWindows(window_bases=WINDOW_BASES)
    others = [symbol for symbol in range(corpus.tokenizer.vocab_size) if symbol not in BASE_IDS]
    return markov_bits(corpus.region_ids("train"), corpus.region_ids("test"), max_order=MAX_ORDER, ignore=others)


def trace(stage: Stage) -> PredictionTrace:
    """What the model expects in the held-out end of the human contig."""
    loaded = load(stage.run("dna"))
    corpus = GenomeWindows(str(HUMAN), window_bases=WINDOW_BASES, tokenizer=loaded.tokenizer)  # type: ignore[arg-type]
    ids = corpus.split("test")[0].ids.astype(np.int64)
    inputs_BL = torch.tensor([[loaded.tokenizer.start_id, *ids[:-1]]], device=next(loaded.model.parameters()).device)
    with torch.no_grad():
        logits_BLV, _ = loaded.model(inputs_BL)
    shown = slice(TRACE_FROM, TRACE_FROM + TRACE_BASES)
    probabilities_LV = torch.softmax(logits_BLV[0, shown].float(), dim=-1)[:, list(BASE_IDS)].cpu().numpy()
    letters = corpus.tokenizer.decode(ids[shown])
    first = int(0.9 * corpus.genome.counts()["bases"]) + shown.start + 1
    return PredictionTrace(probabilities_LV, "ACGT", letters, first_position=first)


def species(stage: Stage) -> Result:
    """Trains the language model on, told the species, and asks which one is likeliest; beside chance and k-mers."""
    stage.train("species", "demo_species", f"model_from={stage.shown(stage.run('dna'))}", quick=QUICK)
    report = stage.evaluate("species", "by_likelihood=true", f"domain.dataset.window_bases={WINDOW_BASES}")
    with stage.baseline("logistic regression on 5-mer counts of the same windows"):
        train_windows = 256 if stage.quick else 4096
        kmers = kmer_baseline(SpeciesWindows(window_bases=WINDOW_BASES), k=5, train_windows=train_windows)
    counts = np.array(report["confusion"])
    accuracy, recall = report["metrics"]["accuracy"], macro_recall(counts)
    chance = 1 / len(counts)
    score = Score(
        "Species of a 1 kb window",
        accuracy,
        "accuracy",
        [Reference("chance", chance), Reference("5-mer logistic regression", kmers.accuracy)],
        better="higher",
        note=f"{counts.sum()} windows of eight species from held-out regions; they overlap, so ±0.04 is noise",
        name="Mamba",
    )
    paragraph = (
        "The pretrained model learned on, told the species of every training window. Asked which species makes a "
        f"held-out 1 kb window likeliest, it names the right one of eight for **{accuracy:.1%}** of them (macro recall "
        f"{recall:.1%}). Chance is {chance:.1%}, logistic regression on 5-mer counts reaches {kmers.accuracy:.1%}. "
        f"{score.verdict()} A classifier learns one label a window; this model learns from every base."
    )
    names = [NAMES.get(name) or name for name in report["class_names"]]
    curves = Curves(
        [
            Curve("training", *stage.metrics("species", "train", "bits_per_base"), smooth=True),
            Curve("validation", *stage.metrics("species", "valid", "bits_per_base"), dots=True),
        ],
        "bits a base, told the species",
        "training step",
    )
    matrices = [
        Figure(ConfusionMatrix(counts, names), f"Mamba: {accuracy:.1%} right"),
        Figure(ConfusionMatrix(kmers.confusion, names), f"5-mer logistic regression: {kmers.accuracy:.1%} right"),
    ]
    rows = [
        ("chance", chance, chance),
        ("5-mer logistic regression", kmers.accuracy, kmers.macro_recall),
        ("Mamba", accuracy, recall),
    ]
    results = Table(["model", "accuracy", "macro recall"], rows, marked=[2])
    blocks = [Columns(matrices), Columns([curves, results]), Command(stage.typed())]
    return Result("Species of DNA windows", paragraph, blocks, [score], tuple(stage.commands))


def variants(stage: Stage) -> Result:
    """Scores a VCF; real differences between human and rhesus beside made-up ones."""
    scored, table = stage.folder / "human_rhesus.scored.vcf", stage.folder / "human_rhesus.scored.tsv"
    stage.seqmodels(
        "score", f"run={stage.shown(stage.run('dna'))}", f"vcf={stage.shown(VCF)}", f"fasta={stage.shown(HUMAN)}",
        f"output={stage.shown(scored)}", f"table={stage.shown(table)}",
        f"scorer.window_bases={64 if stage.quick else 512}",
    )  # fmt: skip
    origin = origins(scored)
    with open(table, newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["status"] == "ok"]
    real, made_up = (
        np.array([float(row["score"]) for row in rows if origin[row["id"]] == name]) for name in ("rhesus", "in_silico")
    )
    auc = area_under_curve(real, made_up)
    error = auc_error(auc, len(real), len(made_up))
    score = Score(
        "Real variant or made up?",
        auc,
        "AUC",
        [Reference("chance", 0.5)],
        better="higher",
        digits=2,
        note=f"{len(real)} human–rhesus differences against as many matched made-up substitutions; "
        f"standard error {error:.2f}",
        name="Mamba",
    )
    clear = "more than two standard errors from" if abs(auc - 0.5) > 2 * error else "within two standard errors of"
    paragraph = (
        f"{len(rows)} substitutions on held-out human DNA were scored with log p(ALT) − log p(REF). Half of them are "
        f"**real**: the base that the rhesus macaque has at the aligned position. The other half are **made up**: the "
        f"same substitution at another position nearby. The model ranks a real one above a made-up one in {auc:.0%} of "
        f"pairs, {clear} chance (50%). Mean score: real {real.mean():+.2f}, made up {made_up.mean():+.2f} nats. "
        f"These are likelihoods under a minute of training, not statements about disease."
    )
    rows.sort(key=lambda row: float(row["score"]))
    shown = [*rows[:5], *rows[-5:]]
    cells = [
        (f"{row['chrom']}:{row['pos']}", f"{row['ref']} → {row['alt']}", WORDS[origin[row["id"]]], float(row["score"]))
        for row in shown
    ]
    columns = ["position", "REF → ALT", "origin", "score, nats"]
    extremes = Table(columns, cells, caption="The five least and the five most likely alternatives")
    spread = Histogram({"made up": made_up, "real": real}, "log p(ALT) − log p(REF), nats")
    blocks = [
        Columns([spread, extremes]),
        Command(stage.typed(), f"The same by command; it wrote {scored.name} and {table.name}"),
    ]
    return Result("Variant scores", paragraph, blocks, [score], tuple(stage.commands))


def origins(vcf: Path) -> dict[str, str]:
    """ORIGIN of every record of a VCF, by ID."""
    lines = (line.split("\t") for line in vcf.read_text().splitlines() if not line.startswith("#"))
    return {cells[2]: cells[7].split("ORIGIN=")[1].split(";")[0] for cells in lines}


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of (positive, negative) pairs in which the positive one scores higher; ties count half."""
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """Standard error of an area under the curve (Hanley and McNeil 1982, equation 2)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return math.sqrt(spread / (positives * negatives))
