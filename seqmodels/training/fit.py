"""`train`: a corpus, a model's spec and a recipe to a run folder with a trained model.

    from seqmodels.training import ModelSpec, Recipe, TrainerSettings, train

    layer = {"_target_": "seqmodels.layers.mamba.Mamba", "_partial_": True}
    backbone = {"_target_": "seqmodels.backbones.stack.Stack", "d_model": 64, "n_layers": 4, "layer": layer}
    head = {"_target_": "seqmodels.heads.next_token.NextTokenHead"}
    result = train(corpus, ModelSpec(backbone, head), Recipe(TrainerSettings(max_steps=500)), run_dir="runs/first")
    print(result.metrics["valid"]["loss"], result.run_dir)

The `seqmodels train` command composes these from YAML and calls the same function.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seqmodels.backbones.class_conditioned import ClassConditioned
from seqmodels.data.record import Corpus
from seqmodels.instantiate import build
from seqmodels.model import SequenceModel, model_spec
from seqmodels.training.checkpoint import CheckpointError, find_checkpoint, read_meta
from seqmodels.training.graphed import MOST_SHAPES
from seqmodels.training.quiet import quiet_lightning
from seqmodels.training.run_folder import RunFolder
from seqmodels.training.settings import Recipe, TrainerSettings
from seqmodels.training.transfer import load_backbone

if TYPE_CHECKING:
    import lightning as L

    from seqmodels.data.datamodule import SequenceDataModule

log = logging.getLogger("seqmodels")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as plain data, without what the corpus knows (vocabulary size, number of classes).

    Attributes:
        backbone: `_target_` and its keywords; with `layer` as a nested spec.
        head: `_target_` and its keywords.
        condition: "class" tells the backbone the label of every sequence; None tells it nothing.
    """

    backbone: Mapping[str, Any]
    head: Mapping[str, Any]
    condition: str | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """How a run ended.

    Attributes:
        run_dir: the run folder.
        step: optimizer steps done.
        metrics: the latest row of each split: {"train": {...}, "valid": {...}}; loss in nats, bits_per_<unit>.
        best_step: step of the best validation (`TrainerSettings.best_by`); 0 if nothing was validated.
        stopped_early: whether it ended before its last step for want of a better validation (patience).
        stopped_by: "SIGTERM" or "Ctrl-C" where a signal ended it early, else None.
        skipped: why records were skipped, one message a record.
    """

    run_dir: Path
    step: int
    metrics: Mapping[str, Mapping[str, Any]]
    best_step: int = 0
    stopped_by: str | None = None
    stopped_early: bool = False
    skipped: Sequence[str] = field(default_factory=tuple)


