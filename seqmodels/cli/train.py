"""`seqmodels train`: compose, build, train; or resume; or try several values with --multirun."""

from __future__ import annotations

import inspect
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seqmodels.cli.compose import (
    OverrideError,
    absolute_paths,
    aliased,
    compose,
    explain,
    plain,
    set_keys,
    unknown_word,
)
from seqmodels.cli.console import show_log

# What may change when a run is resumed: nothing that changes what was trained so far, or the batches to come.
SAFE_WITH_RESUME = (
    "trainer.max_steps",
    "trainer.patience",
    "trainer.checkpoint_every_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "data.num_workers",
    "data.on_bad_record",
    "domain.dataset.fasta",
    "domain.dataset.folder",
)
RUN_NAME = "SEQMODELS_RUN_NAME"  # tells the other processes of a distributed run what process 0 called the run
EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 143}


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log(choice_of_kernels=True)
    words = list(words)
    if {"-m", "--multirun"} & set(words):
        return _multirun([word for word in words if word not in ("-m", "--multirun")])
    resume = next((word.partition("=")[2] for word in words if word.startswith("resume=")), "null")
    if resume not in ("", "null"):
        result = resume_run(resume, [word for word in words if not word.startswith("resume=")])
    else:
        result = train_words(*words)
    _say_goodbye(result)
    return EXIT_CODES.get(result.stopped_by or "", 0)


def train_words(*words: str, callbacks: Sequence[Any] = ()) -> Any:
    """What `seqmodels train <words>` does, for scripts: returns the `TrainResult`.

    Args:
        words: the command line.
        callbacks: Lightning callbacks besides those of the configuration.
    """
    return train_run(compose("train", words, _name_the_run), words, callbacks=callbacks)


def train_run(config: dict[str, Any], words: Sequence[str] = (), *, callbacks: Sequence[Any] = ()) -> Any:
    """Trains from a composed configuration (plain data).

    Args:
        config: what `compose("train", words)` returned.
        words: the command line, to tell what the user asked for explicitly.
        callbacks: Lightning callbacks besides those of the configuration.
    """
    config.pop("resume", None)
    config["domain"] = absolute_paths(config["domain"])
    if config["model_from"] is not None:
        config["model_from"] = str(Path(config["model_from"]).resolve())
        _take_backbone(config, words)
    return _train(config, config["paths"]["run_dir"], config, callbacks)


def resume_run(run_dir: str, words: Sequence[str]) -> Any:
    """Continues a run from its newest checkpoint, with its own configuration.

    Raises:
        OverrideError: a word would change what was trained so far, or the batches to come.
    """
    from seqmodels.training.run_folder import RunFolder

    folder = RunFolder.open(run_dir)
    for word in words:
        key = word.lstrip("+").partition("=")[0]
        if key not in SAFE_WITH_RESUME:
            raise OverrideError(
                f"{key} cannot be changed in a run that is resumed, it would no longer be the same run. May be"
                f" changed: {', '.join(SAFE_WITH_RESUME)}. For a new run from these weights: model_from={run_dir}"
            )
    saved = folder.read_config()
    if "trainer" not in saved:
        raise OverrideError(
            f"{run_dir} was converted, not trained here, and there is nothing to continue; for a new run from its "
            f"weights: model_from={run_dir}"
        )
    config = set_keys(saved, words)
    config["domain"] = absolute_paths(config["domain"])
    if words and os.environ.get("LOCAL_RANK", "0") == "0":
        folder.write_config(config)  # the next resume goes on to the new number of steps
    return _train(config, run_dir, None)


def _train(
    config: Mapping[str, Any], run_dir: str | Path, saved: Mapping[str, Any] | None, more_callbacks: Sequence[Any] = ()
) -> Any:
    """Builds everything from plain data and trains; `saved` None resumes."""
    from seqkernels.dispatch import preferring

    from seqmodels.instantiate import build
    from seqmodels.training import ModelSpec, Recipe, train

    recipe = Recipe(
        trainer=build(config["trainer"]),
        data=build(config["data"]),
        optimizer=build(config["optimizer"]),
        scheduler=build(config["scheduler"]),
        seed=_seed(config["seed"]),
    )
    corpus = build(config["domain"]["dataset"])
    with preferring((config.get("kernels") or {}).get("implementation", "auto")):
        return train(
            corpus,
            ModelSpec(config["backbone"], config["head"], config.get("condition")),  # older runs lack the key
            recipe,
            run_dir=run_dir,
            model_from=config["model_from"],
            resume=saved is None,
            callbacks=[*(build(spec) for spec in config["callbacks"].values() if spec), *more_callbacks],
            loggers=[_logger(spec, run_dir) for spec in config["logger"].values() if spec],
            config=saved,
        )


def _logger(spec: Mapping[str, Any], run_dir: str | Path) -> Any:
    """Loggers write into the run folder, whatever they call it."""
    from seqmodels.instantiate import build, locate

    parameters = inspect.signature(locate(spec["_target_"])).parameters
    where = next((name for name in ("folder", "save_dir") if name in parameters and name not in spec), None)
    return build(spec, **({where: str(run_dir)} if where else {}))


def _seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} must be a whole number (0 is one)")
    return seed


def _name_the_run(config: Any, choices: Mapping[str, str]) -> None:
    """Gives a run without a name one, from what it is and when it started."""
    if config.name is not None:
        return
    what = choices.get("experiment") or choices.get("domain") or "run"
    name = _free_name(Path(config.paths.runs), f"{what}-{time.strftime('%Y%m%d-%H%M%S')}")
    if config.trainer.devices * config.trainer.num_nodes > 1:  # the other processes run the same command a bit later
        name = os.environ.setdefault(RUN_NAME, name)
    config.name = name


