"""What the tests and the benchmark know about `ssd`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from seqkernels.spec import ErrorInput, OpSpec, Sample, h200_bandwidth_ms, seeded
from seqkernels.ssd.op import OP, REGISTRY, ssd

ALL = frozenset({"d", "bias", "softplus"})
NONE: frozenset[str] = frozenset()


def sample(
    name: str,
    shape: tuple[int, int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    options: frozenset[str] = ALL,
    groups: int = 0,
    bounds: list[int] | None = None,
    large: bool = False,
) -> Sample:
    """Random inputs of one call with sizes (B, L, H, P, N) as a trained block would see them.

    Args:
        name: id; also seeds the numbers.
        shape: B, L, H, P, N.
        device: where the tensors live.
        dtype: of x, dt, b, c.
        options: of "d", "bias", "softplus", "state" (initial and final state).
        groups: groups of b and c; 0 leaves the group dimension out.
        bounds: sequence boundaries for `cu_seqlens` (B must be 1).
        large: draw the numbers on the device (benchmarks).
    """
    B, L, H, P, N = shape
    random = seeded(name, device, dtype, large=large)
    group = (groups,) if groups else ()
    tensors: dict[str, Tensor] = {"x_BLHP": random(B, L, H, P)}
    # softplus(-2 + noise) and the plain step sizes both lie around 0.1, with a wide spread
    tensors["dt_BLH"] = random(B, L, H) - 2 if "softplus" in options else 0.15 * random(B, L, H).abs()
    tensors["a_H"] = -(1 + 3 * random(H, parameter=True).abs())
    tensors["b_BLGN"], tensors["c_BLGN"] = (random(B, L, *group, N) / N**0.25 for _ in range(2))
    if "d" in options:
        tensors["d_H"] = 1 + random(H, parameter=True)
    if "bias" in options:
        tensors["dt_bias_H"] = 0.2 * random(H, parameter=True).abs()
    if bounds is not None:
        tensors["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32, device=device)
    settings: dict[str, Any] = {"dt_softplus": "softplus" in options}
    if "state" in options:
        sequences = B if bounds is None else len(bounds) - 1
        tensors["initial_state_BHPN"] = random(sequences, H, P, N, parameter=True)
        settings["return_final_state"] = True
    return Sample(name, tensors, settings)


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    """The grid every implementation must get right: odd sizes, every option, groups, packing, strides, extremes."""

    def make(name: str, *shape: int, **kwargs: Any) -> Sample:
        return sample(name, shape, device, dtype, **kwargs)  # type: ignore[arg-type]

    state = ALL | {"state"}
    yield make("L1-H1-P1-N1", 1, 1, 1, 1, 1)
    yield make("L1-H3-P8-N16-state", 3, 1, 3, 8, 16, options=state)
    yield make("L63-H3-P5-N7-state", 2, 63, 3, 5, 7, options=state)
    yield make("L64-H2-P64-N64", 1, 64, 2, 64, 64)
    yield make("L65-H2-P16-N16-state", 2, 65, 2, 16, 16, options=state)
    yield make("L127-H2-P16-N32-bare", 1, 127, 2, 16, 32, options=NONE)
    yield make("L129-H4-P16-N16-groups2-state", 1, 129, 4, 16, 16, options=state, groups=2)
    yield make("L33-H6-P4-N4-groups3-bare", 2, 33, 6, 4, 4, options=NONE, groups=3)
    yield make("L1000-H3-P32-N16-state", 1, 1000, 3, 32, 16, options=state)
    yield make("L1030-H2-P64-N128-state", 1, 1030, 2, 64, 128, options=state)
    yield make("L300-H12-P64-N128-state", 2, 300, 12, 64, 128, options=state)
    for option in ("d", "softplus", "bias", "state"):
        yield make(f"L40-H2-P4-N16-only_{option}", 1, 40, 2, 4, 16, options=frozenset({option}))
    for p in (24, 80, 128):
        yield make(f"L31-H2-P{p}-N16-state", 1, 31, 2, p, 16, options=state)
    # Three heads: with fewer, the sum that is a's gradient may cancel 19- or 111-fold, and rounding grow with that.
    for n in (1, 48, 256):
        yield make(f"L31-H3-P8-N{n}-state", 1, 31, 3, 8, n, options=state)
    yield make("packed_1_63_36_64-H2-P8-N8-state", 1, 164, 2, 8, 8, options=state, bounds=[0, 1, 64, 100, 164])
    yield make("packed_1_1_1_200_1-H2-P8-N8-state", 1, 204, 2, 8, 8, options=state, bounds=[0, 1, 2, 3, 203, 204])
    yield make("packed_40_40-H2-P8-N16", 1, 80, 2, 8, 16, bounds=[0, 40, 80])
    yield make("L150-H3-P2-N1-state", 1, 150, 3, 2, 1, options=state)  # small enough for interpreters, several chunks
    yield make("packed_70_3_77-H1-P2-N1-state", 1, 150, 1, 2, 1, options=state, bounds=[0, 70, 73, 150])
    yield make("packed_5_1100_3-H1-P4-N4-state", 1, 1108, 1, 4, 4, options=state, bounds=[0, 5, 1105, 1108])
    yield make("packed_7_13-H2-P4-N4-state", 1, 20, 2, 4, 4, options=state, bounds=[0, 7, 20])
    extremes = make("L64-H4-P8-N8-softplus_extremes", 1, 64, 4, 8, 8)
    extremes.tensors["dt_BLH"] = (extremes.tensors["dt_BLH"] + 2) * 12  # both sides of the threshold 20; decays vanish
    yield extremes
    strong = make("L70-H2-P8-N8-strong_decay-state", 1, 70, 2, 8, 8, options=state)
    strong.tensors["a_H"] = strong.tensors["a_H"] * 60
    yield strong
    yield strided(make("L50-H4-P8-N8-groups2-strided-state", 2, 50, 4, 8, 8, options=state, groups=2))


def strided(call: Sample) -> Sample:
    """The same numbers behind other strides: slices of wider tensors, as projections hand them over, and transposes."""
    apart = dict(call.tensors)
    for name in ("x_BLHP", "b_BLGN", "c_BLGN"):
        whole = torch.cat([apart[name], torch.full_like(apart[name], float("nan"))], dim=2)
        apart[name] = whole[:, :, : apart[name].shape[2]]
    for name in ("dt_BLH", "initial_state_BHPN"):
        apart[name] = apart[name].transpose(-1, -2).contiguous().transpose(-1, -2)
    return Sample(call.id, apart, call.options)


def gradcheck_samples() -> Iterator[Sample]:
    """Small float64 calls."""
    cpu = torch.device("cpu")
    state = ALL | {"state"}
    yield sample("all-state", (2, 4, 2, 3, 2), cpu, torch.float64, options=state)
    yield sample("bare-groups2", (1, 4, 4, 2, 2), cpu, torch.float64, options=NONE, groups=2)
    yield sample("packed-state", (1, 5, 2, 2, 2), cpu, torch.float64, options=state, bounds=[0, 2, 5])


def error_inputs() -> Iterator[ErrorInput]:
    """Calls that must be refused."""

    def broken(match: str, options: dict[str, Any] | None = None, **tensors: Tensor) -> ErrorInput:
        good = sample(match, (1, 6, 4, 2, 3), torch.device("cpu"), torch.float32)
        return ErrorInput(Sample(match, {**good.tensors, **tensors}, options or {}), match)

    yield broken("x_BLHP has dtype torch.int64", x_BLHP=torch.ones(1, 6, 4, 2, dtype=torch.int64))
    yield broken("x_BLHP has shape (1, 6, 8)", x_BLHP=torch.ones(1, 6, 8))
    yield broken("none of them 0", x_BLHP=torch.ones(1, 0, 4, 2))
    yield broken("dt_BLH has shape", dt_BLH=torch.ones(1, 5, 4))
    yield broken("dt_BLH is torch.float64 but x_BLHP is torch.float32", dt_BLH=torch.ones(1, 6, 4).double())
    yield broken("a_H has shape", a_H=-torch.ones(4, 1))
    yield broken("b_BLGN has shape", b_BLGN=torch.ones(1, 5, 3))
    yield broken("H=4 divisible by G", b_BLGN=torch.ones(1, 6, 3, 3), c_BLGN=torch.ones(1, 6, 3, 3))
    yield broken("c_BLGN has shape", c_BLGN=torch.ones(1, 6, 2))
    yield broken("d_H has shape", d_H=torch.ones(4, 2))
    yield broken("dt_bias_H has shape", dt_bias_H=torch.ones(1))
    yield broken("initial_state_BHPN has shape", initial_state_BHPN=torch.ones(1, 4, 3, 2))
    yield broken("start at 0 and end at L=6", cu_seqlens=torch.tensor([0, 5]))
    yield broken("must not be empty", cu_seqlens=torch.tensor([0, 3, 3, 6]))
    yield broken("implementation='fast' is unknown", {"implementation": "fast"})


def head_width(shape: Mapping[str, int]) -> int:
    """P of a benchmark shape: 64, the published one, where E allows it."""
    return min(64, shape["E"])


def bench_sample(shape: Mapping[str, int], device: torch.device, dtype: torch.dtype) -> Sample:
    """The call that is timed: heads of 64, one group, D, bias and softplus, as in a Mamba-2 block."""
    P = head_width(shape)
    sizes = (shape["B"], shape["L"], shape["E"] // P, P, shape["N"])
    return sample("bench", sizes, device, dtype, large=True)


def elements(shape: Mapping[str, int]) -> int:
    """(b, l, channel) triples."""
    return shape["B"] * shape["L"] * shape["E"]


def bound_ms(shape: Mapping[str, int], dtype: torch.dtype, mode: str) -> float:
    """Inputs, outputs and gradients moved once, on one H200; products at chunks of 128 take about as long in bf16."""
    tokens, E, H, N = shape["B"] * shape["L"], shape["E"], shape["E"] // head_width(shape), shape["N"]
    forward = 2 * E + H + 2 * N
    backward = 3 * E + 2 * H + 4 * N
    return h200_bandwidth_ms(tokens * dtype.itemsize * (forward + (backward if mode == "fwd+bwd" else 0)))


SPEC = OpSpec(
    name=OP,
    op=ssd,
    registry=REGISTRY,
    parameter="a_H",
    samples=samples,
    gradcheck_samples=gradcheck_samples,
    error_inputs=error_inputs,
    bench_shapes={
        "cuda": (
            {"B": 8, "E": 2048, "L": 2048, "N": 128},
            {"B": 4, "E": 1024, "L": 16384, "N": 128},
            {"B": 1, "E": 512, "L": 1048576, "N": 128},
            {"B": 8, "E": 2048, "L": 2048, "N": 64},
            {"B": 8, "E": 2048, "L": 2048, "N": 256},
        ),
        "cpu": ({"B": 2, "E": 512, "L": 1024, "N": 128}, {"B": 1, "E": 512, "L": 16384, "N": 128}),
    },
    bench_sample=bench_sample,
    elements=elements,
    bound_ms=bound_ms,
    causal=True,
    state_name="initial_state_BHPN",
    per_position=("x_BLHP", "dt_BLH", "b_BLGN", "c_BLGN"),
    # Chunks: factors of tensor-core products are rounded to the inputs' dtype; fp32 sums cancel in another order.
    slack={torch.bfloat16: 2 * 2**-7, torch.float16: 2 * 2**-10, torch.float32: 12 * 2**-23},
)
