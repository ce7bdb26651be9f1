"""What the tests and the benchmark know about `long_conv`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from seqkernels.long_conv.op import OP, REGISTRY, long_conv
from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded


def sample(
    name: str,
    shape: tuple[int, int, int],
    taps: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    strided: bool = False,
    large: bool = False,
) -> Sample:
    """Random inputs of one call, kernels that decay; `strided` hands u over as a slice of something wider."""
    random = seeded(name, device, dtype, large=large)
    tensors: dict[str, Tensor] = {"u_BLE": random(*shape)}
    if strided:
        u = tensors["u_BLE"]
        tensors["u_BLE"] = torch.cat([u, torch.full_like(u, float("nan"))], dim=-1)[..., : shape[2]]
    kernel = random(shape[2], taps, parameter=True)
    tensors["kernel_EK"] = kernel * torch.exp(-3 * torch.arange(taps, device=device) / taps).to(kernel.dtype)
    return Sample(name, tensors)


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right: odd sizes, kernels shorter and longer than the sequence."""
    for B, L, E, K in ((1, 1, 1, 1), (2, 17, 3, 17), (3, 64, 33, 5), (1, 100, 40, 100), (2, 65, 64, 90), (2, 40, 5, 1)):
        yield sample(f"B{B}-L{L}-E{E}-K{K}", (B, L, E), K, device, dtype)
    yield sample("B2-L30-E8-K30-strided", (2, 30, 8), 30, device, dtype, strided=True)


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    yield sample("whole", (2, 5, 3), 5, torch.device("cpu"), torch.float64)
    yield sample("longer", (1, 3, 2), 6, torch.device("cpu"), torch.float64)


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, str] | None = None, **tensors: Tensor) -> ErrorInput:
        good = sample(match, (2, 6, 3), 6, torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, dict(options or {})), match)

    yield broken("u_BLE has dtype torch.int64", u_BLE=torch.ones(2, 6, 3, dtype=torch.int64))
    yield broken("none of them 0", u_BLE=torch.ones(2, 0, 3))
    yield broken("kernel_EK has shape", kernel_EK=torch.ones(4, 6))
    yield broken("kernel_EK is torch.float64", kernel_EK=torch.ones(3, 6).double())
    yield broken("implementation='fast' is unknown", {"implementation": "fast"})


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed: kernels as long as the sequence."""
    return sample("bench", (shape["B"], shape["L"], shape["E"]), shape["L"], device, dtype, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """(b, l, channel) triples."""
    return shape["B"] * shape["L"] * shape["E"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """Memory traffic of u and y alone, and of dy, u and du; transforms take several times as much."""
    passes = dtype.itemsize + 4
    return h200_bandwidth_ms(elements(shape) * (passes if mode == "fwd" else 2 * passes + dtype.itemsize))


# A transform's error is spread over all outputs, not in step with each: eps sqrt(log2 of its size) of their rms.
SPEC = OpSpec(
    name=OP,
    op=long_conv,
    registry=REGISTRY,
    parameter="kernel_EK",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 64, "L": 1024, "E": 256},
            {"B": 16, "L": 16384, "E": 256},
            {"B": 1, "L": 1048576, "E": 64},
        ),
        "cpu": ({"B": 2, "L": 1024, "E": 64},),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
    slack={torch.float32: 4 * 2**-23 * math.sqrt(8), torch.float64: 4 * 2**-52 * math.sqrt(8)},
)
