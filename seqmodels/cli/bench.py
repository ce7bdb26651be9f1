"""`seqmodels bench`: the time of each op at the shapes of its spec, printed and appended to a CSV file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from seqmodels.cli.bars import bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log

DTYPES = ("float32", "bfloat16", "float16")


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    config = compose("bench", words)
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
