"""FSDD (Free Spoken Digit Dataset) into a folder of this checkout, for a machine that gets nothing else.

    python experiments/audio/digits/data.py FSDD              2,500 clips of five speakers, 10 MB, to build/digits/fsdd

FSDD: a folder with <digit>_<speaker>_<take>.flac or .wav (github: Jakobovski/free-spoken-digit-dataset, CC BY-SA 4.0).
Prints what is there: clips of each split, how long they are, how many repeat a clip of training.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # `python experiments/...` puts only this folder on the path


def copied(source: Path, target: Path) -> int:
    """Copies every clip that is not there yet; returns how many there are.

    Raises:
        FileNotFoundError: no clips in the source.
    """
    clips = sorted(path for path in source.iterdir() if path.suffix in (".flac", ".wav") and path.stem.count("_") == 2)
    if not clips:
        raise FileNotFoundError(f"{source}: no <digit>_<speaker>_<take>.flac or .wav in it")
    target.mkdir(parents=True, exist_ok=True)
    for clip in clips:
        if not (target / clip.name).exists():
            shutil.copyfile(clip, target / clip.name)
    return len(clips)


def account(folder: Path) -> dict[str, object]:
    """What the corpus says of itself, and quantiles of the clips' lengths in samples."""
    from domains.audio.datasets import AudioSegments
    from domains.audio.tokenizer import MuLawTokenizer

    corpus = AudioSegments(folder, tokenizer=MuLawTokenizer(sample_rate_hz=8000), segment_samples=2**15, crop="start")
    lengths = [len(ids) for split in ("train", "valid", "test") for ids in corpus.region_ids(split)]
    quantiles = {f"length_{share:g}": int(np.quantile(lengths, share)) for share in (0, 0.05, 0.5, 0.95, 0.99, 1)}
    return {**corpus.report(), **quantiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fsdd", type=Path, help="folder of clips")
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "digits" / "fsdd", help="where they are put")
    options = parser.parse_args()
    print(f"{copied(options.fsdd, options.to):,} clips in {options.to}")
    for name, value in account(options.to).items():
        print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
