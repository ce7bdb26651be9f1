"""Figures of pretrain.py and context.py from their CSVs:  python experiments/dna/figures.py [--results FOLDER]

pretrain.png: bits/base against tokens beside Markov models of every order, and by class of bases. context.png:
perplexity by length of window, what a longer context is worth at test time, speed, memory, the loss on the way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # `python experiments/...` puts only this folder on the path

from experiments import charts  # noqa: E402

SPLITS = {"chr20_held_out": ("chromosome 20, held out", "#1458c0"), "chr22": ("chromosome 22", "#cc3340")}
KINDS = {"continue": ("continued from 1,024", "#1458c0"), "scratch": ("from scratch", "#b07800"),
         "small": ("from scratch, half the width", "#1f8a4c")}  # fmt: skip
STYLES = {"continue": "o-", "scratch": "s-", "small": "^-"}
SHADES = ("#e3a008", "#d9622b", "#c03a76", "#7a4fb5", "#1458c0", "#15202b")  # lengths, shortest first
PEER_GIB = {"mamba 256x8": 47.4, "mamba 128x8": 24.3}  # mamba_ssm's memory in the runs whose tokens/s context.py names
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
    figure, (curve, orders, classes) = charts.panels(3, columns=3, width=5.0, height=3.9)
    for split, (label, colour) in SPLITS.items():
        here = wanted(rows, what="curve", split=split)
        curve.plot(column(here, "tokens"), column(here, "bits_per_base"), "o-", color=colour, label=label)
        if best := best_markov(rows, split):
            bits = float(best["bits_per_base"])
            curve.axhline(bits, color=colour, linestyle="--", linewidth=1)
            _name_line(curve, 7e4, bits, f"Markov, order {best['order']}: {bits:.3f}", colour)
        for strands, style in (("one", ":"), ("both", "--")):
            found = wanted(rows, what="markov", split=split, region_class="all", strands=strands)
            label_of = f"{label}, {'both strands' if strands == 'both' else 'one strand'}"
            orders.plot(column(found, "order"), column(found, "bits_per_base"), style, color=colour, label=label_of)
        if end := wanted(rows, what="held_out", split=split, region_class="all", window_bases=training_window(rows)):
            ours = float(end[0]["bits_per_base"])
            orders.axhline(ours, color=colour, linewidth=1.4)
            _name_line(orders, 0, ours, f"Mamba, {label}: {ours:.3f}", colour)
    curve.set(xscale="log", xlabel="training tokens", ylabel="bits/base", title="Held-out bits against tokens")
    curve.set(xlim=(6e4, None), ylim=(1.6, 2.02))
    curve.legend(loc="upper right", fontsize=8)
    orders.set(xlabel="order of the Markov model", title="Markov models of the same bases", ylim=(1.6, 2.02))
    orders.legend(fontsize=8, loc="upper right")
    _class_bars(classes, rows)
    charts.save(figure, to)


def _name_line(axes: Any, at: float, value: float, name: str, colour: str) -> None:
    """Above a level line; out of sight with it, where the axes do not reach."""
    axes.text(at, value + 0.004, name, color=colour, fontsize=8, clip_on=True)


def training_window(rows: Sequence[Row]) -> str:
    """Bases of a window in training: held-out numbers of other windows stand in the same table."""
    return next((row["window_bases"] for row in rows if row["what"] in ("training", "curve")), "")


def _class_bars(axes: Any, rows: Sequence[Row]) -> None:
    """Chromosome 22 by class: the model, the Markov model that is best on all, the best of each class."""
    names = ("all", "repeat", "unique")
    best = best_markov(rows, "chr22")
    window = training_window(rows)
    judged = {
        name: wanted(rows, what="held_out", split="chr22", region_class=name, window_bases=window) for name in names
    }
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
        axes.bar_label(drawn, fmt="%.3f", fontsize=7.5, padding=1)
    axes.set_axisbelow(True)
    axes.set_xticks(range(len(names)), ["all", "repeats", "the rest"])
    axes.set(ylim=(0, 2.4), ylabel="bits/base", title="Chromosome 22 by class")
    axes.legend(fontsize=8, ncols=3, loc="upper center", columnspacing=1)


def context(rows: Sequence[Row], to: Path, markov: Mapping[str, float] | None = None) -> None:
    """Six panels. `markov`: perplexity of the best Markov model on each split, drawn beside."""
    figure, (own, worth, own22, speed, memory, loss) = charts.panels(6, columns=3, width=4.9, height=3.7)
    for axes, split in ((own, "chr20_held_out"), (own22, "chr22")):
        for kind, (label, colour) in KINDS.items():
            here = wanted(rows, what="held_out", kind=kind, split=split)
            here = _sorted([row for row in here if row["eval_length"] == row["train_length"]])
            axes.plot(column(here, "train_length"), column(here, "perplexity"), STYLES[kind], color=colour, label=label)
        if markov and split in markov:
            axes.axhline(markov[split], color=charts.MUTED, linestyle="--", linewidth=1.2)
            axes.annotate(f"best Markov model: {markov[split]:.3f}", (1024, markov[split]), (0, 4),
                          textcoords="offset points", color=charts.MUTED, fontsize=8)  # fmt: skip
        axes.set(title=f"Held-out perplexity, {SPLITS[split][0].partition(',')[0]}", ylabel="perplexity")
    _cost(speed, memory, rows)
    _worth(worth, rows)
    for shade, length in zip(SHADES, sorted({int(row["train_length"]) for row in wanted(rows, what="loss")})):
        here = wanted(rows, what="loss", kind="scratch", train_length=str(length))
        loss.plot(column(here, "step"), column(here, "bits_per_base"), color=shade, label=f"{length:,}")
    loss.set(title="Training loss from scratch, by length", xlabel="step of 2$^{20}$ bases", ylabel="bits/base",
             yscale="log")  # fmt: skip
    loss.set_yticks([1.9, 2, 2.5, 3, 4, 5], ["1.9", "2", "2.5", "3", "4", "5"])
    loss.minorticks_off()
    lengths = column(wanted(rows, what="training"), "train_length")
    for axes in (own, own22, speed, memory):
        axes.set(xlim=(min(lengths) / 1.5, max(lengths) * 1.5), xlabel="bases in a training window")
        axes.set_xscale("log", base=2)
    for axes in (own, own22):
        axes.legend(fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.32 if axes is own else 0.7))
    loss.legend(fontsize=8)
    charts.save(figure, to)


def _cost(speed: Any, memory: Any, rows: Sequence[Row]) -> None:
    """Tokens/s and memory by length; crosses of the same colour are mamba_ssm's."""
    for kind, (label, colour) in KINDS.items():
        here = _sorted(wanted(rows, what="training", kind=kind))
        lengths = column(here, "train_length")
        millions = [rate / 1e6 for rate in column(here, "tokens_per_s")]
        speed.plot(lengths, millions, STYLES[kind], color=colour, label=label)
        memory.plot(lengths, [float(row["peak_gib"] or "nan") for row in here], STYLES[kind], color=colour, label=label)
        if kind == "continue":
            continue  # scratch says the same of mamba_ssm
        for peer in (row for row in here if row["peer_tokens_per_s"]):
            length, rate = float(peer["train_length"]), float(peer["peer_tokens_per_s"]) / 1e6
            _peer(speed, length, rate, f"mamba_ssm {rate:.2f}", colour)
            gib = PEER_GIB[peer["model"]]
            _peer(memory, length, gib, f"mamba_ssm {gib:.0f}", colour)
    found = [row for row in wanted(rows, what="training", kind="recompute") if row["peak_gib"]]
    for axes, name, unit in ((memory, "peak_gib", 1), (speed, "tokens_per_s", 1e6)):
        values = [value / unit for value in column(found, name)]
        axes.plot(column(found, "train_length"), values, "D", color="#7a4fb5", label="from scratch, blocks recomputed")
    speed.set(title="Training speed", ylabel="million tokens/s", ylim=(0, 14.5))
    memory.set(title="Peak memory, 2$^{20}$ bases a step", ylabel="GiB", ylim=(0, 145))
    for axes in (speed, memory):
        axes.legend(fontsize=8, loc="upper right", ncols=2, columnspacing=1)


