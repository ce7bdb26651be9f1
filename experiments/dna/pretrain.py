"""How few bits a base of DNA never seen? A Mamba language model of chromosome 20 beside the best Markov models.

    python experiments/dna/data.py human --chr20 human_chr20_grch37.fa.gz --apes apes/
    python experiments/dna/pretrain.py --work WORK --out OUT          one GPU, about four minutes
    python experiments/dna/pretrain.py --smoke                        tiny, on a CPU: does it run?

Rows go to OUT/dna_pretrain.csv as they are measured, the trained model to OUT/dna_run (a run folder for `seqmodels
score`, `embed`, …):

curve       bits/base on a megabase of either held-out split, at so many training tokens
training    tokens/s and memory of the run
held_out    bits/base on all held-out bases, by class (repeats as soft-masked, the rest), in windows of two lengths
markov      the same bases, by Markov models of every order that learnt from the same training bases: of the strand in
            the file alone, and of both, as the model does; read from end to end, without windows

Markov models need no GPU: other processes count them meanwhile. `--parts markov,markov_both` counts them alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # `python experiments/...` puts only this folder on the path

from experiments.dna import data as dna_data  # noqa: E402
from experiments.dna import language_model as lm  # noqa: E402
from experiments.gpu import job_pool  # noqa: E402

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)  # high orders of a whole chromosome want much
RUN = "pretrain"  # name of the run folder, in WORK/runs
COLUMNS = [
    "what", "split", "region_class", "bits_per_base", "perplexity", "accuracy", "targets", "window_bases", "order",
    "strands", "smoothing", "step", "tokens", "seconds", "tokens_per_s", "peak_gib", "model", "parameters",
    "batch_size", "lr", "status", "note", "gpu", "torch", "triton", "commit", "date",
]  # fmt: skip
Row = dict[str, Any]


# --------------------------------------------------------------------------------------------------- the model


def train_rows(data: dna_data.HumanData, options: argparse.Namespace) -> Iterator[Row]:
    """Trains, sends the curve on the way, then judges on everything held out."""
    from seqmodels.inference import load
    from seqmodels.training.checkpoint import export_run

    tokens_per_step = options.batch * options.window
    about: Row = dict(
        model=f"mamba {options.d_model}x{options.layers}", window_bases=options.window, batch_size=options.batch,
        lr=options.lr, **lm.machine(),
    )  # fmt: skip
    options.steps = min(options.steps, affordable_steps(data, options))
    lm.start_of_peak()
    begin = time.perf_counter()
    result = lm.train(words(data, options, RUN, options.steps), [curve(data, options, about)])
    seconds = time.perf_counter() - begin
    log = lm.metrics_of(result.run_dir)
    about |= dict(
        step=result.step, tokens=result.step * tokens_per_step, seconds=round(seconds, 1),
        parameters=lm.parameters(result.run_dir),
    )  # fmt: skip
    yield about | dict(
        what="training", split="train", bits_per_base=round(log[-1]["bits_per_base"], 5),
        tokens_per_s=lm.typical_rate(log), peak_gib=lm.peak_gib(), status="ok",
    )  # fmt: skip
    export_run(result.run_dir, options.out / "dna_run", "last")
    model = load(result.run_dir, which="last").model
    for window in options.eval_windows:
        for split, name in lm.SPLIT_NAMES.items():
            for kind, values in lm.held_out(model, data, split, window, classes=True).items():
                row = dict(what="held_out", split=name, region_class=kind, status="ok", **values)
                yield about | row | dict(window_bases=window)


def words(data: dna_data.HumanData, options: argparse.Namespace, name: str, steps: int) -> list[str]:
    """The command line of `seqmodels train`."""
    return [
        *lm.data_words(data, options.window, options.batch), *lm.model_words(options.d_model, options.layers),
        *lm.run_words(name, options.work / "runs", steps=steps, lr=options.lr, log_every=options.log_every),
    ]  # fmt: skip


def affordable_steps(data: dna_data.HumanData, options: argparse.Namespace) -> int:
    """How many steps `--seconds` suffice for, from a few steps of a run of its own: the schedule must know its end."""
    result = lm.train(words(data, options, "trial", 4 * options.log_every))
    rate = lm.typical_rate(lm.metrics_of(result.run_dir))
    print(f"{rate:,} tokens/s in a trial of {result.step} steps", flush=True)
    return max(1, round(options.seconds * rate / (options.batch * options.window)))


def curve(data: dna_data.HumanData, options: argparse.Namespace, about: Mapping[str, Any]) -> Any:
    """A Lightning callback: bits/base on a part of both held-out splits, at steps ever further apart, then evenly."""
    from lightning.pytorch.callbacks import LambdaCallback

    doubling = {options.curve_every // 2**n for n in range(1, 20)} - {0}
    begin = time.perf_counter()

    def measure(trainer: Any, task: Any, *_: Any) -> None:
        step = trainer.global_step
        if step not in doubling and step % options.curve_every and step != options.steps:
            return
        paused = task.meter.pause()
        for split, name in lm.SPLIT_NAMES.items():
            windows = min(2**20, data.unit) // options.window
            values = lm.held_out(task.model, data, split, options.window, windows=windows)["all"]
            where = dict(what="curve", split=name, region_class="all", step=step, status="ok")
            where |= dict(tokens=step * options.batch * options.window, seconds=round(time.perf_counter() - begin, 1))
            job_pool.send({**about, **where, **values})
        task.meter.go_on(paused)

    return LambdaCallback(on_train_batch_end=measure)


# --------------------------------------------------------------------------------------------------- Markov models


def markov_rows(data: dna_data.HumanData, options: argparse.Namespace, *, both_strands: bool) -> Iterator[Row]:
    """Every order on both held-out splits."""
    from domains.dna.tokenizer import reverse_complement_ids
    from seqmodels.data.markov import markov_orders

    corpus = lm.corpus(data, min(1024, data.unit))
    ignored = set(range(corpus.tokenizer.vocab_size)) - set(corpus.tokenizer.drawn_ids)
    train = list(corpus.region_ids("train"))
    if both_strands:  # smoothing is tuned on the end, which stays the file's strand
        train = [*map(reverse_complement_ids, train), *train]
    held_out, marks = held_out_bases(data)
    begin = time.perf_counter()
    rows = markov_orders(
        train, held_out, max_order=options.max_order, ignore=sorted(ignored), strengths=STRENGTHS, marks=marks
    )
    about: Row = dict(strands="both" if both_strands else "one", tokens=sum(map(len, train)), gpu="none (CPU)")
    for row in rows:
        for kind, bits in row.by_mark.items():
            split, _, region_class = kind.partition(" ")
            yield about | dict(
                what="markov", split=split, region_class=region_class, bits_per_base=round(bits, 5),
                perplexity=round(2**bits, 4), order=row.order, model=f"markov {row.order}",
                smoothing=f"{row.smoothing} {row.strength:g}", seconds=round(time.perf_counter() - begin, 1),
                status="ok",
            )  # fmt: skip


def held_out_bases(data: dna_data.HumanData) -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Ids of every held-out region, and for each "split class" where its bases are."""
    import numpy as np

    from domains.dna.tokenizer import soft_mask

    corpus = lm.corpus(data, min(1024, data.unit))
    ids, masks, of_split = [], [], []
    for split in lm.SPLIT_NAMES:
        for region in corpus.regions[split]:
            raw = corpus.genome.fetch(region.contig, region.start, region.end)
            ids.append(corpus.tokenizer.encode(raw))
            masks.append(soft_mask(raw))
            of_split.append(split)
    marks = {}
    for split, name in lm.SPLIT_NAMES.items():
        here = [np.full(len(mask), owner == split) for mask, owner in zip(masks, of_split)]
        marks[f"{name} all"] = here
        marks[f"{name} repeat"] = [where & mask for where, mask in zip(here, masks)]
        marks[f"{name} unique"] = [where & ~mask for where, mask in zip(here, masks)]
    return ids, marks


