"""Figures and tables of the spoken digits, from what run.py left.

    python experiments/audio/digits/figure.py OUT build/digits/fsdd        OUT: the folder with digits.csv and samples/

Writes bits.png (held-out bits a sample beside Markov models), spectrograms.png (real clips of every digit above
generated ones, the first of each: nobody chose), those sounds one after the other as samples/<model>.wav, and prints
the tables of README.md. All of it to OUT, or to the folder of --to. Without OUT/samples there are bits and tables only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # `python experiments/...` puts only this folder on the path

from experiments import charts  # noqa: E402

RATE_HZ = 8000
NAMES = {
    "unet_s4d_mamba": "U-Net S4D + Mamba", "unet_s4d": "U-Net S4D", "mamba": "Mamba, flat",
    "transformer": "Transformer", "told": "U-Net S4D + Mamba, told the digit",
}  # fmt: skip
COLOURS = {"unet_s4d_mamba": "unet", "unet_s4d": "s4d", "told": "unet"}
TABLE = {"fid": "FID", "inception_score": "IS", "modified_inception_score": "modified IS", "am": "AM",
         "accuracy": "accuracy", "class_diversity": "classes", "feature_diversity": "diversity"}  # fmt: skip
Rows = Sequence[dict[str, str]]


def bits_rows(rows: Rows) -> Rows:
    """Held-out bits of each model."""
    return charts.newest([row for row in rows if (row["what"], row["metric"]) == ("bits", "bits_per_sample")], "model")


def bits(rows: Rows, markov: Rows, path: Path) -> None:
    """Bars: Markov models in grey, then the models."""
    found = [(f"Markov, order {row['order']}", float(row["value"]), charts.MUTED)
             for row in charts.newest([r for r in markov if r["set"] == "test"], "model")]  # fmt: skip
    models = sorted(bits_rows(rows), key=lambda row: -float(row["value"]))
    found += [(NAMES[row["model"]], float(row["value"]), charts.colour(COLOURS.get(row["model"], row["model"])))
              for row in models]  # fmt: skip
    figure, (axis,) = charts.panels(1, columns=1, width=7.0, height=0.36 * len(found) + 0.9)
    names, values, colours = zip(*found[::-1])
    axis.barh(names, values, color=colours, height=0.7)
    for place, value in enumerate(values):
        axis.text(value + 0.05, place, f"{value:.3f}", va="center", fontsize=8)
    axis.set_xlim(0, 8.5)
    axis.set_xlabel("held-out bits a sample (uniform: 8)")
    axis.set_axisbelow(True)
    axis.grid(visible=False, axis="y")
    axis.set_title("Spoken digits, 8 kHz mu-law, official test takes")
    charts.save(figure, path)


def spectrograms(samples: Path, fsdd: Path, path: Path) -> None:
    """A column a digit; real, told, and whatever the models without a class made."""
    from domains.audio.metrics import spectrogram
    from domains.audio.tokenizer import MuLawTokenizer
    from domains.audio.wav import read_samples

    decode = MuLawTokenizer(sample_rate_hz=RATE_HZ).decode
    made = {name: np.load(samples / name / "all.npy")[:10] for name in NAMES if (samples / name / "all.npy").exists()}
    if not made:
        return
    length = next(iter(made.values())).shape[1]
    real = [np.pad(read_samples(next(iter(sorted(fsdd.glob(f"{digit}_*_0.*"))))), (0, length))[:length]
            for digit in range(10)]  # fmt: skip
    order = sorted(made, key=lambda name: name != "told")
    rows = [("real", real), *((NAMES[name], [decode(ids) for ids in made[name]]) for name in order)]
    figure, axes = charts.panels(10 * len(rows), columns=10, width=1.35, height=1.45)
    for line, (name, sounds) in enumerate(rows):
        for column, sound in enumerate(sounds):
            axis = axes[10 * line + column]
            picture = spectrogram(sound, RATE_HZ, window_seconds=0.016, hop_seconds=0.004)
            top = picture.level_db.max()
            axis.pcolormesh(picture.times_s, picture.frequencies_hz / 1000, picture.level_db, vmin=top - 65, vmax=top,
                            cmap="magma", rasterized=True)  # fmt: skip
            axis.grid(visible=False)
            axis.set_yticks([0, 2, 4] if column == 0 else [])
            axis.set_xticks([0, 0.5] if line == len(rows) - 1 else [])
            axis.set_xlim(0, length / RATE_HZ)
            if column == 0:
                axis.set_ylabel(name.replace(" + ", "\n+ ").replace(", ", "\n") + "\nkHz", fontsize=7)
            if line == len(rows) - 1:
                axis.set_xlabel("seconds", fontsize=7)
            if line < 2 and rows[line][0] in ("real", NAMES["told"]):
                axis.set_title(str(column), fontsize=8)
    charts.save(figure, path)


def sounds(samples: Path, folder: Path) -> None:
    """The first ten clips of each model, a tenth of a second between them."""
    from domains.audio.tokenizer import MuLawTokenizer
    from domains.audio.wav import write_audio

    decode, pause = MuLawTokenizer(sample_rate_hz=RATE_HZ).decode, np.zeros(RATE_HZ // 10, np.float32)
    for name in NAMES:
        if (samples / name / "all.npy").exists():
            clips = [part for ids in np.load(samples / name / "all.npy")[:10] for part in (decode(ids), pause)]
            to, about = folder / "samples" / f"{name}.wav", {"title": NAMES[name]}
            write_audio(to, np.concatenate(clips), RATE_HZ, metadata=about)


def score_table(rows: Rows, note: str) -> list[str]:
    """Markdown: sets of clips by scores, intervals in brackets."""
    chosen = [row for row in rows if row["what"] == "scores" and row["note"].startswith(note) and row["status"] == "ok"]
    lines = [f"| | clips | {' | '.join(TABLE.values())} |", "|---" * (2 + len(TABLE)) + "|"]
    sets = dict.fromkeys((row["model"], row["set"]) for row in chosen)
    for model, which in sorted(sets, key=lambda pair: pair[0] != "real"):
        of_set = {row["metric"]: row for row in chosen if (row["model"], row["set"]) == (model, which)}
        title = which if model == "real" else f"{NAMES[model]}{which.removeprefix('samples')}"
        cells = [cell(of_set[metric]) if metric in of_set else "" for metric in TABLE]
        lines.append(f"| {title} | {next(iter(of_set.values()))['clips']} | {' | '.join(cells)} |")
    return lines


def cell(row: Mapping[str, str]) -> str:
    """A score and its interval."""
    digits = 0 if float(row["value"]) >= 100 else 2 if float(row["value"]) >= 1 else 3
    shown = [f"{float(row[key]):,.{digits}f}" for key in ("value", "low", "high") if row[key]]
    return shown[0] if len(shown) < 3 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def bits_table(rows: Rows, markov: Rows) -> list[str]:
    """Markdown: Markov models, then models by held-out bits, with what they cost."""
    lines = ["| | parameters | steps (best) | samples seen | seconds | samples/s | bits/sample |", "|---" * 7 + "|"]
    for row in charts.newest([row for row in markov if row["set"] == "test"], "model"):
        lines.append(f"| Markov, order {row['order']} | | | {float(row['tokens']) / 1e6:.0f} M | | | "
                     f"{float(row['value']):.3f} |")  # fmt: skip
    for row in sorted(bits_rows(rows), key=lambda row: -float(row["value"])):
        lines.append(
            f"| {NAMES[row['model']]} | {int(row['parameters']):,} | {row['steps']} ({row['best_step']}) | "
            f"{float(row['tokens']) / 1e6:.0f} M | {float(row['seconds']):.0f} | {float(row['tokens_per_s']):,.0f} | "
            f"{float(row['value']):.3f} |"
        )
    return lines


def digit_table(rows: Rows) -> list[str]:
    """Markdown: how often each digit of the model that was told is heard as itself."""
    found = charts.newest([row for row in rows if row["what"] == "digit"], "model", "set")
    lines = [f"| told | {' | '.join(row['set'] for row in found)} |", "|---" * (1 + len(found)) + "|"]
    lines.append(f"| heard as that | {' | '.join(format(float(row['value']), '.0%') for row in found)} |")
    wrong = [row["note"].removeprefix("else most often ") for row in found]
    return [*lines, f"| else most often | {' | '.join(wrong)} |"] if found else []


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder with digits.csv, digits_markov.csv and samples/")
    parser.add_argument("fsdd", type=Path, help="folder of FSDD's clips")
    parser.add_argument("--to", type=Path, help="folder for figures and sounds; default OUT")
    options = parser.parse_args(words)
    to = options.to or options.out
    rows: list[Any] = charts.read_rows(options.out / "digits.csv")
    markov: list[Any] = charts.read_rows(options.out / "digits_markov.csv")
    bits(rows, markov, to / "bits.png")
    spectrograms(options.out / "samples", options.fsdd, to / "spectrograms.png")
    sounds(options.out / "samples", to)
    tables = bits_table(rows, markov), score_table(rows, "standard"), score_table(rows, "sashimi"), digit_table(rows)
    for lines in tables:
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
