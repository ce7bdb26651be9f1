"""Piano, bits a sample by context: one model a context, 2^13 to 2^20 samples, equally many samples seen by each.

    python experiments/audio/music/run.py /tmp/piano --out OUT --seconds 360     on a GPU; render.py makes /tmp/piano
    python experiments/audio/music/run.py /tmp/piano --out OUT --smoke           tiny, on a CPU: does it run?

Every optimizer step reads 2^20 samples, in 128 rows of 2^13 or one row of 2^20 (Table 14 of the Mamba paper has such
lengths and batches); every model takes the same number of steps, as many as the time allows for, at a rate chosen once
at 2^16. With `--base`, all go on from one model that was trained at 2^13 in many steps of 2^17 samples: a few hundred
steps of a million samples from scratch compare beginners. `--outer S` takes Mamba blocks around S4D cores for S4D and
MLP in the outer stages. Then: bits a sample on whole held-out files cut into the model's own context; the same in
windows of 2^20 for all (the state carried on past what training showed), also by how many samples of the window the
model has heard before; continuations of a real prefix by the model with the longest context; flat Mamba at the contexts
that time is left for. Rows go to OUT/music.csv as they are measured, Markov models' (a process of its own beside it) to
OUT/music_markov.csv.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))  # the repository: `python experiments/...` puts only this folder on the path

from experiments.audio.study import ON_GPU, Study, markov_rows, parameters  # noqa: E402

STEP_TOKENS, POWERS = 2**20, (13, 20, 16, 18, 15, 17, 14, 19)  # in this order: a run that is cut short has the ends
FLAT_POWERS, RATES, RATE_POWER, RATE_STEPS = (16, 20, 13), (0.002, 0.004, 0.008), 16, 40
BASE_POWER, BASE_TOKENS, BASE_LR, LR_AFTER_BASE = 13, 2**17, 0.004, 0.002
PROBE_STEPS, MOST_BASE_STEPS = 8, 3000
BASE_S, GENERATION_S, FLAT_S = 45, 35, 75  # set aside for what comes besides the U-Net's contexts
A_RUN_S = 7  # what a run costs besides its steps
RATE_HZ, PREFIX_FILE, PREFIX_BEGIN_S, PREFIX_S, NEW_S = 16_000, "Maestro_4", 60, 50, 10
# S4D and MLP ("s-"), or Mamba blocks around S4D cores ("S"), at 16 and 4 kHz, once on each way; at 1 kHz four of Mamba
UNET = ["backbone=unet", "backbone.n_layers=1", "backbone.centre=mmmm"]
FLAT = ["backbone=stack", "layer=mamba", "backbone.n_layers=6", "backbone.d_model=96"]
TINY_UNET = [
    *UNET, "backbone.centre=m", "backbone.d_model=8", "backbone.layers.s4d.d_state=4",
    "backbone.layers.mamba_s4.d_state=4",
]  # fmt: skip
TINY_FLAT = ["backbone=stack", "layer=mamba", "backbone.n_layers=1", "backbone.d_model=16"]
COLUMNS = [
    "what", "model", "parameters", "context", "batch", "steps", "tokens", "lr", "bits_valid", "bits_test",
    "bits_test_longest", "tokens_per_s", "peak_gib", "temperature", "note",
]  # fmt: skip
POSITION_COLUMNS = ["what", "model", "context", "heard_from", "heard_to", "bits", "tokens"]
MARKOV_COLUMNS = ["what", "order", "bits_test", "tokens"]


class Music:
    """The study's parts, in order.

    Args:
        study: folder, clock and table.
        sound: WAVs and manifest.csv, as render.py leaves them.
        outer: pattern of the U-Net's outer stages.
        smoke: tiny models and contexts.
    """

    def __init__(self, study: Study, positions: Study, sound: Path, *, outer: str = "s-", smoke: bool = False) -> None:
        self.study, self.positions, self.sound, self.smoke = study, positions, sound, smoke
        self.powers = (8, 10) if smoke else POWERS
        self.flat_powers = (8,) if smoke else FLAT_POWERS
        self.step_tokens = 2**10 if smoke else STEP_TOKENS
        self.longest = 2 ** max(self.powers)
        self.models = {"unet": [*(TINY_UNET if smoke else UNET), f"backbone.outer={outer}"]}
        self.models["flat"] = TINY_FLAT if smoke else FLAT
        self.base_steps: int | None = None  # the first base decides

    def words(self, model: str, power: int, *, steps: int, lr: float, tokens: int | None = None) -> list[str]:
        """What `seqmodels train` is told."""
        return [
            "domain=audio_folder", *self.models[model], "head=next_token", *self.data(2**power),
            f"data.batch_size={(tokens or self.step_tokens) >> power}",
            f"trainer.max_steps={steps}", f"trainer.val_every_steps={steps}", "trainer.val_batches=null",
            f"trainer.checkpoint_every_steps={steps}", f"trainer.log_every_steps={max(1, min(5, steps // 4))}",
            f"optimizer.lr={lr}", "callbacks=none", "logger=csv",
        ]  # fmt: skip

    def data(self, length: int) -> list[str]:
        """The corpus in segments of a length; loudness is kept, so ids are the same whatever the segments."""
        return [
            f"domain.dataset.manifest={self.sound / 'manifest.csv'}", "domain.dataset.split_by=official",
            "domain.dataset.label=null", f"domain.dataset.segment_samples={length}", "domain.dataset.memory_mib=0",
        ]  # fmt: skip

    def probe(self) -> float:
        """Seconds of a step, the mean of the shortest and the longest context; compiles the kernels."""
        found = []
        for power in (min(self.powers), max(self.powers)):
            steps = 2 if self.smoke else PROBE_STEPS
            words = self.words("unet", power, steps=steps, lr=0.001)
            _, cost = self.study.train(
                f"probe_{power}", *words, "trainer.val_every_steps=0", "trainer.log_every_steps=1"
            )
            found.append(self.step_tokens / float(cost["tokens_per_s"]))
            self.study.row(what="probe", model="unet", context=2**power, steps=steps, **cost)
        return sum(found) / len(found)

    def best_rate(self) -> float:
        """The learning rate with the lowest validation loss after `RATE_STEPS` steps from scratch at one context."""
        found: dict[float, float] = {}
        power, steps = (8, 2) if self.smoke else (RATE_POWER, RATE_STEPS)
        for lr in RATES:
            words = self.words("unet", power, steps=steps, lr=lr)
            made = self.study.attempt("rate", lambda words=words: self.study.train("unet_rate", *words), lr=lr)
            if made:
                bits = made[0].metrics["valid"]["bits_per_sample"]
                self.study.row(
                    what="rate", model="unet", context=2**power, steps=steps, lr=lr, bits_valid=f"{bits:.4f}", **made[1]
                )
                if math.isfinite(bits):
                    found[lr] = bits
        return min(found, key=lambda lr: found[lr]) if found else RATES[0]

    def base(self, model: str) -> Path | None:
        """The model that all contexts start from; CUDA graphs where they can be had."""
        power, tokens = (8, 2**9) if self.smoke else (BASE_POWER, BASE_TOKENS)
        name, graph = f"{model}_base", f"trainer.cuda_graph={'true' if ON_GPU else 'false'}"

        def run(steps: int, *more: str) -> tuple[Any, dict[str, Any]]:
            return self.study.train(name, *self.words(model, power, steps=steps, lr=BASE_LR, tokens=tokens), *more)

        quick = (2 if self.smoke else 4 * PROBE_STEPS, "trainer.val_every_steps=0", "trainer.log_every_steps=2")
        tried = self.study.attempt("base probe", lambda: run(*quick, graph), model=model)
        if tried is None:
            graph = "trainer.cuda_graph=false"
            tried = self.study.attempt("base probe", lambda: run(*quick, graph), model=model)
        if tried is None:
            return None
        rate = float(tried[1]["tokens_per_s"])
        found = 2 if self.smoke else int(min(MOST_BASE_STEPS, max(200, BASE_S * rate / tokens)))
        steps = self.base_steps = self.base_steps or found
        made = self.study.attempt("base", lambda: run(steps, graph), model=model)
        if made is None:
            return None
        result, cost = made
        bits = {"bits_valid": f"{result.metrics['valid']['bits_per_sample']:.4f}"}
        bits |= {"bits_test": self.bits(result.run_dir, 2**power)}
        self.study.row(
            what="base", model=model, parameters=parameters(result.run_dir), context=2**power, batch=tokens >> power,
            steps=steps, tokens=steps * tokens, lr=BASE_LR, **bits, **cost, note=graph,
        )  # fmt: skip
        return result.run_dir

    def context(self, model: str, power: int, *, steps: int, lr: float, base: Path | None = None) -> Path:
        """One model: trained, from the base where there is one, and judged on the test files; its run folder."""
        words = self.words(model, power, steps=steps, lr=lr)
        result, cost = self.study.train(f"{model}_{power}", *words, *([f"model_from={base}"] if base else []))
        run = result.run_dir
        bits = {"bits_valid": f"{result.metrics['valid']['bits_per_sample']:.4f}"}
        bits |= {"bits_test": self.bits(run, 2**power), "bits_test_longest": self.by_position(run, model, power)}
        self.study.row(
            what="context", model=model, parameters=parameters(run), context=2**power, steps=steps, lr=lr, **cost,
            batch=self.step_tokens >> power, tokens=steps * self.step_tokens, **bits,
        )  # fmt: skip
        return run

    def bits(self, run: Path, length: int) -> str:
        """Bits a sample of the test files in segments of a length; none of their samples is left out."""
        batch = max(1, self.step_tokens // length) if length < self.longest else 20  # read in pieces of 2^16
        words = [*self.data(length), f"data.batch_size={batch}", "split=test", "checkpoint=last"]
        return f"{self.study.evaluate(run, *words)['metrics']['bits_per_sample']:.4f}"

    def by_position(self, run: Path, model: str, power: int) -> str:
        """Bits a sample of the test files in whole windows of the longest context; rows by how many samples of its
        window the model has heard, in octaves."""
        import torch

        from seqmodels.inference import load, token_log_likelihood
        from seqmodels.training.evaluate import autocast

        loaded = load(str(run), None, which="last")
        windows = [ids[None] for ids in self.test_windows()]
        device = loaded.model.backbone.embedding.weight.device
        sums, counts = np.zeros(64), np.zeros(64)
        octave_L = np.floor(np.log2(np.maximum(np.arange(self.longest), 1))).astype(int)
        for first in range(0, len(windows), 8):
            ids_BL = torch.from_numpy(np.concatenate(windows[first : first + 8]))
            with autocast(device, "auto"):
                chunk = min(self.longest, 2**17)
                found, _ = token_log_likelihood(
                    loaded.model, ids_BL, start_id=loaded.tokenizer.start_id, chunk_len=chunk
                )
            nats_L = -found.double().sum(dim=0).cpu().numpy()
            sums += np.bincount(octave_L, nats_L, 64)
            counts += np.bincount(octave_L, minlength=64) * len(ids_BL)
        for octave in np.flatnonzero(counts):
            self.positions.row(
                what="position", model=model, context=2**power, heard_from=2 ** int(octave) if octave else 0,
                heard_to=2 ** (int(octave) + 1), bits=f"{sums[octave] / counts[octave] / math.log(2):.4f}",
                tokens=int(counts[octave]),
            )  # fmt: skip
        return f"{sums.sum() / counts.sum() / math.log(2):.4f}"

    def test_windows(self) -> list[np.ndarray]:
        """Ids of the test files in whole windows of the longest context."""
        from domains.audio.datasets import AudioSegments

        corpus = AudioSegments(**corpus_words(self.sound, self.longest))
        return [
            ids[first : first + self.longest]
            for ids in corpus.region_ids("test")
            for first in range(0, len(ids) - self.longest + 1, self.longest)
        ]

    def continuations(self, run: Path) -> None:
        """Continuations of a real prefix as WAVs, what really came beside them, and how likely the model finds each."""
        out = self.study.out
        seconds = (0.5, 0.02) if self.smoke else (PREFIX_S, NEW_S)
        begin_s = 1 if self.smoke else PREFIX_BEGIN_S
        piece = read_wav(self.sound / f"{PREFIX_FILE}.wav", begin_s, begin_s + sum(seconds))
        border = round(seconds[0] * RATE_HZ)
        prefix = self.study.runs / "prefix.wav"
        write_wav(prefix, piece[:border])
        shown = min(border, 5 * RATE_HZ)
        write_wav(out / "real.wav", piece[border - shown :])  # the end of the prefix, and what really came
        seconds_new, asked_s = seconds[1], self.affordable_s(run, seconds[1])
        if asked_s < seconds_new:
            self.study.say(f"steps are slow: {asked_s:.2f} s are made, not {seconds_new}")
        begin = time.perf_counter()
        files = self.study.generate(
            run, "checkpoint=last", f"prompt={prefix}", f"seconds={asked_s}", "num_samples=2", "seed=1",
            f"output={out / 'continuation.wav'}", "figure=false",
        )  # fmt: skip
        took = time.perf_counter() - begin
        for name in files[:2]:
            new = read_wav(Path(name), 0, asked_s)
            write_wav(out / f"heard_{Path(name).stem[-1]}.wav", np.concatenate([piece[border - shown : border], new]))
            self.study.row(
                what="continuation", model="unet", context=self.longest, temperature=1.0, tokens=len(new),
                seconds=f"{took:.1f}", tokens_per_s=f"{2 * len(new) / took:.0f}",
                bits_test=self.bits_after(run, piece[:border], new), note=f"{Path(name).name} after {border} samples",
            )  # fmt: skip
        self.study.row(
            what="continuation", model="real", context=self.longest, tokens=len(piece) - border,
            bits_test=self.bits_after(run, piece[:border], piece[border:]), note="what really came",
        )  # fmt: skip

    def affordable_s(self, run: Path, wanted_s: float) -> float:
        """Seconds of sound that can be made in the time set aside for it, at most those wanted."""
        from experiments.audio.generation_speed import measured
        from seqmodels.inference import load

        if self.smoke:
            return wanted_s
        step_ms = float(measured(load(str(run), None, which="last").model, 2, 256)["ms_per_step"])
        self.study.say(f"{step_ms:.3f} ms a step of generation")
        return min(wanted_s, round(GENERATION_S / step_ms * 1000 / RATE_HZ, 2))

    def bits_after(self, run: Path, prefix: np.ndarray, new: np.ndarray) -> str:
        """Bits a sample that the model gives sound after the prefix."""
        import torch

        from seqmodels.inference import load, token_log_likelihood

        loaded = load(str(run), None, which="last")
        ids_1L = torch.from_numpy(loaded.tokenizer.encode(np.concatenate([prefix, new]) / np.float32(32768)))[None]
        found, _ = token_log_likelihood(
            loaded.model, ids_1L, start_id=loaded.tokenizer.start_id, chunk_len=2**16
        )
        return f"{-float(found[0, len(prefix) :].double().mean()) / math.log(2):.4f}"


def corpus_words(sound: Path, length: int) -> dict[str, Any]:
    """The corpus of `Music.data`, for Python."""
    from domains.audio.tokenizer import MuLawTokenizer

    tokenizer = MuLawTokenizer(sample_rate_hz=RATE_HZ)
    return {"manifest": sound / "manifest.csv", "split_by": "official", "label": None, "tokenizer": tokenizer,
            "segment_samples": length, "memory_mib": 0}  # fmt: skip


def read_wav(path: Path, begin_s: float, end_s: float) -> np.ndarray:
    """(S,) int16 of a stretch."""
    with wave.open(str(path)) as file:
        file.setpos(min(round(begin_s * RATE_HZ), file.getnframes()))
        return np.frombuffer(file.readframes(round((end_s - begin_s) * RATE_HZ)), "<i2")


def write_wav(path: Path, samples: np.ndarray) -> None:
    """16-bit mono at 16 kHz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())


