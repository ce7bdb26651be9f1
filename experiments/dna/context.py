"""What does context bring, and what does it cost? The same tokens in windows of 1,024 to 1,048,576 bases.

    python experiments/dna/context.py --start WORK/runs/pretrain --work WORK --out OUT     one GPU, five minutes
    python experiments/dna/context.py --smoke                                              tiny, on a CPU

Every run reads 2^20 bases a step, whatever its windows: a thousand of 1,024, or one of 1,048,576. Three kinds, in this
order; whatever has not begun after `--seconds` is left out and said so:

continue   from the model that pretrain.py trained at 1,024 (the first stage of a length warm-up, shared by all), so
           many more steps at each length
scratch    from random weights at each length: is the loss of the longest finite, and does it fall?
small      scratch with half the width
recompute  the longest again with blocks recomputed in backward: its memory

Rows go to OUT/dna_context.csv as they are measured: `training` (tokens/s, memory, first and last loss), `loss` (the
training loss along the way), `held_out` (bits/base and perplexity on the same held-out bases in windows of every
length, which tells what a longer context is worth to a model, trained with it or not). OUT/dna_run becomes the
continued model with the fewest bits on chromosome 20's held-out part, in windows of 65,536.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `python experiments/...` puts only this folder on the path

from experiments.dna import data as dna_data  # noqa: E402
from experiments.dna import language_model as lm  # noqa: E402
from experiments.gpu import job_pool  # noqa: E402

LENGTHS = (2**10, 2**20, 2**14, 2**18, 2**12, 2**16)  # in the order in which they run: the ends first
PEER = {(256, 8, 2**20): 1_389_000, (128, 8, 2**20): 2_608_000}  # mamba_ssm's tokens/s (d_model, blocks, length)
COLUMNS = [
    "what", "kind", "train_length", "batch_size", "eval_length", "split", "bits_per_base", "perplexity", "accuracy",
    "targets", "step", "tokens", "tokens_per_s", "peer_tokens_per_s", "ratio", "peak_gib", "recomputed_blocks",
    "first_bits", "last_bits", "seconds", "model", "parameters", "lr", "status", "note", "gpu", "torch", "triton",
    "commit", "date",
]  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One of the rows of runs.

    Attributes:
        width: d_model.
        steps: optimizer steps, each of 2^20 bases.
        lr: peak learning rate.
        continued: whether it starts from the model that pretrain.py trained.
        recompute: whether blocks are recomputed in backward.
        lengths: of the windows, in the order of the runs.
    """

    width: int
    steps: int
    lr: float
    continued: bool = False
    recompute: bool = False
    lengths: tuple[int, ...] = LENGTHS


