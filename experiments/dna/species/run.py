"""Which species a window of DNA comes from: sequence models beside k-mer logistic regression on the same windows.

    python experiments/dna/species/run.py --data build/species --out results/          about five minutes on an H200
    python experiments/dna/species/run.py --smoke --out /tmp/species                    tiny, on a CPU: does it run?

Every training is one `seqmodels train`, every score one `seqmodels evaluate` (both strands; the line is in the row's
`words`). Two ways to a label: a classifier (head=classification), and a language model that is told the species
(condition=class) and asked which species makes the window likeliest (by_likelihood=true). One CSV row for each run and
length of window, with validation beside test: figure.py chooses by validation. Runs share the GPU in `--workers`
processes, as such models leave it idle between launches.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # `python experiments/...` puts only this folder on the path
COLUMNS = [
    "task", "setting", "split", "window_bases", "valid_accuracy", "test_accuracy", "test_macro_recall", "test_windows",
    "chance", "valid_bits", "best_step", "steps", "train_tokens", "train_seconds", "seconds", "parameters", "seed",
    "by_likelihood", "words", "workers", "gpu", "torch", "commit", "date",
]  # fmt: skip
WAIT_S = 240  # for the run that another one starts from
TASKS = ("vertebrates", "bacteria", "apes")


@dataclass(frozen=True)
class Setting:
    """One way to train.

    Attributes:
        words: of `seqmodels train`, beside the data's.
        tokens_a_batch: symbols; the batch size is this over the window.
        steps: of training.
        window_bases: of training; evaluation has the task's own.
        start: "pretrained" begins with the language model of human DNA.
        by_likelihood: a language model told the species, classes by likelihood.
        graph: launch steps as CUDA graphs, on a GPU; not where a length warm-up brings many shapes, or where a model
            that reads both ways looks for padding.
    """

    words: tuple[str, ...]
    steps: int
    window_bases: int
    tokens_a_batch: int = 2**14
    start: str | None = None
    by_likelihood: bool = False
    graph: bool = True


def size(d_model: int, n_layers: int) -> tuple[str, ...]:
    return ("backbone=stack", f"backbone.d_model={d_model}", f"backbone.n_layers={n_layers}")


def longer(steps: int) -> tuple[str, ...]:
    """Length warm-up, so many steps at each length from 16,384 on."""
    return ("data.length_warmup.start=16384", f"data.length_warmup.steps_per_stage={steps}")


LM = ("head=next_token", "condition=class")
LABELS = ("head=classification", "trainer.best_by=accuracy")
SMALL, MEDIUM = size(64, 4), size(128, 6)
CONVOLUTIONS = (
    "backbone=stack", "layer=dilated_conv", "backbone.d_model=128", "backbone.n_layers=2",
    "backbone.layer.kernel_size=5", "backbone.layer.dilations=[1,2]",
)  # fmt: skip
BOTH_WAYS = ("backbone=bidirectional", "backbone.d_model=96", "backbone.n_layers=3")
PRETRAIN = Setting(("head=next_token", *MEDIUM, "optimizer.lr=0.004"), 1600, 1024, tokens_a_batch=2**15)
SETTINGS: dict[str, dict[str, Setting]] = {
    "vertebrates": {
        "lm_small": Setting((*LM, *SMALL, "optimizer.lr=0.006"), 1200, 512, by_likelihood=True),
        "lm_small_batches": Setting((*LM, *SMALL, "optimizer.lr=0.006"), 2000, 256, 2**12, by_likelihood=True),
        "lm_medium": Setting((*LM, *MEDIUM, "optimizer.lr=0.004"), 1200, 512, by_likelihood=True),
        "lm_pretrained": Setting((*LM, "optimizer.lr=0.002"), 1000, 512, start="pretrained", by_likelihood=True),
        "lm_pretrained_slow": Setting((*LM, "optimizer.lr=0.0006"), 1000, 512, start="pretrained", by_likelihood=True),
        "labels_pretrained": Setting((*LABELS, "optimizer.lr=0.0006"), 600, 1024, start="pretrained"),
        "labels_small": Setting((*LABELS, *SMALL, "optimizer.lr=0.002", "optimizer.weight_decay=0.5"), 800, 1024),
        "labels_convolutions": Setting((*LABELS, *CONVOLUTIONS, "optimizer.lr=0.002"), 800, 1024),
        "labels_both_ways": Setting((*LABELS, *BOTH_WAYS, "optimizer.lr=0.002"), 800, 1024, graph=False),
    },
    "bacteria": {
        "lm_small": Setting((*LM, *SMALL, "optimizer.lr=0.006"), 1600, 512, by_likelihood=True),
        "lm_medium": Setting((*LM, *MEDIUM, "optimizer.lr=0.004"), 1600, 512, by_likelihood=True),
        "labels_small": Setting((*LABELS, *SMALL, "optimizer.lr=0.002"), 1600, 512),
        "labels_convolutions": Setting((*LABELS, *CONVOLUTIONS, "optimizer.lr=0.002"), 1600, 512),
    },
    "apes": {
        "lm_1k": Setting((*LM, *SMALL, "optimizer.lr=0.006"), 1500, 1024, by_likelihood=True),
        "lm_pretrained_16k": Setting((*LM, "optimizer.lr=0.001"), 800, 16384, start="pretrained", by_likelihood=True),
        "labels_1k": Setting((*LABELS, *SMALL, "optimizer.lr=0.002"), 1500, 1024),
        "labels_16k": Setting((*LABELS, *SMALL, "optimizer.lr=0.002"), 800, 16384, 2**15),
        "labels_256k": Setting((*LABELS, *SMALL, "optimizer.lr=0.002", *longer(40)), 250, 2**18, 2**18, graph=False),
        "labels_1m": Setting((*LABELS, *SMALL, "optimizer.lr=0.002", *longer(15)), 120, 2**20, 2**20, graph=False),
    },
}  # fmt: skip
WINDOWS: dict[str, tuple[int, ...]] = {"vertebrates": (1024,), "bacteria": (512,), "apes": (1024, 16384)}  # judged at
APE_WINDOWS = {"labels_1k": (1024,), "labels_16k": (16384,), "labels_256k": (2**18,), "labels_1m": (2**20,)}
# Windows of a species, in validation and in test. Disjoint ones first; of 2^20 bases there are two.
EVALUATED = {
    "vertebrates": {1024: 64},
    "bacteria": {512: 256},
    "apes": {1024: 256, 16384: 64, 2**18: 16, 2**20: 4},
}
# tenth<n>: the n-th tenth of every contig is for test, the one before it for validation; tail is the tenth tenth. Never
# blocks at random: the contigs are homologous, and a human test block would lie on a training block of the rhesus.
SPLITS = {
    "vertebrates": ("tail", "tenth2", "tenth4", "tenth6", "tenth8"),
    "bacteria": ("tail",),
    "apes": ("pieces",),
}
ON_ALL_SPLITS = ("lm_small", "lm_small_batches", "lm_pretrained", "lm_pretrained_slow", "labels_pretrained")
KMERS = (5, 6)


def data_words(task: str, split: str, window_bases: int, options: argparse.Namespace) -> list[str]:
    """How `seqmodels train` is told of a task's data."""
    folder = options.data
    here = f"domain.dataset.window_bases={window_bases}"
    if task == "apes" and not options.smoke:
        return [
            "domain=dna_species_folders", f"domain.dataset.folder={folder}/apes", here,
            "domain.dataset.species=[chimpanzee,gorilla,human,orangutan]",
            "~domain.dataset.chromosomes", "domain.dataset.splits.valid=['7']", "domain.dataset.splits.test=['8']",
        ]  # fmt: skip
    words = ["domain=dna_species", here]
    if task == "bacteria" and not options.smoke:
        words.append(f"domain.dataset.species={folder}/bacteria")
    if split.startswith("tenth"):
        words += ["domain.dataset.splits._target_=domains.dna.intervals.BedRegions"]
        words += ["domain.dataset.splits.valid=[valid]", "domain.dataset.splits.test=[test]"]
        words += [f"+domain.dataset.splits.path={options.out}/splits/{split}.bed"]
    return words


