"""SIGTERM and Ctrl-C ask for a stop after the running step; a second Ctrl-C stops at once."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger("seqmodels")


class StopRequest:
    """Listens for signals between `listen` and `release`.

    Attributes:
        reason: "SIGTERM" or "Ctrl-C" once one has come, else None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over both signals; only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        again = "; Ctrl-C again stops at once, without saving" if number == signal.SIGINT else ""
        log.info("%s: saving after this step%s", self.reason, again)