def _free_name(runs: Path, name: str) -> str:
    candidates = [name, *(f"{name}-{number}" for number in range(2, 1000))]
    return next(candidate for candidate in candidates if not (runs / candidate).exists())


def _take_backbone(config: dict[str, Any], words: Sequence[str]) -> None:
    """A fine-tuned model has the checkpoint's backbone, unless the command line says otherwise (and is checked)."""
    from seqmodels.training.checkpoint import find_checkpoint, read_meta

    if any(re.match(r"\+*(backbone|layer)[.=@]", word) for word in words):
        return
    backbone = dict(read_meta(find_checkpoint(config["model_from"], "best"))["model"]["backbone"])
    backbone = dict(backbone.get("backbone", backbone))  # of one that is told classes, what is inside
    backbone.pop("vocab_size")
    config["backbone"] = backbone


def _say_goodbye(result: Any) -> None:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    run_dir = result.run_dir
    if result.skipped:
        print(f"skipped     {len(result.skipped)} records that could not be read; the first: {result.skipped[0]}")
    if result.stopped_by:
        print(f"stopped     by {result.stopped_by} after step {result.step}")
        print(f"to go on    seqmodels train resume={run_dir}")
        return
    valid = result.metrics.get("valid")
    if result.stopped_early:
        print(f"stopped     early after step {result.step}: no better validation since step {result.best_step}")
    if valid:
        shown = (name for name in valid if name.startswith(("bits", "accuracy", "macro")))
        numbers = ", ".join(f"{name.replace('_', ' ')} {valid[name]:.4f}" for name in shown)
        print(f"result      validation {numbers}; best at step {result.best_step}")
    print(f"run folder  {run_dir}")
    print(f"next        seqmodels evaluate run={run_dir}")
    if not any(name.startswith(("bits_per_sequence", "bits_per_masked_")) for name in valid or {}):  # it can generate
        print(f"            seqmodels generate run={run_dir}")
    more = "trainer.patience=null" if result.stopped_early else f"trainer.max_steps={2 * result.step}"
    print(f"            seqmodels train resume={run_dir} {more}")


def _multirun(words: list[str]) -> int:
    """Every combination of comma-separated values, one run each, through Hydra's launcher; a table at the end."""
    import hydra
    from hydra.errors import HydraException

    words = [aliased(word) for word in words]
    unknown = unknown_word("train", words)
    if unknown is not None:
        raise OverrideError(unknown)  # before Hydra makes a folder for the sweep
    finished: list[tuple[list[str], Any]] = []
    folder: list[Path] = []

    def job(config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig

        show_log(choice_of_kernels=True)
        runtime = HydraConfig.get()
        overrides = list(runtime.overrides.task)
        print(f"\n[{runtime.job.num}] {' '.join(overrides)}")
        if config.name is not None:
            config.name = f"{config.name}-{runtime.job.num}"  # one folder a run
        _name_the_run(config, dict(runtime.runtime.choices))
        folder.append(Path(runtime.sweep.dir))
        result = train_run(plain(config, "train"), overrides)
        finished.append((overrides, result))
        return _score(result)  # what a sweeper that searches would minimise

    own = ["hydra.output_subdir=null", "hydra/job_logging=none", "hydra/hydra_logging=none"]
    own.append("hydra.sweep.dir=${paths.runs}/multirun/${now:%Y%m%d-%H%M%S}")
    before, sys.argv = sys.argv, ["seqmodels-train", "--multirun", *words, *own]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise, do not print and exit: the command shows errors its own way
    try:
        hydra.main(config_path="pkg://seqmodels.conf", config_name="train", version_base="1.3")(job)()
    except HydraException as error:
        raise OverrideError(explain("train", words, error)) from error
    finally:
        sys.argv = before
    print()
    for overrides, result in finished:
        print(f"{_score(result):.5f} nats  {result.run_dir}  {' '.join(overrides)}")
    if finished:
        _summarize(finished, folder[0])
    return 0


def _summarize(finished: Sequence[tuple[list[str], Any]], folder: Path) -> None:
    """Mean ± sd over runs that differ in nothing but the seed, at each run's best validation; as JSON too."""
    from seqmodels.training.repeats import spreads

    groups: dict[str, list[Any]] = {}
    for overrides, result in finished:
        groups.setdefault(" ".join(word for word in overrides if not word.startswith("seed=")), []).append(result)
    summary = []
    for words, results in groups.items():
        over = spreads([_best_validation(result) for result in results])
        if len(results) > 1:
            shown = (f"{name.replace('_', ' ')} {spread}" for name, spread in over.items())
            print(f"\nmean ± sd   of {len(results)} seeds: {', '.join(shown)}\n            {words}")
        runs = [str(result.run_dir) for result in results]
        metrics = {name: spread.plain() for name, spread in over.items()}
        summary.append({"overrides": words, "runs": runs, "validation": metrics})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"written     {folder / 'summary.json'}")
    if any(len(results) > 1 for results in groups.values()):
        every = ",".join(str(result.run_dir) for _, result in finished)
        print(f"next        seqmodels evaluate runs={every}")


def _best_validation(result: Any) -> dict[str, float]:
    """Metrics of the best validation; of the last training steps where nothing was validated."""
    from seqmodels.training.checkpoint import find_checkpoint, read_meta

    metrics = read_meta(find_checkpoint(result.run_dir, "best"))["metrics"]
    prefix = "valid_" if result.metrics.get("valid") else "train_"
    wanted = ("loss", "bits_per", "accuracy", "macro")
    named = {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}
    return {name: value for name, value in named.items() if name.startswith(wanted)}


def _score(result: Any) -> float:
    row = result.metrics.get("valid") or result.metrics["train"]
    return row["loss"]
