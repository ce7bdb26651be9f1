"""What the library says in its log, shown to the user: facts on stdout, warnings on stderr."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO


class _Stream(logging.StreamHandler):
    """Writes to what is sys.stdout or sys.stderr at that moment: a progress bar redirects both while it is shown."""

    def __init__(self, name: str) -> None:
        self.name_of_stream = name
        super().__init__()

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return getattr(sys, self.name_of_stream)

    @stream.setter
    def stream(self, value: TextIO) -> None:
        pass


def show_log(choice_of_kernels: bool = False) -> None:
    """Connects the loggers of this project to the terminal; only process 0 of a distributed run speaks.

    Args:
        choice_of_kernels: also say which implementation each op takes (`seqmodels doctor` says it at any time).
    """
    facts, warnings = _Stream("stdout"), _Stream("stderr")
    facts.addFilter(lambda record: record.levelno < logging.WARNING)
    warnings.setLevel(logging.WARNING)
    warnings.setFormatter(logging.Formatter("warning: %(message)s"))
    quiet = os.environ.get("LOCAL_RANK", "0") != "0" or os.environ.get("NODE_RANK", "0") != "0"
    for name in ("seqmodels", "seqkernels", "domains"):
        logger = logging.getLogger(name)
        logger.handlers = [warnings] if quiet else [facts, warnings]
        logger.setLevel(logging.WARNING if name == "seqkernels" and not choice_of_kernels else logging.INFO)
        logger.propagate = False