def study(music: Music, *, with_base: bool) -> None:
    """Everything, in order."""
    log = music.study
    a_step_s = log.attempt("probe", music.probe) or 0.2
    base = log.attempt("base", lambda: music.base("unet")) if with_base else None
    if with_base and base is None:
        log.say("no base, no study")
        return
    lr = LR_AFTER_BASE if base else music.best_rate()
    per_context_s = (log.left_s - GENERATION_S - FLAT_S) / len(music.powers)
    steps = 2 if music.smoke else int(min(1000, max(20, (per_context_s - A_RUN_S) / a_step_s)))
    log.say(f"{a_step_s:.3f} s a step; {steps} steps a context")
    runs: dict[int, Path] = {}
    needs_s = 0 if music.smoke else A_RUN_S + 0.8 * steps * a_step_s
    for number, power in enumerate(music.powers):
        run = log.attempt(
            "context", lambda power=power: music.context("unet", power, steps=steps, lr=lr, base=base),
            needs_s=needs_s + (0 if music.smoke or number < 2 else 5), model="unet", context=2**power,
        )  # fmt: skip
        if run:
            runs[power] = run
        if number == 1 and runs:  # the ends of the curve are there: now what can be heard
            log.attempt("continuation", lambda: music.continuations(runs[max(runs)]))
    flat_base = None
    if with_base:
        flat_base = log.attempt("base", lambda: music.base("flat"), needs_s=0 if music.smoke else 60, model="flat")
        if flat_base is None:
            return
    for power in music.flat_powers:
        log.attempt(
            "context", lambda power=power: music.context("flat", power, steps=steps, lr=lr, base=flat_base),
            needs_s=needs_s, model="flat", context=2**power,
        )  # fmt: skip


