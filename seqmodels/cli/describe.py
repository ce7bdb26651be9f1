"""`seqmodels describe`: parameters, operations, state and memory of a model, as tables or as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from seqmodels.cli.compose import compose

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    words = ["json=true" if word == "--json" else word for word in words]
    config = compose("describe", words)
    facts = describe_config(config)
    if config["json"]:
        print(json.dumps(as_plain(facts), indent=2))
    else:
        print("\n".join(tables(facts, config)))
    return 0


def describe_config(config: Mapping[str, Any]) -> Any:
    """The `Description` of what a configuration names.

    Args:
        config: the plain data of conf/describe.yaml.
    """
    from seqmodels.describe import describe, optimizer_bytes_per_parameter
    from seqmodels.instantiate import build
    from seqmodels.model import model_spec

    spec = model_spec(
        config["backbone"], config["head"], vocab_size=config["vocab_size"], num_classes=config["num_classes"]
    )
    return describe(
        spec,
        length=_whole("length", config["length"]),
        batch=_whole("batch", config["batch"]),
        precision=config["precision"],
        optimizer_bytes_per_parameter=optimizer_bytes_per_parameter(build(config["optimizer"])),
        gpus=_gpus(config["gpu_gib"]),
    )


def as_plain(facts: Any) -> dict[str, Any]:
    """A `Description` as JSON can hold it."""
    plain = dataclasses.asdict(facts)
    for row, memory in zip(plain["training"], facts.training, strict=True):
        row["fits"] = memory.fits
    return plain


def tables(facts: Any, config: Mapping[str, Any]) -> Iterator[str]:
    """The lines that are printed."""
    L, B = facts.length, facts.batch
    yield f"parameters  {facts.parameters:,}"
    yield from _shares(facts.parameters_by_part, lambda count: f"{count:,.0f}")
    if config["head"].get("tied"):
        yield "    the head shares the embedding's table"
    yield f"operations  {_scaled(facts.flops_per_token)}FLOP a token at length {L:,}, forward; 3 times that in training"
    yield from _shares(facts.flops_by_part, lambda count: f"{_scaled(count)}FLOP")
    yield f"state       {_state(facts)}"
    yield f"training    {B} x {L:,} in {config['precision']}"
    yield from _training(facts.training)
    yield f"reading     {B} x {L:,} without gradients, a piece at a time: peak {_bytes(facts.reading_bytes)}"
    yield "Estimated from shapes, with the implementations a GPU takes; CUDA itself needs about 1 GiB beside it."


def _training(rows: Sequence[Any]) -> Iterator[str]:
    titles = ("GPU", "weights", "gradients", "optimizer", "activations", "peak", "fits", "longest, about")
    lines: list[tuple[str, ...]] = [titles]
    for row in rows:
        sizes = (row.weights_bytes, row.gradients_bytes, row.optimizer_bytes, row.activations_bytes, row.peak_bytes)
        lines.append((row.gpu, *map(_bytes, sizes), "yes" if row.fits else "no", f"{row.longest:,}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        yield "    " + "  ".join(f"{text:>{width}}" for text, width in zip(line, widths))


def _shares(counts: Mapping[str, float], show: Any) -> Iterator[str]:
    total = sum(counts.values()) or 1
    for part, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        if count:
            yield f"    {part:14} {show(count):>16}  {100 * count / total:5.1f} %"


def _state(facts: Any) -> str:
    if facts.state_bytes is None:
        return "none: the model is not causal, and reads a sequence as a whole"
    if facts.state_bytes == facts.state_bytes_at_start:
        return f"{_bytes(facts.state_bytes)} a sequence, whatever its length"
    return f"{_bytes(facts.state_bytes)} a sequence after {facts.length:,} positions; it grows with them"


def _gpus(gib: float | None) -> dict[str, int]:
    from seqmodels.describe import COMMON_GPUS, GIB

    if gib is not None:
        if isinstance(gib, bool) or not isinstance(gib, int | float) or gib <= 0:
            raise ValueError(f"gpu_gib={gib!r} must be a positive number, the GPU's memory in GiB")
        return {f"{gib:g} GiB": int(gib * GIB)}
    import torch

    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        return {facts.name: facts.total_memory}
    return dict(COMMON_GPUS)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r} must be a whole number")
    return value


def _bytes(count: float) -> str:
    unit = 0
    while count >= 1024 and unit < len(UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {UNITS[unit]}" if unit == 0 or count >= 100 else f"{count:.2f} {UNITS[unit]}"


def _scaled(count: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {letter}"
    return f"{count:.0f} "
