"""OpSpec: one description of an op that feeds its tests, its benchmark and `seqmodels doctor`.

Each op's folder holds a `spec.py` with a module-level `SPEC`; `specs()` finds them by folder.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqkernels.checks import accumulation_dtype
from seqkernels.dispatch import Registry


@dataclass
class Sample:
    """Inputs of one call: `op(**tensors, **options)`.

    Args:
        id: readable name, used as a test id.
        tensors: argument name to tensor; every floating-point or complex one gets a gradient in the tests.
        options: the other keyword arguments.
    """

    id: str
    tensors: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    def differentiable(self) -> list[str]:
        """Names of the tensors that have gradients."""
        return [name for name, t in self.tensors.items() if t.is_floating_point() or t.is_complex()]


@dataclass
class ErrorInput:
    """A call that must be refused with a `ValueError` whose message matches `match`."""

    sample: Sample
    match: str


@dataclass(frozen=True)
class OpSpec:
    """Everything generic code knows about an op.

    Args:
        name: the op's public name, also its folder.
        op: the public function.
        registry: its implementations.
        parameter: argument name of the main parameter, which `Registry.choose` is asked with beside the first input.
        samples: (device, dtype) to the grid of calls that every implementation must get right.
        gradcheck_samples: small float64 calls for `torch.autograd.gradcheck` of the reference.
        error_inputs: calls that must be refused.
        bench_shapes: device type to the shapes that `seqkernels.bench` measures there; keys are legend letters.
        bench_sample: (shape, device, dtype) to the call that is timed.
        elements: how many elements one call at a shape processes; the unit of the gelems_per_s column.
        bound_ms: (shape, dtype, mode) to the lower bound in ms on one H200; None where no bound is known.
        causal: positions never see later ones along dim 1; such ops also take `initial_state...`, `cu_seqlens`
            and `return_final_state`, and the tests of those laws run.
        state_name: the name of the initial-state argument of a causal op.
        per_position: names of tensors with (B, L, ...) layout, which the tests cut and pack.
        slack: dtype of the first input to the error, relative to the largest value, that an implementation may add
            beyond twice plain PyTorch's; for ops whose products round their factors to that dtype (tensor cores) or
            add in another order. Absent: 2 eps of the output's dtype.
    """

    name: str
    op: Callable[..., Any]
    registry: Registry
    parameter: str
    samples: Callable[[torch.device, torch.dtype], Iterator[Sample]]
    gradcheck_samples: Callable[[], Iterator[Sample]]
    error_inputs: Callable[[], Iterator[ErrorInput]]
    bench_shapes: Mapping[str, tuple[Mapping[str, int], ...]]
    bench_sample: Callable[[Mapping[str, int], torch.device, torch.dtype], Sample]
    elements: Callable[[Mapping[str, int]], int]
    bound_ms: Callable[[Mapping[str, int], torch.dtype, str], float] | None = None
    causal: bool = False
    state_name: str = ""
    per_position: tuple[str, ...] = ()
    slack: Mapping[torch.dtype, float] = field(default_factory=dict)

    @property
    def reference(self) -> Callable[..., Any]:
        """The definition of the op: the entry of its `reference.py`."""
        return getattr(importlib.import_module(self.registry.modules["reference"]), self.registry.entry)

    def probe(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The smallest (x, parameter) pair on this device, to ask implementations whether they could run."""
        letters = self.bench_shapes["cpu"][0]
        return self.probe_tensors(self.bench_sample(dict.fromkeys(letters, 4), device, dtype))

    def probe_tensors(self, sample: Sample) -> tuple[Tensor, Tensor]:
        """The two tensors of a sample that `Registry.choose` is asked with: the first input and the parameter."""
        return next(iter(sample.tensors.values())), sample.tensors[self.parameter]


def specs() -> list[OpSpec]:
    """The SPEC of every op, one per sub-package that holds a `spec.py`, in alphabetical order."""
    root = Path(__file__).parent
    names = sorted(path.parent.name for path in root.glob("*/spec.py"))
    return [importlib.import_module(f"seqkernels.{name}.spec").SPEC for name in names]


def get(name: str) -> OpSpec:
    """The spec of one op by name.

    Raises:
        ValueError: there is no such op.
    """
    known = {spec.name: spec for spec in specs()}
    if name not in known:
        raise ValueError(f"op={name!r} is unknown; accepted: {', '.join(known)}")
    return known[name]


H200_BYTES_PER_MS = 4.25e9  # device copy, read + write, measured on one H200


def h200_bandwidth_ms(n_bytes: float) -> float:
    """Time in ms that moving this many bytes takes at least on one H200."""
    return n_bytes / H200_BYTES_PER_MS


def seeded(name: str, device: torch.device, dtype: torch.dtype, *, large: bool = False) -> Callable[..., Tensor]:
    """A `torch.randn` of fixed dtype, device and seed (from the sample's name): `random(*shape, parameter=False)`.

    Values are drawn in float64 on the CPU and rounded, so that every device and dtype sees the same numbers; with
    `large=True` (benchmarks) they are drawn where and as they are needed. With `parameter=True` the dtype is the
    accumulation dtype, as parameters have.
    """
    generator = torch.Generator(device if large else "cpu").manual_seed(zlib.crc32(name.encode()))

    def random(*shape: int, parameter: bool = False) -> Tensor:
        target = accumulation_dtype(dtype) if parameter else dtype
        if large:
            return torch.randn(*shape, dtype=target, device=device, generator=generator)
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(device, target)

    return random
