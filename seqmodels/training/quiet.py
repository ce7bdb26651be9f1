"""Lightning without the lines that a user of this project can do nothing about; everything else comes through."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# (start of the message as a regular expression, why nobody needs it)
NOT_FOR_USERS = (
    (r".*does not have many workers", "the number of workers is data.num_workers, chosen on purpose"),
    (r"`isinstance\(treespec, LeafSpec\)` is deprecated", "Lightning's own business with torch"),
    (r"GPU available but not used", "trainer.accelerator=cpu was asked for"),
    (r".*`training_step` returned `None`", "never returned here"),
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Banners ("GPU available", "Restoring states", tips) off: they are INFO. Warnings listed above off."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message, _ in NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message=message)
        import lightning  # noqa: F401 - it sets its loggers' levels when it is imported

        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
