"""Tensors from one set of names to another: all of them, each checked, or none.

A table of names (ours -> theirs) is read in either direction. Tensors that our model ties (one table under two names)
are one tensor here: stored there under any of its names, or under several that then must be equal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from seqmodels.instantiate import build
from seqmodels.interop.layout import Layout
from seqmodels.interop.report import ConversionError

SHOWN = 20  # problems in a message
_LIGHTNING = "model."  # what training frameworks put in front of every name


@dataclass(frozen=True, slots=True)
class Expected:
    """What a model's state dict holds.

    Attributes:
        shapes: name -> shape.
        first: name -> the first name of the same tensor; itself where it is not tied.
    """

    shapes: Mapping[str, tuple[int, ...]]
    first: Mapping[str, str]

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Expected:
        """Of the model that a spec describes, without memory for it."""
        with torch.device("meta"):
            model = build(spec)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        seen: dict[int, str] = {}
        first = {name: seen.setdefault(id(parameters[name]), name) if name in parameters else name for name in shapes}
        return cls(shapes, first)


@dataclass(slots=True)
class Mapped:
    """Tensors under their new names, and how they came by them; see `Report` for the fields."""

    weights: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, tuple[str, ...]] = field(default_factory=lambda: defaultdict(tuple))
    copies: dict[str, str] = field(default_factory=dict)
    constants: tuple[str, ...] = ()
    parameters: int = 0
    dtypes: tuple[str, str] = ("float32", "float32")


def take(layout: Layout, spec: Mapping[str, Any], theirs: Mapping[str, Tensor]) -> Mapped:
    """Our state dict, in fp32, from their tensors.

    Raises:
        ConversionError: tensors are missing, left over, of another shape, or copies that differ; all are listed.
    """
    prefix = _LIGHTNING if theirs and all(name.startswith(_LIGHTNING) for name in theirs) else ""
    spelled = layout.spellings(name.removeprefix(prefix) for name in theirs)
    found = {spelled[name.removeprefix(prefix)]: (name, tensor) for name, tensor in theirs.items()}
    expected, result, problems = Expected.of(spec), Mapped(), []
    stored = _where_stored(layout, spec, expected, found)
    for ours, shape in expected.shapes.items():
        own, at = layout.name_of(ours, spec), stored.get(expected.first[ours])
        if at is None:
            problems.append(f"missing: {own} ({_shape(shape)})")
            continue
        name, tensor = found[at]
        if tuple(tensor.shape) != shape:
            problems.append(f"shape: {name} is {_shape(tensor.shape)}, the configuration says {_shape(shape)}")
            continue
        tied = result.weights.get(expected.first[ours])
        result.weights[ours] = tensor.float() if tied is None else tied
        result.mapped[name] += (ours,)
        if own != at and own in found:
            result.copies[found[own][0]] = name
            if not torch.equal(found[own][1], tensor):
                problems.append(f"copy: {found[own][0]} differs from {name}, to which the configuration ties it")
    problems += _check_constants(layout.constants(spec), found, result)
    used = {*result.mapped, *result.copies, *result.constants}
    problems += [f"unused: {name} ({_shape(tensor.shape)})" for name, tensor in theirs.items() if name not in used]
    if problems:
        raise ConversionError(
            f"the weights do not fit their configuration ({layout.name} layout):\n  " + _few(problems)
        )
    result.parameters = sum(theirs[name].numel() for name in result.mapped)
    result.dtypes = (_dtypes(theirs[name] for name in result.mapped), "float32")
    return result


def give(layout: Layout, spec: Mapping[str, Any], ours: Mapping[str, Tensor], dtype: torch.dtype) -> Mapped:
    """Their tensors from our state dict."""
    expected, result = Expected.of(spec), Mapped()
    assert expected.shapes.keys() == ours.keys(), "a checkpoint fits its own description"
    for name, tensor in ours.items():
        first, theirs = expected.first[name], layout.name_of(name, spec)
        if first == name:
            result.weights[theirs] = tensor.to(dtype)
            result.parameters += tensor.numel()
        else:
            result.copies[name] = first
            if not layout.writes_copies:
                continue
            result.weights[theirs] = result.weights[layout.name_of(first, spec)]
        result.mapped[first] += (theirs,)
    constants = layout.constants(spec)
    result.weights |= constants
    result.constants = tuple(constants)
    result.dtypes = (_dtypes(ours.values()), str(dtype).removeprefix("torch."))
    return result


def _where_stored(
    layout: Layout, spec: Mapping[str, Any], expected: Expected, found: Mapping[str, Any]
) -> dict[str, str]:
    """First name of each of our tensors -> the name under which it is found; left out where under none."""
    stored: dict[str, str] = {}
    for ours, first in expected.first.items():
        theirs = layout.name_of(ours, spec)
        if theirs in found:
            stored.setdefault(first, theirs)
    return stored


def _check_constants(
    constants: Mapping[str, Tensor], found: Mapping[str, tuple[str, Tensor]], result: Mapped
) -> list[str]:
    there = {name: found[name] for name in constants if name in found}
    result.constants = tuple(original for original, _ in there.values())
    return [
        f"constant: {original} is not what the configuration says"
        for name, (original, tensor) in there.items()
        if not torch.equal(tensor.to(constants[name].dtype), constants[name])
    ]


def _few(problems: list[str]) -> str:
    rest = [f"… and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    return "\n  ".join(problems[:SHOWN] + rest)


def _shape(shape: Iterable[int]) -> str:
    return "x".join(str(size) for size in shape)


def _dtypes(tensors: Iterable[Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
