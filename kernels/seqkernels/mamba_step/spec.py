"""What the tests and the benchmark know about `mamba_step`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from seqkernels.mamba_step.op import OP, REGISTRY, mamba_step
from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded


def sample(
    name: str,
    sizes: Mapping[str, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    conv_bias: bool = True,
    large: bool = False,
) -> Sample:
    """Random inputs of one call with sizes B, E, N, R, W, scaled as a trained block would see them."""
    B, E, N, R, W = (sizes[letter] for letter in "BENRW")
    random = seeded(name, device, dtype, large=large)
    tensors: dict[str, Tensor | None] = {
        "xz_B2E": random(B, 2 * E),
        "conv_state": random(B, W - 1, E, parameter=True),
        "state_BEN": random(B, E, N, parameter=True),
        "conv_weight_EW": 0.5 * random(E, W, parameter=True),
        "conv_bias_E": random(E, parameter=True) if conv_bias else None,
        "x_proj_weight": random(R + 2 * N, E) * E**-0.5,  # not a division: a GPU multiplies by the reciprocal
        "dt_proj_weight_ER": random(E, R) * R**-0.5,
        "dt_bias_E": random(E, parameter=True) - 2,
        "a_EN": -1 - 3 * random(E, N, parameter=True).abs(),
        "d_E": 1 + random(E, parameter=True),
    }
    options: dict[str, Any] = {} if conv_bias else {"conv_bias_E": None}
    return Sample(name, {key: tensor for key, tensor in tensors.items() if tensor is not None}, options)


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right."""
    for B, E, N, R, W in (
        (1, 1, 1, 1, 2),
        (1, 32, 16, 2, 4),
        (3, 33, 16, 5, 4),
        (16, 63, 8, 4, 3),
        (2, 130, 64, 9, 8),
        (5, 257, 5, 17, 4),
        (1, 1000, 16, 32, 4),
        (67, 96, 16, 6, 4),
    ):
        sizes = dict(zip("BENRW", (B, E, N, R, W)))
        yield sample("-".join(f"{letter}{size}" for letter, size in sizes.items()), sizes, device, dtype)
    sizes = {"B": 2, "E": 24, "N": 16, "R": 3, "W": 4}
    yield sample("no_conv_bias", sizes, device, dtype, conv_bias=False)
    call = sample("strided", sizes, device, dtype)
    for name in ("xz_B2E", "x_proj_weight", "dt_proj_weight_ER", "a_EN"):
        call.tensors[name] = call.tensors[name].T.contiguous().T
    yield call


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    yield sample("small", {"B": 2, "E": 3, "N": 2, "R": 1, "W": 3}, torch.device("cpu"), torch.float64)


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, Any] | None = None, **tensors: Tensor) -> ErrorInput:
        sizes = {"B": 2, "E": 4, "N": 2, "R": 1, "W": 3}
        good = sample(match, sizes, torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, options or {}), match)

    yield broken("xz_B2E has shape", xz_B2E=torch.ones(2, 7))
    yield broken("a_EN has shape", a_EN=-torch.ones(3, 2))
    yield broken("conv_weight_EW has shape", conv_weight_EW=torch.tensor(1.0))
    yield broken("R=0 of dt_proj_weight_ER", dt_proj_weight_ER=torch.ones(4, 0), x_proj_weight=torch.ones(4, 4))
    yield broken("conv_state has shape", conv_state=torch.ones(2, 3, 4))
    yield broken("state_BEN is torch.bfloat16; states are torch.float32", state_BEN=torch.ones(2, 4, 2).bfloat16())
    yield broken("x_proj_weight has shape", x_proj_weight=torch.ones(4, 4))
    yield broken("inplace=True has no gradients", {"inplace": True}, xz_B2E=torch.ones(2, 8, requires_grad=True))
    yield broken("implementation='fast' is unknown", {"implementation": "fast"})


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed."""
    return sample("bench", shape, device, dtype, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """(b, channel) pairs."""
    return shape["B"] * shape["E"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """Memory traffic of one H200: states in and out in fp32, projection weights, a."""
    B, E, N, R, W = (shape[letter] for letter in "BENRW")
    states = 2 * 4 * B * E * (N + W - 1)
    weights = dtype.itemsize * E * (2 * R + 2 * N) + 4 * E * (N + W + 3)
    return h200_bandwidth_ms(states + weights + dtype.itemsize * 3 * B * E)


SPEC = OpSpec(
    name=OP,
    op=mamba_step,
    registry=REGISTRY,
    parameter="a_EN",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 1, "E": 1536, "N": 16, "R": 48, "W": 4},
            {"B": 16, "E": 1536, "N": 16, "R": 48, "W": 4},
            {"B": 128, "E": 1536, "N": 16, "R": 48, "W": 4},
        ),
        "cpu": ({"B": 1, "E": 512, "N": 16, "R": 16, "W": 4},),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
)
