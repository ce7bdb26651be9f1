"""Figures of the piano study from its tables and WAVs.

    python experiments/audio/music/figure.py                     context.png from ../../results/audio_music*.csv
    python experiments/audio/music/figure.py --sounds RESULTS    continuations.png too, from the WAVs that run.py left

run.py's music.csv, music_markov.csv and music_positions.csv are kept as audio_music*.csv; audio_music_training.csv
holds its music_<model>_<power>_metrics.csv under each other.
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

TABLES = HERE.parents[1] / "results"
RATE_HZ, PREFIX_SHOWN_S = 16_000, 5
LABELS = {"unet": "S4D + Mamba U-Net, 2.4 M", "flat": "flat Mamba, 0.4 M"}
COLOURS = {"unet": colour("unet"), "flat": colour("mamba")}


def contexts(axis: Any, rows: list[dict[str, str]], markov: list[dict[str, str]]) -> None:
    """Bits a sample by the context that a model was trained and judged with."""
    for model, label in LABELS.items():
        points = sorted((int(row["context"]), row) for row in rows if row["model"] == model)
        x = [context for context, _ in points]
        axis.plot(x, [float(row["bits_test"]) for _, row in points], "o-", color=COLOURS[model], label=label)
        other = [(context, float(row["bits_test_longest"])) for context, row in points if context != max(x)]
        axis.plot(*zip(*other), "o", mfc="none", color=COLOURS[model], label="judged in windows of 2^20")
    best = min(markov, key=lambda row: float(row["bits_test"]))
    axis.axhline(float(best["bits_test"]), color=MUTED, lw=1, ls="--", label=f"Markov, order {best['order']}")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("context in training and test, samples")
    axis.set_title("Held-out piano, bits a sample")
    axis.legend(fontsize=6.5)


def positions(axis: Any, rows: list[dict[str, str]]) -> None:
    """What more a model needs than the one of the shortest context, by what it has heard of the window."""
    trained = sorted({int(row["context"]) for row in rows if row["model"] == "unet"})
    bits = {(int(r["context"]), int(r["heard_from"])): float(r["bits"]) for r in rows if r["model"] == "unet"}
    places = sorted({heard for _, heard in bits if heard >= 64})
    shades = _shades(len(trained))
    for context, shade in zip(trained, shades):
        more = [bits[context, heard] - bits[trained[0], heard] for heard in places]
        axis.plot([heard * 2**0.5 for heard in places], more, color=shade, label=f"2^{int(np.log2(context))}")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("samples of the window heard before")
    axis.set_title(f"U-Nets: bits above the one of 2^{int(np.log2(trained[0]))}")
    axis.legend(fontsize=6.5, ncol=2, title="trained at", title_fontsize=6.5)


def training(axis: Any, rows: list[dict[str, str]]) -> None:
    """Training bits by step."""
    for model in LABELS:
        trained = sorted({int(row["context"]) for row in rows if row["model"] == model})
        for context, width in zip((trained[0], trained[-1]), (1.6, 0.9)):
            part = [r for r in rows if (r["model"], int(r["context"]), r["split"]) == (model, context, "train")]
            label = f"{'U-Net' if model == 'unet' else 'flat'}, 2^{int(np.log2(context))}"
            steps, bits = [int(r["step"]) for r in part], [float(r["bits"]) for r in part]
            axis.plot(steps, bits, color=COLOURS[model], lw=width, label=label)
    axis.set_xlabel("steps of 2^20 samples")
    axis.set_title("Training, bits a sample")
    axis.legend(fontsize=6.5)


def spectrograms(results: Path, out: Path) -> None:
    """What really came after the prefix, and what the model made of it."""
    sounds = {"what really came": results / "real.wav"}
    sounds |= {f"continuation {path.stem[-1]}": path for path in sorted(results.glob("heard_?.wav"))}
    figure, axes = panels(len(sounds), columns=1, width=6.5, height=1.5)
    for axis, (name, path) in zip(axes, sounds.items()):
        samples = read_wav(path, 0, 60) / 32768
        axis.specgram(samples + 1e-9, NFFT=1024, noverlap=768, Fs=RATE_HZ, cmap="magma", vmin=-140, vmax=-40)
        axis.axvline(min(PREFIX_SHOWN_S, len(samples) / RATE_HZ), color="white", lw=1.2, ls="--")
        axis.set_ylim(0, 5000)
        axis.set_ylabel("Hz")
        axis.grid(False)
        axis.set_title(f"end of the real prefix | {name}")
    axes[-1].set_xlabel("seconds", color=MUTED)
    save(figure, out)


def _shades(count: int) -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, default=TABLES, help="folder of audio_music*.csv")
    parser.add_argument("--sounds", type=Path, default=None, help="folder with the WAVs that run.py left")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the figures")
    options = parser.parse_args(words)
    rows = [row for row in read_rows(options.tables / "audio_music.csv") if row["what"] == "context"]
    figure, axes = panels(3, columns=3, width=3.9, height=3.5)
    contexts(axes[0], newest(rows, "model", "context"), read_rows(options.tables / "audio_music_markov.csv"))
    training(axes[1], read_rows(options.tables / "audio_music_training.csv"))
    positions(axes[2], read_rows(options.tables / "audio_music_positions.csv"))
    save(figure, options.out / "context.png")
    if options.sounds:
        spectrograms(options.sounds, options.out / "continuations.png")


if __name__ == "__main__":
    main()
