"""Figures of pretrain.py and context.py from their CSVs:  python experiments/dna/figures.py [--results FOLDER]

pretrain.png: bits/base against tokens beside Markov models of every order, and by class of bases. context.png:
perplexity by length of window, what a longer context is worth at test time, speed, memory, the loss on the way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # `python experiments/...` puts only this folder on the path

from experiments import charts  # noqa: E402

SPLITS = {"chr20_held_out": ("chromosome 20, held out", "#1458c0"), "chr22": ("chromosome 22", "#cc3340")}
KINDS = {"continue": ("from the model of 1,024", "#1458c0"), "scratch": ("from scratch", "#b07800"),
         "small": ("from scratch, half the width", "#1f8a4c")}  # fmt: skip
SHADES = ("#c6dbf7", "#98bdf0", "#6a9fe6", "#3f7fd8", "#1458c0", "#0a2f6b")
Row = dict[str, str]


def wanted(rows: Sequence[Row], **values: str) -> list[Row]:
    """Rows with these values, without failed ones."""
    return [row for row in rows if row["status"] == "ok" and all(row[key] == value for key, value in values.items())]


def column(rows: Sequence[Row], name: str) -> list[float]:
    """A column as numbers."""
    return [float(row[name]) for row in rows]


def best_markov(rows: Sequence[Row], split: str, region_class: str = "all") -> Row | None:
    """The Markov model with the fewest bits."""
    found = wanted(rows, what="markov", split=split, region_class=region_class)
    return min(found, key=lambda row: float(row["bits_per_base"]), default=None)


def pretrain(rows: Sequence[Row], to: Path) -> None:
    """Three panels: curve, Markov orders, classes."""
    figure, (curve, orders, classes) = charts.panels(3, columns=3, width=4.4, height=3.4)
    for split, (label, colour) in SPLITS.items():
        here = wanted(rows, what="curve", split=split)
        curve.plot(column(here, "tokens"), column(here, "bits_per_base"), "o-", color=colour, label=label)
        if best := best_markov(rows, split):
            curve.axhline(float(best["bits_per_base"]), color=colour, linestyle="--", linewidth=1)
        for strands, style in (("one", ":"), ("both", "--")):
            found = wanted(rows, what="markov", split=split, region_class="all", strands=strands)
            label_of = f"{label}, {'both strands' if strands == 'both' else 'one strand'}"
            orders.plot(column(found, "order"), column(found, "bits_per_base"), style, color=colour, label=label_of)
        if end := wanted(rows, what="held_out", split=split, region_class="all"):
            orders.axhline(min(column(end, "bits_per_base")), color=colour, linewidth=1.4)
    curve.set(xscale="log", xlabel="training tokens", ylabel="bits/base", title="Held-out bits against tokens")
    curve.set_ylim(top=2.01)
    curve.legend(title="dashed: best Markov model")
    orders.set(xlabel="order", title="Markov models (lines: ours)")
    orders.legend(fontsize=7)
    _class_bars(classes, rows)
    charts.save(figure, to)


def _class_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Chromosome 22 by class: the model, the Markov model that is best on all, the best of each class."""
    names = ("all", "repeat", "unique")
    best = best_markov(rows, "chr22")
    judged = {name: wanted(rows, what="held_out", split="chr22", region_class=name) for name in names}
    bars: list[tuple[str, list[float]]] = [
        ("Mamba", [min(column(judged[name], "bits_per_base"), default=float("nan")) for name in names])
    ]
    if best is not None:
        same = {
            row["region_class"]: float(row["bits_per_base"])
            for row in wanted(rows, what="markov", split="chr22", order=best["order"], strands=best["strands"])
        }
        each = [best_markov(rows, "chr22", name) for name in names]
        bars.append((f"Markov {best['order']}", [same.get(name, float("nan")) for name in names]))
        bars.append(("Markov, best of class", [float(row["bits_per_base"]) if row else float("nan") for row in each]))
    for place, ((label, values), colour) in enumerate(zip(bars, ("#1458c0", "#98a4b0", "#cfd6dc"))):
        drawn = axes.bar([n + 0.27 * (place - 1) for n in range(len(names))], values, 0.25, color=colour, label=label)
        axes.bar_label(drawn, fmt="%.3f", fontsize=6.5, padding=1)
    axes.set_xticks(range(len(names)), ["all", "repeats", "the rest"])
    axes.set(ylim=(1.2, 2.1), title="Chromosome 22 by class")
    axes.legend(fontsize=7, ncols=3, loc="upper center")


