"""What the audio studies share: runs of the product in this process, one after the other, each a row when it is done.

A run that fails is a row that says so, and the next begins; nothing is begun after the time is up.
"""

from __future__ import annotations

import csv
import gc
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from seqkernels.bench import environment

Made = TypeVar("Made")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


class Study:
    """One study's folder, clock and table.

    Args:
        name: of the table, `<out>/<name>.csv`.
        columns: of the table, before those of the machine.
        out: folder for what is to be kept.
        runs: folder for the runs, which are not.
        seconds: nothing is begun after so many.
        commit: what to write where there is no git.
    """

    def __init__(
        self, name: str, columns: list[str], *, out: Path, runs: Path, seconds: float, commit: str | None
    ) -> None:
        self.name, self.out, self.runs = name, out, runs
        self.begin, self.end = time.perf_counter(), time.perf_counter() + seconds
        known = environment(DEVICE)
        self._machine = {key: known[key] for key in ("gpu", "torch", "triton", "commit", "date")}
        self._machine["commit"] = commit or self._machine["commit"]
        self._columns = [*columns, "seconds", "status", *self._machine]
        self.table = out / f"{name}.csv"
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left_s(self) -> float:
        """Seconds until the time is up."""
        return self.end - time.perf_counter()

    def row(self, status: str = "ok", **values: Any) -> None:
        """Appends a row at once; columns without a value stay empty."""
        row = {**dict.fromkeys(self._columns, ""), **self._machine, **values, "status": status}
        assert row.keys() <= set(self._columns), row.keys() - set(self._columns)
        new = not self.table.exists()
        with open(self.table, "a", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if new:
                writer.writeheader()
            writer.writerow(row)
        shown = {k: v for k, v in row.items() if v != "" and k not in self._machine}
        self.say(" ".join(f"{k}={v}" for k, v in shown.items()))

    def say(self, text: str) -> None:
        """A line of the log, with the clock."""
        print(f"[{time.perf_counter() - self.begin:6.1f} s] {text}", flush=True)

    def attempt(self, what: str, do: Callable[[], Made], *, needs_s: float = 0.0, **facts: Any) -> Made | None:
        """`do()`; None, and a row that says why, where it fails or would begin too late."""
        if self.left_s < needs_s:
            self.row(status=f"left out: {self.left_s:.0f} s left, {needs_s:.0f} s needed", what=what, **facts)
            return None
        begin = time.perf_counter()
        try:
            return do()
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self.row(status=reason, what=what, seconds=f"{time.perf_counter() - begin:.1f}", **facts)
            return None
        finally:
            gc.collect()
            if ON_GPU:
                torch.cuda.empty_cache()

    def train(self, name: str, *words: str) -> tuple[Any, dict[str, Any]]:
        """`seqmodels train name=<name> <words>`: its result, and what it cost."""
        from seqmodels.cli.train import train_words

        shutil.rmtree(self.runs / name, ignore_errors=True)
        if ON_GPU:
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        self.say(f"seqmodels train name={name} {' '.join(words)}")
        result = train_words(*words, f"name={name}", f"paths.runs={self.runs.resolve()}", "data.num_workers=0")
        rows = [row for row in read_rows(result.run_dir / "metrics.csv") if row["split"] == "train"]
        rates = sorted(float(row["tokens_per_second"]) for row in rows[len(rows) // 4 :])  # the first compile kernels
        shutil.copy(result.run_dir / "metrics.csv", self.out / f"{self.name}_{name}_metrics.csv")
        cost = {
            "seconds": f"{time.perf_counter() - begin:.1f}",
            "tokens_per_s": f"{rates[len(rates) // 2]:.0f}",
            "peak_gib": f"{torch.cuda.max_memory_allocated() / 2**30:.2f}" if ON_GPU else "",
        }
        return result, cost

    def evaluate(self, run: Path, *words: str) -> dict[str, Any]:
        """`seqmodels evaluate run=<run> <words>`: its report."""
        from seqmodels.cli.compose import compose, split_words
        from seqmodels.cli.evaluate import evaluate_run

        of_data, own = split_words(list(words), ["domain."])
        return evaluate_run(compose("evaluate", [f"run={run}", "data.num_workers=0", *own]), of_data)

    def generate(self, run: Path, *words: str) -> list[str]:
        """`seqmodels generate run=<run> <words>`: the files written."""
        from seqmodels.cli.compose import compose
        from seqmodels.cli.generate import generate_run

        return generate_run(compose("generate", [f"run={run}", *words]))


def parameters(run: Path) -> int:
    """Of a run's newest checkpoint."""
    from seqmodels.inference import load

    return sum(parameter.numel() for parameter in load(str(run), "cpu", which="last").model.parameters())


def read_rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def markov_rows(corpus_words: Mapping[str, Any], split: str, max_order: int, max_symbols: int) -> list[dict[str, Any]]:
    """Order 0 .. max_order of the training split on another: bits a sample on whole files, in the models' own ids.

    Args:
        corpus_words: keywords of `AudioSegments`, the tokenizer built.
        split: what is predicted.
        max_order: of the models.
        max_symbols: they learn from at most so many, whole files in turn.
    """
    from domains.audio.datasets import AudioSegments
    from seqmodels.data.markov import markov_bits

    corpus, learn_from, symbols = AudioSegments(**corpus_words), [], 0
    for ids in corpus.region_ids("train"):
        if symbols < max_symbols:
            learn_from.append(ids[: max_symbols - symbols])
            symbols += len(learn_from[-1])
    rows = markov_bits(learn_from, list(corpus.region_ids(split)), max_order=max_order)
    return [{"order": row.order, "bits": row.bits, "tokens": symbols} for row in rows]
