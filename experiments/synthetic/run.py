"""Synthetic tasks: which layers solve what, from short training runs on one GPU.

    python experiments/synthetic/run.py                               everything, about four minutes on an H200
    python experiments/synthetic/run.py --only copying:mamba,recall:hybrid --seconds 10
    python experiments/synthetic/run.py --smoke                       tiny sizes on a CPU: does it run?

Each (task, model) trains for a stated number of seconds (or steps), warm-up then a constant rate, the last quarter
down to zero. Batches are drawn on the GPU and are never repeated. `--workers` processes share the GPU, because small
models leave it idle between launches; seconds are wall-clock seconds under that sharing. One CSV row a test size.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from domains.synthetic.tasks import Sequences, Task
    from seqmodels.model import SequenceModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # the repository: `python experiments/...` puts only this folder on the path
RESULTS = HERE.parent / "results" / "synthetic.csv"
COLUMNS = [
    "task", "model", "pattern", "d_model", "parameters", "training", "steps", "tokens", "train_seconds", "lr",
    "final_loss", "size_name", "test_size", "sequences", "accuracy", "exact_match", "dtype", "seed", "workers", "note",
    "gpu", "torch", "commit", "date",
]  # fmt: skip
WARM_UP_SHARE, DECAY_SHARE = 0.03, 0.25
CHECK_EVERY = 25  # steps between two looks at the loss: each makes the GPU wait
STOP_AFTER = 12  # looks in a row with every answer right, in the last stage, end a run early


@dataclass(frozen=True)
class Recipe:
    """How one task is trained and tested.

    Attributes:
        stages: what is drawn, stage after stage, an equal share of the budget each but the last, which has
            `last_share`; within a stage batch i takes task i mod n.
        tests: test size -> task.
        size_name: what a test size is.
        batch_tokens: symbols of a batch.
        seconds: budget of training.
        d_model: width of every model.
        mixers: layers that mix positions.
        lr: learning rate by model; "" for the others.
        models: which models, the most instructive first.
        stop_early: whether a run may end when it makes no errors any more (not where the test is longer).
        most_positions: longest test of models with attention, whose time grows with the square.
        test_tokens: symbols of one test, about; a quarter of it for models with attention.
    """

    stages: list[list[Task]]
    tests: dict[int, Task]
    size_name: str
    batch_tokens: int
    seconds: float
    d_model: int
    mixers: int
    lr: dict[str, float]
    models: tuple[str, ...]
    last_share: float = 0.4
    stop_early: bool = True
    most_positions: int = 2**16
    test_tokens: int = 2**21
    steps: int | None = None


FOUR = ("mamba", "mamba2", "transformer", "hybrid")


def recipes() -> dict[str, Recipe]:
    """The tasks in the papers' sizes, or stated smaller ones."""
    from domains.synthetic.tasks import AssociativeRecall, InductionHeads, Phonebook, SelectiveCopying

    copying = [SelectiveCopying(length=n) for n in (64, 256, 1024, 4096)]
    recall = [AssociativeRecall(length=256, pairs=n) for n in (8, 16, 32, 64)]
    found = {
        "recall": Recipe(
            stages=[[task] for task in recall], tests={task.pairs: task for task in recall}, size_name="pairs",
            batch_tokens=2**16, seconds=50, d_model=128, mixers=2, lr={"": 3e-3, "transformer": 1e-3, "hybrid": 2e-3},
            models=FOUR, last_share=0.55,
        ),
        "copying": Recipe(
            stages=[[task] for task in copying], tests={task.length: task for task in copying}, size_name="length",
            batch_tokens=2**16, seconds=45, d_model=64, mixers=2, lr={"": 5e-3, "transformer": 1e-3, "s4d": 2e-3},
            models=("mamba", "s4d", "mamba_s4", "mamba2", "transformer", "hybrid"),
        ),
        "induction": Recipe(
            stages=[[InductionHeads(length=256)]],
            tests={2**n: InductionHeads(length=2**n) for n in range(6, 21)}, size_name="length",
            batch_tokens=2**15, seconds=40, d_model=64, mixers=2, lr={"": 2e-3, "transformer": 1e-3}, models=FOUR,
            stop_early=False, test_tokens=2**23,
        ),
    }  # fmt: skip
    for name, is_reversed in (("phonebook", False), ("phonebook_reversed", True)):
        books: dict[int, Task] = {n: Phonebook(entries=n, reversed_form=is_reversed) for n in (5, 10, 20, 40, 80)}
        trained = {n: Phonebook(entries=n, reversed_form=is_reversed, ask_examples=True) for n in (3, 5, 10, 20, 40)}
        found[name] = Recipe(
            stages=[[trained[3]], [trained[5], trained[10]], [trained[n] for n in (5, 10, 20, 40)]],
            tests=dict(books), size_name="entries", batch_tokens=2**15, seconds=45,
            d_model=128, mixers=4, lr={"": 2e-3, "transformer": 1e-3}, models=FOUR, last_share=0.5,
        )  # fmt: skip
    return found


