"""Where training stands: a bar with rate and time left on a terminal, a line now and then in a log file."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import lightning as L

log = logging.getLogger("seqmodels")

FACTS = ("rate", "train", "valid")  # beside the bar, the most wanted first: a narrow terminal cuts the end off


class Progress(L.Callback):
    """Shows step, loss, rate and time left.

    Args:
        lines_every_seconds: without a terminal, at most one line in so many seconds.
    """

    def __init__(self, lines_every_seconds: float = 10.0) -> None:
        self.lines_every_seconds = lines_every_seconds
        self._bar: Any = None
        self._task: Any = None
        self._trainer: L.Trainer | None = None
        self._started_at = 0.0
        self._first_step = 0
        self._last_line = 0.0
        self._facts: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Open the bar."""
        self._trainer = trainer
        self._first_step, self._started_at = trainer.global_step, time.perf_counter()
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = _bar()
            self._task = self._bar.add_task("training", total=trainer.max_steps, facts="")
            self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)

    def on_row(self, step: int, row: dict[str, Any]) -> None:
        """A row of metrics: beside the bar, or as a line."""
        assert self._trainer is not None
        if not self._trainer.is_global_zero:
            return
        text = _numbers(row)
        if row["split"] == "train":
            self._facts["rate"] = f"{row['tokens_per_second']:,.0f} tokens/s"
        self._facts[row["split"]] = f"{row['split']} {text}"
        if self._bar is not None:
            self._bar.update(self._task, facts="  ".join(self._facts[k] for k in FACTS if k in self._facts))
        elif row["split"] == "valid" or self._is_time(step):
            last = self._trainer.max_steps
            log.info("step %*d/%d  %s", len(str(last)), step, last, self._line(row, text, step))

    def on_phase(self, name: str | None) -> None:
        """Say what keeps the bar from moving."""
        if self._bar is not None:
            self._bar.update(self._task, description=name or "training")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the message stands on a line of its own."""
        self._close()

    def _is_time(self, step: int) -> bool:
        assert self._trainer is not None
        now = time.perf_counter()
        if now - self._last_line < self.lines_every_seconds and step < self._trainer.max_steps:
            return False
        self._last_line = now
        return True

    def _line(self, row: dict[str, Any], text: str, step: int) -> str:
        assert self._trainer is not None
        if row["split"] == "valid":
            return f"valid {text}"
        seconds = time.perf_counter() - self._started_at
        left = seconds / max(1, step - self._first_step) * (self._trainer.max_steps - step)
        return f"train {text}  {self._facts['rate']}  {_clock(left)} left"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _numbers(row: dict[str, Any]) -> str:
    """Bits per unit and accuracy as text."""
    name = next(name for name in row if name.startswith("bits_per_"))
    accuracy = f", accuracy {row['accuracy']:.3f}" if "accuracy" in row else ""
    return f"{row[name]:.4f} bits/{name.removeprefix('bits_per_')}{accuracy}"


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    return RichProgress(
        TextColumn("{task.description:10}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
        console=Console(stderr=True),
        expand=True,
        refresh_per_second=4,
    )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
