"""Figure and tables of the species study, from the CSV that run.py left.

    python experiments/dna/species/figure.py experiments/results/dna_species.csv --confusion results/species/confusion \
        --to experiments/dna/species/species.png

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
    """Vertebrates: model and k-mers on every split, and the mean."""
    names = [chosen(rows, kmers=kmers) for kmers in (False, True)]
    pairs = [by_split(rows, name) for name in names]
    splits = [split for split in pairs[1] if split in pairs[0]]
    columns = [[pair[split] for split in splits] for pair in pairs]
    labels = [split.replace("tail", "tenth10").replace("tenth", "") for split in splits]
    if len(splits) > 1:
        columns = [[*column, statistics.fmean(column)] for column in columns]
        labels.append("mean")
    bars(axis, labels, dict(zip(map(str, names), columns, strict=True)))
    axis.axhline(1 / 8, color=CHANCE, linewidth=1, linestyle=":")
    axis.set_title("Eight vertebrates, 1 kb windows")
    axis.set_xlabel("tenth of the contigs that was held out for test")


def bars(axis: Any, labels: Sequence[str], columns: dict[str, Sequence[float]]) -> None:
    width = 0.8 / len(columns)
    for number, (name, values) in enumerate(columns.items()):
        places = [place + (number - (len(columns) - 1) / 2) * width for place in range(len(values))]
        drawn = axis.bar(places, values, width * 0.94, label=name, color=KMERS if name.endswith("mers") else MODEL)
        axis.bar_label(drawn, [f"{value:.2f}" for value in values], fontsize=7, padding=1)
    axis.set_xticks(range(len(labels)), labels)
    axis.set_ylabel("test accuracy")
    axis.set_ylim(0, 1)
    axis.legend(loc="upper left", fontsize=7, ncols=2)
    axis.grid(axis="x", visible=False)


def draw_settings(axis: Any, rows: Sequence[Row], title: str) -> None:
    """Every setting of one split: validation beside test."""
    shown = sorted(rows, key=lambda row: float(row["valid_accuracy"]))
    for place, row in enumerate(shown):
        colour = KMERS if is_kmers(row) else MODEL
        valid, test = float(row["valid_accuracy"]), float(row["test_accuracy"])
        axis.plot(valid, place, marker="o", markerfacecolor="white", color=colour, linestyle="")
        axis.plot(test, place, marker="o", color=colour, linestyle="")
        axis.text(max(valid, test) + 0.012, place, f"{test:.2f}", fontsize=7, va="center")
    axis.set_yticks(range(len(shown)), [row["setting"] for row in shown], fontsize=7)
    axis.set_xlabel("accuracy: validation ○  test ●")
    axis.set_title(title)


def draw_apes(axis: Any, rows: Sequence[Row]) -> None:
    """Accuracy by length: every model, the best k by validation at each length, chance."""
    windows = sorted({int(row["window_bases"]) for row in rows})
    for way, marker in (("lm", "o"), ("labels", "s")):
        points = []
        for window in windows:
            at = [row for row in of_task(rows, "apes", window) if row["setting"].startswith(way)]
            if at:
                best = max(at, key=lambda row: float(row["valid_accuracy"]))
                points.append((window, float(best["test_accuracy"])))
        label = {"lm": "language model told the species", "labels": "classifier"}[way]
        if points:
            line = "-" if way == "lm" else "--"
            axis.plot(*zip(*points, strict=True), marker=marker, color=MODEL, label=label, linestyle=line)
    at_window = {window: of_task(rows, "apes", window) for window in windows}
    found = {window: by_split(at, chosen(at, kmers=True)) for window, at in at_window.items()}
    kmers = [(window, next(iter(of.values()))) for window, of in found.items() if of]
    if kmers:
        axis.plot(*zip(*kmers, strict=True), marker="^", color=KMERS, label="k-mers")
    for window, at in at_window.items():
        spread = (0.25 * 0.75 / int(at[0]["test_windows"])) ** 0.5
        axis.fill_between([window / 1.5, window * 1.5], 0.25 - 2 * spread, 0.25 + 2 * spread, color=CHANCE, alpha=0.15)
    axis.axhline(0.25, color=CHANCE, linewidth=1, linestyle=":")
    axis.set_xscale("log", base=2)
    axis.set_xticks(windows, [LETTERS.get(window.bit_length() - 1, str(window)) for window in windows])
    axis.set_ylim(0, 0.8)
    axis.set_title("Great apes, a held-out homologous piece")
    axis.set_xlabel("window (grey: chance ± 2 sd)")
    axis.set_ylabel("test accuracy")
    axis.legend(fontsize=7)


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
    axis.set_xlabel("predicted")


def draw(rows: Sequence[Row], confusion: Path | None, target: Path) -> None:
    from experiments import charts

    figure, axes = charts.panels(6, columns=3, width=4.6, height=3.5)
    draw_splits(axes[0], of_task(rows, "vertebrates"))
    tail = [row for row in of_task(rows, "vertebrates") if row["split"] == "tail"]
    draw_settings(axes[1], tail, "Vertebrates: all settings, last tenth")
    draw_settings(axes[2], of_task(rows, "bacteria"), "Eight bacteria, 512-base windows")
    draw_apes(axes[3], of_task(rows, "apes"))
    for axis, task, split, window in ((axes[4], "vertebrates", "tail", 1024), (axes[5], "bacteria", "tail", 512)):
        name = chosen(of_task(rows, task), kmers=False)
        path = confusion / f"{task}-{split}-{name}-{window}.json" if confusion else None
        if path is not None and path.is_file():
            draw_confusion(axis, path, f"{task}: {name}")
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
    parser.add_argument("--confusion", type=Path, help="folder of confusion matrices that run.py left")
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("species.png"))
    options = parser.parse_args()
    from experiments import charts

    rows = charts.newest(charts.read_rows(options.csv), "task", "setting", "split", "window_bases", "seed")
    print(table(rows))
    draw(rows, options.confusion, options.to)
    print(f"\n{options.to}")


if __name__ == "__main__":
    main()
