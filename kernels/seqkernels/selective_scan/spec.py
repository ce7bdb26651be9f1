"""What the tests and the benchmark know about `selective_scan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from seqkernels.selective_scan.op import OP, REGISTRY, selective_scan
from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded

ALL = frozenset({"d", "z", "bias", "softplus"})
NONE: frozenset[str] = frozenset()


def sample(
    name: str,
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    options: frozenset[str] = ALL,
    groups: int = 0,
    bounds: list[int] | None = None,
    large: bool = False,
) -> Sample:
    """Random inputs of one call with sizes (B, L, E, N) as a trained block would see them.

    Args:
        name: id; also seeds the numbers.
        shape: B, L, E, N.
        device: where the tensors live.
        dtype: of x, dt, z (and b, c unless complex).
        options: of "d", "z", "bias", "softplus", "state" (initial and final state), "complex".
        groups: groups of b and c; 0 leaves the group dimension out.
        bounds: sequence boundaries for `cu_seqlens` (B must be 1).
        large: draw the numbers on the device (benchmarks).
    """
    B, L, E, N = shape
    random = seeded(name, device, dtype, large=large)
    group = (groups,) if groups else ()
    tensors: dict[str, Tensor] = {"x_BLE": random(B, L, E)}
    # softplus(-2 + noise) and the plain step sizes both lie around 0.1, with a wide spread
    tensors["dt_BLE"] = random(B, L, E) - 2 if "softplus" in options else 0.15 * random(B, L, E).abs()
    decay = 1 + 3 * random(E, N, parameter=True).abs()
    if "complex" in options:
        tensors["a_EN"] = torch.complex(-0.3 * decay, 2 * random(E, N, parameter=True))
        for name_ in ("b_BLGN", "c_BLGN"):
            parts = [random(B, L, *group, N, parameter=True) for _ in range(2)]
            tensors[name_] = torch.complex(*parts)
    else:
        tensors["a_EN"] = -decay
        tensors["b_BLGN"], tensors["c_BLGN"] = random(B, L, *group, N), random(B, L, *group, N)
    if "d" in options:
        tensors["d_E"] = 1 + random(E, parameter=True)
    if "z" in options:
        tensors["z_BLE"] = random(B, L, E)
    if "bias" in options:
        tensors["dt_bias_E"] = 0.2 * random(E, parameter=True).abs()
    if bounds is not None:
        tensors["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    if "state" in options:
        sequences = B if bounds is None else len(bounds) - 1
        state = random(sequences, E, N, parameter=True)
        if "complex" in options:
            state = torch.complex(state, random(sequences, E, N, parameter=True))
        tensors["initial_state_BEN"] = state
    settings: dict[str, Any] = {"dt_softplus": "softplus" in options}
    if "state" in options:
        settings["return_final_state"] = True
    return Sample(name, tensors, settings)


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right: odd sizes, every option, groups, packing, strides, complex."""

    def make(name: str, *shape: int, **kwargs: Any) -> Sample:
        return sample(name, shape, device, dtype, **kwargs)  # type: ignore[arg-type]

    state = ALL | {"state"}
    yield make("L1-E1-N1", 1, 1, 1, 1)
    yield make("L1-E3-N16-state", 3, 1, 3, 16, options=state)
    yield make("L63-E5-N16-state", 2, 63, 5, 16, options=state)
    yield make("L64-E64-N16", 1, 64, 64, 16)
    yield make("L65-E33-N16-state", 2, 65, 33, 16, options=state)
    yield make("L127-E7-N3-bare", 1, 127, 7, 3, options=NONE)
    yield make("L129-E40-N16-groups2-state", 1, 129, 40, 16, options=state, groups=2)
    yield make("L33-E9-N4-groups3-bare", 2, 33, 9, 4, options=NONE, groups=3)
    yield make("L1000-E17-N16-state", 1, 1000, 17, 16, options=state)
    yield make("L40-E130-N16-only_z", 1, 40, 130, 16, options=frozenset({"z"}))
    yield make("L40-E6-N16-only_d", 1, 40, 6, 16, options=frozenset({"d"}))
    yield make("L40-E6-N16-only_softplus", 1, 40, 6, 16, options=frozenset({"softplus"}))
    yield make("L40-E6-N16-only_bias", 1, 40, 6, 16, options=frozenset({"bias"}))
    yield make("L40-E6-N16-only_state", 1, 40, 6, 16, options=frozenset({"state"}))
    for n in (1, 5, 32, 64, 128, 256):
        yield make(f"L31-E6-N{n}-state", 1, 31, 6, n, options=state)
    yield make("packed_1_63_36_64-E12-N16-state", 1, 164, 12, 16, options=state, bounds=[0, 1, 64, 100, 164])
    yield make("packed_40_40-E6-N16", 1, 80, 6, 16, bounds=[0, 40, 80])
    yield make("L65-E6-N8-complex-state", 2, 65, 6, 8, options=state | {"complex"})
    yield make("packed_17_24-E6-N8-complex-state", 1, 41, 6, 8, options=state | {"complex"}, bounds=[0, 17, 41])
    yield make("L20-E6-N8-complex-bare", 1, 20, 6, 8, options=frozenset({"complex"}))
    extremes = make("L64-E8-N16-softplus_extremes", 1, 64, 8, 16)
    extremes.tensors["dt_BLE"] = (extremes.tensors["dt_BLE"] + 2) * 12  # both sides of the threshold 20
    yield extremes
    yield strided(make("L50-E12-N16-strided-state", 2, 50, 12, 16, options=state))


