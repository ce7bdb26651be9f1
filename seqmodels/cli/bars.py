"""Progress bars of the commands that do not train: on a terminal only, with rate and time left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Yields a function that moves the bar on by so many units; without a terminal it shows nothing.

    The function takes a second argument, the total, where that is not known before (`total` None).
    """
    if not sys.stderr.isatty():
        yield lambda amount, total=None: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn(what),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total, rate="")

        def move(amount: int, total: int | None = None) -> None:
            speed = progress.tasks[0].speed
            progress.update(task, total=total, advance=amount, rate=f"{speed:,.0f} {unit}s/s" if speed else "")

        yield move


@contextmanager
def counting_bar(what: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (units done so far, units in all), as long jobs of the library report them."""
    with bar(what, None, unit) as move:
        before = 0

        def progress(done: int, total: int) -> None:
            nonlocal before
            move(done - before, total)
            before = done

        yield progress
