"""What the tests and the benchmark know about `causal_conv1d`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from seqkernels.causal_conv1d.op import OP, REGISTRY, causal_conv1d
from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded


def sample(
    name: str,
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    bias: bool = True,
    silu: bool = True,
    state: bool = False,
    bounds: list[int] | None = None,
    large: bool = False,
) -> Sample:
    """Random inputs of one call with sizes (B, L, E, W); `state` gives an initial and asks for the final state."""
    B, L, E, W = shape
    random = seeded(name, device, dtype, large=large)
    tensors: dict[str, Tensor] = {"x_BLE": random(B, L, E), "weight_EW": 0.5 * random(E, W, parameter=True)}
    if bias:
        tensors["bias_E"] = random(E, parameter=True)
    if state:
        tensors["initial_state"] = random(B if bounds is None else len(bounds) - 1, W - 1, E, parameter=True)
    if bounds is not None:
        tensors["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    options: dict[str, Any] = {"activation": "silu" if silu else None}
    if state:
        options["return_final_state"] = True
    return Sample(name, tensors, options)


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right."""

    def make(name: str, *shape: int, **kwargs: Any) -> Sample:
        return sample(name, shape, device, dtype, **kwargs)  # type: ignore[arg-type]

    yield make("L1-E1-W4", 1, 1, 1, 4)
    yield make("L1-E5-W4-state", 2, 1, 5, 4, state=True)
    yield make("L2-E5-W4-state", 2, 2, 5, 4, state=True)
    yield make("L63-E33-W4-state", 2, 63, 33, 4, state=True)
    yield make("L1000-E17-W4", 1, 1000, 17, 4)
    yield make("L129-E130-W4-no_bias", 1, 129, 130, 4, bias=False)
    yield make("L65-E64-W4-no_silu-state", 1, 65, 64, 4, silu=False, state=True)
    yield make("L40-E6-W4-bare", 1, 40, 6, 4, bias=False, silu=False)
    for w in (2, 3, 5, 6, 7, 8):
        yield make(f"L31-E9-W{w}-state", 1, 31, 9, w, state=True)
    yield make("packed_1_2_63_36-E12-W4-state", 1, 102, 12, 4, state=True, bounds=[0, 1, 3, 66, 102])
    yield make("packed_40_40-E6-W4", 1, 80, 6, 4, bounds=[0, 40, 80])
    call = make("L50-E12-W4-strided-state", 2, 50, 12, 4, state=True)
    x, state = call.tensors["x_BLE"], call.tensors["initial_state"]
    call.tensors["x_BLE"] = torch.cat([x, torch.full_like(x, float("nan"))], dim=-1)[..., :12]
    call.tensors["weight_EW"] = call.tensors["weight_EW"].T.contiguous().T
    call.tensors["initial_state"] = state.transpose(1, 2).contiguous().transpose(1, 2)
    yield call
    call = make("L50-E12-W4-channel_first_strides", 2, 50, 12, 4)
    call.tensors["x_BLE"] = call.tensors["x_BLE"].transpose(1, 2).contiguous().transpose(1, 2)
    yield call


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    cpu = torch.device("cpu")
    yield sample("silu-state", (2, 5, 3, 4), cpu, torch.float64, state=True)
    yield sample("bare-short", (1, 2, 2, 4), cpu, torch.float64, bias=False, silu=False, state=True)
    yield sample("packed-state", (1, 5, 2, 3), cpu, torch.float64, state=True, bounds=[0, 1, 5])


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, Any] | None = None, **tensors: Tensor) -> ErrorInput:
        good = sample(match, (1, 6, 4, 3), torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, options or {}), match)

    yield broken("x_BLE has dtype torch.int32", x_BLE=torch.ones(1, 6, 4, dtype=torch.int32))
    yield broken("x_BLE has shape", x_BLE=torch.ones(6, 4))
    yield broken("weight_EW has shape", weight_EW=torch.ones(4, 1, 3))
    yield broken("W from 2 to 8", weight_EW=torch.ones(4, 9))
    yield broken("bias_E has shape", bias_E=torch.ones(3))
    yield broken("activation='relu' is unknown", {"activation": "relu"})
    yield broken("initial_state has shape", initial_state=torch.ones(1, 3, 4))
    yield broken("start at 0 and end at L=6", cu_seqlens=torch.tensor([1, 6]))
    yield broken("needs a batch of 1", x_BLE=torch.ones(2, 6, 4), cu_seqlens=torch.tensor([0, 6]))
    yield broken("implementation='fast' is unknown", {"implementation": "fast"})


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed: bias and silu, as in a Mamba block."""
    sizes = (shape["B"], shape["L"], shape["E"], shape["W"])
    return sample("bench", sizes, device, dtype, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """Elements of x."""
    return shape["B"] * shape["L"] * shape["E"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """Memory traffic of one H200: x in, y out; backward reads x and dy and writes dx."""
    return h200_bandwidth_ms(elements(shape) * dtype.itemsize * (5 if mode == "fwd+bwd" else 2))


SPEC = OpSpec(
    name=OP,
    op=causal_conv1d,
    registry=REGISTRY,
    parameter="weight_EW",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 8, "E": 2048, "L": 2048, "W": 4},
            {"B": 8, "E": 1536, "L": 8192, "W": 4},
            {"B": 16, "E": 512, "L": 16384, "W": 4},
            {"B": 1, "E": 512, "L": 1048576, "W": 4},
        ),
        "cpu": ({"B": 2, "E": 512, "L": 1024, "W": 4},),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
    causal=True,
    state_name="initial_state",
    per_position=("x_BLE",),
)
