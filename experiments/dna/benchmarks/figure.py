"""Figure and table of the benchmark sets, from the CSV that run.py left.

    python experiments/dna/benchmarks/figure.py experiments/results/dna_benchmarks.csv

For every set: each setting, mean ± sd over seeds; filled are the model and the k that validation chose.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

Row = dict[str, str]
MODEL, KMERS, CHANCE = "#1458c0", "#b07800", "#5d6b78"
SAID = {
    "mamba": "Mamba", "both_ways": "Mamba, both ways", "pretrained": "Mamba, pretrained",
    "told_classes": "language model told the class", "3mers": "3-mers",
    "5mers": "5-mers", "6mers": "6-mers", "positions": "letters by position",
}  # fmt: skip
TITLES = {
    "coding_vs_intergenic": "Inside or between genes of M. tuberculosis, 128 bases",
    "escherichia_or_klebsiella": "E. coli or K. pneumoniae, 128 bases",
    "splice_sites_all": "Acceptor, donor or neither, 120 bases",
    "shuffled": "Human DNA or shuffled, 256 bases",
}


def kind(row: Row) -> str:
    """model, kmers, or positions: the other simple model."""
    return "kmers" if row["setting"].endswith("mers") else "positions" if row["setting"] == "positions" else "model"


def best(rows: Sequence[Row], of_kind: str) -> Row | None:
    """By validation."""
    of = [row for row in rows if kind(row) == of_kind]
    return max(of, key=lambda row: float(row["valid_accuracy"]), default=None)


def draw_set(axis: Any, rows: Sequence[Row]) -> None:
    shown = sorted(rows, key=lambda row: float(row["test_accuracy"]))
    chosen = [best(rows, of_kind) for of_kind in ("model", "kmers")]
    for place, row in enumerate(shown):
        value, spread = float(row["test_accuracy"]), float(row["test_accuracy_sd"])
        colour = MODEL if kind(row) == "model" else KMERS
        axis.errorbar(
            value, place, xerr=spread, marker="o", linestyle="", color=colour, capsize=2,
            markerfacecolor=colour if row in chosen else "white",
        )  # fmt: skip
        axis.annotate(
            f"{value:.3f} ± {spread:.3f}", (value + spread, place), (6, 0), textcoords="offset points", fontsize=7,
            va="center", weight="bold" if row in chosen else "normal",
        )  # fmt: skip
    chance = float(rows[0]["chance"])
    axis.axvline(chance, color=CHANCE, linewidth=1, linestyle=":")
    best_value = max(float(row["test_accuracy"]) for row in rows)
    first = int(10 * chance + 0.999)
    axis.set_xticks([tenth / 10 for tenth in range(first, 11)])
    low = min(float(row["test_accuracy"]) for row in rows)
    axis.set_xlim(min(chance, low) - 0.03, best_value + 0.42 * (best_value - chance))
    axis.set_yticks(range(len(shown)), [SAID.get(row["setting"], row["setting"]) for row in shown], fontsize=8)
    axis.set_xlabel("test accuracy, mean ± sd over seeds (dotted: chance; filled: chosen by validation)", fontsize=8)
    axis.set_title(TITLES.get(rows[0]["set"], rows[0]["set"]))


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each set the model and the k by validation, and letters by position."""
    head = "| set | model (by validation) | accuracy | MCC | k-mers (by validation) | accuracy | MCC | by position |"
    lines = [head, "|---|" + "---|" * 7]
    for name in dict.fromkeys(row["set"] for row in rows):
        of = [row for row in rows if row["set"] == name]
        cells = [name]
        for of_kind in ("model", "kmers"):
            row = best(of, of_kind)
            cells += [SAID.get(row["setting"], ""), spread(row, "accuracy"), spread(row, "mcc")] if row else ["–"] * 3
        row = best(of, "positions")
        lines.append(f"| {' | '.join([*cells, spread(row, 'accuracy') if row else '–'])} |")
    return "\n".join(lines)


def spread(row: Row, score: str) -> str:
    return f"{float(row[f'test_{score}']):.3f} ± {float(row[f'test_{score}_sd']):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("benchmarks.png"))
    options = parser.parse_args()
    from experiments import charts

    rows = charts.newest(charts.read_rows(options.csv), "set", "setting", "seeds")
    print(table(rows))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    figure, axes = charts.panels(len(sets), columns=2, width=5.6, height=2.9)
    for axis, name in zip(axes, sets, strict=True):
        draw_set(axis, [row for row in rows if row["set"] == name])
    charts.save(figure, options.to)
    print(f"\n{options.to}")


if __name__ == "__main__":
    main()
