"""What the judge says of clips that run.py kept, again and in more detail: on a CPU, minutes.

    python experiments/audio/digits/judge.py OUT build/digits/fsdd        OUT: the folder with classifier/ and samples/

Appends to OUT/digits.csv the scores of real and made clips with their intervals (`convention=standard`), how often each
digit is heard as itself, and controls: real held-out clips under white noise. What the judge answered is kept in
OUT/answers.npz: a second call does not listen again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # `python experiments/...` puts only this folder on the path

from domains.audio.metrics.answers import Answers, classifier_answers  # noqa: E402
from domains.audio.metrics.generation import Rejection, halves, tune_rejection  # noqa: E402
from domains.audio.metrics.sample_scores import SampleScores  # noqa: E402
from domains.audio.tokenizer import MuLawTokenizer  # noqa: E402
from domains.audio.wav import read_samples  # noqa: E402
from experiments.audio.digits.run import COLUMNS, SCORES, TOLD, read_rows_tsv, rounded  # noqa: E402
from experiments.audio.study import Study  # noqa: E402
from seqmodels.data.collate import collate_for  # noqa: E402
from seqmodels.data.record import Batch, Record  # noqa: E402
from seqmodels.inference import LoadedModel, load  # noqa: E402
from seqmodels.training.run_folder import RunFolder  # noqa: E402

RATE_HZ, BATCH = 8000, 32
TAKES = {"test": range(5), "valid": range(5, 10), "train": range(10, 10**6)}
NOISE_DB = (30, 20)  # of the clip above the noise


class Judge:
    """Listens once to every set of clips.

    Args:
        out: what run.py left.
        fsdd: folder of FSDD's clips.
    """

    def __init__(self, out: Path, fsdd: Path) -> None:
        self.out, self.kept, self.tokenizer = out, out / "answers.npz", MuLawTokenizer(sample_rate_hz=RATE_HZ)
        self.known = dict(np.load(self.kept)) if self.kept.exists() else {}
        files = sorted(path for path in fsdd.iterdir() if path.suffix in (".flac", ".wav"))
        take_of = {path: int(path.stem.split("_")[2]) for path in files}
        self.files = {split: [path for path in files if take_of[path] in takes] for split, takes in TAKES.items()}
        config = RunFolder.open(out / "classifier").read_config()
        self.heard_samples = int(config["domain"]["dataset"]["segment_samples"])
        self.loaded: LoadedModel | None = None

    def labels(self, split: str) -> np.ndarray:
        """The digits of real clips."""
        return np.array([int(path.name[0]) for path in self.files[split]])

    def real(self, split: str) -> Answers:
        """About real clips."""
        return self.answers(split, [read_samples(path) for path in self.files[split]])

    def noisy(self, db: int) -> Answers:
        """About test clips, white noise that many decibels below each."""
        dice, clips = np.random.default_rng(0), [read_samples(path) for path in self.files["test"]]
        noise = [dice.normal(size=len(clip)) * np.sqrt((clip**2).mean()) * 10 ** (-db / 20) for clip in clips]
        return self.answers(f"noise_{db}", [np.clip(c + n, -1, 1).astype(np.float32) for c, n in zip(clips, noise)])

    def made(self, model: str) -> Answers:
        """About clips that a model made."""
        ids_NL = np.load(self.out / "samples" / model / "all.npy")
        return self.answers(model, [self.tokenizer.decode(ids) for ids in ids_NL])

    def answers(self, name: str, clips: Sequence[np.ndarray]) -> Answers:
        """The judge's answers; those of an earlier call where there are any."""
        if f"{name}.p" not in self.known:
            self.loaded = self.loaded or load(self.out / "classifier", "cpu", objective="classify")
            answers = classifier_answers(self.loaded.model, self.batches(clips))
            self.known |= {f"{name}.p": answers.probabilities_NO, f"{name}.f": answers.features_NF}
            np.savez(self.kept, **self.known)
        return Answers(self.known[f"{name}.p"], self.known[f"{name}.f"])

    def batches(self, clips: Sequence[np.ndarray]) -> Iterator[Batch]:
        """Clips as the judge was taught: their first 0.77 s, digital silence behind shorter ones."""
        assert self.loaded is not None
        length = self.heard_samples
        collate = collate_for("classify", self.loaded.tokenizer)
        for first in range(0, len(clips), BATCH):
            padded = [np.pad(clip[:length], (0, max(0, length - len(clip)))) for clip in clips[first : first + BATCH]]
            yield collate([Record(str(row), self.tokenizer.encode(clip), label=0) for row, clip in enumerate(padded)])


