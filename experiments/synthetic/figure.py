"""Accuracy on the synthetic tasks by test size, one panel a task, from the newest row of each measurement.

    python experiments/synthetic/figure.py [FILE.csv] [FILE.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

TITLES = {
    "copying": "Selective copying: 16 symbols in noise",
    "induction": "Induction heads: trained at 256",
    "recall": "Associative recall (MQAR), length 256",
    "phonebook": "Phonebook",
    "phonebook_reversed": "Phonebook, question also in front",
}
CHANCE = {"copying": 1 / 14, "induction": 1 / 15, "recall": 1 / 4096, "phonebook": 0.115, "phonebook_reversed": 0.115}


def draw(csv_path: Path, png_path: Path) -> None:
    """Reads rows of run.py, writes the figure."""
    from experiments.charts import MARKERS, MUTED, colour, newest, panels, read_rows, save

    rows = newest(read_rows(csv_path), "task", "model", "test_size")
    tasks = [task for task in TITLES if any(row["task"] == task for row in rows)]
    figure, axes = panels(len(tasks), columns=3)
    for axis, task in zip(axes, tasks):
        own = [row for row in rows if row["task"] == task]
        for model in dict.fromkeys(row["model"] for row in own):
            points = sorted((float(row["test_size"]), float(row["accuracy"])) for row in own if row["model"] == model)
            axis.plot(*zip(*points), color=colour(model), marker=MARKERS.get(model, "."), label=model)
        axis.axhline(CHANCE[task], color=MUTED, linewidth=0.8, linestyle=":")
        axis.set(title=TITLES[task], xlabel=own[0]["size_name"], ylabel="share of answer symbols right", ylim=(0, 1.03))
        axis.set_xscale("log", base=2)
        sizes = sorted({int(row["test_size"]) for row in own})
        if len(sizes) <= 6:
            axis.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes[0].legend(fontsize=8)
    save(figure, png_path)


if __name__ == "__main__":
    words = [Path(word) for word in sys.argv[1:]]
    defaults = [HERE.parent / "results" / "synthetic.csv", HERE / "tasks.png"]
    draw(*words, *defaults[len(words) :])