def context(rows: Sequence[Row], to: Path) -> None:
    """Six panels."""
    figure, (own, worth, own22, speed, memory, loss) = charts.panels(6, columns=3, width=4.4, height=3.2)
    for kind, (label, colour) in KINDS.items():
        for axes, split in ((own, "chr20_held_out"), (own22, "chr22")):
            here = wanted(rows, what="held_out", kind=kind, split=split)
            here = _sorted([row for row in here if row["eval_length"] == row["train_length"]])
            axes.plot(column(here, "train_length"), column(here, "perplexity"), "o-", color=colour, label=label)
        here = _sorted(wanted(rows, what="training", kind=kind))
        millions = [rate / 1e6 for rate in column(here, "tokens_per_s")]
        speed.plot(column(here, "train_length"), millions, "o-", color=colour, label=label)
        peaks = [float(row["peak_gib"] or "nan") for row in here]
        memory.plot(column(here, "train_length"), peaks, "o-", color=colour, label=label)
        for peer in (row for row in here if row["peer_tokens_per_s"]):
            rate = float(peer["peer_tokens_per_s"]) / 1e6
            speed.plot([float(peer["train_length"])], [rate], "x", color=colour, markersize=8)
    recomputed = [row for row in wanted(rows, what="training", kind="recompute") if row["peak_gib"]]
    memory.plot(column(recomputed, "train_length"), column(recomputed, "peak_gib"), "D", color="#7a4fb5",
                label="blocks recomputed")  # fmt: skip
    _worth(worth, rows)
    for shade, length in zip(SHADES, sorted({int(row["train_length"]) for row in wanted(rows, what="loss")})):
        here = wanted(rows, what="loss", kind="scratch", train_length=str(length))
        loss.plot(column(here, "step"), column(here, "bits_per_base"), color=shade, label=f"{length:,}")
    own.set(title="Held-out perplexity, chromosome 20", ylabel="perplexity")
    own22.set(title="Held-out perplexity, chromosome 22", ylabel="perplexity")
    speed.set(title="Training speed (x: mamba_ssm)", ylabel="million tokens/s", ylim=(0, None))
    memory.set(title="Peak memory", ylabel="GiB", ylim=(0, None))
    loss.set(title="Training loss from scratch", xlabel="step of 2^20 bases", ylabel="bits/base", ylim=(1.85, 2.2))
    lengths = column(wanted(rows, what="training"), "train_length")
    for axes in (own, own22, speed, memory):
        axes.set(xlim=(min(lengths) / 1.5, max(lengths) * 1.5), xlabel="bases in a training window")
        axes.set_xscale("log", base=2)
        axes.legend(fontsize=7)
    loss.legend(fontsize=7)
    charts.save(figure, to)


def _worth(axes: Any, rows: Sequence[Row]) -> None:
    """Chromosome 20's held-out bases in windows of every length: one line a training length."""
    start = _sorted(wanted(rows, what="held_out", kind="start", split="chr20_held_out"), by="eval_length")
    axes.plot(column(start, "eval_length"), column(start, "perplexity"), "k:", label="before continuing")
    for shade, length in zip(SHADES, sorted({int(row["train_length"]) for row in wanted(rows, kind="continue")})):
        here = wanted(rows, what="held_out", kind="continue", split="chr20_held_out", train_length=str(length))
        here = _sorted(here, by="eval_length")
        axes.plot(column(here, "eval_length"), column(here, "perplexity"), "o-", color=shade, label=f"{length:,}")
    axes.set_xscale("log", base=2)
    axes.set(title="Context at test time, by training length", xlabel="bases in a test window", ylabel="perplexity")
    axes.legend(fontsize=7)


def _sorted(rows: Sequence[Row], by: str = "train_length") -> list[Row]:
    return sorted(rows, key=lambda row: int(row[by]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", help="folder with the CSVs")
    parser.add_argument("--to", type=Path, default=HERE, help="folder for the figures")
    options = parser.parse_args()
    for name, keys, draw in (
        ("pretrain", ("what", "split", "region_class", "window_bases", "order", "strands", "step"), pretrain),
        ("context", ("what", "kind", "train_length", "eval_length", "split", "step", "status"), context),
    ):
        source, target = options.results / f"dna_{name}.csv", options.to / f"{name}.png"
        if source.exists():
            draw(charts.newest(charts.read_rows(source), *keys), target)
            print(target)


if __name__ == "__main__":
    main()
