"""Figure and tables of the species study, from the CSV that run.py left.

    python experiments/dna/species/figure.py experiments/results/dna_species.csv

Confusion matrices are read from the folder of the same name beside the CSV (of a new run: --confusion).

Of every task the model with the best mean validation accuracy over the splits it was run on is chosen (all of them, if
it was run on all), and so is k; their test accuracies are shown. Nothing is chosen by test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

Row = dict[str, str]
MODEL, KMERS, CHANCE = "#1458c0", "#b07800", "#5d6b78"
WAYS = {"lm": "language model told the species", "labels": "classifier", "kmers": "k-mer logistic regression"}
SHORT = {
    "bosTau8": "cow", "canFam3": "dog", "galGal4": "chicken", "hg38": "human", "mm10": "mouse", "monDom5": "opossum",
    "rheMac3": "rhesus", "rn6": "rat",
}  # fmt: skip
LETTERS = {10: "1 kb", 14: "16 kb", 18: "262 kb", 20: "1 Mb"}


def is_kmers(row: Row) -> bool:
    return row["setting"].endswith("mers")


def chosen(rows: Sequence[Row], *, kmers: bool) -> str | None:
    """The setting with the best mean validation accuracy, of those run on the most splits."""
    settings: dict[str, list[Row]] = {}
    for row in rows:
        if is_kmers(row) == kmers:
            settings.setdefault(row["setting"], []).append(row)
    if not settings:
        return None
    most = max(len({row["split"] for row in of}) for of in settings.values())
    full = {name: of for name, of in settings.items() if len({row["split"] for row in of}) == most}
    return max(full, key=lambda name: mean(row["valid_accuracy"] for row in full[name]))


def mean(values: Iterable[str]) -> float:
    return statistics.fmean(map(float, values))


def by_split(rows: Sequence[Row], setting: str | None) -> dict[str, float]:
    return {row["split"]: float(row["test_accuracy"]) for row in rows if row["setting"] == setting}


def of_task(rows: Sequence[Row], task: str, window: int | None = None) -> list[Row]:
    return [row for row in rows if row["task"] == task and window in (None, int(row["window_bases"]))]


# --------------------------------------------------------------------------------------------------------- the panels


def draw_splits(axis: Any, rows: Sequence[Row]) -> None:
    """Vertebrates: model and k-mers on every split; mean and sd over splits."""
    names = [str(chosen(rows, kmers=kmers)) for kmers in (False, True)]
    pairs = [by_split(rows, name) for name in names]
    tenths = {tenth(split): split for split in pairs[1] if split in pairs[0]}
    columns = [[pair[tenths[number]] for number in sorted(tenths)] for pair in pairs]
    labels = [str(number) for number in sorted(tenths)]
    spreads = [[0.0] * len(labels) for _ in columns]
    if len(labels) > 1:
        spreads = [[*zeros, statistics.stdev(column)] for zeros, column in zip(spreads, columns, strict=True)]
        columns = [[*column, statistics.fmean(column)] for column in columns]
        labels.append("mean ± sd")
    bars(axis, labels, dict(zip(names, zip(columns, spreads, strict=True), strict=True)))
    axis.axhline(1 / 8, color=CHANCE, linewidth=1, linestyle=":", label="chance")
    axis.legend(loc="upper left", fontsize=7, ncols=3)
    axis.set_title("Eight vertebrates, 1 kb windows")
    axis.set_xlabel("tenth of every contig that was held out for test")


def tenth(split: str) -> int:
    return 10 if split == "tail" else int(split.removeprefix("tenth"))


def bars(axis: Any, labels: Sequence[str], columns: dict[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    """Side by side, from (values, spreads) by name; only the spread of a mean is more than zero."""
    width = 0.84 / len(columns)
    for number, (name, (values, spreads)) in enumerate(columns.items()):
        places = [place + (number - (len(columns) - 1) / 2) * width for place in range(len(values))]
        colour = KMERS if name.endswith("mers") else MODEL
        axis.bar(places, values, width * 0.92, label=said(name), color=colour, zorder=2)
        for place, value, spread in zip(places, values, spreads, strict=True):
            if spread:
                axis.errorbar(place, value, yerr=spread, color="#15202b", capsize=3, linewidth=1, zorder=3)
            axis.text(place, value + spread + 0.012, f"{value:.2f}"[1:], fontsize=7, ha="center")
    axis.set_xticks(range(len(labels)), labels)
    axis.set_ylabel("test accuracy")
    axis.set_ylim(0, 0.9)
    axis.grid(axis="x", visible=False)


def said(setting: str) -> str:
    return f"{setting[0]}-mers" if setting.endswith("mers") else setting


def draw_settings(axis: Any, rows: Sequence[Row], title: str) -> None:
    """Every setting of one split: validation beside test, in the order of validation."""
    shown = sorted(rows, key=lambda row: float(row["valid_accuracy"]))
    scores = [(float(row["valid_accuracy"]), float(row["test_accuracy"])) for row in shown]
    low, high = min(map(min, scores)), max(map(max, scores))
    for place, (row, (valid, test)) in enumerate(zip(shown, scores, strict=True)):
        colour = KMERS if is_kmers(row) else MODEL
        axis.plot([valid, test], [place, place], color=colour, linewidth=1, alpha=0.4)
        axis.plot(valid, place, marker="o", markerfacecolor="white", color=colour, linestyle="")
        axis.plot(test, place, marker="o", color=colour, linestyle="")
        at = (max(valid, test), place)
        axis.annotate(f"{test:.3f}"[1:], at, (6, 0), textcoords="offset points", fontsize=7, va="center")
    axis.set_xlim(low - 0.06 * (high - low), high + 0.2 * (high - low))
    axis.set_yticks(range(len(shown)), [said(row["setting"]) for row in shown], fontsize=7)
    axis.set_xlabel("accuracy: ○ validation, ● test (the number)")
    axis.set_title(title)


def draw_apes(axis: Any, rows: Sequence[Row]) -> None:
    """Accuracy by length, all settings side by side; chance and what it makes by luck."""
    windows = sorted({int(row["window_bases"]) for row in rows})
    for way, marker in (("lm", "o"), ("labels", "s"), ("kmers", "^")):
        of = [row for row in rows if (is_kmers(row) if way == "kmers" else row["setting"].startswith(way))]
        shift = {"lm": -0.2, "labels": 0.0, "kmers": 0.2}[way]
        places = [windows.index(int(row["window_bases"])) + shift for row in of]
        values = [float(row["test_accuracy"]) for row in of]
        colour = KMERS if way == "kmers" else MODEL
        filled = "white" if way == "labels" else colour
        axis.plot(places, values, marker, color=colour, markerfacecolor=filled, label=WAYS[way], zorder=3)
    for place, window in enumerate(windows):
        count = int(of_task(rows, "apes", window)[0]["test_windows"])
        luck = 2 * (0.25 * 0.75 / count) ** 0.5
        axis.fill_between([place - 0.35, place + 0.35], 0.25 - luck, 0.25 + luck, color=CHANCE, alpha=0.15, linewidth=0)
        axis.text(place, 0.005, f"{count:,} windows", fontsize=7, ha="center", color=CHANCE)
    axis.axhline(0.25, color=CHANCE, linewidth=1, linestyle=":")
    axis.set_xticks(range(len(windows)), [LETTERS.get(window.bit_length() - 1, str(window)) for window in windows])
    axis.set_ylim(0, 0.7)
    axis.grid(axis="x", visible=False)
    axis.set_title("Great apes, a held-out homologous piece")
    axis.set_xlabel("window (grey: chance ± 2 sd of as many guesses)")
    axis.set_ylabel("test accuracy")
    axis.legend(fontsize=7, loc="upper left")


def draw_confusion(axis: Any, path: Path, title: str) -> None:
    report = json.loads(path.read_text())
    counts, names = report["confusion"], [SHORT.get(name, name.replace("_", " ")) for name in report["class_names"]]
    shares = [[cell / max(sum(row), 1) for cell in row] for row in counts]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, values in enumerate(counts):
        for column, value in enumerate(values):
            if value:
                colour = "white" if shares[row][column] > 0.6 else "black"
                axis.text(column, row, str(value), ha="center", va="center", fontsize=6, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.grid(visible=False)
    axis.set_title(title)
    axis.set_xlabel("named by the model")
    axis.set_ylabel("true")


def draw(rows: Sequence[Row], confusion: Path, target: Path) -> None:
    from experiments import charts

    figure, axes = charts.panels(6, columns=3, width=4.8, height=3.7)
    draw_splits(axes[0], of_task(rows, "vertebrates"))
    tail = [row for row in of_task(rows, "vertebrates") if row["split"] == "tail"]
    draw_settings(axes[1], tail, "Vertebrates, last tenth: all settings")
    draw_settings(axes[2], of_task(rows, "bacteria"), "Eight bacteria, 512-base windows")
    draw_apes(axes[3], of_task(rows, "apes"))
    for axis, task, split, window in ((axes[4], "vertebrates", "tail", 1024), (axes[5], "bacteria", "tail", 512)):
        name = chosen(of_task(rows, task), kmers=False)
        path = confusion / f"{task}-{split}-{name}-{window}.json"
        if path.is_file():
            draw_confusion(axis, path, f"{task.capitalize()}, last tenth: {name}")
        else:
            axis.set_visible(False)
    charts.save(figure, target)


def table(rows: Sequence[Row]) -> str:
    """Markdown: for each task and length the chosen model and the chosen k-mers."""
    head = "| task | window | model (by validation) | test | k-mers (by validation) | test | chance | splits |"
    lines = [head, "|---|" + "---|" * 7]
    for task in dict.fromkeys(row["task"] for row in rows):
        for window in sorted({int(row["window_bases"]) for row in of_task(rows, task)}):
            at = of_task(rows, task, window)
            names = [chosen(at, kmers=which) for which in (False, True)]
            ours, theirs = (by_split(at, name) for name in names)
            splits = [split for split in theirs if split in ours] or [*(ours or theirs)]
            values = [[of[split] for split in splits] if of else [] for of in (ours, theirs)]
            means = [f"{statistics.fmean(of):.3f}" if of else "–" for of in values]
            cells = [task, f"{window:,}", names[0], means[0], names[1], means[1], at[0]["chance"], len(splits)]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--confusion", type=Path, help="folder of confusion matrices; default <csv without .csv>")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("species.png"))
    options = parser.parse_args()
    from experiments import charts

    rows = charts.newest(charts.read_rows(options.csv), "task", "setting", "split", "window_bases", "seed")
    print(table(rows))
    draw(rows, options.confusion or options.csv.with_suffix(""), options.to)
    print(f"\n{options.to}")


if __name__ == "__main__":
    main()
