"""A run folder: everything about one training run, and where each part lies.

runs/<name>/config.yaml      the resolved configuration, enough to run it again
           metrics.csv       one row a logged step, `split` train or valid
           checkpoints/      see checkpoint.py
           tensorboard/      event files
           results/          what `seqmodels evaluate`, `generate` and `score` wrote
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths inside one run's folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @classmethod
    def create(cls, path: str | Path, config: Mapping[str, Any]) -> RunFolder:
        """Makes a new run folder and writes its configuration.

        Raises:
            FileExistsError: it exists and is not empty.
            OSError: it cannot be made or written; the message says where and why.
        """
        run = cls(Path(path))
        if run.path.is_dir() and any(run.path.iterdir()):
            raise FileExistsError(
                f"the run folder {run.path} exists.\n"
                f"To continue that run: seqmodels train resume={run.path}\n"
                "To start afresh: another name (name=...), or remove the folder"
            )
        try:
            run.checkpoints.mkdir(parents=True, exist_ok=True)
            run.write_config(config)
        except OSError as error:
            raise OSError(
                f"the run folder {run.path} cannot be written: {error.strerror or error}."
                " Choose a place that can, with paths.runs=<folder>"
            ) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder.

        Raises:
            FileNotFoundError: there is none, or it is not a run folder.
        """
        run = cls(Path(path))
        if not run.path.is_dir():
            others = sorted(str(folder.parent) for folder in run.path.parent.glob("*/checkpoints"))
            hint = f"; there are {', '.join(others[-5:])}" if others else ""
            raise FileNotFoundError(f"there is no run folder {str(path)!r}{hint}")
        if not run.config.is_file():
            raise FileNotFoundError(f"{path} is not a run folder: it holds no config.yaml")
        if not os.access(run.path, os.W_OK):
            raise PermissionError(f"the run folder {path} cannot be written")
        return run

    def discard_if_nothing_was_done(self) -> None:
        """Removes a folder that an error left without a row or a checkpoint, so that its name is free again."""
        if not self.metrics.exists() and not any(self.checkpoints.glob("step-*")):
            shutil.rmtree(self.path, ignore_errors=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Replaces config.yaml, whole or not at all."""
        draft = self.path / ".draft-config.yaml"
        draft.write_text(_yaml(config))
        draft.replace(self.config)

    def read_config(self) -> dict[str, Any]:
        """The configuration as plain data."""
        import yaml

        return yaml.safe_load(self.config.read_text())


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