def smoke_recipes() -> dict[str, Recipe]:
    """The same with sizes that a CPU runs through in seconds; nothing is learned."""
    from domains.synthetic.tasks import AssociativeRecall, InductionHeads, Phonebook, SelectiveCopying

    sizes: dict[str, tuple[list[Task], dict[int, Task]]] = {
        "recall": ([AssociativeRecall(length=32, pairs=n, vocab_size=64) for n in (2, 4)], {}),
        "copying": ([SelectiveCopying(length=n, data_tokens=3) for n in (8, 16)], {}),
        "induction": ([InductionHeads(length=16)], {n: InductionHeads(length=n) for n in (16, 64)}),
        "phonebook": ([Phonebook(entries=n, names=4, ask_examples=True) for n in (3, 4)], {}),
        "phonebook_reversed": ([Phonebook(entries=3, names=4, reversed_form=True)], {}),
    }
    full = recipes()
    return {
        name: replace(
            full[name], stages=[[task] for task in tasks], tests=tests or {task.num_symbols: task for task in tasks},
            d_model=16, steps=4, batch_tokens=128, test_tokens=256, mixers=2,
        )
        for name, (tasks, tests) in sizes.items()
    }  # fmt: skip


LAYERS: dict[str, dict[str, Any]] = {
    "m": {"_target_": "seqmodels.layers.mamba.Mamba"},
    "M": {"_target_": "seqmodels.layers.mamba2.Mamba2", "d_state": 64, "headdim": 32},
    "s": {"_target_": "seqmodels.layers.s4d.S4D"},
    "S": {"_target_": "seqmodels.layers.mamba_s4.MambaS4"},
    "*": {"_target_": "seqmodels.layers.attention.Attention", "n_heads": 4},
    "n": {"_target_": "seqmodels.layers.attention.Attention", "n_heads": 4, "rotary_dim": 0},
    "-": {"_target_": "seqmodels.layers.mlp.MLP", "activation": "swiglu"},
}


