"""Every layout of the CUDA scan against float64, output by output and gradient by gradient.

The op's own tests (tests/kernels) go through the layouts that `plan.py` chooses; this goes through all of them, cut and
uncut, and prints relative errors ‖ours − float64‖ / ‖float64‖ beside those of the
plain PyTorch reference in the same dtype. Buffers are poisoned with NaN. Needs a GPU:

    python experiments/selective_scan/check_layouts.py [bf16|fp16|fp32]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from seqkernels.selective_scan import reference
from seqkernels.selective_scan.cuda import launch, plan
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
NAMES = ("x", "dt", "a", "b", "c", "d", "z", "dt_bias", "initial")


def inputs(B: int, L: int, E: int, N: int, G: int, dtype: torch.dtype, sequences: int) -> dict[str, Tensor]:
    g = torch.Generator("cuda").manual_seed(L + E + N)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=g).to(dtype)

    f32 = torch.float32
    return {
        "x": normal(B, L, E), "dt": normal(B, L, E) - 2, "a": -1 - 3 * normal(E, N, dtype=f32).abs(),
        "b": normal(B, L, G, N), "c": normal(B, L, G, N), "d": normal(E, dtype=f32), "z": normal(B, L, E),
        "dt_bias": 0.2 * normal(E, dtype=f32), "initial": normal(sequences, E, N, dtype=f32),
    }  # fmt: skip


def by_reference(
    t: dict[str, Tensor], cu: Tensor | None, grads: tuple[Tensor, Tensor], real: torch.dtype
) -> dict[str, Tensor]:
    """Outputs and gradients of reference.py with 16-bit inputs kept (real = fp32) or everything in float64."""
    up = {k: (v.to(real) if real == torch.float64 else v).detach().requires_grad_() for k, v in t.items()}
    y, final = reference.scan(
        up["x"], up["dt"], up["a"], up["b"], up["c"], up["d"], up["z"], up["dt_bias"], True, up["initial"], cu
    )
    torch.autograd.backward((y, final), tuple(g.to(o.dtype) for g, o in zip(grads, (y, final))))
    return {"y": y.detach(), "final": final.detach(), **{"d" + k: v.grad for k, v in up.items() if v.grad is not None}}


def error(ours: Tensor, truth: Tensor) -> float:
    return ((ours.double() - truth.double()).norm() / truth.double().norm()).item()


def layouts(size: plan.Size) -> Iterator[tuple[str, plan.Forward, plan.Backward]]:
    forwards = [(1, 64, 8), (2, 64, 8), (4, 128, 4)] + ([(1, 128, 4)] if size.wide else [])
    backwards = [(4, 2, 4), (2, 4, 3)] + ([(4, 4, 2), (2, 8, 2)] if size.wide else [])
    if size.element_bytes == 4:
        backwards = [(2, 4, 2)]
    for chunks in (1, 3):
        cut = plan.cut_into(size, chunks)
        for i in range(max(len(forwards), len(backwards))):
            f, b = forwards[i % len(forwards)], backwards[i % len(backwards)]
            yield f"cut{cut.chunks}x{cut.chunk_length} f{f} b{b}", plan.Forward(*f, cut), plan.Backward(*b, cut)


def check(dtype: torch.dtype, B: int, L: int, E: int, N: int, G: int, bounds: list[int] | None) -> bool:
    sequences = B if bounds is None else len(bounds) - 1
    t = inputs(B, L, E, N, G, dtype, sequences)
    cu = None if bounds is None else torch.tensor(bounds, device="cuda")
    grads = (torch.randn_like(t["x"]), torch.randn_like(t["initial"]))
    truth = by_reference(t, cu, grads, torch.float64)
    plain = by_reference(t, cu, grads, torch.float32)
    plain = {k: error(v, truth[k]) for k, v in plain.items()}
    print(f"\n{dtype} B{B} L{L} E{E} N{N} G{G} packed {bounds}")
    print("  plain PyTorch", *(f"{k} {v:.1e}" for k, v in plain.items()))
    good = True
    p = launch.Problem.of(*(t[k] for k in NAMES[:-1]), True, t["initial"], cu)  # type: ignore[arg-type]
    for number, (name, forward, backward) in enumerate(layouts(p.size)):
        every = 4 if number % 2 else 8
        name = f"{name} every {every}"
        result = launch.run_forward(p, every, forward)
        g = launch.run_backward(p, grads[0], grads[1], result.y, result.states, backward)
        ours = {"y": result.out, "final": result.final, **{"d" + k: getattr(g, k) for k in NAMES}}
        errors = {k: error(v, truth[k]) for k, v in ours.items()}
        bad = [k for k, v in errors.items() if not v <= 2 * plain[k] + 2 * torch.finfo(ours[k].dtype).eps]
        good &= not bad
        ratios = " ".join(f"{k} {v:.1e}({v / plain[k]:.1f})" for k, v in errors.items())
        print(f"  {'BAD ' + ','.join(bad) if bad else 'ok'} {name}: {ratios}")
    return good


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty is then filled with NaN
    good = True
    for dtype in [DTYPES[name] for name in sys.argv[1:] or DTYPES]:
        good &= check(dtype, 2, 600, 128, 16, 1, None)
        good &= check(dtype, 1, 777, 192, 16, 3, None)
        good &= check(dtype, 2, 530, 64, 48, 1, None)
        good &= check(dtype, 1, 1100, 128, 16, 1, [0, 1, 300, 301, 317, 1099, 1100])
    print("all good" if good else "SOMETHING IS BAD")
    sys.exit(not good)


if __name__ == "__main__":
    main()