def kinds(options: argparse.Namespace) -> dict[str, Kind]:
    """All kinds by name, in order."""
    width = options.d_model
    found = {
        "continue": Kind(width, options.steps, 1e-3, continued=True),
        "scratch": Kind(width, options.scratch_steps, 4e-3),
        "recompute": Kind(width, min(8, options.steps), 4e-3, recompute=True, lengths=(2**20,)),
        "small": Kind(width // 2, options.scratch_steps, 4e-3),
    }
    if not options.smoke:
        return found
    return {name: replace(kind, lengths=options.lengths[-len(kind.lengths) :]) for name, kind in found.items()}


# ---------------------------------------------------------------------------------------------------------- a run


def run_rows(name: str, kind: Kind, length: int, options: argparse.Namespace) -> Iterator[Row]:
    """Trains one run and judges it; where memory does not suffice, again with blocks recomputed."""
    import torch

    about: Row = dict(
        kind=name, train_length=length, batch_size=options.tokens_per_step // length, lr=kind.lr,
        model=f"mamba {kind.width}x{options.layers}", **lm.machine(),
    )  # fmt: skip
    recompute = kind.recompute
    try:
        run_dir, seconds = trained(name, kind, length, options, recompute=recompute)
    except torch.OutOfMemoryError as error:
        yield about | dict(what="training", status="out of memory", note=" ".join(str(error).split())[:160])
        recompute = True
        run_dir, seconds = trained(name, kind, length, options, recompute=recompute)
    about |= dict(recomputed_blocks="yes" if recompute else "no", parameters=lm.parameters(run_dir))
    yield from training_rows(run_dir, about, seconds, options)
    if name != "recompute":
        yield from held_out_rows(run_dir, about, options, every_length=kind.continued)


def trained(
    name: str, kind: Kind, length: int, options: argparse.Namespace, *, recompute: bool
) -> tuple[Path, float]:
    """The run folder and the seconds that the run took, start-up included."""
    run_name = f"{name}-{length}" + ("-recomputed" if recompute else "")
    words = [
        *lm.data_words(options.human, length, options.tokens_per_step // length),
        *lm.model_words(kind.width, options.layers, checkpoint_blocks=recompute),
        *lm.run_words(run_name, options.work / "runs", steps=kind.steps, lr=kind.lr, log_every=options.log_every),
    ]  # fmt: skip
    if kind.continued:
        words.append(f"model_from={options.start}")
    lm.start_of_peak()
    begin = time.perf_counter()
    result = lm.train(words)
    return Path(result.run_dir), time.perf_counter() - begin


def training_rows(run_dir: Path, about: Row, seconds: float, options: argparse.Namespace) -> Iterator[Row]:
    """Speed, memory and the loss along the way."""
    log, peak = lm.metrics_of(run_dir), lm.peak_gib()
    first, last = log[0]["bits_per_base"], log[-1]["bits_per_base"]
    rate = lm.typical_rate(log)
    width, _, blocks = about["model"].removeprefix("mamba ").partition("x")
    peer = PEER.get((int(width), int(blocks), about["train_length"]))
    yield about | dict(
        what="training", step=log[-1]["step"], tokens=log[-1]["step"] * options.tokens_per_step, tokens_per_s=rate,
        peer_tokens_per_s=peer or "", ratio=round(rate / peer, 2) if peer else "", peak_gib=peak,
        first_bits=round(first, 5), last_bits=round(last, 5), seconds=round(seconds, 1), status="ok",
        note="" if last < first else "the training loss did not fall",
    )  # fmt: skip
    for row in log:
        yield about | dict(
            what="loss", split="train", step=row["step"], tokens=row["step"] * options.tokens_per_step,
            bits_per_base=round(row["bits_per_base"], 5), tokens_per_s=round(row["tokens_per_second"]), status="ok",
        )  # fmt: skip


def held_out_rows(run_dir: Path, about: Row, options: argparse.Namespace, *, every_length: bool) -> Iterator[Row]:
    """Bits on both held-out splits at the length it was trained with, and on chromosome 20's at every other."""
    from seqmodels.inference import load

    model = load(run_dir, which="last").model
    own = about["train_length"]
    for length in sorted({own, options.judge_at, *options.lengths}) if every_length else [own]:
        for split, name in lm.SPLIT_NAMES.items():
            if split == "test" and length not in (own, options.judge_at):
                continue
            begin = time.perf_counter()
            values = lm.held_out(model, options.human, split, length)["all"]
            where = dict(what="held_out", eval_length=length, split=name, status="ok")
            yield about | where | values | dict(seconds=round(time.perf_counter() - begin, 2))
            if split == "valid" and length == options.judge_at and every_length:
                keep_best(run_dir, values["bits_per_base"], options)


def keep_best(run_dir: Path, bits: float, options: argparse.Namespace) -> None:
    """OUT/dna_run is the best run so far."""
    from seqmodels.training.checkpoint import export_run

    note = options.work / "best_bits.txt"
    if not note.exists() or bits < float(note.read_text()):
        note.write_text(f"{bits}\n")
        export_run(run_dir, options.out / "dna_run", "last")


def start_rows(options: argparse.Namespace) -> Iterator[Row]:
    """The model that all `continue` runs start from, in windows of every length."""
    run_dir = Path(options.start)
    about: Row = dict(kind="start", model=f"mamba {options.d_model}x{options.layers}", **lm.machine())
    about |= dict(train_length=options.lengths[0], parameters=lm.parameters(run_dir))
    yield from held_out_rows(run_dir, about, options, every_length=True)


# ---------------------------------------------------------------------------------------------------------- the job


def jobs(options: argparse.Namespace) -> list[str]:
    """`start`, then "kind:length" in the order in which they run."""
    found = {name: kind for name, kind in kinds(options).items() if options.start or not kind.continued}
    first = ["start"] if options.start else []
    every = first + [f"{name}:{length}" for name, kind in found.items() for length in kind.lengths]
    chosen = options.only.split(",") if options.only else ["start", *found]
    return [job for job in every if job in chosen or job.partition(":")[0] in chosen]


def run_job(job: str, options: argparse.Namespace | None = None) -> Iterator[Row]:
    """All rows of a job; one that says so where it is too late to begin."""
    options = options or arguments([word for word in sys.argv[1:] if word != job_pool.WORKER_WORD])
    if time.time() > options.deadline:
        yield dict(what="all", kind=job, status="left out", note=f"not begun within {options.seconds:g} s")
        return
    if job == "start":
        yield from start_rows(options)
        return
    name, _, length = job.partition(":")
    yield from run_rows(name, kinds(options)[name], int(length), options)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; --smoke changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "dna", help="folder made by data.py")
    parser.add_argument("--work", type=Path, help="folder for the unpacked genome and the runs; default a new one")
    parser.add_argument("--out", type=Path, help="folder for the CSV and the best model; default build/dna_results")
    parser.add_argument("--start", help="run folder that `continue` starts from; without it, there is no such kind")
    parser.add_argument("--only", help="comma-separated kinds (scratch) or runs (scratch:1024, start); default all")
    parser.add_argument("--steps", type=int, default=48, help="steps of `continue`, each of 2^20 bases")
    parser.add_argument("--scratch-steps", type=int, default=64, help="steps of `scratch` and `small`")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=300, help="begins no run after so many")
    parser.add_argument("--deadline", type=float, help="the same as a point in time (Unix); for worker processes")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, embedded data")
    options = parser.parse_args(words)
    options.lengths, options.tokens_per_step, options.log_every, options.judge_at = LENGTHS, 2**20, 2, 2**16
    unit = dna_data.UNIT
    if options.smoke:
        options.lengths, options.tokens_per_step, options.log_every, options.judge_at = (256, 4096), 4096, 1, 1024
        options.steps = options.scratch_steps = 2
        options.d_model, options.layers, unit = 16, 2, 4096
    options.work = options.work or Path(tempfile.mkdtemp(prefix="dna-"))
    options.out = options.out or ROOT / "build" / "dna_results"
    options.human = dna_data.HumanData(options.work / "human.fa", options.work / "human.bed", unit)
    options.deadline = options.deadline or time.time() + options.seconds
    known = {"start", *(f"{name}:{length}" for name, kind in kinds(options).items() for length in kind.lengths)}
    if wrong := set(options.only.split(",") if options.only else []) - set(kinds(options)) - known:
        parser.error(f"--only {','.join(sorted(wrong))}: known are {', '.join(kinds(options))}")
    return options