def score(study: Study, judge: Judge, resamples: int) -> None:
    """Rows of every set of clips."""
    scorer, reference, note = SampleScores(resamples=resamples), judge.real("test"), "standard, against test"

    def rows(model: str, which: str, answers: Answers, labels: np.ndarray | None, more: str = "") -> None:
        found = scorer.scores(answers, labels, reference)
        for metric in (metric for metric in SCORES if metric in found):
            interval = found[metric]
            assert not isinstance(interval, int)
            study.row(what="scores", model=model, set=which, metric=metric, clips=found["clips"], note=note + more,
                      **rounded(interval._asdict()))  # fmt: skip

    for folder in sorted((judge.out / "samples").iterdir()):
        if not (folder / "all.npy").exists():
            continue
        table, answers = read_rows_tsv(folder / "all.tsv"), judge.made(folder.name)
        labels = np.array([int(row["class_name"]) for row in table]) if folder.name == TOLD else None
        rows(folder.name, "samples", answers, labels)
        rejection, left = kept(answers, np.array([-float(row["bits_per_symbol"]) for row in table]))
        rows(folder.name, "samples, after rejection", Answers(*(part[left] for part in answers)),
             None if labels is None else labels[left],
             f", kept {rejection.lower:.2f} to {rejection.upper:.2f}")  # fmt: skip
        if labels is not None:
            by_digit(study, folder.name, answers, labels)
    for split in ("test", "valid"):
        rows("real", f"{split} (real)", judge.real(split), judge.labels(split))
    for db in NOISE_DB:
        rows("real", f"test (real), noise {db} dB below", judge.noisy(db), judge.labels("test"))
    rows("real", "train (real)", judge.real("train"), judge.labels("train"))  # most clips: last


def kept(answers: Answers, likely_N: np.ndarray) -> tuple[Rejection, np.ndarray]:
    """Thresholds tuned on one half, and the clips of the other that they leave: as `seqmodels evaluate` does."""
    tuned_on, rest = halves(len(likely_N))
    rejection = tune_rejection(answers.probabilities_NO[tuned_on], likely_N[tuned_on])
    return rejection, rest[rejection.keep(likely_N[rest])]


def by_digit(study: Study, model: str, answers: Answers, labels: np.ndarray) -> None:
    """How often each digit is heard as itself, and as what else most often."""
    heard = answers.probabilities_NO.argmax(axis=1)
    for digit in range(10):
        counts = np.bincount(heard[labels == digit], minlength=10)
        value = round(float(counts[digit] / counts.sum()), 4) if counts.sum() else ""
        other = int(np.where(np.arange(10) == digit, -1, counts).argmax())
        study.row(what="digit", model=model, set=str(digit), metric="accuracy", value=value, clips=int(counts.sum()),
                  note=f"else most often {other}: {counts[other]}")  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder with classifier/, samples/ and digits.csv")
    parser.add_argument("fsdd", type=Path, help="folder of FSDD's clips")
    parser.add_argument("--resamples", type=int, default=400, help="bootstrap draws behind every interval")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    options = parser.parse_args(words)
    study = Study("digits", COLUMNS, out=options.out, runs=options.out, seconds=float("inf"), commit=options.commit)
    score(study, Judge(options.out, options.fsdd), options.resamples)


if __name__ == "__main__":
    main()
