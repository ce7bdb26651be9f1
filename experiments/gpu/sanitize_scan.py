"""Small scans through every kind of kernel, for compute-sanitizer (memcheck, racecheck); see run_all.sh.

Run with PYTORCH_NO_CUDA_MEMORY_CACHING=1: each tensor is then its own allocation and an access beyond it is seen.
"""

from __future__ import annotations

import torch
from seqkernels.mamba_inner import InnerWeights, mamba_inner
from seqkernels.selective_scan.cuda import complex_ops, launch, plan

# saved every, forward, backward; the last needs blocks of 128 channels
LAYOUTS = (
    (4, (1, 64, 8), (2, 4, 2)),
    (8, (4, 64, 8), (4, 2, 4)),
    (4, (2, 64, 8), (2, 4, 3)),
    (4, (1, 128, 4), (4, 4, 2)),
)


def fused_block() -> None:
    """The Mamba block as one node: strided inputs and gradients."""
    E, R, D = 128, 8, 24
    shapes = ((E, 4), (E,), (R + 32, E), (E, R), (E,), (E, 16), (E,), (D, E))
    leaves = [torch.randn(shape, device="cuda") / 8 for shape in shapes]
    leaves[5] = -leaves[5].abs() - 0.1
    xz = torch.randn(2, 37, 2 * E, device="cuda", dtype=torch.bfloat16)
    for leaf in (xz, *leaves):
        leaf.requires_grad_()
    for recompute in ("nothing", "all"):
        out, _ = mamba_inner(xz, InnerWeights(*leaves), recompute=recompute)
        torch.autograd.grad(out, [xz, *leaves], torch.randn_like(out))


def main() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        packed = (1, 300, 64, 16, [0, 1, 20, 290, 300])
        for B, L, E, N, bounds in ((2, 37, 128, 16, None), (1, 530, 64, 32, None), packed):

            def normal(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
                return torch.randn(*shape, device="cuda").to(dtype)

            f32 = torch.float32
            cu = None if bounds is None else torch.tensor(bounds, device="cuda")
            initial = normal(B if bounds is None else len(bounds) - 1, E, N, dtype=f32)
            p = launch.Problem.of(
                normal(B, L, E), normal(B, L, E), -normal(E, N, dtype=f32).abs(), normal(B, L, 1, N),
                normal(B, L, 1, N), normal(E, dtype=f32), normal(B, L, E), normal(E, dtype=f32), True, initial, cu,
            )  # fmt: skip
            for chunks in (1, 2):
                cut = plan.cut_into(p.size, chunks)
                for every, forward, backward in LAYOUTS if E % 128 == 0 else LAYOUTS[:3]:
                    result = launch.run_forward(p, every, plan.Forward(*forward, cut))
                    backward = (2, 4, 2) if dtype == f32 else backward
                    layout = plan.Backward(*backward, cut)
                    launch.run_backward(p, torch.randn_like(result.out), initial, result.y, result.states, layout)
    for L, E, N in ((33, 20, 8), (33, 64, 8), (600, 64, 16), (33, 32, 32)):  # any size, fast ones, cut
        a = torch.complex(-torch.rand(E, N), torch.rand(E, N)).cuda()
        b, c = (torch.randn(2, L, 1, N, device="cuda", dtype=torch.complex64) for _ in range(2))
        x, dt, z = (torch.randn(2, L, E, device="cuda") for _ in range(3))
        out, _, states = complex_ops.forward_op(x, dt, a, b, c, None, z, None, True, None, None, True)
        complex_ops.backward_op(out, None, x, dt, a, b, c, None, z, None, True, None, states)
    fused_block()
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
