"""Speech: a next-sample model of three languages, judged on their held-out files and on two languages it never heard.

    python experiments/audio/speech/run.py build/speech --out OUT --seconds 110     on a GPU; data.py makes build/speech
    python experiments/audio/speech/run.py build/speech --out OUT --smoke           tiny, on a CPU: does it run?

English, French and Russian are trained on. Spanish has the voice of the English prompts, Italian a voice of its own. A
U-Net and flat Mamba of as many parameters take the same batches; a third run changes loudness and polarity of the
U-Net's. Markov models of order 0 to 2 learn from the same files. Rows go to OUT/speech.csv as they are measured: one a
model and language, bits a sample of whole files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))  # the repository: `python experiments/...` puts only this folder on the path

from experiments.audio.study import Study, parameters  # noqa: E402

LANGUAGES = {"en": "trained", "fr": "trained", "ru": "trained", "es": "voice known", "it": "voice unknown"}
RATE_HZ, SEGMENT, BATCH, WHOLE_CLIP = 8000, 2**14, 32, 2**18
AUGMENT = (
    "domain.dataset.augment={_target_: domains.audio.augment.WaveformAugment, gain_db: 6.0, flip_polarity: true}"
)
UNET = ["backbone=unet"]
S4_UNET = [*UNET, "backbone.n_layers=1", "backbone.outer=S", "backbone.centre=mmmm"]  # Mamba blocks around S4D cores
FLAT = ["backbone=stack", "layer=mamba", "backbone.n_layers=8", "backbone.d_model=176"]
MODELS = {"unet": UNET, "flat": FLAT, "unet_augmented": [*UNET, AUGMENT], "unet_mamba_s4": S4_UNET}
MEASURED = ("unet", "flat", "unet_augmented")
TINY_UNET = [*UNET, "backbone.d_model=8", "backbone.n_layers=1", "backbone.layers.s4d.d_state=4"]
TINY = {"unet": TINY_UNET, "unet_augmented": [*TINY_UNET, AUGMENT]}
PROBE_STEPS, A_RUN_S, GENERATION_S = 20, 10, 14
COLUMNS = [
    "what", "model", "parameters", "language", "heard", "files", "samples", "bits_test", "steps", "best_step",
    "tokens", "epochs", "lr", "tokens_per_s", "peak_gib", "note",
]  # fmt: skip


class Speech:
    """The study's parts, in order.

    Args:
        study: folder, clock and table.
        sound: FLACs and manifests, as data.py leaves them.
        models: names of those to train, the first also for the probe of speed and the samples.
        smoke: tiny models.
    """

    def __init__(self, study: Study, sound: Path, *, models: Sequence[str] = MEASURED, smoke: bool = False) -> None:
        self.study, self.sound, self.smoke = study, sound, smoke
        self.models = TINY if smoke else {name: MODELS[name] for name in models}
        self.batch, self.segment = (4, 512) if smoke else (BATCH, SEGMENT)

    def data(self, manifest: str, length: int) -> list[str]:
        """The corpus in segments of a length."""
        return [
            f"domain.dataset.manifest={self.sound / manifest}.csv", "domain.dataset.split_by=official",
            "domain.dataset.label=null", f"domain.dataset.segment_samples={length}",
        ]  # fmt: skip

    def train(self, model: str, *, steps: int, lr: float, often: int) -> tuple[Any, dict[str, Any]]:
        """One run, and what it cost."""
        return self.study.train(
            model, "domain=audio_folder", *self.models[model], "head=next_token", *self.data("manifest", self.segment),
            f"domain.dataset.tokenizer.sample_rate_hz={RATE_HZ}", f"data.batch_size={self.batch}",
            f"trainer.max_steps={steps}", f"trainer.val_every_steps={often}", "trainer.val_batches=null",
            f"trainer.checkpoint_every_steps={max(often, 1)}", f"trainer.log_every_steps={max(1, steps // 40)}",
            f"optimizer.lr={lr}", "callbacks=none", "logger=csv",
        )  # fmt: skip

    def probe(self) -> float:
        """Seconds of a step; compiles the kernels."""
        _, cost = self.train(next(iter(self.models)), steps=2 if self.smoke else PROBE_STEPS, lr=0.001, often=0)
        self.study.row(what="probe", model=next(iter(self.models)), **cost)
        return self.batch * self.segment / float(cost["tokens_per_s"])

    def model(self, name: str, *, steps: int, lr: float) -> Path:
        """One model: trained, and judged language by language; its run folder."""
        result, cost = self.train(name, steps=steps, lr=lr, often=max(1, steps // 8))
        run, tokens = result.run_dir, steps * self.batch * self.segment
        facts = {"model": name, "parameters": parameters(run), "steps": steps, "best_step": result.best_step, "lr": lr}
        facts |= {"epochs": f"{result.metrics['valid']['epoch']:.1f}", "tokens": tokens, **cost}
        for language, heard in LANGUAGES.items():
            words = [*self.data(language, WHOLE_CLIP), "split=test", "checkpoint=best", "data.batch_size=8"]
            report = self.study.evaluate(run, *words)
            bits = f"{report['metrics']['bits_per_sample']:.4f}"
            known = {"language": language, "heard": heard, "files": report["sequences"], "bits_test": bits}
            self.study.row(what="model", **facts, **known)
        return run

    def markov(self) -> None:
        """Markov models on the same files."""
        from domains.audio.datasets import AudioSegments
        from domains.audio.tokenizer import MuLawTokenizer
        from seqmodels.data.markov import markov_bits

        def ids_of(manifest: str, split: str) -> list[np.ndarray]:
            corpus = AudioSegments(
                manifest=self.sound / f"{manifest}.csv", split_by="official", label=None, segment_samples=self.segment,
                tokenizer=MuLawTokenizer(sample_rate_hz=RATE_HZ),
            )  # fmt: skip
            return list(corpus.region_ids(split))

        begin, train = time.perf_counter(), ids_of("manifest", "train")
        held_out = {language: ids_of(language, "test") for language in LANGUAGES}
        every = [ids for clips in held_out.values() for ids in clips]
        marks = {
            language: [np.full(len(ids), other == language) for other, clips in held_out.items() for ids in clips]
            for language in held_out
        }
        for row in markov_bits(train, every, max_order=1 if self.smoke else 2, marks=marks):
            for language, bits in row.by_mark.items():
                clips = held_out[language]
                self.study.row(
                    what="markov", model=f"markov order {row.order}", language=language, heard=LANGUAGES[language],
                    files=len(clips), samples=sum(map(len, clips)), bits_test=f"{bits:.4f}",
                    tokens=sum(map(len, train)), seconds=f"{time.perf_counter() - begin:.1f}",
                )  # fmt: skip

    def samples(self, run: Path) -> None:
        """New speech, nothing before it."""
        begin = time.perf_counter()
        seconds = 0.05 if self.smoke else 3
        words = ["num_samples=3", f"seconds={seconds}", "top_p=0.95", "seed=1", "checkpoint=best"]
        self.study.generate(run, *words, f"output={self.study.out / 'speech.wav'}")
        took = time.perf_counter() - begin
        facts = {"model": next(iter(self.models)), "tokens": round(3 * seconds * RATE_HZ), "seconds": f"{took:.1f}"}
        self.study.row(what="samples", **facts, note="3 at top_p 0.95")


def study(speech: Speech) -> None:
    """Everything, in order."""
    log = speech.study
    a_step_s = log.attempt("probe", speech.probe) or 0.08
    log.attempt("markov", speech.markov)
    count = len(speech.models)
    each_s = (log.left_s - GENERATION_S) / count - A_RUN_S
    steps = 2 if speech.smoke else int(min(1200, max(60, 0.9 * each_s / a_step_s)))
    log.say(f"{a_step_s:.4f} s a step; {steps} steps a model")
    for name in speech.models:
        run = log.attempt(
            "model", lambda name=name: speech.model(name, steps=steps, lr=0.004),
            needs_s=0 if speech.smoke else A_RUN_S + 0.5 * steps * a_step_s, model=name,
        )  # fmt: skip
        if run and name == next(iter(speech.models)):
            log.attempt("samples", lambda run=run: speech.samples(run))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, help="folder with FLACs and manifests, as data.py makes it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the table and WAVs")
    parser.add_argument("--seconds", type=float, default=110, help="begin nothing after so many seconds")
    parser.add_argument("--runs", type=Path, default=None, help="folder for the runs; a temporary one if not given")
    parser.add_argument("--commit", default=None, help="what to write where there is no git")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MEASURED), help="which to train")
    parser.add_argument("--smoke", action="store_true", help="tiny models, for a CPU")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        log = Study(
            "speech", COLUMNS, out=options.out, runs=options.runs or Path(temporary), seconds=options.seconds,
            commit=options.commit,
        )  # fmt: skip
        study(Speech(log, options.sound.resolve(), models=options.models, smoke=options.smoke))


if __name__ == "__main__":
    main()
