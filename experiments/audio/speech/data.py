"""Voices of telephone prompts in five languages, a subset by seed, as FLAC with a manifest.

    apt-get download asterisk-core-sounds-{en,es,fr,it,ru}-wav
    for P in asterisk-core-sounds-*.deb; do dpkg-deb -x $P UNPACKED; done        # nothing is installed
    python experiments/audio/speech/data.py UNPACKED build/speech

Three languages are trained on, whole files of them held out; two are only listened to: Spanish, spoken by the voice of
the English prompts, and Italian, by a voice that training never hears. Files are shuffled with a seed and taken until
each share is full; silence and files under half a second are left out. 8 kHz mono, FLAC: nothing is lost. Recorded by
Allison Smith (en, es), June Wallack (fr), Carlo Flora (it), ivrvoice.ru (ru); CC BY-SA 3.0, the last two CC BY 3.0.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import soundfile

VOICES = {
    "en": "en_US_f_Allison", "fr": "fr_CA_f_June", "ru": "ru_RU_f_IvrvoiceRU", "es": "es_MX_f_Allison",
    "it": "it_IT_m_Carlo",
}  # fmt: skip
TRAINED = {"test": 40.0, "valid": 30.0, "train": 285.0}  # seconds of each language, filled in this order
HELD_OUT = {"test": 50.0}
SHARES = {"en": TRAINED, "fr": TRAINED, "ru": TRAINED, "es": HELD_OUT, "it": HELD_OUT}
LEAST_S, SEED = 0.5, 0


def prompts(unpacked: Path, voice: str) -> list[Path]:
    """A voice's files, in an order that depends on the seed alone.

    Raises:
        FileNotFoundError: the voice is not there.
    """
    found = sorted(path for path in unpacked.rglob(f"{voice}/**/*.wav") if path.parent.name != "silence")
    if not found:
        raise FileNotFoundError(f"no WAV of {voice} below {unpacked}: see the top of this file")
    return [found[i] for i in np.random.default_rng(SEED).permutation(len(found))]


def take(unpacked: Path, out: Path, scale: float = 1.0) -> list[dict[str, str]]:
    """Writes the FLACs; returns the manifest's rows."""
    rows: list[dict[str, str]] = []
    for language, shares in SHARES.items():
        left = {split: seconds * scale for split, seconds in shares.items()}
        for path in prompts(unpacked, VOICES[language]):
            split = next((split for split, seconds in left.items() if seconds > 0), None)
            if split is None:
                break
            samples, rate_hz = soundfile.read(path, dtype="int16")
            if len(samples) < LEAST_S * rate_hz:
                continue
            name = f"{language}/{path.parent.name}_{path.stem}.flac" if path.parent.name != VOICES[language] else (
                f"{language}/{path.stem}.flac")  # fmt: skip
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(target, samples, rate_hz, subtype="PCM_16", compression_level=1.0)
            left[split] -= len(samples) / rate_hz
            rows.append({"path": name, "split": split, "language": language})
    return rows


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path, help="folder that the packages were unpacked into")
    parser.add_argument("out", type=Path, help="folder to fill, for example build/speech")
    parser.add_argument("--scale", type=float, default=1.0, help="take so many times as much of everything")
    options = parser.parse_args(words)
    rows = take(options.unpacked, options.out, options.scale)
    manifests = {"manifest": rows}  # one of all, and one for each language's held-out files
    manifests |= {lang: [r for r in rows if r["language"] == lang and r["split"] == "test"] for lang in SHARES}
    for name, part in manifests.items():
        with open(options.out / f"{name}.csv", "w", newline="") as file:
            table = csv.DictWriter(file, ["path", "split", "language"])
            table.writeheader()
            table.writerows(part if name != "manifest" else [r for r in part if r["language"] not in ("es", "it")])
    size = sum(path.stat().st_size for path in options.out.rglob("*.flac"))
    print(f"{len(rows)} files, {size / 1e6:.1f} MB in {options.out}")


if __name__ == "__main__":
    main()
