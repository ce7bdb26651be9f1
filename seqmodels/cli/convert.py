"""`seqmodels convert`: published weights to a run folder and back, with an account of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqmodels.cli.compose import absolute_paths, compose
from seqmodels.cli.console import show_log


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    print(convert_run(compose("convert", words)))
    return 0


def convert_run(config: Mapping[str, Any]) -> Any:
    """Converts as the plain data of conf/convert.yaml say; returns the report, which prints itself."""
    from seqmodels.interop.convert import convert

    dataset = absolute_paths(config["domain"])["dataset"] if config.get("domain") else None
    return convert(
        str(config["source"]),
        str(config["target"]),
        to=config["to"],
        checkpoint=config["checkpoint"],
        dtype=config["dtype"],
        dataset=dataset,
        known_tokenizers=config["known_tokenizers"],
    )
