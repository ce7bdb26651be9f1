"""What the tests and the benchmark know about `rms_norm`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from seqkernels.rms_norm.op import OP, REGISTRY, rms_norm
from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded


def sample(
    name: str,
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    *,
    residual: torch.dtype | None = None,
    large: bool = False,
) -> Sample:
    """Random inputs of one call; `residual` is the residual's dtype, None for no residual."""
    random = seeded(name, device, dtype, large=large)
    tensors: dict[str, Tensor] = {"x": random(*shape), "weight": 1 + 0.2 * random(shape[-1], parameter=True)}
    if residual is not None:
        tensors["residual"] = random(*shape).to(residual)
    return Sample(name, tensors, {})


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right."""
    full = torch.float64 if dtype == torch.float64 else torch.float32
    for d in (1, 63, 257, 1000):
        yield sample(f"D{d}", (2, 3, d), device, dtype)
    yield sample("rows_63-D256-residual_full", (63, 256), device, dtype, residual=full)
    yield sample("B2_L5-D96-residual_same", (2, 5, 96), device, dtype, residual=dtype)
    low = sample("B2_L5-D64-residual_same-sum_same", (2, 5, 64), device, dtype, residual=dtype)
    low.options["residual_in_fp32"] = False
    yield low
    large_eps = sample("one_row-eps_0.1", (40,), device, dtype, residual=full)
    large_eps.options["eps"] = 0.1
    yield large_eps
    strided = sample("strided-D48", (2, 5, 96), device, dtype)
    strided.tensors = {"x": strided.tensors["x"][:, ::2, ::2], "weight": strided.tensors["weight"][::2]}
    yield strided


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    cpu = torch.device("cpu")
    yield sample("plain", (2, 3, 4), cpu, torch.float64)
    yield sample("residual", (2, 3, 4), cpu, torch.float64, residual=torch.float64)


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, object] | None = None, **tensors: Tensor) -> ErrorInput:
        good = sample(match, (2, 3, 8), torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, options or {}), match)

    yield broken("weight has shape", weight=torch.ones(7))
    yield broken("residual has shape", residual=torch.ones(2, 3, 7))
    yield broken("x has dtype torch.int64", x=torch.ones(2, 3, 8, dtype=torch.int64))
    yield broken("x has shape", x=torch.ones(2, 0, 8))
    yield broken("eps=0 must be positive", {"eps": 0})


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed: with an fp32 residual, as in a stack of layers."""
    return sample("bench", (shape["B"], shape["L"], shape["D"]), device, dtype, residual=torch.float32, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """Elements of x."""
    return shape["B"] * shape["L"] * shape["D"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """Memory traffic of one H200: x, residual in and y, sum out; backward reads dy, d(sum), sum and writes dx, dres."""
    size = dtype.itemsize
    per_element = (size + 4) * 2 + ((size + 4 + 4) + (size + 4) if mode == "fwd+bwd" else 0)
    return h200_bandwidth_ms(elements(shape) * per_element)


SPEC = OpSpec(
    name=OP,
    op=rms_norm,
    registry=REGISTRY,
    parameter="weight",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 8, "L": 2048, "D": 1024},
            {"B": 8, "L": 2048, "D": 768},
            {"B": 4, "L": 16384, "D": 512},
            {"B": 1, "L": 1048576, "D": 256},
        ),
        "cpu": ({"B": 2, "L": 1024, "D": 256},),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
)