# --------------------------------------------------------------------------------------------------------- the job

PARTS: dict[str, Callable[[dna_data.HumanData, argparse.Namespace], Iterator[Row]]] = {
    "train": train_rows,
    "markov": partial(markov_rows, both_strands=False),
    "markov_both": partial(markov_rows, both_strands=True),
}


def run_job(part: str, options: argparse.Namespace | None = None) -> Iterator[Row]:
    """All rows of a part but those that are sent on the way."""
    options = options or arguments([word for word in sys.argv[1:] if word != job_pool.WORKER_WORD])
    fasta, bed = options.work / "human.fa", options.work / "human.bed"
    yield from PARTS[part](dna_data.HumanData(fasta, bed, 4096 if options.smoke else dna_data.UNIT), options)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line; --smoke changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "dna", help="folder made by data.py")
    parser.add_argument("--work", type=Path, help="folder for the unpacked genome and the runs; default a new one")
    parser.add_argument("--out", type=Path, help="folder for the CSV and the trained model; default build/dna_results")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps, at most")
    parser.add_argument("--seconds", type=float, default=200, help="fewer steps where they would take longer than this")
    parser.add_argument("--window", type=int, default=1024, help="bases of a training window")
    parser.add_argument("--batch", type=int, default=128, help="windows of a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--max-order", type=int, default=16, help="of the Markov models")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, embedded data")
    options = parser.parse_args(words)
    if wrong := set(options.parts.split(",")) - set(PARTS):
        parser.error(f"--parts {','.join(sorted(wrong))}: known are {', '.join(PARTS)}")
    options.log_every, options.curve_every, options.eval_windows = 20, 400, (1024, 2**16)
    if options.smoke:
        options.steps, options.window, options.batch, options.d_model, options.layers = 4, 256, 2, 16, 2
        options.max_order, options.log_every, options.curve_every, options.eval_windows = 3, 1, 2, (256, 1024)
    options.work = options.work or Path(tempfile.mkdtemp(prefix="dna-"))
    options.out = options.out or ROOT / "build" / "dna_results"
    return options


