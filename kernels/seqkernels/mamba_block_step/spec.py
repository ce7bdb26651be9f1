"""What the tests and the benchmark know about `mamba_block_step`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from seqkernels.mamba_block_step.op import OP, REGISTRY, mamba_block_step
from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded


def sample(
    name: str,
    sizes: Mapping[str, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    bare: bool = False,
    large: bool = False,
) -> Sample:
    """Random inputs of one call with sizes B, D, E, N, R, W; `bare`: without biases and residual."""
    B, D, E, N, R, W = (sizes[letter] for letter in "BDENRW")
    random = seeded(name, device, dtype, large=large)
    # Scaled by products: a GPU divides by a number as it multiplies by its reciprocal, which rounds differently.
    tensors: dict[str, Tensor] = {
        "x_BD": random(B, D),
        "conv_state": random(B, W - 1, E, parameter=True),
        "state_BEN": random(B, E, N, parameter=True),
        "norm_weight_D": 1 + 0.1 * random(D, parameter=True),
        "in_proj_weight": random(2 * E, D) * D**-0.5,
        "conv_weight_EW": 0.5 * random(E, W, parameter=True),
        "conv_bias_E": random(E, parameter=True),
        "x_proj_weight": random(R + 2 * N, E) * E**-0.5,
        "dt_proj_weight_ER": random(E, R) * R**-0.5,
        "dt_bias_E": random(E, parameter=True) - 2,
        "a_EN": -1 - 3 * random(E, N, parameter=True).abs(),
        "d_E": 1 + random(E, parameter=True),
        "out_proj_weight_DE": random(D, E) * E**-0.5,
        "residual_BD": random(B, D, parameter=True),
        "in_proj_bias_2E": random(2 * E),
        "out_proj_bias_D": random(D),
    }
    options: dict[str, Any] = {}
    if bare:
        options["conv_bias_E"] = None
        for left_out in ("conv_bias_E", "residual_BD", "in_proj_bias_2E", "out_proj_bias_D"):
            del tensors[left_out]
    return Sample(name, tensors, options)


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right."""
    for B, D, E, N, R, W in (
        (1, 8, 16, 16, 1, 2),
        (3, 12, 10, 5, 3, 3),
        (1, 64, 128, 16, 4, 4),
        (2, 40, 64, 64, 3, 8),
        (4, 264, 192, 16, 17, 4),
        (1, 768, 1536, 16, 48, 4),
    ):
        sizes = dict(zip("BDENRW", (B, D, E, N, R, W)))
        yield sample("-".join(f"{letter}{size}" for letter, size in sizes.items()), sizes, device, dtype)
    sizes = {"B": 2, "D": 16, "E": 32, "N": 16, "R": 3, "W": 4}
    yield sample("bare", sizes, device, dtype, bare=True)
    call = sample("strided", sizes, device, dtype)
    for name in ("x_BD", "in_proj_weight", "dt_proj_weight_ER", "a_EN", "out_proj_weight_DE"):
        call.tensors[name] = call.tensors[name].T.contiguous().T
    yield call


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    sizes = {"B": 2, "D": 2, "E": 3, "N": 2, "R": 1, "W": 3}
    yield sample("small", sizes, torch.device("cpu"), torch.float64)


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, Any] | None = None, **tensors: Tensor) -> ErrorInput:
        sizes = {"B": 2, "D": 6, "E": 4, "N": 2, "R": 1, "W": 3}
        good = sample(match, sizes, torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, options or {}), match)

    yield broken("x_BD has shape", x_BD=torch.ones(2, 3, 4))
    yield broken("a_EN has shape", a_EN=-torch.ones(3, 2))
    yield broken("in_proj_weight has shape", in_proj_weight=torch.ones(8, 5))
    yield broken("out_proj_weight_DE has shape", out_proj_weight_DE=torch.ones(4, 6))
    yield broken("residual_BD has shape", residual_BD=torch.ones(1, 6))
    yield broken("R=0 of dt_proj_weight_ER", dt_proj_weight_ER=torch.ones(4, 0), x_proj_weight=torch.ones(4, 4))
    yield broken("residual_BD is torch.bfloat16; accepted is torch.float32", residual_BD=torch.ones(2, 6).bfloat16())
    yield broken("state_BEN is torch.bfloat16; accepted is torch.float32", state_BEN=torch.ones(2, 4, 2).bfloat16())
    yield broken("eps=0 must be positive", {"eps": 0})
    yield broken("inplace=True has no gradients", {"inplace": True}, x_BD=torch.ones(2, 6, requires_grad=True))
    yield broken("implementation='fast' is unknown", {"implementation": "fast"})


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed."""
    return sample("bench", shape, device, dtype, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """(b, channel) pairs."""
    return shape["B"] * shape["E"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """Memory traffic of one H200: all weights, the states in and out in fp32."""
    B, D, E, N, R, W = (shape[letter] for letter in "BDENRW")
    states = 2 * 4 * B * E * (N + W - 1)
    weights = dtype.itemsize * E * (3 * D + 2 * R + 2 * N) + 4 * E * (N + W + 3)
    return h200_bandwidth_ms(states + weights + (dtype.itemsize + 4) * 2 * B * D)


SPEC = OpSpec(
    name=OP,
    op=mamba_block_step,
    registry=REGISTRY,
    parameter="a_EN",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 1, "D": 768, "E": 1536, "N": 16, "R": 48, "W": 4},
            {"B": 4, "D": 768, "E": 1536, "N": 16, "R": 48, "W": 4},
        ),
        "cpu": ({"B": 1, "D": 256, "E": 512, "N": 16, "R": 16, "W": 4},),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
)