def _peer(axes: Any, length: float, value: float, label: str, colour: str) -> None:
    axes.plot([length], [value], "x", color=colour, markersize=8, markeredgewidth=2)
    axes.annotate(label, (length, value), (-8, 0), textcoords="offset points", ha="right", va="center", color=colour,
                  fontsize=8)  # fmt: skip


def _worth(axes: Any, rows: Sequence[Row]) -> None:
    """Chromosome 20's held-out bases in windows of every length: one line a training length."""
    start = _sorted(wanted(rows, what="held_out", kind="start", split="chr20_held_out"), by="eval_length")
    axes.plot(column(start, "eval_length"), column(start, "perplexity"), "k:", label="before continuing")
    for shade, length in zip(SHADES, sorted({int(row["train_length"]) for row in wanted(rows, kind="continue")})):
        here = wanted(rows, what="held_out", kind="continue", split="chr20_held_out", train_length=str(length))
        here = _sorted(here, by="eval_length")
        axes.plot(column(here, "eval_length"), column(here, "perplexity"), "o-", color=shade, label=f"{length:,}")
    axes.set_xscale("log", base=2)
    axes.set(title="Chromosome 20, longer test windows (zoomed)", xlabel="bases in a test window", ylabel="perplexity")
    axes.legend(fontsize=8, title="continued at", title_fontsize=8)


def _sorted(rows: Sequence[Row], by: str = "train_length") -> list[Row]:
    return sorted(rows, key=lambda row: int(row[by]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE.parent / "results", help="folder with the CSVs")
    parser.add_argument("--to", type=Path, default=HERE, help="folder for the figures")
    options = parser.parse_args()
    keys = ("what", "split", "region_class", "window_bases", "order", "strands", "step")
    markov: dict[str, float] = {}
    if (source := options.results / "dna_pretrain.csv").exists():
        rows = charts.newest(charts.read_rows(source), *keys)
        found = {split: best_markov(rows, split) for split in SPLITS}
        markov = {split: 2 ** float(best["bits_per_base"]) for split, best in found.items() if best}
        pretrain(rows, options.to / "pretrain.png")
    if (source := options.results / "dna_context.csv").exists():
        keys = ("what", "kind", "train_length", "eval_length", "split", "step", "status")
        context(charts.newest(charts.read_rows(source), *keys), options.to / "context.png", markov)


if __name__ == "__main__":
    main()