def main() -> None:
    if job_pool.WORKER_WORD in sys.argv:
        job_pool.serve(run_job)
        return
    from seqkernels.bench import append_csv

    options = arguments()
    if options.smoke:
        dna_data.tiny_human(options.work)
    elif not options.human.fasta.exists():
        dna_data.unpack_human(options.data, options.work)
    stamp, begin = lm.stamp(options.commit), time.monotonic()
    bad: list[str] = []

    def on_row(job: str, row: Row) -> None:
        append_csv(options.out / "dna_context.csv", [{name: (row | stamp).get(name, "") for name in COLUMNS}])
        if row["what"] != "loss":
            shown = {key: row[key] for key in COLUMNS[1:] if row.get(key, "") != "" and key not in _REPEATED}
            print(f"{time.monotonic() - begin:6.1f} s  {row['what']:9s} {shown}", flush=True)

    def on_failure(job: str, why: str) -> None:
        bad.append(job)
        on_row(job, dict(what="all", kind=job, status="failed", note=why[:300]))

    own = [f"--work={options.work}", f"--out={options.out}", f"--deadline={options.deadline}"]
    command = [sys.executable, __file__, *sys.argv[1:], *own]  # the last of an option counts
    job_pool.run_jobs(command, jobs(options), on_row=on_row, on_failure=on_failure, silence_s=120)
    print(f"{len(jobs(options))} jobs in {time.monotonic() - begin:.0f} s -> {options.out}; runs in {options.work}")
    if bad:
        print(f"failed: {', '.join(bad)}")
    raise SystemExit(1 if bad else 0)


_REPEATED = {"gpu", "torch", "triton", "model", "parameters", "lr", "status"}

if __name__ == "__main__":
    main()