def main() -> None:
    if job_pool.WORKER_WORD in sys.argv:
        job_pool.serve(run_job)
        return
    from seqkernels.bench import append_csv

    options = arguments()
    if options.smoke:
        dna_data.tiny_human(options.work)
    else:
        dna_data.unpack_human(options.data, options.work)
    stamp, begin = lm.stamp(options.commit), time.monotonic()
    bad: list[str] = []

    def on_row(part: str, row: Row) -> None:
        append_csv(options.out / "dna_pretrain.csv", [{name: (row | stamp).get(name, "") for name in COLUMNS}])
        shown = {key: row[key] for key in COLUMNS[1:] if row.get(key, "") != "" and key not in _REPEATED}
        print(f"{time.monotonic() - begin:6.1f} s  {row['what']:9s} {shown}", flush=True)

    def on_failure(part: str, why: str) -> None:
        bad.append(part)
        on_row(part, dict(what=part, status="failed", note=why[:300]))

    own = [f"--work={options.work}", f"--out={options.out}"]  # the last of an option counts
    command = [sys.executable, __file__, *sys.argv[1:], *own]
    parts = options.parts.split(",")
    silence_s = 180 if parts == ["train"] else 3600  # a Markov model of high order thinks in silence
    job_pool.run_jobs(command, parts, on_row=on_row, on_failure=on_failure, workers=len(parts), silence_s=silence_s)
    print(f"{', '.join(parts)} in {time.monotonic() - begin:.0f} s -> {options.out}; runs in {options.work}")
    raise SystemExit(1 if bad else 0)


_REPEATED = {"gpu", "torch", "triton", "model", "parameters", "lr", "batch_size", "status"}

if __name__ == "__main__":
    main()
