"""Real spoken digits (FSDD, 8 kHz mu-law): bits a sample of four models, and how good what they make is.

    python experiments/audio/digits/data.py FSDD                                     once: the clips, to build/digits
    python experiments/audio/digits/run.py build/digits/fsdd --out OUT --seconds 530      one GPU, nine minutes
    python experiments/audio/digits/run.py example:digits --out OUT --smoke               tiny, on a CPU: does it run?

Parts, in this order, each left out where its time is up (`--parts`, comma-separated, chooses):

classifier   experiment=digit_classifier on the training takes; accuracy on held-out takes
<model>      one of four language models at equal parameters, trained for equally many seconds on the same batches:
             held-out bits a sample on whole clips; then it makes clips, and the classifier scores them
told         the hybrid U-Net, told which digit (condition=class): the same, and how often that digit is heard

How many steps fit is measured by a short run of the same command before. Markov models of the same training clips are
counted meanwhile by another process, into OUT/digits_markov.csv. Rows go to OUT/digits.csv as they are measured;
sounds, logs of metrics and reports beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from domains.audio.datasets import AudioCorpus
    from domains.audio.metrics.sample_scores import Heard
    from seqmodels.inference import LoadedModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))  # the repository: `python experiments/...` puts only this folder on the path

from experiments.audio.study import ON_GPU, Study, parameters, read_rows  # noqa: E402

SEGMENT, WHOLE = 6144, 32768  # samples: of a training sample and of what is made; longer than any clip
BATCH, CLASSIFIER_BATCH = 16, 32
CALIBRATION_STEPS = 30
KEPT_SOUNDS = 10  # of each model
MODELS = {  # 3.2 to 3.4 million parameters each
    "unet_s4d_mamba": ["backbone=unet_s4d_mamba", "backbone.n_layers=4", "optimizer.lr=0.003"],
    "mamba": ["backbone=stack", "backbone.d_model=248", "backbone.n_layers=8", "optimizer.lr=0.003"],
    "unet_s4d": ["backbone=unet_sashimi", "backbone.n_layers=4", "optimizer.lr=0.003"],
    "transformer": [
        "backbone=transformer", "backbone.n_layers=8", "backbone.layers.mlp.hidden=704",
        "backbone.layers.attention.n_heads=4", "optimizer.lr=0.001",
    ],
}  # fmt: skip
TOLD = "told"
TINY = {
    "unet_s4d_mamba": ["backbone=unet_s4d_mamba", "backbone.n_layers=1", "backbone.d_model=8"],
    "mamba": ["backbone=stack", "backbone.d_model=8", "backbone.n_layers=1"],
    "unet_s4d": ["backbone=unet_sashimi", "backbone.n_layers=1", "backbone.d_model=8"],
    "transformer": ["backbone=transformer", "backbone.n_layers=2", "backbone.d_model=8",
                    "backbone.layers.attention.n_heads=2"],
    "classifier": ["backbone.d_model=8", "backbone.n_layers=1"],
}  # fmt: skip
COLUMNS = [
    "what", "model", "set", "metric", "value", "low", "high", "clips", "parameters", "steps", "best_step", "batch",
    "tokens", "tokens_per_s", "peak_gib", "lr", "order", "note",
]  # fmt: skip
SCORES = ("fid", "inception_score", "modified_inception_score", "am", "accuracy", "class_diversity",
          "feature_diversity")  # fmt: skip
CLASSIFIERS = {  # the next is tried where the one before hears too little
    "classifier": [],
    "classifier_patches": [  # nothing but two linear maps at every sample: several times faster
        "backbone.pool=[16]", "backbone.expand=4", "backbone.outer=-", "backbone.centre=s-s-s-s-",
        "optimizer.lr=0.002",
    ],
}
GOOD_ENOUGH = 0.95


class Digits:
    """The study's parts.

    Args:
        study: folder, clock and table.
        options: of the command line.
    """

    def __init__(self, study: Study, options: argparse.Namespace) -> None:
        self.study, self.options = study, options
        self.segment = 96 if options.smoke else SEGMENT
        self.data = [f"domain.dataset.folder={options.data}", f"domain.dataset.segment_samples={self.segment}"]
        self.judge: tuple[LoadedModel, AudioCorpus] | None = None  # the classifier, and what it was trained on
        self.real: dict[str, Heard] | None = None  # what the judge says of real clips
        self.real_are_scored: set[str] = set()  # conventions in which the real clips' rows are written

    # -------------------------------------------------------------------------------------------------- training

    def trained(self, name: str, seconds: float, batch: int, *words: str) -> tuple[Path, dict[str, Any]]:
        """A run of about so many seconds of training; its folder and what a row says of it."""
        short = ["trainer.val_every_steps=0", "logger=csv", f"data.batch_size={batch}"]
        words, steps = (*words, *self.data, *short), 4
        if not self.options.smoke:
            rate, words = self.probed(name, words)
            steps = max(50, int(seconds * rate / (batch * self.segment)) // 10 * 10)
        every = max(1, steps // self.options.validations)
        long = [
            f"trainer.max_steps={steps}", f"trainer.val_every_steps={every}", f"trainer.checkpoint_every_steps={steps}",
            "data.eval_batch_size=64", f"trainer.log_every_steps={max(1, steps // 60)}",
        ]  # fmt: skip
        words = tuple(word for word in words if "val_every_steps" not in word)
        try:
            result, cost = self.study.train(name, *words, *long)
        except ValueError as error:  # a loss that is no number; anything else fails again
            self.study.row(what="training", model=name, status=" ".join(str(error).split())[:200])
            words = (*words, f"optimizer.lr={float(_value(words, 'optimizer.lr') or 0.004) / 3:.2g}")
            result, cost = self.study.train(name, *words, *long)
        size = parameters(result.run_dir)
        about = dict(
            model=name, parameters=size, steps=result.step, best_step=result.best_step, batch=batch,
            tokens=result.step * batch * self.segment, lr=_value(words, "optimizer.lr"),
        )  # fmt: skip
        return result.run_dir, about | cost

    def probed(self, name: str, words: tuple[str, ...]) -> tuple[float, tuple[str, ...]]:
        """Samples a second of a short run, and the words it ran with: as CUDA graphs where that works."""
        steps = [f"trainer.max_steps={CALIBRATION_STEPS}", "trainer.log_every_steps=5"]
        steps.append(f"trainer.checkpoint_every_steps={10**6}")
        result = None
        if ON_GPU:
            graphed = (*words, "trainer.cuda_graph=true")
            result = self.study.attempt(f"{name}: graphs", lambda: self.study.train(f"{name}-probe", *graphed, *steps))
            words = words if result is None else graphed
        run, _ = result or self.study.train(f"{name}-probe", *words, *steps)
        rows = [row for row in read_rows(run.run_dir / "metrics.csv") if row["split"] == "train"]
        return float(rows[-1]["tokens_per_second"]), words

    def classifier(self) -> None:
        """Trains the judge, and another where it hears too little; the better one on validation clips is used."""
        accuracies: dict[str, float] = {}
        for name, words in CLASSIFIERS.items():
            accuracies[name] = self.one_classifier(name, *(TINY["classifier"] if self.options.smoke else words))
            best = max(accuracies, key=accuracies.__getitem__)
            if accuracies[best] >= GOOD_ENOUGH or self.options.smoke:
                break
        self.use_classifier(self.study.runs / best)

    def use_classifier(self, run: Path) -> None:
        """Loads the judge and its data once for all models."""
        from seqmodels.inference import load
        from seqmodels.instantiate import build
        from seqmodels.training.checkpoint import export_run
        from seqmodels.training.run_folder import RunFolder

        self.judge = load(run), build(RunFolder.open(run).read_config()["domain"]["dataset"])
        export_run(run, self.study.out / "classifier")

    def one_classifier(self, name: str, *words: str) -> float:
        """Its accuracy on validation clips; both held-out splits go to the table, its mistakes to JSON."""
        run, about = self.trained(
            name, self.options.classifier_seconds, CLASSIFIER_BATCH, "experiment=digit_classifier", *words
        )
        accuracy = 0.0
        for split in ("valid", "test"):
            report = self.study.evaluate(run, f"split={split}", "data.batch_size=64")
            (self.study.out / f"{name}_{split}.json").write_text(json.dumps(report, indent=1))
            for metric in ("accuracy", "macro_recall", "loss"):
                self.study.row(
                    what="classifier", set=split, metric=metric, value=round(report["metrics"][metric], 5),
                    clips=report["sequences"], **about,
                )  # fmt: skip
            accuracy = report["metrics"]["accuracy"] if split == "valid" else accuracy
        return accuracy

    def language_model(self, name: str) -> None:
        """Trains, judges on whole held-out clips, makes clips, scores them."""
        is_told = name == TOLD
        words = (TINY if self.options.smoke else MODELS)["unet_s4d_mamba" if is_told else name]
        if is_told:
            words = [*words, "condition=class"]
        run, about = self.trained(name, self.options.train_seconds, BATCH, "experiment=digits", *words)
        report = self.study.evaluate(run, "data.batch_size=32", f"domain.dataset.segment_samples={WHOLE}")
        for metric in ("bits_per_sample", "accuracy"):
            self.study.row(
                what="bits", set="test", metric=metric, value=round(report["metrics"][metric], 5),
                clips=report["sequences"], **about,
            )  # fmt: skip
        self.study.attempt(f"{name}: sounds", lambda: self.sounds(name, run), needs_s=self.options.sounds_need_s)

    # ---------------------------------------------------------------------------------------------------- sounds

    def sounds(self, name: str, run: Path) -> None:
        """What a model makes: `--clips` clips, scored in both conventions, the first few kept."""
        begin = self.study.left_s
        words = [f"num_samples={self.options.clips}", f"length={self.segment}", "figure=false", "seed=0"]
        self.study.generate(run, *words, *(["class_name=all"] if name == TOLD else []))
        taken = begin - self.study.left_s
        self.study.row(
            what="generation", model=name, metric="samples_per_s", clips=self.options.clips,
            value=round(self.options.clips * self.segment / taken), seconds=f"{taken:.1f}",
        )  # fmt: skip
        made = run / "results"
        kept = self.study.out / "samples" / name
        kept.mkdir(parents=True, exist_ok=True)
        table = read_rows_tsv(made / "samples.tsv")
        shutil.copy(made / "samples.tsv", kept / "all.tsv")
        for row in table[:KEPT_SOUNDS]:  # the first ones: nobody chose
            shutil.copy(made / row["file"], kept / row["file"])
        np.save(kept / "all.npy", np.stack([load_ids(made / row["file"]) for row in table]))
        if self.judge is None:
            self.study.row(status="left out: there is no classifier", what="scores", model=name)
            return
        self.score(name, made, convention="standard", reference="test", resamples=self.options.resamples)
        self.score(name, made, convention="sashimi", reference="train", resamples=0)

    def score(self, name: str, made: Path, **how: Any) -> None:
        """What `seqmodels evaluate run=… classifier=…` prints of sounds: a row a score and set of clips."""
        from domains.audio.metrics import SampleScores

        assert self.judge is not None
        scorer, convention = SampleScores(**how), how["convention"]
        self.real = self.real or scorer.hear_splits(*self.judge)
        report = scorer(*self.judge, made, real=self.real)
        (self.study.out / f"scores_{name}_{convention}.json").write_text(json.dumps(report, indent=1, default=str))
        note = f"{convention}, against {report['reference']}"
        for what, row in report["rows"].items():
            is_real = what.endswith("(real)")
            if is_real and convention in self.real_are_scored:
                continue
            share = report["rejection"] if what.endswith("rejection") else {}
            kept = f", kept {share['lower']:.2f} to {share['upper']:.2f}" if share else ""
            for metric in (metric for metric in SCORES if metric in row):
                self.study.row(
                    what="scores", model="real" if is_real else name, set=what, metric=metric, clips=row["clips"],
                    note=note + kept, **rounded(row[metric]._asdict()),
                )  # fmt: skip
        self.real_are_scored.add(convention)

    # -------------------------------------------------------------------------------------------------- baselines

    def markov(self) -> None:
        """Order 0 to 2 of the training clips on whole held-out clips, in the models' own ids."""
        from domains.audio.datasets import AudioSegments
        from domains.audio.tokenizer import MuLawTokenizer
        from seqmodels.data.markov import markov_bits

        corpus = AudioSegments(self.options.data, tokenizer=MuLawTokenizer(sample_rate_hz=8000), crop="grid",
                               segment_samples=WHOLE)  # fmt: skip
        train = list(corpus.region_ids("train"))
        for split in ("valid", "test"):
            held_out = list(corpus.region_ids(split))
            for row in markov_bits(train, held_out, max_order=self.options.markov_order):
                self.study.row(
                    what="markov", model=f"markov {row.order}", set=split, metric="bits_per_sample", order=row.order,
                    value=round(row.bits, 5), clips=len(held_out), tokens=sum(map(len, train)),
                    note=f"{row.smoothing} {row.strength:g}",
                )  # fmt: skip


