"""One training step: a batch to a loss, watched for NaN, summed exactly over batches, steps and processes."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from seqmodels.data.record import Batch
from seqmodels.heads.base import LossSums
from seqmodels.model import SequenceModel
from seqmodels.training.graphed import GraphedLoss
from seqmodels.training.param_groups import param_groups
from seqmodels.training.settings import Recipe
from seqmodels.training.truncated import backward_in_pieces, require_truncatable, target_weight


class NonFiniteLossError(ValueError):
    """The loss or the gradient became NaN or infinite."""


class SequenceTask(L.LightningModule):
    """The LightningModule: model, loss, optimizer and schedule.

    Args:
        model: what is trained.
        recipe: optimizer, schedule, lengths, seed.
        unit: what one symbol is called in metrics: bits_per_<unit>.

    Attributes:
        meter: sums since the last logged row.
        watch: looks for NaN without waiting for the GPU.
        learning_rate: of the latest step.
    """

    def __init__(self, model: SequenceModel, recipe: Recipe, *, unit: str) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.meter = Meter(unit)
        self.watch = FiniteWatch(hint=_hint(recipe))
        self.learning_rate = 0.0
        if recipe.trainer.compile:
            # In place: a wrapped module would change the names in checkpoints. A length warm-up changes batch and
            # length from stage to stage: with both symbolic, one graph serves all stages but one of a single row.
            model.compile(dynamic=True if recipe.data.length_warmup.start else None)
        if recipe.trainer.truncate is not None:
            require_truncatable(model)
        self._graphed = GraphedLoss(model) if recipe.trainer.cuda_graph else None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean loss of the batch in nats; with several processes, scaled so that their mean is the whole batch's."""
        self._seed_step(self.trainer.datamodule.position)  # type: ignore[attr-defined]
        sums = self.loss_sums(batch) if self.recipe.trainer.truncate is None else self._truncated_sums(batch)
        self.meter.add(sums, symbols=batch.lengths_B.sum())
        self.watch.see(self.global_step + 1, "loss", sums.loss_sum, batch.record_ids)
        return sums.loss_sum / self._mean_count(sums.count)

    def loss_sums(self, batch: Batch) -> LossSums:
        """Forward pass and loss."""
        if self._graphed is not None and self.model.training and torch.is_grad_enabled():
            return self._graphed(batch)
        logits, _ = self.model(batch.input_ids_BL, self.model.begin(batch.labels_B), lengths_B=batch.lengths_B)
        return self.model.head.loss(logits, batch)

    def _truncated_sums(self, batch: Batch) -> LossSums:
        """Sums over the batch; gradients of all pieces but the last are there already."""
        trainer = self.recipe.trainer
        assert trainer.truncate is not None
        share = self._mean_count(target_weight(batch)) * trainer.accumulate  # Lightning divides the last piece's itself

        def backward(sums: LossSums) -> None:
            with torch.autocast(self.device.type, enabled=False):
                self.backward(sums.loss_sum / share)

        return backward_in_pieces(self.model, batch, trainer.truncate, backward=backward)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The step; then, with pieces, no gradients: those of the next batch come before Lightning would clear them."""
        super().optimizer_step(*args, **kwargs)
        if self.recipe.trainer.truncate is not None:
            self.zero_grad(set_to_none=True)

    def optimizer_zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """See `optimizer_step`."""
        if self.recipe.trainer.truncate is None:
            super().optimizer_zero_grad(*args, **kwargs)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """In this thread: handing a step over to autograd's own thread and back costs a launch-bound step a tenth."""
        with torch.autograd.set_multithreading_enabled(False):
            super().backward(loss, *args, **kwargs)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip by the norm of the whole gradient and keep the norm for the log."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.recipe.trainer.gradient_clip or math.inf)
        self.meter.add_step(norm)
        self.learning_rate = float(optimizer.param_groups[0]["lr"])  # the schedule moves on before the step is logged
        self.watch.see(self.global_step + 1, "gradient", norm, ())

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer over the published groups, its schedule stepped every optimizer step."""
        optimizer = self.recipe.optimizer(param_groups(self.model))
        scheduler = self.recipe.scheduler(optimizer, total_steps=self.recipe.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _mean_count(self, count: Tensor) -> Tensor:
        """Targets per process, on average: DDP averages gradients, and rows of N have fewer targets than others."""
        if self.trainer.world_size > 1:
            count = self.trainer.strategy.reduce(count.detach().clone(), reduce_op="mean")  # type: ignore[assignment]
        return count.clamp(min=torch.finfo(torch.float32).tiny)

    def _seed_step(self, position: int) -> None:
        """Dropout is a function of (seed, position, rank): a resumed run draws what the uninterrupted one drew."""
        entropy = [self.recipe.seed % 2**64, position, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))


class Meter:
    """Sums of losses since the last row, on the device: adding does not wait for the GPU.

    Args:
        unit: what one symbol is called.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._reset()

    def add(self, sums: LossSums, *, symbols: Tensor) -> None:
        """One batch."""
        sums = sums.detach()
        self._sums = sums if self._sums is None else self._sums + sums
        self._symbols = symbols if self._symbols is None else self._symbols + symbols

    def add_step(self, gradient_norm: Tensor) -> None:
        """One optimizer step."""
        norm = gradient_norm.detach().double()
        self._norm = norm if self._norm is None else self._norm + norm
        self._steps += 1

    def row(self, reduce: Any) -> dict[str, float]:
        """The means over the steps since the last row, over all processes; starts the next row.

        Args:
            reduce: adds a tensor up over processes.
        """
        assert self._sums is not None, "a row needs at least one batch"
        assert self._symbols is not None
        sums = reduced(self._sums, reduce)
        symbols = float(reduce(self._symbols.double()))
        metrics = named_metrics(sums.metrics(), self.unit)
        if self._norm is not None:
            metrics["gradient_norm"] = float(self._norm) / self._steps
        metrics["tokens_per_second"] = symbols / max(time.perf_counter() - self._started, 1e-9)
        self._reset()
        return metrics

    def pause(self) -> float:
        """The time of a pause (validation, saving); give it to `go_on`."""
        return time.perf_counter()

    def go_on(self, paused: float) -> None:
        """Leave the time since `paused` out of the rate."""
        self._started += time.perf_counter() - paused

    def state_dict(self, reduce: Any) -> dict[str, Any]:
        """Sums in the middle of a row, over all processes, so that a resumed run writes the same row."""
        if self._sums is None or self._symbols is None:
            return {}
        sums = reduced(self._sums, reduce)
        values = {"loss_sum": sums.loss_sum, "count": sums.count, "symbols": reduce(self._symbols)}
        values |= {"norm": self._norm} if self._norm is not None else {}
        return {
            "values": {name: value.cpu() for name, value in values.items()},
            "metric_sums": {name: value.cpu() for name, value in sums.metric_sums.items()},
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on with a row that `state_dict` was taken in."""
        self._reset()
        if not state:
            return
        values = {name: value.to(device) for name, value in state["values"].items()}
        metric_sums = {name: value.to(device) for name, value in state["metric_sums"].items()}
        self._sums = LossSums(values["loss_sum"], values["count"], metric_sums)
        self._symbols, self._norm, self._steps = values["symbols"], values.get("norm"), state["steps"]

    def _reset(self) -> None:
        self._sums: LossSums | None = None
        self._symbols: Tensor | None = None
        self._norm: Tensor | None = None
        self._steps = 0
        self._started = time.perf_counter()


class FiniteWatch:
    """Looks at losses and gradient norms for NaN and infinity.

    On a CPU a bad value stops the run at once, before the step is taken. On a GPU reading a value would make the CPU
    wait for it, so values are copied in the background and looked at when they have arrived, a step or two later;
    `settle` waits for all of them and stands before every save, so that no checkpoint holds what a bad step left.
    """

    def __init__(self, hint: str) -> None:
        self.hint = hint
        self._pending: deque[tuple[int, str, Tensor, Any, tuple[str, ...]]] = deque()

    def see(self, step: int, what: str, value: Tensor, record_ids: tuple[str, ...]) -> None:
        """Note a value of a step; raises for any that has arrived and is not finite."""
        value = value.detach()
        if value.is_cuda:
            arrived = torch.cuda.Event()
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            copy.copy_(value, non_blocking=True)
            arrived.record()
            self._pending.append((step, what, copy, arrived, record_ids))
        else:
            self._pending.append((step, what, value, None, record_ids))
        self._check(wait=False)

    def settle(self) -> None:
        """Wait for every value noted so far.

        Raises:
            NonFiniteLossError: one of them is not finite.
        """
        self._check(wait=True)

    def _check(self, wait: bool) -> None:
        while self._pending:
            step, what, value, arrived, record_ids = self._pending[0]
            if arrived is not None:
                if wait:
                    arrived.synchronize()
                elif not arrived.query():
                    return
            self._pending.popleft()
            if not math.isfinite(float(value)):
                shown = ", ".join(record_ids[:8]) + (" …" if len(record_ids) > 8 else "")
                where = f"; the batch held {shown}" if shown else ""
                raise NonFiniteLossError(f"the {what} of step {step} is {float(value)}{where}.\n{self.hint}")


def named_metrics(metrics: Mapping[str, float], unit: str) -> dict[str, float]:
    """`LossSums.metrics()` with "bits" named after the unit: bits_per_base."""
    return {(f"bits_per_{unit}" if name == "bits" else name): value for name, value in metrics.items()}


def reduced(sums: LossSums, reduce: Any) -> LossSums:
    """`LossSums` added up over processes."""
    return LossSums(
        reduce(sums.loss_sum), reduce(sums.count), {name: reduce(value) for name, value in sums.metric_sums.items()}
    )


def _hint(recipe: Recipe) -> str:
    clip = recipe.trainer.gradient_clip
    return (
        "The last checkpoint is from before it. Usual remedies: a lower rate (optimizer.lr), a longer warm-up"
        f" (scheduler.warmup_fraction), stronger clipping (trainer.gradient_clip, now {clip}); with bf16, see whether"
        " trainer.precision=32-true has the same trouble. If one record always does it, look at that record."
    )