def markov(options: argparse.Namespace) -> None:
    """Markov models' rows, into a table of their own."""
    table = Study("music_markov", MARKOV_COLUMNS, out=options.out, runs=options.out, seconds=1e9, commit=options.commit)
    begin = time.perf_counter()
    most, order = (2**16, 1) if options.smoke else (2**25, 3)
    for row in markov_rows(corpus_words(options.sound, 2**16), "test", order, most):
        seconds = f"{time.perf_counter() - begin:.0f}"
        facts = {"order": row["order"], "bits_test": f"{row['bits']:.4f}", "tokens": row["tokens"]}
        table.row(what="markov", **facts, seconds=seconds)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sound", type=Path, help="folder with WAVs and manifest.csv, as render.py makes it")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables, figures' data and WAVs")
    parser.add_argument("--seconds", type=float, default=360, help="begin nothing after so many seconds")
    parser.add_argument("--runs", type=Path, default=None, help="folder for the runs; a temporary one if not given")
    parser.add_argument("--commit", default=None, help="what to write where there is no git")
    parser.add_argument("--outer", choices=("s-", "S"), default="s-", help="pattern of the U-Net's outer stages")
    parser.add_argument("--base", action="store_true", help="all contexts go on from one base model")
    parser.add_argument("--smoke", action="store_true", help="tiny models and contexts, for a CPU")
    parser.add_argument("--markov", action="store_true", help="the Markov models alone")
    options = parser.parse_args(words)
    if options.markov:
        markov(options)
        return
    beside = None
    if not options.smoke or not ON_GPU:
        command = [sys.executable, __file__, str(options.sound), "--out", str(options.out), "--markov"]
        command += ["--smoke"] if options.smoke else []
        command += ["--commit", options.commit] if options.commit else []
        beside = subprocess.Popen(["nice", *command])
    try:
        with tempfile.TemporaryDirectory() as temporary:
            where = {"out": options.out, "runs": options.runs or Path(temporary), "seconds": options.seconds}
            log = Study("music", COLUMNS, **where, commit=options.commit)
            positions = Study("music_positions", POSITION_COLUMNS, **where, commit=options.commit)
            music = Music(log, positions, options.sound.resolve(), outer=options.outer, smoke=options.smoke)
            study(music, with_base=options.base)
            if beside is not None:
                beside.wait(timeout=max(1.0, log.left_s + 20))
    finally:
        if beside is not None and beside.poll() is None:
            beside.terminate()
            print("left out: Markov models were not done in time", flush=True)


if __name__ == "__main__":
    main()
