"""What every step of the demo stands on: it runs `seqmodels` commands as a user would, and keeps what comes out."""

from __future__ import annotations

import csv
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from seqmodels.cli import main as seqmodels
from seqmodels.reporting import Block, Score, Section
from seqmodels.reporting.markup import duration

ROOT = Path(__file__).resolve().parents[2]


class StepError(Exception):
    """A command of the demo ended with an error, which it has already explained."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(command)
        self.command, self.code = command, code


@dataclass
class Result:
    """What a step hands to the report.

    Attributes:
        title: of its section.
        paragraph: the result in words, for the terminal and the report.
        blocks: figures and tables.
        scores: headline numbers.
        commands: the command lines that were run, as a user would type them.
        seconds: wall-clock time.
    """

    title: str
    paragraph: str
    blocks: Sequence[Block]
    scores: Sequence[Score] = ()
    commands: Sequence[str] = ()
    seconds: float = 0.0

    def section(self) -> Section:
        """The step's part of the report."""
        return Section(self.title, self.blocks, lead=self.paragraph, aside=duration(self.seconds))


@dataclass
class Stage:
    """Where the demo runs and what it says.

    Attributes:
        folder: holds the run folders and the report.
        quick: a few steps of everything, to see that it works; the numbers mean nothing.
    """

    folder: Path
    quick: bool = False
    commands: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=False, width=min(Console().width, 110))

    def run(self, name: str) -> Path:
        """The run folder of one model."""
        return self.folder / name

    def seqmodels(self, *words: str) -> None:
        """Runs one command of the product in this process, showing it and what it prints.

        Raises:
            StepError: it ended with an error.
        """
        line = shlex.join(["seqmodels", *words]).replace("'", '"')
        self.commands.append(line)
        self.console.print(f"\n  $ {line}", style="bold", markup=False, soft_wrap=True)
        with indented_stdout():
            code = seqmodels([*words])
        if code:
            raise StepError(line, code)

    def train(self, name: str, experiment: str, *words: str, quick: Sequence[str] = ()) -> None:
        """`seqmodels train` into a folder of the demo; `quick` are the words that make it tiny."""
        self.seqmodels(
            "train", f"experiment={experiment}", f"name={name}", f"paths.runs={self.shown(self.folder)}", *words,
            *(quick if self.quick else ()),
        )  # fmt: skip

    def evaluate(self, name: str, *words: str) -> dict[str, Any]:
        """`seqmodels evaluate` on the test split; returns the report that it wrote."""
        few = ("max_batches=2",) if self.quick else ()
        self.seqmodels("evaluate", f"run={self.shown(self.run(name))}", *words, *few)
        return json.loads((self.run(name) / "results" / "evaluate-test.json").read_text())

    def metrics(self, name: str, split: str, column: str) -> tuple[list[float], list[float]]:
        """(steps, values) of one metric of a run, from its metrics.csv."""
        with open(self.run(name) / "metrics.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split and row[column]]
        return [float(row["step"]) for row in rows], [float(row[column]) for row in rows]

    def shown(self, path: Path) -> str:
        """A path as a user in the project's folder would type it."""
        absolute = path.resolve()
        return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(absolute)

    def typed(self) -> str:
        """The commands of this step as a user would type them, long ones over several lines."""
        wrap = textwrap.TextWrapper(96, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        return "\n".join(" \\\n".join(wrap.wrap(line)) for line in self.commands)

    @contextmanager
    def baseline(self, what: str) -> Iterator[None]:
        """Says that a baseline is being computed, and how long it took."""
        self.console.print(f"\n  baseline: {what} …", markup=False)
        started = time.perf_counter()
        yield
        self.console.print(f"    done in {duration(time.perf_counter() - started)}", style="dim")


class _Indented:
    """A text stream that shifts every line to the right."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.at_start = stream, True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(f"    {line}" if self.at_start and line.strip() else line)
            self.at_start = line.endswith("\n")
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def indented_stdout() -> Iterator[None]:
    """What a command prints stands a little to the right of what the demo says."""
    with redirect_stdout(_Indented(sys.stdout)):  # type: ignore[type-var]
        yield
