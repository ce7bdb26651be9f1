"""What the studies of human DNA share: windows of any length, runs of `seqmodels train`, bits on held-out bases."""

from __future__ import annotations

import csv
import datetime
import functools
import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.dna.data import HumanData

if TYPE_CHECKING:
    from domains.dna.datasets import GenomeWindows
    from seqmodels.model import SequenceModel
    from seqmodels.training import TrainResult

EVAL_TOKENS = 2**18  # bases of a batch in evaluation: never changes a result
WORKER_MEMORY = 2**30  # bytes of shared memory that batches of several reading processes may need at a time
SPLIT_NAMES = {"valid": "chr20_held_out", "test": "chr22"}  # in tables and figures
Row = dict[str, Any]


def model_words(d_model: int, n_layers: int, *, checkpoint_blocks: bool = False) -> list[str]:
    """A stack of Mamba blocks."""
    recompute = [f"backbone.checkpoint_blocks={str(checkpoint_blocks).lower()}"]
    return ["backbone=stack", f"backbone.d_model={d_model}", f"backbone.n_layers={n_layers}", *recompute]


def data_words(data: HumanData, window_bases: int, batch_size: int) -> list[str]:
    """Random training windows of both strands; those with over a twentieth of N are drawn again."""
    return [
        *data.words(), "domain.dataset.policy=random", f"domain.dataset.window_bases={window_bases}",
        "domain.dataset.reverse_complement_augment=true", "domain.dataset.max_n_fraction=0.05",
        f"data.batch_size={batch_size}", f"data.num_workers={workers()}",
    ]  # fmt: skip


def run_words(name: str, runs: Path, *, steps: int, lr: float, log_every: int) -> list[str]:
    """Where a run goes and how long it is; it saves once, at its end, and validates in our own way."""
    return [
        f"name={name}", f"paths.runs={runs}", f"trainer.max_steps={steps}", f"optimizer.lr={lr}", "logger=csv",
        f"trainer.log_every_steps={log_every}", "trainer.val_every_steps=0", f"trainer.checkpoint_every_steps={steps}",
    ]  # fmt: skip


def workers() -> int:
    """Reading processes: none without a GPU to feed, or where they have no room to hand batches over."""
    import torch

    shared = Path("/dev/shm")
    room = shutil.disk_usage(shared).free if shared.is_dir() else 0
    return 6 if torch.cuda.is_available() and room > WORKER_MEMORY else 0


def train(words: Sequence[str], callbacks: Sequence[Any] = ()) -> TrainResult:
    """`seqmodels train <words>` in this process, with its log."""
    from seqmodels.cli.console import show_log
    from seqmodels.cli.train import train_words

    show_log()
    print("seqmodels train", *words, flush=True)
    return train_words(*words, callbacks=callbacks)


def metrics_of(run_dir: Path) -> list[Row]:
    """Training rows of metrics.csv: step, bits_per_base, tokens_per_second, …"""
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    wanted = ("bits_per_base", "tokens_per_second", "gradient_norm", "learning_rate")
    return [{"step": int(row["step"]), **{name: float(row[name]) for name in wanted}} for row in rows]


def typical_rate(rows: Sequence[Mapping[str, Any]]) -> int:
    """Median tokens/s without the first quarter, in which kernels are compiled and readers start."""
    later = rows[len(rows) // 4 :]
    return round(statistics.median(row["tokens_per_second"] for row in later))


@functools.cache
def corpus(data: HumanData, window_bases: int, windows: int | None = None) -> GenomeWindows:
    """Held-out windows side by side; at most `windows` of a split, evenly spaced."""
    from domains.dna.datasets import GenomeWindows
    from domains.dna.intervals import BedRegions

    return GenomeWindows(
        str(data.fasta), window_bases=window_bases, policy="tile", splits=BedRegions(str(data.bed)), edge="drop",
        eval_windows=windows, on_leak="ignore",
    )  # fmt: skip


def held_out(
    model: SequenceModel, data: HumanData, split: str, window_bases: int, *, windows: int | None = None,
    classes: bool = False,
) -> dict[str, Row]:  # fmt: skip
    """Bits a base on a held-out split, every window read from its first base on with nothing before it.

    Returns:
        {"all": {...}}, with `classes` also "repeat" and "unique": bits_per_base, perplexity, accuracy, targets.
    """
    from seqmodels.data.collate import collate_for
    from seqmodels.data.loader import DataSettings, evaluation_batches
    from seqmodels.training.evaluate import evaluate

    windows_of = corpus(data, window_bases, windows)
    samples = windows_of.marked(split) if classes else windows_of.split(split)
    settings = DataSettings(batch_size=max(EVAL_TOKENS // window_bases, 1), num_workers=0)
    batches = evaluation_batches(samples, collate_for("next_token", windows_of.tokenizer), settings)
    result = evaluate(model, batches, mark_names=windows_of.mark_names if classes else ())
    found = result.metrics_by_mark("base") if classes else {}
    found["all"] = {"targets": int(result.sums.count), **result.metrics("base")}
    return {name: _shown(values) for name, values in found.items() if name != "n_adjacent"}


def _shown(values: Mapping[str, Any]) -> Row:
    bits = values["bits_per_base"]
    return {
        "bits_per_base": round(bits, 5), "perplexity": round(2**bits, 4) if math.isfinite(bits) else "",
        "accuracy": round(values["accuracy"], 4), "targets": values["targets"],
    }  # fmt: skip


def parameters(run_dir: Path) -> int:
    """Numbers that a run trained."""
    from seqmodels.inference import load

    return sum(parameter.numel() for parameter in load(run_dir, "cpu", which="last").model.parameters())


def start_of_peak() -> None:
    """Forgets what earlier runs left behind, so that `peak_gib` is this one's."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | str:
    """Most GPU memory taken by tensors since `start_of_peak`; empty on a CPU."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else ""


def machine() -> Row:
    """What a row says of where it was measured."""
    import torch

    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = ""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none (CPU)"
    return {"gpu": gpu, "torch": torch.__version__, "triton": version}


def stamp(commit: str | None) -> Row:
    """Which code, and when."""
    from seqkernels.bench import commit as of_checkout

    return {"commit": commit or of_checkout(), "date": datetime.date.today().isoformat()}
