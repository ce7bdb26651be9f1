"""`seqmodels score`: the variants of a VCF in the eyes of a trained DNA model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqmodels.cli.bars import counting_bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    config = compose("score", words)
    counts = score_run(config)
    print("variants    " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items()))
    print(f"written     {config['output']}" + (f", {config['table']}" if config["table"] else ""))
    return 0


def score_run(config: Mapping[str, Any]) -> Mapping[str, int]:
    """Scores from the plain data of conf/score.yaml; returns counts of records, alleles and their fates."""
    from seqmodels.inference import load
    from seqmodels.instantiate import build

    # The scorer belongs to a domain: only the YAML names it.
    scorer = build(config["scorer"])
    loaded = load(config["run"], config["device"], which=config["checkpoint"], objective="next_token")
    with counting_bar("scoring", "variant") as progress:
        return scorer(
            loaded, config["vcf"], config["fasta"], config["output"], table=config["table"], progress=progress
        )
