"""What happens after a step, and in which order: log, validate, save, stop.

One callback instead of four, because the order is the point: a checkpoint of step s is taken after everything that
belongs to step s, so a run resumed from it writes the same rows and finds the same best step as one never stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from seqmodels.data.datamodule import SequenceDataModule
from seqmodels.training.checkpoint import point, prune, step_folder
from seqmodels.training.evaluate import evaluate
from seqmodels.training.lightning_io import META_KEY
from seqmodels.training.loggers import RunLog
from seqmodels.training.module import SequenceTask
from seqmodels.training.run_folder import RunFolder
from seqmodels.training.settings import TrainerSettings
from seqmodels.training.stop import StopRequest

STATE_KEY = "rhythm"


@dataclass(slots=True)
class Best:
    """The best validation so far, and how long ago that was.

    Attributes:
        step: of the best validation; 0 before the first.
        value: of the metric it is judged by, negative where more is better: lower is always better here.
        waited: validations since then, none of them better.
    """

    step: int = 0
    value: float = float("inf")
    waited: int = 0

    def see(self, step: int, value: float) -> None:
        """Take note of a validation; NaN is never better."""
        if value < self.value:
            self.step, self.value, self.waited = step, value, 0
        else:
            self.waited += 1


class Rhythm(L.Callback):
    """Logs, validates, saves and stops on time.

    Other callbacks may have two hooks of ours: `on_row(step, row)` after each row of metrics, and
    `on_phase(name)` when training pauses ("validating", "saving") and goes on (None).

    Args:
        settings: how often.
        run: where to.
        meta: what `model.json` says besides step and metrics.

    Attributes:
        best: the best validation.
        latest: the latest row of each split.
        stop: whether somebody asked for a stop.
    """

    def __init__(self, settings: TrainerSettings, run: RunFolder, meta: Mapping[str, Any]) -> None:
        self.settings, self.run, self.meta = settings, run, dict(meta)
        self.best = Best()
        self.latest: dict[str, dict[str, Any]] = {}
        self.stop = StopRequest()
        self._longest_sample = 0  # symbols that the model has read at a time
        self._meter_state: Mapping[str, Any] = {}
        self._saved_step = 0

    @property
    def gave_up(self) -> bool:
        """Whether validation has not become better for so long that training ends early."""
        return self.settings.patience is not None and self.best.waited >= self.settings.patience

    # Hooks of Lightning

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Roll the logs back to where training starts from, take over the signals, go on with the open row."""
        task, _ = _parts(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, RunLog):
                logger.roll_back(trainer.global_step)
        task.meter.load_state_dict(self._meter_state if trainer.is_global_zero else {}, task.device)
        self.stop.listen()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The order of things."""
        task, data = _parts(trainer)
        data.position += 1
        self._longest_sample = max(self._longest_sample, batch.input_ids_BL.shape[1])
        if data.position % self.settings.accumulate:
            return  # in the middle of an accumulated step
        step = trainer.global_step
        is_last = step == self.settings.max_steps
        if step % self.settings.log_every_steps == 0 or is_last:
            self._log(trainer, {"split": "train", **task.meter.row(_sum_over(trainer)), **self._rates(trainer)})
        paused = task.meter.pause()
        if self.settings.val_every_steps and (step % self.settings.val_every_steps == 0 or is_last):
            self._validate(trainer)
        stopping = self._asked_to_stop(trainer) or self.gave_up
        due = step % self.settings.checkpoint_every_steps == 0 or is_last
        if due or stopping or self.best.step == step:
            self._save(trainer)
        task.meter.go_on(paused)
        if stopping:
            # Not `should_stop`: Lightning would validate once more, and a resumed run would differ.
            trainer.fit_loop.epoch_loop.max_steps = step

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back."""
        self.stop.release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self.stop.release()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what resuming needs besides model, optimizer and data."""
        task, data = _parts(trainer)
        metrics = {f"{split}_{name}": value for split, row in self.latest.items() for name, value in row.items()}
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        place = {"step": trainer.global_step, "epoch": data.epoch, "longest_sample": self._longest_sample}
        place["validations_since_best"] = self.best.waited
        checkpoint[META_KEY] = {**self.meta, **place, "metrics": numbers}
        checkpoint[STATE_KEY] = {
            "position": data.position,
            "best_step": self.best.step,
            "best_value": self.best.value,
            "waited": self.best.waited,
            "latest": self.latest,
            "longest_sample": self._longest_sample,
            "meter": task.meter.state_dict(_sum_over(trainer)),
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up the place that a checkpoint was saved at."""
        state = checkpoint[STATE_KEY]
        value = state["best_value"] if "best_value" in state else state["best_loss"]  # as early versions called it
        self.best = Best(state["best_step"], value, state.get("waited", 0))
        self.latest = dict(state["latest"])
        self._longest_sample = state.get("longest_sample", 0)  # absent in checkpoints of early versions
        self._meter_state = state["meter"]
        self._saved_step = checkpoint["global_step"]
        # Lightning's counters, from the two numbers that say where a run is.
        loop = trainer.fit_loop.epoch_loop
        batches, steps = loop.batch_progress.total, loop.automatic_optimization.optim_progress.optimizer.step.total
        batches.ready = batches.started = batches.processed = batches.completed = state["position"]  # type: ignore[attr-defined]
        steps.ready = steps.completed = checkpoint["global_step"]

    # The parts of a step's end

    def _log(self, trainer: L.Trainer, row: dict[str, Any]) -> None:
        self.latest[row["split"]] = row
        for logger in trainer.loggers:
            logger.log_metrics(row, step=trainer.global_step)
        self._tell(trainer, "on_row", trainer.global_step, row)

    def _rates(self, trainer: L.Trainer) -> dict[str, float]:
        task, data = _parts(trainer)
        return {"learning_rate": task.learning_rate, "epoch": data.epoch}

    def _validate(self, trainer: L.Trainer) -> None:
        task, data = _parts(trainer)
        self._tell(trainer, "on_phase", "validating")
        batches = data.validation_batches(self.settings.val_batches)
        result = evaluate(task.model, batches, precision=self.settings.precision, reduce=_sum_over(trainer))
        row = result.metrics(task.meter.unit)
        value = row[self.settings.best_by]
        self.best.see(trainer.global_step, value if self.settings.best_by == "loss" else -value)
        self._log(trainer, {"split": "valid", **row, "epoch": data.epoch})
        self._tell(trainer, "on_phase", None)

    def _save(self, trainer: L.Trainer) -> None:
        task, _ = _parts(trainer)
        task.watch.settle()
        if self._saved_step == trainer.global_step:
            return
        self._tell(trainer, "on_phase", "saving")
        folder = step_folder(self.run.checkpoints, trainer.global_step)
        trainer.save_checkpoint(folder)
        if trainer.is_global_zero:
            best = step_folder(self.run.checkpoints, self.best.step)
            if best.is_dir():  # at every save: a kill may have come between a checkpoint and its pointer
                point(self.run.checkpoints, "best", best)
            point(self.run.checkpoints, "last", folder)
            prune(self.run.checkpoints)
        self._saved_step = trainer.global_step
        self._tell(trainer, "on_phase", None)

    def _asked_to_stop(self, trainer: L.Trainer) -> bool:
        asked = self.stop.reason is not None
        if trainer.world_size == 1:
            return asked
        if trainer.global_step % self.settings.log_every_steps:
            return False  # asking all processes makes them wait for each other: now and then only
        votes = torch.tensor(float(asked), device=trainer.strategy.root_device)
        return bool(_sum_over(trainer)(votes) > 0)

    @staticmethod
    def _tell(trainer: L.Trainer, hook: str, *args: Any) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, hook):
                getattr(callback, hook)(*args)


def _parts(trainer: L.Trainer) -> tuple[SequenceTask, SequenceDataModule]:
    return trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined, return-value]


def _sum_over(trainer: L.Trainer) -> Callable[[Tensor], Tensor]:
    """Adds a tensor up over all processes."""
    if trainer.world_size == 1:
        return lambda tensor: tensor
    return lambda tensor: trainer.strategy.reduce(tensor.detach().clone(), reduce_op="sum")  # type: ignore[return-value]
