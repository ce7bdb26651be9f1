"""Which tile sizes are fastest for SSD's kernels: the time of each kernel for each cut of the work, on a GPU.

    python experiments/ssd/sweep.py

Prints for each shape and variant forward and backward of the op in ms, then the kernels. The winner goes by hand into
`plan`, `_stages` and `heads_of_a_program` of kernels/seqkernels/ssd/gpu.py; nothing is tuned at run time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from seqkernels import ssd
from seqkernels.ssd import gpu
from seqkernels.ssd.spec import sample
from torch.profiler import ProfilerActivity, profile
from triton.testing import do_bench

SHAPES = {"d1024 B8 L2048": (8, 2048, 32, 64, 128), "d256 B1 L1048576": (1, 1_048_576, 8, 64, 128)}


@dataclasses.dataclass
class Variant:
    """A cut of the work; the defaults are what ships."""

    q: int = 128
    block_q: int = 64
    warps: int = 8
    state_warps: int = 4
    stages: int = 2
    heads: int = 8


VARIANTS = [
    Variant(),
    Variant(stages=1),
    Variant(stages=3),
    Variant(block_q=32),
    Variant(state_warps=8),
    Variant(heads=4),
    Variant(heads=2),
    Variant(q=64, warps=4),
    Variant(q=64, warps=4, stages=1),
    Variant(q=64, warps=8),
]


@contextmanager
def cut_as(variant: Variant) -> Iterator[None]:
    """Let the op cut its work so."""
    names = ("plan", "chunk_length", "_stages", "heads_of_a_program")
    shipped = {name: getattr(gpu, name) for name in names}
    patched = {
        "plan": lambda L, P, N, dtype: shipped["plan"](L, P, N, dtype)._replace(
            q=variant.q, block_q=variant.block_q, warps=variant.warps, state_warps=variant.state_warps
        ),
        "chunk_length": lambda L, dtype: variant.q,
        "_stages": lambda index, n_blocks: variant.stages,
        "heads_of_a_program": lambda chunks, heads, groups: variant.heads,
    }
    try:
        for name, function in patched.items():
            setattr(gpu, name, function)
        yield
    finally:
        for name, function in shipped.items():
            setattr(gpu, name, function)


def measure(shape: tuple[int, int, int, int, int]) -> str:
    """Times of the op and of its kernels."""
    call = sample("sweep", shape, torch.device("cuda"), torch.bfloat16, large=True)
    leaves = {name: tensor.requires_grad_() for name, tensor in call.tensors.items()}

    def forward() -> torch.Tensor:
        return ssd(**leaves, **call.options, implementation="triton")  # type: ignore[return-value]

    above = torch.randn_like(forward())

    def both() -> None:
        torch.autograd.grad(forward(), list(leaves.values()), above)

    times = [do_bench(run, warmup=30, rep=150, return_mode="median") for run in (torch.no_grad()(forward), both)]
    with profile(activities=[ProfilerActivity.CUDA]) as record:
        for _ in range(3):
            both()
        torch.cuda.synchronize()
    events = sorted(record.key_averages(), key=lambda event: -event.self_device_time_total)
    kernels = ", ".join(f"{event.key[:24]} {event.self_device_time_total / 3e3:.3f}" for event in events[:10])
    return f"fwd {times[0]:.3f}  fwd+bwd {times[1]:.3f}  | {kernels}"


def main() -> None:
    for name, shape in SHAPES.items():
        for variant in VARIANTS:
            try:
                with cut_as(variant):
                    result = measure(shape)
            except Exception as error:  # a variant that does not fit is a result
                result = f"{type(error).__name__}: {str(error)[:120]}"
            print(f"{name}  {variant}\n    {result}", flush=True)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
