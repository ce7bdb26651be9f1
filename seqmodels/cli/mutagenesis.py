"""`seqmodels mutagenesis`: every single substitution of a region in the eyes of a trained DNA model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqmodels.cli.bars import counting_bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    config = compose("mutagenesis", words)
    counts = mutagenesis_run(config)
    print("mutagenesis " + ", ".join(f"{name} {value}" for name, value in counts.items()))
    print(f"written     {config['output']}" + (f", {config['figure']}" if config["figure"] else ""))
    return 0


def mutagenesis_run(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Scores from the plain data of conf/mutagenesis.yaml; returns counts."""
    from seqmodels.inference import load
    from seqmodels.instantiate import build

    # The scorer belongs to a domain: only the YAML names it.
    scorer = build(config["scorer"])
    loaded = load(config["run"], config["device"], which=config["checkpoint"], objective="next_token")
    with counting_bar("mutating", "position") as progress:
        return scorer(
            loaded, config["fasta"], config["region"], config["output"], figure=config["figure"], progress=progress
        )
