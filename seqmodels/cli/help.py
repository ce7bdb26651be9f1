"""`seqmodels <command> --help`: the command's real options, from the comments of the YAML files."""

from __future__ import annotations

import shutil
import textwrap

from seqmodels.cli.yaml_lines import Key, groups, read, resolved

EXAMPLES = {
    "train": (
        "seqmodels train experiment=quickstart_dna domain.dataset.fasta=my.fa",
        "seqmodels train experiment=quickstart_audio domain.dataset.folder=wavs/",
        "seqmodels train experiment=species_vertebrates model_from=runs/<name>",
        "seqmodels train resume=runs/<name> trainer.max_steps=4000",
        "seqmodels train --multirun experiment=quickstart_dna optimizer.lr=0.001,0.004",
        "seqmodels train experiment=masked_dna domain.dataset.fasta=my.fa",
        "seqmodels train --multirun experiment=fine_tune_dna domain.dataset.path=my.csv seed=1,2,3",
    ),
    "evaluate": (
        "seqmodels evaluate run=runs/<name> split=test",
        "seqmodels evaluate runs='runs/probe-*'",
        "seqmodels evaluate run=runs/<audio run> classifier=runs/<digit classifier>",
        "seqmodels evaluate run=runs/<digit classifier> samples=wavs/ scorer.reference=train scorer.convention=sashimi",
    ),
    "generate": (
        "seqmodels generate run=runs/<dna run> length=1000 prompt=ACGTACGT",
        "seqmodels generate run=runs/<audio run> seconds=2 temperature=0.9 output=out.wav",
        "seqmodels generate run=runs/<audio run> seconds=10 prompt=begin.wav num_samples=64 sort_by=likelihood",
    ),
    "score": ("seqmodels score run=runs/<dna run> vcf=my.vcf fasta=my.fa output=scored.vcf",),
    "convert": (
        "seqmodels convert source=mamba-130m/ target=runs/mamba-130m",
        "seqmodels convert source=caduceus-ps/ target=runs/caduceus domain=dna_windows domain.dataset.fasta=my.fa",
        "seqmodels convert source=runs/<name> target=my-model-hf to=hf dtype=bfloat16",
    ),
    "describe": (
        "seqmodels describe backbone=dna_7m length=1048576 backbone.layer.recompute=all",
        "seqmodels describe backbone=unet_sc09_6m vocab_size=256 length=16000 batch=16 gpu_gib=80 --json",
    ),
    "prepare": ("seqmodels prepare", "seqmodels prepare dataset=hg38", "seqmodels prepare url=https://… folder=data"),
    "bench": ("seqmodels bench op=selective_scan mode=fwd+bwd", "seqmodels bench output=ops.csv"),
}
WITHOUT_CONFIG = {"doctor"}


def command_help(command: str, line: str) -> str:
    """The text of `seqmodels <command> --help`."""
    parts = [f"seqmodels {command}: {line}", f"usage: seqmodels {command} [key=value ...]"]
    if command in WITHOUT_CONFIG:
        return "\n\n".join([parts[0], f"usage: seqmodels {command}"]) + "\n"
    file = read(command)
    parts.append("options\n" + _table(list(file.keys)))
    for entry in file.defaults:
        group, _, option = entry.partition(":")
        if option:
            parts.append(_group(group.strip(), option.strip()))
    examples = EXAMPLES.get(command, ())
    if examples:
        parts.append("examples\n" + "\n".join(f"  {example}" for example in examples))
    return "\n\n".join(parts) + "\n"


def _group(group: str, default: str) -> str:
    options = groups()[group]
    chosen = f" (default {default})" if default != "null" else ""
    titles = [(option, read(f"{group}/{option}").title) for option in options]
    choices = _rows([(f"{group}={option}", title) for option, title in titles])
    if default == "null":
        return f"{group}=…\n{choices}"
    keys = _table(resolved(group, default))
    return f"{group}=…{chosen}\n{choices}" + (f"\n  keys of {group}={default}\n{keys}" if keys else "")


def _table(keys: list[Key]) -> str:
    hidden = ("_target_", "_partial_", "_self_")
    shown = [key for key in keys if not key.path.endswith(hidden) and (key.value or key.comment)]
    return _rows([(f"{key.path}={key.value}", key.comment) for key in shown])


def _rows(rows: list[tuple[str, str]]) -> str:
    width = min(46, max((len(left) for left, _ in rows), default=0))
    columns = shutil.get_terminal_size((110, 24)).columns
    lines = []
    for left, right in rows:
        head = f"    {left:{width}}  "
        if len(left) > width:
            lines.append(f"    {left}")
            head = " " * (width + 6)
        lines.append(
            textwrap.fill(right, max(60, columns), initial_indent=head, subsequent_indent=" " * (width + 6)) or head
        )
    return "\n".join(line.rstrip() for line in lines)