def pattern_of(model: str, mixers: int) -> str:
    """Blocks of a model with so many layers that mix positions; MLPs stand beside attention and in the hybrid."""
    if model == "hybrid":  # one attention without positions (n), as published; Mamba-2 first, so order is known
        return "M-" * (mixers // 2) + "n-" + "M-" * (mixers - mixers // 2 - 1)
    return {"mamba": "m", "mamba2": "M", "s4d": "s", "mamba_s4": "S", "transformer": "*-"}[model] * mixers


def build_model(model: str, recipe: Recipe, vocab_size: int, device: str) -> SequenceModel:
    from seqmodels.backbones.stack import Stack
    from seqmodels.heads.next_token import NextTokenHead
    from seqmodels.instantiate import build
    from seqmodels.model import SequenceModel

    pattern = pattern_of(model, recipe.mixers)
    layers = {letter: build({**LAYERS[letter], "_partial_": True}) for letter in set(pattern)}
    stack = Stack(vocab_size=vocab_size, d_model=recipe.d_model, pattern=pattern, layers=layers)
    return SequenceModel(stack, NextTokenHead(d_model=recipe.d_model, vocab_size=vocab_size)).to(device)


def logits_and_answers(
    model: SequenceModel, sequences: Sequences, num_answers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, K, V) and answers (B, K) of the asked positions: no logits are made where nothing is asked."""
    import torch

    from seqmodels.data.record import IGNORE_INDEX

    ids_BL, target_ids_BL = sequences.ids_BL, sequences.target_ids_BL
    inputs_BL = torch.cat([torch.zeros_like(ids_BL[:, :1]), ids_BL[:, :-1]], dim=1)
    # topk instead of nonzero: the number of answers is known, so the GPU need not wait for it
    places_BK = (target_ids_BL != IGNORE_INDEX).to(torch.int32).topk(num_answers, dim=-1).indices
    with torch.autocast(ids_BL.device.type, torch.bfloat16, enabled=ids_BL.is_cuda):
        hidden_BLD, _ = model.backbone(inputs_BL)
        hidden_BKD = hidden_BLD.gather(1, places_BK[..., None].expand(-1, -1, hidden_BLD.shape[-1]))
        logits_BKV = model.head(hidden_BKD)
    return logits_BKV, target_ids_BL.gather(1, places_BK)


@dataclass(frozen=True)
class Trained:
    """What a training run did."""

    steps: int
    tokens: int
    seconds: float
    loss: float
    note: str


def rate_at(progress: float) -> float:
    """The learning rate's factor: a short warm-up, constant, then down to zero."""
    return min(1.0, progress / WARM_UP_SHARE, max(0.0, (1 - progress) / DECAY_SHARE))


def stage_at(progress: float, stages: int, last_share: float) -> int:
    """Which stage a share of the budget lies in."""
    if stages == 1 or progress >= 1 - last_share:
        return stages - 1
    return min(int(progress / (1 - last_share) * (stages - 1)), stages - 2)


def train(model: SequenceModel, recipe: Recipe, lr: float, seed: int, device: str) -> Trained:
    import torch
    import torch.nn.functional as F

    from seqmodels.training.param_groups import param_groups

    groups = param_groups(model)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=device == "cuda")
    generator = torch.Generator(device).manual_seed(seed)
    begin, tokens, step, faultless, loss = time.perf_counter(), 0, 0, 0, float("nan")
    note = ""
    while True:
        elapsed = time.perf_counter() - begin
        progress = step / recipe.steps if recipe.steps else elapsed / recipe.seconds
        if progress >= 1:
            break
        stage = stage_at(progress, len(recipe.stages), recipe.last_share)
        tasks = recipe.stages[stage]
        task = tasks[step % len(tasks)]
        sequences = task.draw(max(recipe.batch_tokens // task.num_symbols, 1), generator)
        logits_BKV, answers_BK = logits_and_answers(model, sequences, task.num_answers)
        step_loss = F.cross_entropy(logits_BKV.flatten(0, 1).float(), answers_BK.flatten())
        with torch.autograd.set_multithreading_enabled(False):  # as `seqmodels train` does: small steps gain a tenth
            step_loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = lr * rate_at(max(progress, 1e-4))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += sequences.ids_BL.numel()
        if step % CHECK_EVERY == 0:  # also keeps the host from running far ahead of the GPU, and so of the clock
            loss = step_loss.item()
            right = bool((logits_BKV.argmax(-1) == answers_BK).all())
            faultless = faultless + 1 if right and stage == len(recipe.stages) - 1 else 0
            if recipe.stop_early and faultless >= STOP_AFTER:
                note = f"stopped: no error in {STOP_AFTER} batches"
                break
    if device == "cuda":
        torch.cuda.synchronize()
    return Trained(step, tokens, time.perf_counter() - begin, loss, note)


def test(model: SequenceModel, task: Task, test_tokens: int, device: str) -> Any:
    """The score on at least 8 sequences, about `test_tokens` symbols, in batches of at most 2^20 symbols."""
    import torch

    from domains.synthetic.scoring import score

    generator = torch.Generator(device).manual_seed(2**31 - 1)  # not a seed of training
    left = min(max(test_tokens // task.num_symbols, 8), 1024)
    total = None
    model.eval()
    while left:
        count = min(left, max(2**20 // task.num_symbols, 1))
        with torch.no_grad():
            logits, answers = logits_and_answers(model, task.draw(count, generator), task.num_answers)
            part = score(logits.argmax(-1), answers)
        total = part if total is None else total + part
        left -= count
    return total


def run_job(job: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One task and model: trains, then one row a test size."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    task_name, _, model_name = job.partition(":")
    recipe = (smoke_recipes() if options.smoke else recipes())[task_name]
    seconds = (options.seconds or recipe.seconds) * options.scale
    recipe = replace(recipe, seconds=seconds, steps=options.steps or recipe.steps)
    torch.manual_seed(options.seed)
    vocab_size = recipe.stages[0][0].vocab_size
    model = build_model(model_name, recipe, vocab_size, device)
    pattern = pattern_of(model_name, recipe.mixers)
    lr = options.lr or recipe.lr.get(model_name, recipe.lr[""])
    warm_up(model, recipe, device)
    trained = train(model, recipe, lr, options.seed + 1, device)
    shared = dict(
        task=task_name, model=model_name, pattern=pattern, d_model=recipe.d_model,
        parameters=sum(p.numel() for p in model.parameters()), training=" > ".join(map(describe, recipe.stages)),
        steps=trained.steps, tokens=trained.tokens, train_seconds=round(trained.seconds, 1), lr=lr,
        final_loss=round(trained.loss, 4), size_name=recipe.size_name, seed=options.seed,
        dtype="bf16 autocast" if device == "cuda" else "fp32", torch=torch.__version__,
        gpu=torch.cuda.get_device_name() if device == "cuda" else "none (CPU)",
    )  # fmt: skip
    attends = bool({"*", "n"} & set(pattern))
    for size, task in recipe.tests.items():
        if attends and task.num_symbols > recipe.most_positions:
            continue
        result = test(model, task, recipe.test_tokens // (4 if attends else 1), device)
        yield shared | dict(
            test_size=size, sequences=result.sequences, accuracy=round(result.accuracy, 4),
            exact_match=round(result.exact_match, 4), note=trained.note,
        )  # fmt: skip


def warm_up(model: SequenceModel, recipe: Recipe, device: str) -> None:
    """Compiles kernels for every shape of training, outside the clock; the weights stay as they are."""
    import torch

    generator = torch.Generator(device).manual_seed(0)
    for task in {task.num_symbols: task for stage in recipe.stages for task in stage}.values():
        sequences = task.draw(max(recipe.batch_tokens // task.num_symbols, 1), generator)
        logits_and_answers(model, sequences, task.num_answers)[0].float().logsumexp(-1).mean().backward()
    model.zero_grad(set_to_none=True)


def describe(stage: list[Task]) -> str:
    """The symbols of a stage's sequences, and pairs or entries where those change."""
    sizes = [str(getattr(task, "pairs", getattr(task, "entries", task.num_symbols))) for task in stage]
    return "+".join(sizes)


def jobs_of(options: argparse.Namespace, all_recipes: dict[str, Recipe]) -> list[str]:
    """Task:model pairs, the longest first: they keep the workers evenly busy."""
    known = [f"{name}:{model}" for name, recipe in all_recipes.items() for model in recipe.models]
    known.sort(key=lambda job: -all_recipes[job.partition(":")[0]].seconds)
    if not options.only:
        return known
    chosen = [job for job in known if {job, *job.split(":")} & set(options.only.split(","))]
    wrong = [word for word in options.only.split(",") if not any(word in (job, *job.split(":")) for job in known)]
    if wrong:
        raise SystemExit(f"--only {','.join(wrong)}: unknown; known are {', '.join(known)}, or a task or model alone")
    return chosen


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS, help="rows are appended to this file")
    parser.add_argument("--only", help="comma-separated task:model pairs, tasks or models")
    parser.add_argument("--seconds", type=float, help="training budget of each run instead of the recipe's")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every budget")
    parser.add_argument("--steps", type=int, help="steps of each run instead of seconds")
    parser.add_argument("--lr", type=float, help="learning rate instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=5, help="processes that share the GPU")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, a few steps")
    parser.add_argument("--figure", type=Path, help="also draw the CSV into this PNG")
    return parser.parse_args(words)


def main() -> None:
    from experiments.gpu import job_pool

    words = [word for word in sys.argv[1:] if word != job_pool.WORKER_WORD]
    options = arguments(words)
    if job_pool.WORKER_WORD in sys.argv:
        job_pool.serve(functools.partial(run_job, options=options))
        return
    from seqkernels.bench import append_csv, commit

    stamp = dict(workers=options.workers, commit=options.commit or commit(), date=datetime.date.today().isoformat())
    begin = time.monotonic()
    failures: list[str] = []

    def on_row(job: str, row: dict[str, Any]) -> None:
        append_csv(options.csv, [{name: (row | stamp).get(name, "") for name in COLUMNS}])
        print(
            f"{time.monotonic() - begin:6.1f} s  {job:32s} {row['size_name']} {row['test_size']:>8}  accuracy "
            f"{row['accuracy']:.3f}  exact {row['exact_match']:.3f}  ({row['steps']} steps, {row['train_seconds']} s)",
            flush=True,
        )

    def on_failure(job: str, why: str) -> None:
        failures.append(job)
        print(f"{job} FAILED: {why}", flush=True)

    jobs = jobs_of(options, smoke_recipes() if options.smoke else recipes())
    job_pool.run_jobs(
        [sys.executable, __file__, *words], jobs, on_row=on_row, on_failure=on_failure, workers=options.workers
    )
    if options.figure:
        from experiments.synthetic.figure import draw

        draw(options.csv, options.figure)
    print(f"{len(jobs) - len(failures)} of {len(jobs)} runs in {time.monotonic() - begin:.0f} s -> {options.csv}")
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    main()
