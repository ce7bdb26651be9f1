"""Figures of the piano study from its tables and WAVs.

    python experiments/audio/music/figure.py RESULTS      RESULTS: the folder that run.py filled; figures go beside this
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from experiments.audio.music.run import read_wav  # noqa: E402
from experiments.charts import MUTED, colour, newest, panels, read_rows, save  # noqa: E402

RATE_HZ, PREFIX_SHOWN_S = 16_000, 5
LABELS = {"unet": "S4D + Mamba U-Net", "flat": "flat Mamba"}
COLOURS = {"unet": colour("unet"), "flat": colour("mamba")}


def contexts(axis: Any, rows: list[dict[str, str]], markov: list[dict[str, str]]) -> None:
    """Bits a sample by the context that a model was trained and judged with."""
    for model, label in LABELS.items():
        points = sorted((int(row["context"]), row) for row in rows if row["model"] == model)
        if not points:
            continue
        x = [context for context, _ in points]
        axis.plot(x, [float(row["bits_test"]) for _, row in points], "o-", color=COLOURS[model], label=label)
        heard = [(c, float(row["bits_test_longest"])) for c, row in points if c != 2**20]
        if heard:
            axis.plot(*zip(*heard), "o", mfc="none", color=COLOURS[model], label=f"{label}, judged in windows of 2^20")
    if markov:
        best = min(markov, key=lambda row: float(row["bits_test"]))
        axis.set_title(f"Held-out piano (best Markov: order {best['order']}, {float(best['bits_test']):.2f})")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("samples of context in training and test")
    axis.set_ylabel("bits a sample")
    axis.legend(fontsize=7)


def positions(axis: Any, rows: list[dict[str, str]]) -> None:
    """Bits a sample by what the model has heard of its window."""
    import matplotlib

    trained = sorted({int(row["context"]) for row in rows if row["model"] == "unet"})
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(trained)))
    for context, shade in zip(trained, shades):
        part = [row for row in rows if row["model"] == "unet" and int(row["context"]) == context]
        part = [row for row in part if int(row["heard_from"]) >= 64]
        x = [np.sqrt(float(row["heard_from"]) * float(row["heard_to"])) for row in part]
        axis.plot(x, [float(row["bits"]) for row in part], color=shade, label=f"trained at 2^{int(np.log2(context))}")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("samples of the window heard before (U-Net)")
    axis.set_ylabel("bits a sample")
    axis.set_title("How far back it listens")
    axis.legend(fontsize=6, ncol=2)


def spectrograms(results: Path, out: Path) -> None:
    """What really came after the prefix, and what the model made of it."""
    sounds = {"real": results / "real.wav"}
    sounds |= {f"continuation {path.stem[-1]}": path for path in sorted(results.glob("heard_?.wav"))}
    figure, axes = panels(len(sounds), columns=1, width=9, height=2.0)
    for axis, (name, path) in zip(axes, sounds.items()):
        samples = read_wav(path, 0, 60) / 32768
        axis.specgram(samples + 1e-9, NFFT=1024, noverlap=768, Fs=RATE_HZ, cmap="magma", vmin=-140, vmax=-40)
        axis.axvline(min(PREFIX_SHOWN_S, len(samples) / RATE_HZ), color="white", lw=1.2, ls="--")
        axis.set_ylim(0, 5000)
        axis.set_ylabel("Hz")
        axis.grid(False)
        axis.set_title(f"{name}: left of the line the end of the real prefix")
    axes[-1].set_xlabel("seconds", color=MUTED)
    save(figure, out)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder that run.py filled")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the figures")
    options = parser.parse_args(words)
    rows = [row for row in read_rows(options.results / "music.csv") if row["what"] == "context" and row["bits_test"]]
    markov = options.results / "music_markov.csv"
    figure, axes = panels(2, columns=2, width=5.2, height=3.8)
    contexts(axes[0], newest(rows, "model", "context"), read_rows(markov) if markov.exists() else [])
    positions(axes[1], read_rows(options.results / "music_positions.csv"))
    save(figure, options.out / "context.png")
    if (options.results / "real.wav").exists():
        spectrograms(options.results, options.out / "continuations.png")


if __name__ == "__main__":
    main()
