"""Times of every layout of the CUDA scan at the benchmark shapes; the thresholds of plan.py come from it.

python experiments/selective_scan/sweep.py [--quick]      needs a GPU; medians of CUDA-event times, no autograd
"""

from __future__ import annotations

import sys

import torch
from seqkernels.selective_scan.cuda import launch, plan
from torch import Tensor
from triton.testing import do_bench

# (B, E, L) and mamba_ssm's forward and forward+backward in ms on the same kind of GPU
BARS = {
    (8, 2048, 2048): (0.591, 2.885),
    (16, 2048, 2048): (1.163, 5.686),
    (32, 2048, 2048): (2.307, 11.268),
    (64, 512, 1024): (0.566, 2.870),
    (8, 1536, 8192): (1.966, 8.976),
    (16, 512, 16384): (2.822, 12.473),
    (4, 512, 131072): (5.901, 27.419),
    (1, 512, 1048576): (11.474, 73.084),
    (1, 256, 1048576): (10.284, 36.829),
}


def problem(B: int, E: int, L: int, N: int = 16, dtype: torch.dtype = torch.bfloat16) -> tuple[launch.Problem, Tensor]:
    g = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device="cuda", generator=g, dtype=dtype)

    f32 = torch.float32
    a = -torch.arange(1, N + 1, device="cuda").float().repeat(E, 1)
    p = launch.Problem.of(
        normal(B, L, E), 0.5 * normal(B, L, E), a, normal(B, L, 1, N), normal(B, L, 1, N), normal(E, dtype=f32),
        normal(B, L, E), normal(E, dtype=f32) * 0.5 - 4, True, None, None,
    )  # fmt: skip
    return p, normal(B, L, E)


def median_ms(function) -> float:
    return do_bench(function, warmup=10, rep=40, return_mode="median")  # type: ignore[return-value]


def forward_layouts(size: plan.Size) -> list[plan.Forward]:
    whole = plan.cut_into(size, 1)
    per = size.sequences * size.channels / size.multiprocessors
    found = [plan.forward(size)]
    if per > 200:
        found += [plan.Forward(1, 128, 4, whole), plan.Forward(1, 64, 8, whole)]
    if 50 < per < 300:
        found += [plan.Forward(2, 64, 8, whole)]
    if 50 < per < 150:
        found += [plan.Forward(4, 128, 4, whole), plan.Forward(4, 64, 8, whole)]
    if per < 100:
        blocks = size.sequences * size.channels // 128
        cut = plan.cut_into(size, 8 * size.multiprocessors // blocks)
        found += [plan.Forward(1, 128, 4, cut), plan.Forward(1, 64, 8, cut)]
    return list(dict.fromkeys(found))


def backward_layouts(size: plan.Size) -> list[plan.Backward]:
    whole = plan.cut_into(size, 1)
    blocks = size.sequences * size.channels // 128
    found = [plan.backward(size)]
    if blocks > 90:
        found += [plan.Backward(4, 4, 2, whole), plan.Backward(2, 4, 3, whole), plan.Backward(4, 2, 4, whole)]
    if blocks < 200:
        found += [plan.Backward(4, 4, 2, plan.cut_into(size, 8 * size.multiprocessors // blocks))]
        found += [plan.Backward(2, 4, 3, plan.cut_into(size, 6 * size.multiprocessors // blocks))]
    return list(dict.fromkeys(found))


def sweep(shape: tuple[int, int, int]) -> None:
    B, E, L = shape
    p, grad = problem(B, E, L)
    size, elements = p.size, B * E * L
    peer_forward, peer_both = BARS[shape]
    print(f"\n(B, E, L) = {shape}   mamba_ssm {peer_forward} / {peer_both} ms", flush=True)

    def show(what: str, ms: float, extra: str = "") -> None:
        print(f"  {what:64s} {ms:8.3f} ms {elements / ms / 1e6:6.1f} G/s {extra}", flush=True)

    best = dict.fromkeys((0, 4, 8), float("inf"))
    for layout in forward_layouts(size):
        for save in best:
            ms = median_ms(lambda save=save, layout=layout: launch.run_forward(p, save, layout))
            best[save] = min(best[save], ms)
            name = f"lanes {layout.lanes} threads {layout.threads}/{layout.min_blocks} chunks {layout.cut.chunks}"
            show(f"forward {name} save {save}", ms, "" if save else f"x{peer_forward / ms:.2f}")
        if layout.cut.chunks > 1:
            ms = median_ms(lambda layout=layout: launch._carried_states(p, layout.cut))
            show(f"  of which ends + carry, chunks {layout.cut.chunks}", ms)
    for save in (4, 8):
        result = launch.run_forward(p, save)

        def backward(layout: plan.Backward, result: launch.ForwardResult = result) -> launch.Gradients:
            return launch.run_backward(p, grad, None, result.y, result.states, layout)

        for layout in backward_layouts(size):
            ms = median_ms(lambda layout=layout, backward=backward: backward(layout))
            name = f"{layout.lane_channels}x{layout.warps}/{layout.min_blocks} chunks {layout.cut.chunks}"
            both = best[save] + ms
            show(f"backward {name} save {save}", ms, f"with forward {both:.3f} ms x{peer_both / both:.2f}")
        del result, backward


def main() -> None:
    shapes = list(BARS)[::2] if "--quick" in sys.argv else list(BARS)
    for shape in shapes:
        sweep(shape)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