def strided(call: Sample) -> Sample:
    """The same numbers behind other strides: halves of wider tensors, as projections hand them over, and transposes."""
    apart = dict(call.tensors)
    for name in ("x_BLE", "z_BLE", "b_BLGN", "c_BLGN"):
        whole = torch.cat([apart[name], torch.full_like(apart[name], float("nan"))], dim=-1)
        apart[name] = whole[..., : apart[name].shape[-1]]
    for name in ("dt_BLE", "a_EN", "initial_state_BEN"):
        apart[name] = apart[name].transpose(-1, -2).contiguous().transpose(-1, -2)
    return Sample(call.id, apart, call.options)


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    cpu = torch.device("cpu")
    state = ALL | {"state"}
    yield sample("all-state", (2, 4, 3, 2), cpu, torch.float64, options=state)
    yield sample("bare-groups2", (1, 4, 4, 2), cpu, torch.float64, options=NONE, groups=2)
    yield sample("packed-state", (1, 5, 2, 2), cpu, torch.float64, options=state, bounds=[0, 2, 5])
    yield sample("complex-state", (1, 4, 2, 2), cpu, torch.float64, options=state | {"complex"})


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, Any] | None = None, **tensors: Tensor) -> ErrorInput:
        good = sample(match, (1, 6, 4, 2), torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, options or {}), match)

    yield broken("x_BLE has dtype torch.int64", x_BLE=torch.ones(1, 6, 4, dtype=torch.int64))
    yield broken("x_BLE has shape", x_BLE=torch.ones(6, 4))
    yield broken("none of them 0", x_BLE=torch.ones(1, 0, 4))
    yield broken("dt_BLE has shape", dt_BLE=torch.ones(1, 5, 4))
    yield broken("dt_BLE is torch.float64 but x_BLE is torch.float32", dt_BLE=torch.ones(1, 6, 4).double())
    yield broken("z_BLE has shape", z_BLE=torch.ones(1, 6, 5))
    yield broken("a_EN has shape", a_EN=-torch.ones(5, 2))
    yield broken("b_BLGN has shape", b_BLGN=torch.ones(1, 6, 3))
    yield broken("E=4 divisible by G", b_BLGN=torch.ones(1, 6, 3, 2), c_BLGN=torch.ones(1, 6, 3, 2))
    yield broken("either all of a, b, c are complex or none", b_BLGN=torch.ones(1, 6, 2, dtype=torch.complex64))
    yield broken("d_E has shape", d_E=torch.ones(5))
    yield broken("dt_bias_E has shape", dt_bias_E=torch.ones(1))
    yield broken("initial_state_BEN has shape", initial_state_BEN=torch.ones(2, 4, 2))
    yield broken("start at 0 and end at L=6", cu_seqlens=torch.tensor([0, 5]))
    yield broken("must not be empty", cu_seqlens=torch.tensor([0, 3, 3, 6]))
    yield broken("1-d int32 or int64", cu_seqlens=torch.tensor([0.0, 6.0]))
    yield broken("implementation='fast' is unknown", {"implementation": "fast"})


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed: z, D, bias and softplus, as in a Mamba block."""
    sizes = (shape["B"], shape["L"], shape["E"], shape["N"])
    return sample("bench", sizes, device, dtype, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """(b, l, channel) triples."""
    return shape["B"] * shape["L"] * shape["E"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """The larger of memory traffic and exponentials (forward) or instruction issue (backward) on one H200.

    At N = 16: 205 G elements/s forward (20 exponentials each), 65 forward and backward together; both scale with N.
    """
    backward = mode == "fwd+bwd"
    rate = 65e6 * 16 / shape["N"] if backward else 205e6 * 20 / (shape["N"] + 4)
    moved = elements(shape) * dtype.itemsize * (4 + 8 if backward else 4)
    return max(elements(shape) / rate, h200_bandwidth_ms(moved))


SPEC = OpSpec(
    name=OP,
    op=selective_scan,
    registry=REGISTRY,
    parameter="a_EN",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 8, "E": 2048, "L": 2048, "N": 16},
            {"B": 16, "E": 2048, "L": 2048, "N": 16},
            {"B": 32, "E": 2048, "L": 2048, "N": 16},
            {"B": 8, "E": 1536, "L": 8192, "N": 16},
            {"B": 16, "E": 512, "L": 16384, "N": 16},
            {"B": 64, "E": 512, "L": 1024, "N": 16},
            {"B": 4, "E": 512, "L": 131072, "N": 16},
            {"B": 1, "E": 512, "L": 1048576, "N": 16},
            {"B": 1, "E": 256, "L": 1048576, "N": 16},
        ),
        "cpu": ({"B": 2, "E": 512, "L": 1024, "N": 16}, {"B": 1, "E": 256, "L": 16384, "N": 16}),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
    causal=True,
    state_name="initial_state_BEN",
    per_position=("x_BLE", "dt_BLE", "b_BLGN", "c_BLGN", "z_BLE"),
)
