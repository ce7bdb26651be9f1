"""`seqmodels bench`: the time of each op at the shapes of its spec, or a study of experiments/ that times more.

Rows are printed and appended to CSV files, with machine, versions and commit.
"""

from __future__ import annotations

import difflib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqmodels.cli.bars import bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log

DTYPES = ("float32", "bfloat16", "float16")


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    config = compose("bench", words)
    if config["study"] is not None:
        return _run_study(str(config["study"]), [str(word) for word in config["arguments"]])
    from seqkernels.bench import table

    rows: list[dict[str, Any]] = []
    names = _ops(config["op"])
    with bar("timing", len(names), "op") as move:
        for name in names:
            rows += _time(name, config)
            move(1)
    print(table(rows) if rows else "nothing to time: no implementation that was asked for can run here")
    if config["output"] and rows:
        print(f"appended    {config['output']}")
    return 0


def _run_study(name: str, arguments: Sequence[str]) -> int:
    """Runs experiments/<name>/bench.py of this checkout in a process of its own."""
    import seqmodels

    folder = Path(seqmodels.__file__).parents[1] / "experiments"
    known = sorted(path.parent.name for path in folder.glob("*/bench.py"))
    if not known:
        raise ValueError(f"study={name!r}: studies come with the repository, and {folder} holds none; clone it")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"study={name!r}: there is none{f'; did you mean {near[0]}?' if near else ''} Studies: {', '.join(known)}"
        )
    return subprocess.run([sys.executable, str(folder / name / "bench.py"), *arguments], check=False).returncode


def _time(name: str, config: dict[str, Any]) -> list[dict[str, Any]]:
    import torch
    from seqkernels import bench

    dtype = config["dtype"]
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    return bench.run(
        name,
        mode=config["mode"],
        implementation=config["implementation"],
        dtype=None if dtype is None else getattr(torch, dtype),
        device=config["device"],
        csv_path=config["output"],
        seconds=config["seconds"],
    )


def _ops(name: str) -> list[str]:
    from seqkernels.spec import specs

    known = [spec.name for spec in specs()]
    if name == "all":
        return known
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"op={name!r}: there is none{f'; did you mean {near[0]}?' if near else ''} Ops: {', '.join(known)}"
        )
    return [name]
