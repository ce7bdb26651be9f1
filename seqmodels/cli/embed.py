"""`seqmodels embed`: hidden states and log-likelihoods of DNA of any length, in constant memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seqmodels.cli.bars import counting_bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    config = compose("embed", words)
    counts = embed_run(config)
    print("embedded    " + ", ".join(f"{name} {count:,}" for name, count in counts.items()))
    print(f"written     {config['output']}")
    return 0


def embed_run(config: Mapping[str, Any]) -> Mapping[str, int]:
    """Embeds from the plain data of conf/embed.yaml; returns counts."""
    from seqmodels.inference import load
    from seqmodels.instantiate import build

    # The embedder belongs to a domain: only the YAML names it.
    embedder = build(config["embedder"])
    loaded = load(config["run"], config["device"], which=config["checkpoint"])
    with counting_bar("embedding", "base") as progress:
        return embedder(
            loaded, config["fasta"], config["output"], regions=config["regions"], progress=progress
        )
