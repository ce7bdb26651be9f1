"""The comparison's table and figure from the newest row of each cell.

    python experiments/backbones/report.py [FILE.csv] [FILE.png]      prints Markdown, writes the figure
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

MARKOV_BITS = 1.891  # order-10 Markov model, first eight tenths to last tenth of chr20:40-61 Mb (../../shared/data)
Row = dict[str, str]


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line a backbone."""
    trained = [row for row in rows if row["what"] == "train"]
    decoded = [row for row in rows if row["what"] == "decode"]
    lengths = sorted({int(row["L"]) for row in trained})
    contexts = sorted({int(row["context"]) for row in decoded})
    head = ["backbone", "parameters", "bits/base"]
    head += [f"M tokens/s at {_size(L)}" for L in lengths] + [f"GiB at {_size(L)}" for L in lengths]
    head += [f"ms/token after {_size(c)}" for c in contexts] + [f"state after {_size(c)}" for c in contexts]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(row["backbone"] for row in rows):
        own = [row for row in rows if row["backbone"] == name]
        at = {int(row["L"]): row for row in own if row["what"] == "train"}
        after = {int(row["context"]): row for row in own if row["what"] == "decode"}
        quality = next((row for row in own if row["what"] == "quality"), None)
        cells = [name, _millions(own), _bits(quality)]
        cells += [_cell(at.get(L), "tokens_per_s", lambda v: f"{v / 1e6:.3g}") for L in lengths]
        cells += [_cell(at.get(L), "peak_gib", lambda v: f"{v:.1f}") + _mark(at.get(L)) for L in lengths]
        cells += [_cell(after.get(c), "ms_per_token", lambda v: f"{v:.3f}") for c in contexts]
        cells += [_cell(after.get(c), "state_bytes", _bytes) for c in contexts]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _size(positions: int) -> str:
    for letter, size in (("M", 2**20), ("k", 2**10)):
        if positions >= size:
            return f"{positions // size}{letter}"
    return str(positions)


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _millions(own: Sequence[Row]) -> str:
    found = next((row["parameters"] for row in own if row["parameters"]), "")
    return f"{int(found) / 1e6:.2f} M" if found else "–"


def _bits(row: Row | None) -> str:
    if row is None or row["status"] != "ok":
        return _why(row)
    return f"{float(row['bits_per_base']):.3f}" + (" (masked)" if row["objective"] == "masked" else "")


def _cell(row: Row | None, column: str, show) -> str:
    if row is None or row["status"] != "ok":
        return _why(row)
    return show(float(row[column])) if row[column] else "–"


def _why(row: Row | None) -> str:
    if row is None:
        return "–"
    return {"skipped": "too long", "out of memory": "out of memory"}.get(row["status"], row["status"])


def _mark(row: Row | None) -> str:
    return " (recomputed)" if row is not None and row["status"] == "ok" and row["recomputed_blocks"] == "yes" else ""


def draw(rows: Sequence[Row], png_path: Path) -> None:
    """Training speed and memory by length, bits/base, decoding."""
    from experiments.charts import MUTED, colour, panels, save

    ok = [row for row in rows if row["status"] == "ok"]
    figure, (speed, memory, quality, decoding) = panels(4, columns=2, width=5.4, height=3.6)
    trained = [row for row in ok if row["what"] == "train"]
    for name in dict.fromkeys(row["backbone"] for row in trained):
        own = sorted((int(row["L"]), row) for row in trained if row["backbone"] == name)
        points = [(L, float(row["tokens_per_s"]) / 1e6) for L, row in own]
        speed.plot(*zip(*points), color=colour(name), marker="o", label=name)
        points = [(L, float(row["peak_gib"])) for L, row in own if row["peak_gib"]]
        if points:
            memory.plot(*zip(*points), color=colour(name), marker="o")
    for axis, title, label in (
        (speed, "Training speed", "million tokens / s"), (memory, "Peak memory of training", "GiB")
    ):  # fmt: skip
        axis.set(title=title, xlabel="sequence length", ylabel=label, yscale="log")
        axis.set_xscale("log", base=2)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.tick_params(axis="y", which="both", labelsize=7)
    figure.legend(*speed.get_legend_handles_labels(), fontsize=8, ncols=7, loc="upper center", bbox_to_anchor=(0.5, 0))
    learned = [row for row in ok if row["what"] == "quality" and row["objective"] == "next"]
    learned.sort(key=lambda row: float(row["bits_per_base"]), reverse=True)
    names, bits = [row["backbone"] for row in learned], [float(row["bits_per_base"]) for row in learned]
    quality.hlines(names, min([*bits, MARKOV_BITS]) - 0.003, bits, color=[colour(name) for name in names], linewidth=1)
    quality.scatter(bits, names, color=[colour(name) for name in names], s=28, zorder=3)
    quality.axvline(MARKOV_BITS, color=MUTED, linestyle=":", linewidth=1)
    tokens = next((row["tokens"] for row in learned), "")
    quality.set(title=f"bits/base after {int(tokens or 0) / 1e6:.0f} M bases", xlabel="dotted: order-10 Markov, 1.891")
    decoded = [row for row in ok if row["what"] == "decode"]
    for name in dict.fromkeys(row["backbone"] for row in decoded):
        mine = [row for row in decoded if row["backbone"] == name]
        own = sorted((float(row["state_bytes"]), float(row["ms_per_token"])) for row in mine)
        decoding.plot(*zip(*own), color=colour(name), marker="o")
        decoding.annotate(name, own[-1], fontsize=7, color=colour(name), xytext=(4, 3), textcoords="offset points")
    decoding.set(
        title="Decoding: shortest to longest context", xlabel="bytes of state", ylabel="ms / token",
        xscale="log", yscale="log",
    )  # fmt: skip
    save(figure, png_path)


def main() -> None:
    from experiments.charts import newest, read_rows

    words = [Path(word) for word in sys.argv[1:]]
    defaults = [HERE.parent / "results" / "backbones.csv", HERE / "backbones.png"]
    csv_path, png_path = [*words, *defaults[len(words) :]]
    rows = newest(read_rows(csv_path), "backbone", "what", "L", "context")
    print(table(rows))
    draw(rows, png_path)


if __name__ == "__main__":
    main()
