"""Classification of sequences in the published layouts: models over several seeds beside k-mer logistic regression.

    python experiments/dna/benchmarks/run.py --data build/species --out results/        about two minutes on an H200
    python experiments/dna/benchmarks/run.py --smoke --out /tmp/benchmarks              tiny, on a CPU: does it run?

Each setting is one `seqmodels train --multirun experiment=fine_tune_dna … seed=1,2,3` (the published protocol: a tenth
of the training sequences for validation, drawn anew by each seed; early stop) and one `seqmodels evaluate runs=…`. A
CSV row holds mean and standard deviation over the seeds. The baselines have the same splits of each seed.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]  # `python experiments/...` puts only this folder on the path
SCORES = ("accuracy", "macro_recall", "mcc")
COLUMNS = [
    "set", "layout", "setting", "seeds", "valid_accuracy", "valid_accuracy_sd",
    *(f"test_{name}{sd}" for name in SCORES for sd in ("", "_sd")), "test_sequences", "chance", "best_steps",
    "parameters", "seconds", "words", "workers", "gpu", "torch", "commit", "date",
]  # fmt: skip
SETS = {
    "coding_vs_intergenic": "GenomicBenchmarks, intervals",
    "escherichia_or_klebsiella": "GenomicBenchmarks, sequences",
    "splice_sites_all": "Nucleotide Transformer, FASTA",
    "shuffled": "Nucleotide Transformer, Parquet",
}
SIZE = ("backbone.d_model=64", "backbone.n_layers=4")
SETTINGS: dict[str, tuple[str, ...]] = {
    "mamba": ("backbone=stack", *SIZE, "optimizer.lr=0.002"),
    "both_ways": ("backbone=bidirectional", *SIZE, "optimizer.lr=0.002"),
    "pretrained": ("optimizer.lr=0.001",),  # from --start
    "told_classes": (
        "backbone=stack", *SIZE, "optimizer.lr=0.006", "head=next_token", "condition=class", "trainer.best_by=loss",
    ),
}  # fmt: skip
KMERS = (3, 5, 6)
POSITIONS = "positions"  # a simple model that knows where a letter stands: what k-mers cannot know
STEPS, BATCH = 800, 64


def data_words(name: str, options: argparse.Namespace) -> list[str]:
    """How `seqmodels train` is told of a set."""
    benchmarks = options.data / "benchmarks"
    if options.smoke:
        benchmarks = options.out / "tiny"
    if name in ("splice_sites_all", "shuffled"):
        folder = benchmarks / "nucleotide_transformer"
        return ["domain=dna_nucleotide_transformer", f"domain.dataset.folder={folder}", f"domain.dataset.task={name}"]
    folder = options.out / "unpacked" / name if name == "escherichia_or_klebsiella" else benchmarks / name
    words = ["domain=dna_genomic_benchmark", f"domain.dataset.folder={folder}"]
    if name == "coding_vs_intergenic":
        genome = benchmarks / "genome.fa" if options.smoke else options.data / "bacteria" / "m_tuberculosis.2bit"
        words.append(f"domain.dataset.genome={genome}")
    return words


def run_job(job: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """`set:setting`: one row."""
    if time.time() > options.until:
        raise TimeoutError("not begun: --seconds are over")
    name, setting = job.split(":")
    begin = time.monotonic()
    run = run_models if setting in SETTINGS else run_simple
    row = run(name, setting, options)
    yield dict(set=name, layout=SETS[name], setting=setting, seeds=len(options.seeds)) | row | dict(
        seconds=round(time.monotonic() - begin, 1)
    )


def run_models(name: str, setting: str, options: argparse.Namespace) -> dict[str, Any]:
    """`seqmodels train --multirun` and `seqmodels evaluate runs=`."""
    import torch

    from experiments.dna.species.run import plain_paths
    from seqmodels.cli import main
    from seqmodels.training.checkpoint import find_checkpoint, read_meta, read_weights

    steps, batch = (4, 4) if options.smoke else (STEPS, BATCH)
    words = ["experiment=fine_tune_dna", *data_words(name, options), *SETTINGS[setting]]
    if setting == "pretrained":
        words.append(f"model_from={options.start}")
    words += [f"data.batch_size={batch}", "data.eval_batch_size=256", f"trainer.max_steps={steps}"]
    words += [f"trainer.val_every_steps={max(steps // 16, 1)}"]
    if torch.cuda.is_available() and setting != "both_ways":  # which looks for padding, and no graph can hold that
        words.append("trainer.cuda_graph=true")
    shown = " ".join(words).replace(str(options.start), "runs/pretrained")
    shown = plain_paths(shown, options)
    words += ["callbacks=none", "logger=csv", "data.num_workers=0", f"paths.runs={options.work}"]
    run(main, ["train", "--multirun", *words, f"name={name}-{setting}", f"seed={','.join(map(str, options.seeds))}"])
    runs = [options.work / f"{name}-{setting}-{number}" for number in range(len(options.seeds))]
    told = "true" if "condition=class" in words else "false"
    result = dict(chance=1.0)
    for part in ("valid", "test"):
        output = options.work / f"{name}-{setting}-{part}.json"
        run(main, [
            "evaluate", f"runs={','.join(map(str, runs))}", f"split={part}", f"output={output}",
            f"by_likelihood={told}", "data.batch_size=256", "data.num_workers=0", "precision=32-true",
        ])  # fmt: skip
        metrics = json.loads(output.read_text())["metrics"]
        for score in SCORES if part == "test" else SCORES[:1]:
            result[f"{part}_{score}"] = round(metrics[score]["mean"], 4)
            result[f"{part}_{score}_sd"] = round(metrics[score]["sd"] or 0.0, 4)
    report = json.loads((runs[0] / "results" / "evaluate-test.json").read_text())
    bests = [find_checkpoint(one, "best") for one in runs]
    return result | dict(
        words=shown, test_sequences=report["sequences"], chance=round(1 / len(report["class_names"]), 4),
        best_steps=" ".join(str(read_meta(one)["step"]) for one in bests),
        parameters=sum(tensor.numel() for tensor in read_weights(bests[0]).values()), torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else "none (CPU)",
    )  # fmt: skip


def run(main: Any, words: Sequence[str]) -> None:
    """A command of the product, shown as it would be typed."""
    print("seqmodels", *words, flush=True)
    if code := main(list(words)):
        raise RuntimeError(f"seqmodels {words[0]} ended with {code}")


def run_simple(name: str, setting: str, options: argparse.Namespace) -> dict[str, Any]:
    """Logistic regression on k-mer counts or on letters by position, the same splits of every seed."""
    from domains.dna.baselines import kmer_baseline
    from seqmodels.cli.compose import compose
    from seqmodels.instantiate import build
    from seqmodels.training.class_scores import class_scores

    scores: dict[str, list[float]] = {}
    count, classes = 0, 1
    for seed in options.seeds:
        words = ["experiment=fine_tune_dna", *data_words(name, options), f"seed={seed}"]
        corpus = build(compose("train", words)["domain"]["dataset"])
        for part in ("valid", "test"):
            if setting == POSITIONS:
                result = position_baseline(corpus, part)
            else:
                result = kmer_baseline(corpus, k=int(setting[0]), split=part)
            count, classes = int(result.confusion.sum()), len(result.class_names)
            named = {"accuracy": result.accuracy, "macro_recall": result.macro_recall}
            for score, value in (named | class_scores(result.confusion)).items():
                scores.setdefault(f"{part}_{score}", []).append(value)
    row: dict[str, Any] = dict(test_sequences=count, chance=round(1 / classes, 4), gpu="none (CPU)")
    for score, values in scores.items():
        row[score], row[f"{score}_sd"] = round(float(np.mean(values)), 4), round(float(np.std(values, ddof=1)), 4)
    return row


def position_baseline(corpus: Any, split: str) -> Any:
    """Logistic regression on the letter at every position of sequences of one length; N is no letter."""
    import torch

    from domains.dna.baselines import L2_STRENGTHS, ClassificationResult, LogisticRegression
    from domains.dna.tokenizer import BASE_IDS

    def features(part: str) -> tuple[torch.Tensor, torch.Tensor]:
        records = corpus.split(part)
        of = [records[index] for index in range(len(records))]
        ids_NL = np.stack([record.ids for record in of])
        letters = (ids_NL[:, :, None] == np.array(BASE_IDS)).reshape(len(of), -1).astype(np.float32)
        return torch.from_numpy(letters), torch.tensor([record.label for record in of])

    (x, labels), (x_valid, labels_valid), (x_test, labels_test) = map(features, ("train", "valid", split))
    classes = len(corpus.class_names)
    fitted = {l2: LogisticRegression(x, labels, classes=classes, l2=l2) for l2 in L2_STRENGTHS}
    best = max(fitted, key=lambda l2: float((fitted[l2].predict(x_valid) == labels_valid).float().mean()))
    pairs = labels_test * classes + fitted[best].predict(x_test)
    confusion = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    return ClassificationResult(tuple(corpus.class_names), confusion.numpy(), best)


# ---------------------------------------------------------------------------------------------------------- all jobs


def jobs_of(options: argparse.Namespace) -> list[str]:
    settings = [name for name in SETTINGS if name != "pretrained" or options.start]
    if options.smoke:
        made = ("splice_sites_all:mamba", "coding_vs_intergenic:told_classes")
        return [*made, "splice_sites_all:3mers", f"splice_sites_all:{POSITIONS}"]
    simple = [f"{name}:{setting}" for name in SETS for setting in (POSITIONS, *(f"{k}mers" for k in KMERS))]
    jobs = [f"{name}:{setting}" for setting in settings for name in SETS] + simple
    return [job for job in jobs if not options.only or job.partition(":")[2] in options.only]


def prepare(options: argparse.Namespace) -> None:
    """Unpacks what travels as one file; makes tiny sets for a smoke run."""
    from experiments.dna.benchmarks import data

    if options.smoke:
        tiny_sets(options.out / "tiny")
        return
    packed = options.data / "benchmarks" / "escherichia_or_klebsiella.tsv.gz"
    if not packed.is_file():
        raise SystemExit(f"{packed} is missing: experiments/dna/benchmarks/data.py makes it")
    data.unpack(packed, options.out / "unpacked" / "escherichia_or_klebsiella")


def tiny_sets(folder: Path) -> None:
    """A FASTA task of three classes and a table of intervals, of random bases; the layouts are the real ones."""
    rng = np.random.default_rng(0)
    task, table = folder / "nucleotide_transformer" / "splice_sites_all", folder / "coding_vs_intergenic"
    task.mkdir(parents=True)
    bases = "".join(rng.choice(list("ACGT"), size=4000))
    (folder / "genome.fa").write_text(f">tiny\n{bases}\n")
    for split, first, last in (("train", 0, 30), ("test", 30, 40)):
        starts = range(first * 80, last * 80, 80)
        lines = [f">{start}|{number % 3}\n{bases[start : start + 40]}" for number, start in enumerate(starts)]
        (task / f"{split}.fna").write_text("\n".join(lines) + "\n")
        (table / split).mkdir(parents=True)
        for shift, label in ((0, "coding"), (40, "intergenic")):
            rows = [f"{start},tiny,{start + shift},{start + shift + 40},+" for start in starts]
            (table / split / f"{label}.csv").write_text("\n".join(["id,region,start,end,strand", *rows]) + "\n")


def arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "build" / "species", help="with benchmarks/ and bacteria/")
    parser.add_argument("--out", type=Path, required=True, help="benchmarks.csv")
    parser.add_argument("--work", type=Path, help="runs and checkpoints; a folder of --out by default")
    parser.add_argument("--start", type=Path, help="a pretrained run, for the setting that begins with one")
    parser.add_argument("--seconds", type=float, default=150, help="no run begins after so many")
    parser.add_argument("--seeds", default="1,2,3", help="of initialisation, batches and the draw of validation")
    parser.add_argument("--only", default="", help="some settings, separated by commas: mamba,5mers,positions …")
    parser.add_argument("--workers", type=int, default=8, help="processes that share the GPU")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    parser.add_argument("--smoke", action="store_true", help="tiny sets, a few steps")
    parser.add_argument("--until", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    options.out, options.data = options.out.resolve(), options.data.resolve()
    options.work = (options.work or options.out / "benchmark_runs").resolve()
    options.start = options.start.resolve() if options.start and options.start.is_dir() else None
    options.only = [setting for setting in options.only.split(",") if setting]
    if unknown := set(options.only) - {*SETTINGS, POSITIONS, *(f"{k}mers" for k in KMERS)}:
        parser.error(f"--only {','.join(sorted(unknown))}: there is no such setting")
    options.seeds = [int(seed) for seed in options.seeds.split(",")][: 2 if options.smoke else None]
    options.until = options.until or time.time() + options.seconds
    options.workers = 1 if options.smoke else options.workers
    return options


def main() -> None:
    from experiments.gpu import job_pool

    words = [word for word in sys.argv[1:] if word != job_pool.WORKER_WORD]
    options = arguments(words)
    if job_pool.WORKER_WORD in sys.argv:
        job_pool.serve(functools.partial(run_job, options=options))
        return
    from seqkernels.bench import append_csv, commit

    stamp = dict(workers=options.workers, commit=options.commit or commit(), date=datetime.date.today().isoformat())
    begin, failures = time.monotonic(), list[str]()
    prepare(options)

    def on_row(job: str, row: dict[str, Any]) -> None:
        append_csv(options.out / "benchmarks.csv", [{name: (row | stamp).get(name, "") for name in COLUMNS}])
        print(
            f"== {time.monotonic() - begin:6.1f} s  {job:42s} accuracy {row['test_accuracy']:.3f} ± "
            f"{row['test_accuracy_sd']:.3f}  MCC {row['test_mcc']:.3f}", flush=True,
        )  # fmt: skip

    def on_failure(job: str, why: str) -> None:
        failures.append(job)
        print(f"== {job} FAILED: {why}", flush=True)

    jobs = jobs_of(options)
    command = [sys.executable, __file__, *words, f"--until={options.until}"]
    job_pool.run_jobs(command, jobs, on_row=on_row, on_failure=on_failure, workers=options.workers)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} in {time.monotonic() - begin:.0f} s -> {options.out}")
    raise SystemExit(1 if failures and (options.smoke or len(failures) == len(jobs)) else 0)


if __name__ == "__main__":
    main()