def write_tenths(folder: Path) -> None:
    """A BED for each split of the vertebrates but the tail."""
    from domains.dna.fasta import Genome

    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS["vertebrates"][1:]:
        number, rows = int(split.removeprefix("tenth")), list[str]()
        for contig, length in Genome("example:vertebrates").lengths.items():
            borders = [round(length * share / 10) for share in (0, number - 2, number - 1, number, 10)]
            for name, start, end in zip(("train", "valid", "test", "train"), borders, borders[1:], strict=False):
                rows += [f"{contig}\t{start}\t{end}\t{name}\n"] if start < end else []
        (folder / f"{split}.bed").write_text("".join(rows))


def judged(task: str, setting: str, options: argparse.Namespace) -> tuple[int, ...]:
    """Lengths of window that a setting is evaluated at."""
    windows = APE_WINDOWS.get(setting, WINDOWS[task]) if task == "apes" else WINDOWS[task]
    return (256,) if options.smoke else windows


def per_species(task: str, window_bases: int, options: argparse.Namespace) -> str:
    """How many windows of a species are evaluated."""
    of_task = EVALUATED[task]
    count = 4 if options.smoke else of_task.get(window_bases, max(of_task.values()))
    return f"domain.dataset.eval_windows_per_species={count}"


# ------------------------------------------------------------------------------------------------- one run of a model


