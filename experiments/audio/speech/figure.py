"""languages.png: bits a sample of every model and language, from ../../results/audio_speech.csv.

    python experiments/audio/speech/figure.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from experiments.charts import MUTED, colour, newest, panels, read_rows, save  # noqa: E402

TABLE = HERE.parents[1] / "results" / "audio_speech.csv"
NAMES = {
    "markov order 1": ("Markov, order 1", "#b9c2ca"), "markov order 2": ("Markov, order 2", MUTED),
    "unet": ("S4D + Mamba U-Net", colour("unet")),
    "unet_augmented": ("the same, loudness and polarity changed", "#9cc06a"),
    "unet_mamba_s4": ("Mamba-S4 + Mamba U-Net", colour("mamba_s4")), "flat": ("flat Mamba", colour("mamba")),
}  # fmt: skip
LANGUAGES = {
    "en": "English", "fr": "French", "ru": "Russian", "es": "Spanish\n(voice known)", "it": "Italian\n(new voice)",
}  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=TABLE, help="what run.py left as speech.csv")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the figure")
    options = parser.parse_args(words)
    rows = [row for row in newest(read_rows(options.table), "model", "language") if row["bits_test"]]
    bits = {(row["model"], row["language"]): float(row["bits_test"]) for row in rows}
    models = [name for name in NAMES if (name, "en") in bits]
    figure, (axis,) = panels(1, columns=1, width=7.5, height=3.4)
    for model in models:
        label, shade = NAMES[model]
        axis.plot([bits[model, language] for language in LANGUAGES], "o", ms=7, color=shade, label=label)
    axis.set_xticks(range(len(LANGUAGES)), LANGUAGES.values())
    axis.axvline(2.5, color=MUTED, lw=0.8, ls="--")
    axis.set_xlim(-0.5, len(LANGUAGES) - 0.5)
    axis.set_ylim(3.8, 7.2)
    axis.grid(False, axis="x")
    axis.set_title("Held-out speech, bits a sample: files of trained languages | languages never heard")
    axis.legend(fontsize=7, ncol=2, loc="upper left")
    save(figure, options.out / "languages.png")


if __name__ == "__main__":
    main()
