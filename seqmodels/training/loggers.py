"""Where metrics go: `metrics.csv` and TensorBoard. On resume both drop what lies beyond the resumed step."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers.logger import Logger

KEY_COLUMNS = ("step", "split")
MOST_LETTERS = 1000  # of a sample that is text


class RunLog(Logger):
    """A log that belongs to one run folder and can be rolled back to a step."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml holds them."""

    def roll_back(self, step: int) -> None:
        """Forget what was logged after `step`; called once, before anything is logged."""
        raise NotImplementedError

    def log_sample(self, name: str, path: Path, step: int) -> None:
        """A sequence that the model made, in a file; most logs have no place for one."""


class CsvLog(RunLog):
    """`metrics.csv`: columns step, split, then the metrics in the order in which they first appeared.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.path = self.folder / "metrics.csv"
        self._columns: list[str] = []

    @rank_zero_only
    def roll_back(self, step: int) -> None:
        """Keep whole rows up to `step`; a row that a kill cut off has no newline and goes too."""
        if not self.path.exists():
            return
        whole_lines = self.path.read_text().rpartition("\n")[0]
        rows = list(csv.DictReader(io.StringIO(whole_lines)))
        self._columns = list(rows[0]) if rows else []
        draft = self.path.with_name(".draft-metrics.csv")
        kept = [list(row.values()) for row in rows if int(row["step"]) <= step]
        table = [self._columns, *kept] if rows else []
        draft.write_text("".join(_line(values) for values in table))
        draft.replace(self.path)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Append one row. `metrics` holds "split"; the others are numbers."""
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self._columns]
        if new:
            self._add_columns(new)
        with self.path.open("a") as file:
            file.write(_line([row.get(name, "") for name in self._columns]))

    def _add_columns(self, names: list[str]) -> None:
        rows = list(csv.DictReader(io.StringIO(self.path.read_text()))) if self.path.exists() else []
        keys = [name for name in KEY_COLUMNS if name in names]
        self._columns += keys + [name for name in names if name not in keys]
        draft = self.path.with_name(".draft-metrics.csv")
        table = [self._columns] + [[row.get(name) or "" for name in self._columns] for row in rows]
        draft.write_text("".join(_line(values) for values in table))
        draft.replace(self.path)


class TensorBoardLog(RunLog):
    """Event files for `tensorboard --logdir runs`.

    Args:
        folder: the run folder; events go to `<folder>/tensorboard`.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._writer: Any = None
        self._purge_step: int | None = None

    def roll_back(self, step: int) -> None:
        """TensorBoard hides events from the next step on once new ones are written."""
        self._purge_step = step + 1

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SummaryWriter, opened at first use."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self._purge_step)
        return self._writer

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """One scalar `<split>/<name>` a metric."""
        split = metrics.get("split", "train")
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self.experiment.add_scalar(f"{split}/{name}", value, global_step=step)

    @rank_zero_only
    def log_sample(self, name: str, path: Path, step: int) -> None:
        """A WAV as sound with its spectrogram, anything else as text, cut after a thousand letters."""
        if path.suffix != ".wav":
            self.experiment.add_text(name, path.read_text()[:MOST_LETTERS], global_step=step)
            return
        from seqmodels.reporting.sound import heat_picture, read_wav

        samples_S, rate_hz = read_wav(path)
        self.experiment.add_audio(name, samples_S[None], global_step=step, sample_rate=rate_hz)
        self.experiment.add_image(f"{name}/spectrogram", heat_picture(samples_S), global_step=step, dataformats="HWC")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _line(values: list[Any]) -> str:
    return ",".join(_cell(value) for value in values) + "\n"


def _cell(value: Any) -> str:
    """Floats by `repr`, so that equal numbers are equal text and no digit is lost."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    return str(value)
