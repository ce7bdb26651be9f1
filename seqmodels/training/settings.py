"""How a training run goes: everything that is neither data nor model, counted in optimizer steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seqmodels.data.loader import DataSettings
from seqmodels.training.schedule import warmup_cosine

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

PRECISIONS = ("auto", "bf16-mixed", "32-true")
BEST_BY = ("loss", "accuracy", "macro_recall")  # the loss is better when lower, the others when higher
OptimizerFactory = Callable[[list[dict[str, Any]]], "Optimizer"]
SchedulerFactory = Callable[..., "LRScheduler"]  # called as factory(optimizer, total_steps=...)


@dataclass(frozen=True, slots=True)
class TrainerSettings:
    """Length and rhythm of training.

    Attributes:
        max_steps: optimizer steps to train for.
        val_every_steps: validate after every so many steps, and after the last; 0 never validates.
        val_batches: validate on at most so many batches, spread evenly over the split; None for all.
        best_by: the validation metric that says which checkpoint is the best: "loss", "accuracy" or "macro_recall".
        patience: stop early, after so many validations in a row that were no better than the best; None never does.
        freeze: "backbone" trains the head alone (a probe of what the backbone knows), and the table of classes where
            the model is told them; None trains everything.
        log_every_steps: write a row of training metrics after every so many steps: means over those steps.
        checkpoint_every_steps: save after every so many steps, and after the last.
        gradient_clip: largest norm of the whole gradient; None to leave it as it is.
        accumulate: batches whose gradients are averaged into one step.
        truncate: back-propagate through pieces of so many symbols, the state carried on from piece to piece, so that a
            sample may be longer than memory (truncated.py); None through whole samples. One device.
        precision: "auto" is bf16 autocast on a GPU that has it and fp32 on a CPU; or "bf16-mixed", "32-true".
        accelerator: "auto" takes the GPU where there is one; or "cpu", "cuda".
        devices: GPUs (or CPU processes) of one machine.
        num_nodes: machines.
        strategy: Lightning's name for how several devices work together; "auto" is DDP.
        compile: run the model through torch.compile.
        cuda_graph: launch forward and backward pass of a step at once, as CUDA graphs. For GPUs that wait for Python:
            small models or short batches of one shape; the memory of a step stays taken.
    """

    max_steps: int = 2000
    val_every_steps: int = 200
    val_batches: int | None = 50
    best_by: str = "loss"
    patience: int | None = None
    freeze: str | None = None
    log_every_steps: int = 10
    checkpoint_every_steps: int = 200
    gradient_clip: float | None = 1.0
    accumulate: int = 1
    truncate: int | None = None
    precision: str = "auto"
    accelerator: str = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        counts = ("max_steps", "log_every_steps", "checkpoint_every_steps", "accumulate", "devices", "num_nodes")
        for name, smallest in [("val_every_steps", 0), *((name, 1) for name in counts)]:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise ValueError(f"trainer.{name}={value!r} must be a whole number from {smallest} on")
        if self.val_batches is not None and self.val_batches < 1:
            raise ValueError(f"trainer.val_batches={self.val_batches} must be at least 1, or null for the whole split")
        self._check_stopping_and_freezing()
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"trainer.gradient_clip={self.gradient_clip} must be above 0, or null for no clipping")
        if self.precision not in PRECISIONS:
            raise ValueError(f"trainer.precision={self.precision!r} must be one of {', '.join(PRECISIONS)}")
        if self.truncate is not None and (isinstance(self.truncate, bool) or self.truncate < 1):
            raise ValueError(f"trainer.truncate={self.truncate!r} must be a whole number from 1 on, or null")
        if self.truncate is not None and (self._is_distributed or self.cuda_graph):
            raise ValueError("trainer.truncate goes with one device, strategy=auto and cuda_graph=false only")
        if self.cuda_graph:
            self._check_cuda_graph()
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise ValueError(f"trainer.accelerator={self.accelerator!r} must be auto, cpu or cuda")

    @property
    def _is_distributed(self) -> bool:
        return self.devices * self.num_nodes > 1 or self.strategy != "auto"

    def _check_stopping_and_freezing(self) -> None:
        if self.best_by not in BEST_BY:
            raise ValueError(f"trainer.best_by={self.best_by!r} must be one of {', '.join(BEST_BY)}")
        if self.patience is not None:
            if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
                raise ValueError(
                    f"trainer.patience={self.patience!r} must be a whole number of validations from 1 on, or null for"
                    " no early stop"
                )
            if not self.val_every_steps:
                raise ValueError(
                    f"trainer.patience={self.patience} counts validations, and trainer.val_every_steps=0 makes none"
                )
        if self.freeze not in (None, "backbone"):
            raise ValueError(f"trainer.freeze={self.freeze!r} must be backbone, or null to train everything")

    def _check_cuda_graph(self) -> None:
        """Gradients of a graph lie in its own memory, which the next replay writes over: they cannot be added up."""
        wrong = {
            f"accumulate={self.accumulate}": self.accumulate > 1,
            f"devices={self.devices}": self.devices * self.num_nodes > 1,
            f"strategy={self.strategy}": self.strategy != "auto",
            "compile=true": self.compile,
            "accelerator=cpu": self.accelerator == "cpu",
        }
        if clashes := [name for name, clash in wrong.items() if clash]:
            raise ValueError(
                f"trainer.cuda_graph=true does not go with {', '.join(clashes)}; it needs one GPU, accumulate=1 and no "
                "compile"
            )


def default_optimizer() -> OptimizerFactory:
    """AdamW as in the published recipes: betas (0.9, 0.95), weight decay 0.1."""
    from torch.optim import AdamW

    return functools.partial(AdamW, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train, apart from the data set and the model.

    Attributes:
        trainer: length and rhythm.
        data: batch size, workers, bad records.
        optimizer: makes the optimizer from parameter groups, e.g. `partial(torch.optim.AdamW, lr=1e-3)`.
        scheduler: makes the learning-rate schedule, called as `scheduler(optimizer, total_steps=max_steps)`.
        seed: of initialisation, order of samples and dropout; 0 is a seed.
    """

    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    data: DataSettings = field(default_factory=DataSettings)
    optimizer: OptimizerFactory = field(default_factory=default_optimizer)
    scheduler: SchedulerFactory = warmup_cosine
    seed: int = 0
