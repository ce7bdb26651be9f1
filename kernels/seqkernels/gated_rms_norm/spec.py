"""What the tests and the benchmark know about `gated_rms_norm`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from seqkernels.gated_rms_norm.op import OP, REGISTRY, gated_rms_norm
from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded


def sample(
    name: str,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    *,
    groups: int = 1,
    strided: bool = False,
    large: bool = False,
) -> Sample:
    """Random inputs of one call; `strided` hands z over as a slice of something wider."""
    random = seeded(name, device, dtype, large=large)
    tensors: dict[str, Tensor] = {"x": random(*shape), "z": random(*shape)}
    if strided:
        tensors["z"] = torch.cat([tensors["z"], torch.full_like(tensors["z"], float("nan"))], dim=-1)[..., : shape[-1]]
        tensors["x"] = tensors["x"].transpose(0, 1).contiguous().transpose(0, 1)
    tensors["weight"] = 1 + 0.3 * random(shape[-1], parameter=True)
    return Sample(name, tensors, {"groups": groups})


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right."""

    def make(name: str, *shape: int, **kwargs: Any) -> Sample:
        return sample(name, shape, device, dtype, **kwargs)

    yield make("1x1", 1, 1)
    yield make("3x63", 3, 63)
    yield make("2x5x64", 2, 5, 64)
    yield make("2x17x130-groups2", 2, 17, 130, groups=2)
    yield make("2x3x60-groups5-strided", 2, 3, 60, groups=5, strided=True)
    yield make("300x1000", 300, 1000)
    yield make("7x4096-groups8", 7, 4096, groups=8)
    zero = make("4x32-zero_gate", 4, 32)
    zero.tensors["z"] = torch.zeros_like(zero.tensors["z"])
    yield zero
    wide = make("5x40-extreme_gate", 5, 40)
    wide.tensors["z"] = wide.tensors["z"] * 20
    yield wide


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    yield sample("plain", (2, 3, 4), torch.device("cpu"), torch.float64)
    yield sample("groups", (3, 6), torch.device("cpu"), torch.float64, groups=3)


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, Any] | None = None, **tensors: Tensor) -> ErrorInput:
        good = sample(match, (2, 6), torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, options or {}), match)

    yield broken("x has dtype torch.int64", x=torch.ones(2, 6, dtype=torch.int64))
    yield broken("none of them 0", x=torch.ones(0, 6))
    yield broken("z has shape", z=torch.ones(2, 5))
    yield broken("z is torch.float64 but x is torch.float32", z=torch.ones(2, 6).double())
    yield broken("weight has shape", weight=torch.ones(5))
    yield broken("groups=4; accepted are divisors of E=6", {"groups": 4})
    yield broken("implementation='fast' is unknown", {"implementation": "fast"})


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed: one group, as in a Mamba-2 block."""
    return sample("bench", (shape["B"], shape["L"], shape["E"]), device, dtype, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """(b, l, channel) triples."""
    return shape["B"] * shape["L"] * shape["E"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """Memory traffic: forward reads x, z and writes y; backward reads x, z, dy and writes dx, dz."""
    return h200_bandwidth_ms(elements(shape) * dtype.itemsize * (8 if mode == "fwd+bwd" else 3))


SPEC = OpSpec(
    name=OP,
    op=gated_rms_norm,
    registry=REGISTRY,
    parameter="weight",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 8, "L": 2048, "E": 2048},
            {"B": 4, "L": 16384, "E": 1024},
            {"B": 1, "L": 1048576, "E": 512},
        ),
        "cpu": ({"B": 2, "L": 1024, "E": 512},),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
)
