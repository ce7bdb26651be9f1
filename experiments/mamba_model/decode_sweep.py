"""Times the cuts of the decode step's kernels on a GPU, at the sizes of the 130M model, and prints the best.

    python experiments/mamba_model/decode_sweep.py [compare] [chain] [scan] [convolve] [step]

`compare` holds the kernels against plain PyTorch; `scan` and `convolve` time one kernel each for many rows; `chain` times
the three kernels of a whole block for few rows, 24 layers in one graph; `step` times the whole model's step. Each layer has
its own weights, so that none comes from the L2 cache by luck.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from seqkernels.mamba_step import reference
from seqkernels.mamba_step.cuda import launch
from seqkernels.mamba_step.cuda.launch import Convolve, Projection, Scan, Sizes
from torch import Tensor

SIZE = Sizes(768, 1536, 16, 48, 4)
LAYERS = 24
BF16 = torch.bfloat16


def layer(B: int) -> dict[str, Tensor]:
    D, E, N, R, W = SIZE

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(*shape, device="cuda")).to(dtype)

    return {
        "x": normal(B, D, dtype=BF16), "residual": normal(B, D), "norm_weight": 1 + 0.1 * normal(D),
        "in_proj": normal(2 * E, D, scale=D**-0.5, dtype=BF16), "xz": normal(B, 2 * E, dtype=BF16),
        "conv_weight": normal(E, W, scale=0.5), "conv_bias": normal(E), "conv_state": normal(B, W - 1, E),
        "x_proj": normal(R + 2 * N, E, scale=E**-0.5, dtype=BF16), "dt_bias": normal(E) - 2,
        "dt_proj": normal(E, R, scale=R**-0.5, dtype=BF16), "a": -1 - 3 * normal(E, N).abs(), "d": normal(E),
        "state": normal(B, E, N), "out_proj": normal(D, E, scale=E**-0.5, dtype=BF16),
    }  # fmt: skip


def graph_us(call: Callable[[], Any], repeat: int = 30) -> float:
    """Median time of a graph of `call` in microseconds."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    for _ in range(5):
        graph.replay()
    times = []
    for _ in range(repeat):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def chain(t: dict[str, Tensor], x: Tensor, cut_in: Projection, cut_scan: Scan, cut_out: Projection, parts: str) -> Tensor:
    made = launch.project_in(
        x, t["residual"], t["norm_weight"], 1e-5, t["in_proj"], None, t["conv_weight"], t["conv_bias"], t["x_proj"],
        t["conv_state"], t["conv_state"], SIZE, cut_in,
    )  # fmt: skip
    if parts == "in":
        return x
    weights = (t[name] for name in ("dt_proj", "dt_bias", "a", "d"))
    y = launch.scan(made.signal, made.gate, made.partial, t["state"], t["state"], *weights, SIZE, cut_scan)
    return x if parts == "in+scan" else launch.project_out(y, t["out_proj"], None, SIZE, cut_out)


def compare() -> None:
    for B in (1, 2, 4):
        t = layer(B)
        exact = {name: tensor.double() for name, tensor in t.items()}
        total = exact["x"] + exact["residual"]
        xz = torch.nn.functional.rms_norm(total, (SIZE.D,), exact["norm_weight"], 1e-5) @ exact["in_proj"].T
        names = ("conv_state", "state", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "a", "d")
        y, *states = reference.step(xz, *(exact[name] for name in names), False)
        out = chain(t, t["x"], Projection(8, 3), Scan(16, 16, 1), Projection(8, 1), "all")
        pairs = zip(("out", "conv", "ssm"), (out, t["conv_state"], t["state"]), (y @ exact["out_proj"].T, *states))
        print("block", B, {n: f"{float((a - e).norm() / e.norm()):.1e}" for n, a, e in pairs})
    for B in (1, 16, 128, 131):
        t = layer(B)
        exact = {name: tensor.double() for name, tensor in t.items()}
        expected = reference.step(exact["xz"], *(exact[name] for name in names), False)
        y = between(t, launch.plan_convolve(SIZE, B), None)
        pairs = zip(("y", "conv", "ssm"), (y, t["conv_state"], t["state"]), expected)
        print("between", B, {n: f"{float((a - e).norm() / e.norm()):.1e}" for n, a, e in pairs})


def between(t: dict[str, Tensor], convolve: Convolve, scan: Scan | None) -> Tensor:
    state = t["conv_state"]
    signal, partial = launch.convolve(
        t["xz"], state, state, t["conv_weight"], t["conv_bias"], t["x_proj"], SIZE, convolve
    )
    scan = scan or launch.plan_scan(SIZE, len(signal), len(partial))
    weights = (t[name] for name in ("dt_proj", "dt_bias", "a", "d"))
    return launch.scan(signal, t["xz"][:, SIZE.E :], partial, t["state"], t["state"], *weights, SIZE, scan)