def train(
    corpus: Corpus,
    model: ModelSpec,
    recipe: Recipe,
    *,
    run_dir: str | Path,
    model_from: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[L.Callback] = (),
    loggers: Sequence[Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Trains a model and leaves a run folder that can be resumed, evaluated and generated from.

    Args:
        corpus: the data set; its tokenizer is saved with the model.
        model: what to build.
        recipe: how to train it.
        run_dir: a new folder, or with `resume` the folder of a run that stopped.
        model_from: a run or checkpoint folder whose backbone to start from; the head is new.
        resume: continue from the newest checkpoint, bit-equal to a run that never stopped.
        callbacks: further Lightning callbacks, e.g. `seqmodels.training.progress.Progress()`.
        loggers: Lightning loggers; None for metrics.csv and TensorBoard in the run folder.
        config: what to write as config.yaml; None for what this call knows. Not used with `resume`.

    Raises:
        ValueError: settings that do not fit the data or the machine, a checkpoint of another architecture, a resumed
            run that has finished, or a loss that became NaN.
        FileExistsError: the run folder exists (without `resume`).
    """
    with quiet_lightning():
        import lightning as L

        spec = model_spec(
            model.backbone,
            model.head,
            vocab_size=corpus.tokenizer.vocab_size,
            num_classes=len(corpus.class_names) or None,
            condition=model.condition,
        )
        checkpoint = _checkpoint_to_resume(run_dir, recipe.trainer) if resume else None
        L.seed_everything(recipe.seed % 2**32, verbose=False)
        network: SequenceModel = build(spec)
        if checkpoint is not None:
            _check_same_model(spec, checkpoint)
        elif model_from is not None:
            log.info("weights     %s", load_backbone(network, model_from))
        elif recipe.trainer.freeze is not None and not resume:
            log.warning("trainer.freeze=backbone without model_from: the backbone stays as it was drawn at random")
        if resume:
            run = RunFolder.open(run_dir)
        else:
            run = _create(run_dir, config if config is not None else _plain_config(spec, recipe))
        try:
            return _fit(network, corpus, recipe, run, spec, checkpoint, callbacks, loggers)
        except BaseException:
            if not resume:
                run.discard_if_nothing_was_done()
            raise


def _fit(
    network: SequenceModel,
    corpus: Corpus,
    recipe: Recipe,
    run: RunFolder,
    spec: Mapping[str, Any],
    checkpoint: Path | None,
    callbacks: Sequence[L.Callback],
    loggers: Sequence[Any] | None,
) -> TrainResult:
    from seqmodels.data.datamodule import SequenceDataModule
    from seqmodels.training.loggers import CsvLog, TensorBoardLog
    from seqmodels.training.module import SequenceTask
    from seqmodels.training.rhythm import Rhythm

    recipe = _without_impossible_validation(recipe, corpus)
    _check_best_by(recipe.trainer, network)
    if recipe.trainer.freeze is not None:
        _freeze_backbone(network)
    task = SequenceTask(network, recipe, unit=network.head.counted(corpus.tokenizer.unit))
    data = SequenceDataModule(
        corpus,
        objective=network.head.objective,
        settings=recipe.data,
        masking=network.head.masking,
        seed=recipe.seed,
        accumulate=recipe.trainer.accumulate,
    )
    _check_graphs(data, recipe.trainer)
    rhythm = Rhythm(recipe.trainer, run, _meta(spec, corpus))
    if loggers is None:
        loggers = [CsvLog(run.path), TensorBoardLog(run.path)]
    trainer = _lightning_trainer(recipe.trainer, run, [rhythm, *callbacks], loggers)
    _describe(network, corpus, trainer, run)
    _describe_stages(data, recipe.trainer)
    try:
        trainer.fit(task, datamodule=data, ckpt_path=None if checkpoint is None else str(checkpoint))
    finally:
        data.close()
    return TrainResult(
        run_dir=run.path,
        step=trainer.global_step,
        metrics=rhythm.latest,
        best_step=rhythm.best.step,
        stopped_by=rhythm.stop.reason if trainer.global_step < recipe.trainer.max_steps else None,
        stopped_early=rhythm.gave_up and trainer.global_step < recipe.trainer.max_steps,
        skipped=tuple(data.skipped),
    )


def _check_best_by(settings: TrainerSettings, network: SequenceModel) -> None:
    if settings.best_by == "macro_recall" and network.head.objective != "classify":
        raise ValueError(
            f"trainer.best_by=macro_recall is a metric of classes, and {type(network.head).__name__} has none:"
            " take loss or accuracy"
        )
    if settings.best_by == "accuracy" and "accuracy" not in network.head.metrics:
        raise ValueError(f"trainer.best_by=accuracy: {type(network.head).__name__} counts no right answers; take loss")


def _freeze_backbone(network: SequenceModel) -> None:
    """Its parameters get no gradients and are in no group of the optimizer; not one bit of them changes.

    A table of classes is not part of what was trained before: like the head, it is new and learns.
    """
    backbone = network.backbone
    (backbone.backbone if isinstance(backbone, ClassConditioned) else backbone).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ValueError(
            f"trainer.freeze=backbone leaves nothing to train: {type(network.head).__name__} shares the embedding of"
            " the backbone; give it a table of its own with head.tied=false, or take a head for labels"
        )


def _check_graphs(data: SequenceDataModule, settings: TrainerSettings) -> None:
    """Before the first step, not at the border of a stage hours later."""
    if settings.cuda_graph and len(data.stages) > MOST_SHAPES:
        lengths = ", ".join(f"{stage.length:,}" for stage in data.stages)
        raise ValueError(
            f"trainer.cuda_graph=true holds {MOST_SHAPES} shapes of batches, and the length warm-up goes through"
            f" {len(data.stages)} ({lengths}): start it at {data.stages[-MOST_SHAPES].length}"
            " (data.length_warmup.start), or set cuda_graph to false"
        )


def _lightning_trainer(
    settings: TrainerSettings, run: RunFolder, callbacks: Sequence[L.Callback], loggers: Sequence[Any]
) -> L.Trainer:
    import lightning as L

    from seqmodels.training.evaluate import resolve_precision
    from seqmodels.training.lightning_io import FolderCheckpointIO

    accelerator = settings.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and settings.devices > torch.cuda.device_count():
        raise ValueError(
            f"trainer.devices={settings.devices} with accelerator=cuda, but this machine has"
            f" {torch.cuda.device_count()} GPUs that torch can use"
        )
    if settings.cuda_graph and accelerator != "cuda":
        raise ValueError("trainer.cuda_graph=true needs a GPU, and torch sees none here; set it to false")
    return L.Trainer(
        accelerator=accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        precision=resolve_precision(torch.device(accelerator), settings.precision),  # type: ignore[arg-type]
        max_steps=settings.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        callbacks=list(callbacks),
        logger=list(loggers),
        plugins=[FolderCheckpointIO()],
        default_root_dir=run.path,
        # Rhythm does these, in an order that makes resuming exact.
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def _checkpoint_to_resume(run_dir: str | Path, settings: TrainerSettings) -> Path | None:
    """The newest checkpoint; None, to start from the beginning, where the run was killed before its first one."""
    run = RunFolder.open(run_dir)
    if not any(run.checkpoints.glob("step-*")):
        log.info("resuming    from the beginning: %s was stopped before its first checkpoint", run_dir)
        return None
    checkpoint = find_checkpoint(run.path, "last", resumable=True)
    meta = read_meta(checkpoint)
    step, waited = meta["step"], meta.get("validations_since_best", 0)
    if settings.patience is not None and waited >= settings.patience:
        raise CheckpointError(
            f"{run_dir} has finished early: {waited} validations before step {step} brought nothing better"
            f" (trainer.patience={settings.patience}). To train on, give more patience, or none:"
            f" seqmodels train resume={run_dir} trainer.patience=null"
        )
    if step >= settings.max_steps:
        raise CheckpointError(
            f"{run_dir} has finished: step {step} of {settings.max_steps}. To train on, give more steps:"
            f" seqmodels train resume={run_dir} trainer.max_steps={2 * step}"
        )
    for newer in checkpoint.parent.glob("step-*"):
        if newer.name > checkpoint.name:  # damaged, or it would have been found
            shutil.rmtree(newer, ignore_errors=True)
    log.info("resuming    from step %d (%s)", step, checkpoint)
    return checkpoint


def _check_same_model(spec: Mapping[str, Any], checkpoint: Path) -> None:
    then, now = _flat(read_meta(checkpoint)["model"]), _flat(spec)
    differ = [
        f"{key}: {then.get(key, 'nothing')} in the checkpoint, {now.get(key, 'nothing')} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    if differ:
        raise CheckpointError(f"{checkpoint} holds another model than the one to be trained:\n  " + "\n  ".join(differ))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: list(value) if isinstance(value, tuple) else value}
    flat: dict[str, Any] = {}
    for name, part in value.items():
        flat |= _flat(part, f"{prefix}.{name}" if prefix else name)
    return flat


def _create(run_dir: str | Path, config: Mapping[str, Any]) -> RunFolder:
    if os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("NODE_RANK", "0") != "0":
        return RunFolder(Path(run_dir))  # process 0 makes it
    return RunFolder.create(run_dir, config)


def _without_impossible_validation(recipe: Recipe, corpus: Corpus) -> Recipe:
    """A corpus too small for a validation split can still be trained on; said aloud."""
    try:
        if not recipe.trainer.val_every_steps or len(corpus.split("valid")):
            return recipe
        reason = "the validation split is empty"
    except ValueError as error:
        reason = str(error)
    if recipe.trainer.patience is not None:
        raise ValueError(
            f"trainer.patience={recipe.trainer.patience} counts validations, and there can be none: {reason}. Set it to"
            " null, or give the data a validation split"
        )
    log.warning("training without validation: %s", reason)
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, val_every_steps=0))


def _meta(spec: Mapping[str, Any], corpus: Corpus) -> dict[str, Any]:
    import numpy
    import safetensors

    import seqmodels

    return {
        "model": spec,
        "tokenizer": corpus.tokenizer.spec(),
        "unit": corpus.tokenizer.unit,
        "class_names": list(corpus.class_names),
        "data": dict(corpus.report()),
        "versions": {
            "seqmodels": seqmodels.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "safetensors": safetensors.__version__,
        },
    }


def _plain_config(spec: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    return {
        "model": dict(spec),
        "trainer": dataclasses.asdict(recipe.trainer),
        "data": dataclasses.asdict(recipe.data),
        "seed": recipe.seed,
    }


def _describe(network: SequenceModel, corpus: Corpus, trainer: L.Trainer, run: RunFolder) -> None:
    log.info("run folder  %s", run.path)
    facts = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in corpus.report().items() if value]
    log.info("data        %s", textwrap.fill(" · ".join(facts), 100, subsequent_indent=" " * 12))
    count = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    probe = "" if trained == count else f", frozen: {trained:,} parameters are trained"
    log.info("model       %s parameters, %s%s", f"{count:,}", type(network.backbone).__name__, probe)
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    several = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    log.info("device      %s%s, %s", name, several, trainer.precision)


def _describe_stages(data: SequenceDataModule, settings: TrainerSettings) -> None:
    if len(data.stages) == 1:
        return
    shown = [
        f"{stage.length:,} x {stage.batch_size:,} from step {stage.first // settings.accumulate:,}"
        for stage in data.stages
    ]
    log.info("lengths     %s", textwrap.fill(" · ".join(shown), 100, subsequent_indent=" " * 12))
    if (last := data.stages[-1].first // settings.accumulate) >= settings.max_steps:
        log.warning(
            "the length warm-up takes %d steps, and trainer.max_steps=%d ends before samples of the full length come:"
            " give more steps, or fewer for each stage (data.length_warmup.steps_per_stage)",
            last,
            settings.max_steps,
        )


def _number(value: Any) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int | float) else str(value)