def rounded(score: Mapping[str, float]) -> dict[str, Any]:
    """A score's value and interval for the table; empty where there is no interval."""
    return {key: "" if math.isnan(number) else round(number, 5) for key, number in score.items()}


def load_ids(file: Path) -> np.ndarray:
    """A sound as the ids it was made of: half of the file, and less when packed."""
    from domains.audio.tokenizer import MuLawTokenizer
    from domains.audio.wav import read_samples

    return MuLawTokenizer(sample_rate_hz=8000).encode(read_samples(file))


def read_rows_tsv(path: Path) -> list[dict[str, str]]:
    """Of `samples.tsv`."""
    import csv

    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def _value(words: tuple[str, ...], key: str) -> str:
    """What the command line says last of a key; empty where it says nothing."""
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith(f"{key}=")), "")


PARTS = ("classifier", "unet_s4d_mamba", "mamba", TOLD, "unet_s4d", "transformer")
MARKOV = "markov"  # a part of its own process, without a GPU


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; --smoke changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of FSDD's clips, or example:digits")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is kept")
    parser.add_argument("--runs", type=Path, help="folder for the runs; default a new one")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seconds", type=float, default=530, help="nothing is begun after so many")
    parser.add_argument("--train-seconds", type=float, default=45, help="of each language model")
    parser.add_argument("--classifier-seconds", type=float, default=32)
    parser.add_argument("--clips", type=int, default=512, help="that each model makes")
    parser.add_argument("--validations", type=int, default=6, help="of each training run")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    parser.add_argument("--smoke", action="store_true", help="tiny models, a few steps")
    options = parser.parse_args(words)
    options.parts = options.parts.split(",")
    if wrong := set(options.parts) - {*PARTS, MARKOV}:
        parser.error(f"--parts {','.join(sorted(wrong))}: known are {', '.join(PARTS)}")
    options.markov_order, options.resamples, options.sounds_need_s = 2, 400, 20.0
    if options.smoke:
        options.clips, options.validations, options.markov_order, options.resamples = 20, 2, 1, 20
        options.sounds_need_s = 0.0
    if not options.data.startswith("example:") and not Path(options.data).is_dir():
        parser.error(f"{options.data}: no such folder; experiments/audio/digits/data.py makes it")
    return options


