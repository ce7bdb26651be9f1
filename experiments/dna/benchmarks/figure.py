"""Figure and table of the benchmark sets, from the CSV that run.py left.

    python experiments/dna/benchmarks/figure.py experiments/results/dna_benchmarks.csv

For every set: each setting, mean ± sd over seeds; marked is the model that validation chose.
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


def is_kmers(row: Row) -> bool:
    return row["setting"].endswith("mers")


def best(rows: Sequence[Row], *, kmers: bool) -> Row | None:
    """By validation."""
    of = [row for row in rows if is_kmers(row) == kmers]
    return max(of, key=lambda row: float(row["valid_accuracy"]), default=None)


def draw_set(axis: Any, rows: Sequence[Row]) -> None:
    shown = sorted(rows, key=lambda row: float(row["test_accuracy"]))
    chosen = [best(rows, kmers=kmers) for kmers in (False, True)]
    for place, row in enumerate(shown):
        value, spread = float(row["test_accuracy"]), float(row["test_accuracy_sd"])
        axis.errorbar(
            value, place, xerr=spread, marker="o", linestyle="", color=KMERS if is_kmers(row) else MODEL,
            markerfacecolor=None if row in chosen else "white", capsize=2,
        )  # fmt: skip
        axis.text(value + spread + 0.01, place, f"{value:.3f}", fontsize=7, va="center")
    axis.axvline(float(rows[0]["chance"]), color=CHANCE, linewidth=1, linestyle=":")
    axis.set_yticks(range(len(shown)), [row["setting"].replace("_", " ") for row in shown], fontsize=8)
    axis.set_xlabel("test accuracy, mean ± sd over seeds")
    axis.set_title(rows[0]["set"].replace("_", " "))


def table(rows: Sequence[Row]) -> str:
    head = "| set | model (by validation) | accuracy | MCC | k-mers (by validation) | accuracy | MCC |"
    lines = [head, "|---|" + "---|" * 6]
    for name in dict.fromkeys(row["set"] for row in rows):
        cells = [name]
        for kmers in (False, True):
            row = best([one for one in rows if one["set"] == name], kmers=kmers)
            if row is None:
                cells += ["–"] * 3
                continue
            cells += [row["setting"], f"{row['test_accuracy']} ± {row['test_accuracy_sd']}"]
            cells.append(f"{row['test_mcc']} ± {row['test_mcc_sd']}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("benchmarks.png"))
    options = parser.parse_args()
    from experiments import charts

    rows = charts.newest(charts.read_rows(options.csv), "set", "setting", "seeds")
    print(table(rows))
    sets = list(dict.fromkeys(row["set"] for row in rows))
    figure, axes = charts.panels(len(sets), columns=2, width=4.8, height=2.9)
    for axis, name in zip(axes, sets, strict=True):
        draw_set(axis, [row for row in rows if row["set"] == name])
    charts.save(figure, options.to)
    print(f"\n{options.to}")


if __name__ == "__main__":
    main()