def report(what: str, rows: list[tuple[float, Any]]) -> None:
    print(f"== {what}: us a layer")
    for us, cut in sorted(rows, key=lambda row: row[0])[:8]:
        print(f"   {us / LAYERS:7.2f}  {cut}")
    sys.stdout.flush()


def tried(call: Callable[[], Any], rows: list[tuple[float, Any]], cut: Any) -> None:
    try:
        rows.append((graph_us(call), cut))
    except RuntimeError as error:
        print("   refused", cut, str(error).splitlines()[-1][:120])


def sweep_chain() -> None:
    for B in (1, 4):
        layers = [layer(B) for _ in range(LAYERS)]

        def run(cut_in: Projection, cut_scan: Scan, cut_out: Projection, parts: str, layers=layers) -> None:
            x = layers[0]["x"]
            for t in layers:
                x = chain(t, x, cut_in, cut_scan, cut_out, parts)

        first = (Projection(8, 3), Scan(16, 16, 1), Projection(8, 1))
        for parts in ("in", "in+scan", "all"):
            print(f"B {B} {parts}: {graph_us(lambda p=parts: run(*first, p)) / LAYERS:.2f} us a layer")
        rows: list[tuple[float, Any]] = []
        ins = [Projection(*c) for c in ((8, 3), (4, 6), (4, 4), (8, 2), (8, 1), (12, 2), (16, 1), (4, 2))]
        scans = [Scan(16, 16, 1), Scan(32, 16, 1), Scan(8, 16, 1), Scan(16, 8, 1), Scan(32, 8, 1), Scan(32, 4, 1)]
        scans += [Scan(16, 16, B), Scan(32, 8, B)] if B > 1 else []
        outs = [Projection(*c) for c in ((8, 1), (6, 1), (4, 1), (12, 1), (4, 2), (3, 2), (16, 1))]
        for cuts in [(i, *first[1:]) for i in ins] + [(first[0], s, first[2]) for s in scans] + [(*first[:2], o) for o in outs]:
            tried(lambda cuts=cuts, run=run: run(*cuts, "all"), rows, cuts)
        report(f"block, B {B}", rows)


def sweep_scan() -> None:
    for B in (16, 128):
        layers = [layer(B) for _ in range(LAYERS)]
        rows: list[tuple[float, Any]] = []
        for shares in (24, 12):
            partial = torch.randn(shares, B, SIZE.row_partial, device="cuda")
            signal = torch.randn(B, SIZE.E, device="cuda")
            for channels, lanes, many in (
                (64, 4, 8), (64, 4, 4), (64, 4, 2), (64, 4, 1), (32, 4, 8), (32, 4, 4), (96, 4, 8), (128, 4, 4),
                (32, 8, 4), (16, 16, 4), (64, 2, 4), (128, 2, 4), (48, 4, 8),
            ):  # fmt: skip
                cut = Scan(channels, lanes, many)

                def run(cut=cut, partial=partial, signal=signal, layers=layers) -> None:
                    for t in layers:
                        weights = (t[name] for name in ("dt_proj", "dt_bias", "a", "d"))
                        launch.scan(
                            signal, t["xz"][:, SIZE.E :], partial, t["state"], t["state"], *weights, SIZE, cut
                        )

                tried(run, rows, (cut, f"{shares} shares"))
        report(f"scan, B {B}", rows)


def sweep_convolve() -> None:
    for B in (16, 128):
        layers = [layer(B) for _ in range(LAYERS)]
        rows: list[tuple[float, Any]] = []
        for channels, many, threads in (
            (64, 16, 384), (64, 8, 384), (64, 8, 192), (64, 4, 192), (32, 16, 192), (32, 8, 192), (128, 8, 384),
            (128, 4, 384), (96, 8, 384),
        ):  # fmt: skip
            cut = Convolve(channels, many, threads)

            def run(cut=cut, layers=layers) -> None:
                for t in layers:
                    s = t["conv_state"]
                    launch.convolve(t["xz"], s, s, t["conv_weight"], t["conv_bias"], t["x_proj"], SIZE, cut)

            tried(run, rows, cut)
        report(f"convolve, B {B}", rows)


def whole_step() -> None:
    from bench import decode_rows

    for row in decode_rows():
        print({key: row[key] for key in ("B", "times", "peer_ms")}, flush=True)


def main() -> None:
    parts = dict(compare=compare, chain=sweep_chain, scan=sweep_scan, convolve=sweep_convolve, step=whole_step)
    torch.manual_seed(0)
    begin = time.perf_counter()
    for name in sys.argv[1:] or parts:
        parts[name]()
        print(f"-- {name}: {time.perf_counter() - begin:.0f} s so far", flush=True)


if __name__ == "__main__":
    main()