def main(words: list[str] | None = None) -> None:
    options = arguments(words)
    runs = options.runs or Path(tempfile.mkdtemp(prefix="digits-"))
    if options.parts == [MARKOV]:
        study = Study("digits_markov", COLUMNS, out=options.out, runs=runs, seconds=options.seconds,
                      commit=options.commit)  # fmt: skip
        study.attempt(MARKOV, Digits(study, options).markov)
        return
    study = Study("digits", COLUMNS, out=options.out, runs=runs, seconds=options.seconds, commit=options.commit)
    digits, beside = Digits(study, options), begin_markov(words)
    for part in options.parts:
        if part == "classifier":
            study.attempt(part, digits.classifier, needs_s=0 if options.smoke else options.classifier_seconds + 20)
        else:
            needs_s = 0 if options.smoke else options.train_seconds + 25
            study.attempt(part, lambda part=part: digits.language_model(part), needs_s=needs_s, model=part)
    study.say(f"markov: exit {beside.wait()}")
    study.say(f"done; runs in {runs}")


def begin_markov(words: list[str] | None) -> subprocess.Popen[bytes]:
    """The same command for Markov models, beside everything else."""
    own = sys.argv[1:] if words is None else words
    command = [sys.executable, str(Path(__file__).resolve()), *own, "--parts", MARKOV]
    return subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"})


if __name__ == "__main__":
    main()