def run_model(job: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """`task:split:setting`: trains, then one row for each length of window."""
    task, split, name = job.split(":")
    skip_if_late(options)
    if name == "pretrained":
        pretrain(options)
        return
    setting = SETTINGS[task][name]
    begin = time.monotonic()
    window_bases = window_of(setting, options)
    words = [*data_words(task, split, window_bases, options), per_species(task, window_bases, options), *setting.words]
    if setting.start:
        words.append(f"model_from={wait_for(options.work / setting.start)}")
    result, trained = train(f"{task}-{split}-{name}", words, setting, options)
    for window_bases in judged(task, name, options):
        row = dict(task=task, setting=name, split=split, window_bases=window_bases, by_likelihood=setting.by_likelihood)
        reports = {
            part: evaluate(task, result.run_dir, part, window_bases, setting.by_likelihood, options)
            for part in ("valid", "test")
        }
        keep_confusion(job, window_bases, reports["test"], options)
        row |= trained | scores(reports) | dict(seconds=round(time.monotonic() - begin, 1))
        yield row
    shutil.rmtree(result.run_dir / "checkpoints", ignore_errors=True)


def window_of(setting: Setting, options: argparse.Namespace) -> int:
    return 256 if options.smoke else setting.window_bases


def train(name: str, words: list[str], setting: Setting, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """`seqmodels train`, and the columns of a row that it fills."""
    import torch

    from seqmodels.cli.train import train_words
    from seqmodels.training.checkpoint import find_checkpoint, read_meta

    if options.smoke:
        steps, batch = 4, 4
        words = [*words, *smaller(setting, words), "trainer.val_batches=1"]
        validations = 2
    else:
        steps = max(int(setting.steps * options.scale), 40)
        batch = max(setting.tokens_a_batch // setting.window_bases, 1)
        is_short = setting.window_bases <= 1024
        words = [*words, f"trainer.val_batches={'null' if is_short else 16}"]
        validations = 8 if is_short else 4
    words = [
        *words, f"data.batch_size={batch}", f"trainer.max_steps={steps}",
        f"trainer.val_every_steps={max(steps // validations, 1)}",
        f"trainer.checkpoint_every_steps={steps}", "trainer.log_every_steps=50", "callbacks=none", "logger=csv",
        f"data.num_workers={options.loaders}", f"seed={options.seed}", f"paths.runs={options.work}", f"name={name}",
    ]  # fmt: skip
    on_gpu = torch.cuda.is_available()
    if on_gpu and setting.graph:
        words.append("trainer.cuda_graph=true")
    print("seqmodels train", *words, flush=True)
    begin = time.monotonic()
    result = train_words(*words)
    seconds = time.monotonic() - begin
    logs = options.out / "metrics"
    logs.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(result.run_dir / "metrics.csv", logs / f"{name}.csv")
    meta = read_meta(find_checkpoint(result.run_dir, "best"))
    bits = [value for key, value in meta["metrics"].items() if key.startswith("valid_bits")]
    hidden = ("paths.", "name=", "logger=", "callbacks=", "data.num")
    shown = plain_paths(" ".join(word for word in words if not word.startswith(hidden)), options)
    return result, dict(
        best_step=meta["step"], steps=result.step, train_tokens=result.step * batch * window_of(setting, options),
        train_seconds=round(seconds, 1), valid_bits=round(bits[0], 4) if bits else "", seed=options.seed,
        parameters=sum(tensor.numel() for tensor in weights(result.run_dir)), words=shown,
        torch=torch.__version__, gpu=torch.cuda.get_device_name() if on_gpu else "none (CPU)",
    )  # fmt: skip


def plain_paths(words: str, options: argparse.Namespace) -> str:
    """Without the folders of the machine that the run was made on."""
    for folder, name in ((options.work, "runs"), (options.data, "build/species"), (options.out, "out")):
        words = words.replace(str(folder), name)
    return words


def weights(run_dir: Path) -> list[Any]:
    from seqmodels.training.checkpoint import find_checkpoint, read_weights

    return list(read_weights(find_checkpoint(run_dir, "best")).values())


def smaller(setting: Setting, words: list[str]) -> list[str]:
    """Sizes for a smoke run; those of a pretrained backbone come with it."""
    if setting.start:
        return []
    tiny = ["backbone.d_model=16", "backbone.n_layers=1"]
    return tiny + [f"{word.partition('=')[0]}=null" for word in words if word.startswith("data.length_warmup.start")]


def pretrain(options: argparse.Namespace) -> None:
    """The language model of human DNA (chromosome 22, pieces of training) that other runs start from."""
    fasta = "example:vertebrates" if options.smoke else f"{options.data}/apes/human"
    words = ["domain=dna_windows", f"domain.dataset.fasta={fasta}", *PRETRAIN.words]
    words.append(f"domain.dataset.window_bases={window_of(PRETRAIN, options)}")
    words.append("domain.dataset.reverse_complement_augment=true")
    if not options.smoke:
        words += splits_of_pieces()
    result, _ = train("pretraining", words, PRETRAIN, options)
    result.run_dir.rename(options.work / "pretrained")  # there for others from now on, and whole


def splits_of_pieces() -> list[str]:
    """Chromosome pieces 7 and 8 are held out, as in the task of the apes."""
    return [
        "domain.dataset.splits._target_=domains.dna.intervals.HeldOutChromosomes",
        "domain.dataset.splits.valid=[chr22_seg07]", "domain.dataset.splits.test=[chr22_seg08]",
    ]  # fmt: skip


def wait_for(folder: Path) -> Path:
    """A run that another worker is making."""
    begin = time.monotonic()
    while not folder.is_dir():
        if time.monotonic() - begin > WAIT_S:
            raise TimeoutError(f"{folder} did not come within {WAIT_S} s")
        print(f"waiting for {folder.name}", flush=True)
        time.sleep(5)
    return folder


def evaluate(
    task: str, run_dir: Path, part: str, window_bases: int, by_likelihood: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """`seqmodels evaluate` of both strands in full precision, at a length of window."""
    from seqmodels.cli.compose import compose
    from seqmodels.cli.evaluate import evaluate_run

    rows = max(2**17 // window_bases, 1)
    words = [f"run={run_dir}", f"split={part}", "conjoin=true", f"by_likelihood={str(by_likelihood).lower()}"]
    words += [f"data.batch_size={rows}", "data.num_workers=0", "precision=32-true"]
    data = [f"domain.dataset.window_bases={window_bases}", per_species(task, window_bases, options)]
    return evaluate_run(compose("evaluate", words), data)


def scores(reports: dict[str, dict[str, Any]]) -> dict[str, Any]:
    valid, test = reports["valid"]["metrics"], reports["test"]["metrics"]
    return dict(
        valid_accuracy=round(valid["accuracy"], 4), test_accuracy=round(test["accuracy"], 4),
        test_macro_recall=round(test["macro_recall"], 4), test_windows=reports["test"]["sequences"],
        chance=round(1 / len(reports["test"]["class_names"]), 4),
    )  # fmt: skip


def keep_confusion(job: str, window_bases: int, report: dict[str, Any], options: argparse.Namespace) -> None:
    target = options.out / "confusion" / f"{job.replace(':', '-')}-{window_bases}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({name: report[name] for name in ("class_names", "confusion")}) + "\n")


# ------------------------------------------------------------------------------------------------------ the baseline


def run_kmers(job: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """`task:split:window:k`: logistic regression on k-mer counts, the same windows."""
    from domains.dna.baselines import kmer_baseline
    from seqmodels.cli.compose import compose
    from seqmodels.instantiate import build

    task, split, window, k = job.split(":")
    window_bases = int(window)
    begin = time.monotonic()
    words = [*data_words(task, split, window_bases, options), per_species(task, window_bases, options)]
    corpus = build(compose("train", words)["domain"]["dataset"])
    draws = 64 if options.smoke else min(8192 if task == "bacteria" else 4096, 2**27 // window_bases)
    results = {part: kmer_baseline(corpus, k=int(k), train_windows=draws, split=part) for part in ("valid", "test")}
    test = results["test"]
    report = {"class_names": list(test.class_names), "confusion": test.confusion.tolist()}
    keep_confusion(f"{task}:{split}:{k}mers", window_bases, report, options)
    yield dict(
        task=task, setting=f"{k}mers", split=split, window_bases=window_bases, by_likelihood="",
        valid_accuracy=round(results["valid"].accuracy, 4), test_accuracy=round(test.accuracy, 4),
        test_macro_recall=round(test.macro_recall, 4), test_windows=int(test.confusion.sum()),
        chance=round(1 / len(test.class_names), 4), train_tokens=draws * window_bases,
        seconds=round(time.monotonic() - begin, 1), words=f"l2={test.l2} train_windows={draws}", gpu="none (CPU)",
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- all jobs


def model_jobs(options: argparse.Namespace) -> list[str]:
    """The most instructive first: what comes late may fall to --seconds."""
    first = [f"{task}:{SPLITS[task][0]}:{name}" for task in options.tasks for name in SETTINGS[task]]
    starts = [job for job in first if SETTINGS[job.split(":")[0]][job.split(":")[2]].start]
    fresh = [job for job in first if job not in starts]
    more = [f"{task}:{split}:{name}" for task in options.tasks for split in SPLITS[task][1:] for name in ON_ALL_SPLITS]
    before = ["human:all:pretrained"] if starts else []
    return before + (fresh[:1] + starts[:2] + fresh[-1:] if options.smoke else interleaved(fresh, starts) + more)


def interleaved(fresh: list[str], starts: list[str]) -> list[str]:
    """Runs that wait for the pretrained one stand a little behind it."""
    return fresh[: len(fresh) // 2] + starts + fresh[len(fresh) // 2 :]


def kmer_jobs(options: argparse.Namespace) -> list[str]:
    jobs = []
    for task in options.tasks:
        for split in SPLITS[task][:1] if options.smoke else SPLITS[task]:
            windows = {window for name in SETTINGS[task] for window in judged(task, name, options)}
            jobs += [f"{task}:{split}:{window}:{k}" for window in sorted(windows) for k in KMERS]
    return jobs[:2] if options.smoke else jobs


def skip_if_late(options: argparse.Namespace) -> None:
    if time.time() > options.until:
        raise TimeoutError("not begun: --seconds are over")


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "species", help="folder that data.py filled")
    parser.add_argument("--out", type=Path, required=True, help="species.csv, metrics and confusion matrices")
    parser.add_argument("--work", type=Path, help="runs and checkpoints; a folder of --out by default")
    parser.add_argument("--tasks", default=",".join(TASKS), help="some of them, separated by commas")
    parser.add_argument("--seconds", type=float, default=300, help="no run begins after so many")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8, help="processes that share the GPU")
    parser.add_argument("--kmer-workers", type=int, default=5, help="processes for the baseline, on the CPU")
    parser.add_argument("--loaders", type=int, default=1, help="processes that read ahead, for each run")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, a few steps")
    parser.add_argument("--kmers", action="store_true", help=argparse.SUPPRESS)  # what a worker is for
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.tasks = [task for task in options.tasks.split(",") if task]
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"--tasks {','.join(unknown)}: there are {', '.join(TASKS)}")
    options.out, options.data = options.out.resolve(), options.data.resolve()
    options.work = (options.work or options.out / "runs").resolve()
    options.until = options.until or time.time() + options.seconds
    if options.smoke:
        options.workers, options.kmer_workers, options.loaders = 1, 1, 0
    return options


def main() -> None:
    from experiments.gpu import job_pool

    words = [word for word in sys.argv[1:] if word != job_pool.WORKER_WORD]
    options = arguments(words)
    if job_pool.WORKER_WORD in sys.argv:
        job_pool.serve(functools.partial(run_kmers if options.kmers else run_model, options=options))
        return
    from seqkernels.bench import append_csv, commit

    stamp = dict(workers=options.workers, commit=options.commit or commit(), date=datetime.date.today().isoformat())
    begin, failures, one_at_a_time = time.monotonic(), list[str](), threading.Lock()

    def on_row(job: str, row: dict[str, Any]) -> None:
        with one_at_a_time:
            append_csv(options.out / "species.csv", [{name: (row | stamp).get(name, "") for name in COLUMNS}])
            print(
                f"== {time.monotonic() - begin:6.1f} s  {job:42s} {row['window_bases']:>8}  valid "
                f"{row['valid_accuracy']:.3f}  test {row['test_accuracy']:.3f}", flush=True,
            )  # fmt: skip

    def on_failure(job: str, why: str) -> None:
        failures.append(job)
        print(f"== {job} FAILED: {why}", flush=True)

    if options.work.exists():
        raise SystemExit(f"{options.work} is there already: name another --out, or remove it")
    write_tenths(options.out / "splits")
    command = [sys.executable, __file__, *words, f"--until={options.until}"]
    baseline = threading.Thread(
        target=job_pool.run_jobs, args=([*command, "--kmers"], kmer_jobs(options)),
        kwargs=dict(on_row=on_row, on_failure=on_failure, workers=options.kmer_workers),
    )  # fmt: skip
    baseline.start()
    if options.smoke:
        baseline.join()
    jobs = model_jobs(options)
    job_pool.run_jobs(command, jobs, on_row=on_row, on_failure=on_failure, workers=options.workers)
    baseline.join()
    print(f"{len(failures)} failed or not begun; {time.monotonic() - begin:.0f} s -> {options.out / 'species.csv'}")
    real = [job for job in failures if not options.smoke]
    raise SystemExit(1 if failures and (options.smoke or len(real) == len(jobs)) else 0)


if __name__ == "__main__":
    main()
