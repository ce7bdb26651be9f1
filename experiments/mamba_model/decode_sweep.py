"""Times the cuts of the decode step's kernels on a GPU, at the sizes of the 130M model, and prints the best.

    python experiments/mamba_model/decode_sweep.py [compare] [step] [kernels] [pairs] [few] [four] [draws]

`compare` holds the kernels against plain PyTorch; `step` times the whole model's step, `kernels` its kernels by name;
`few` and `four` time the three kernels of a whole block for 1 and 4 rows, 24 layers in one graph; `pairs` the two
between cuBLAS's projections for many rows; `draws` what `generate` does besides the step. Each layer has its own
weights, so that none comes from the L2 cache by luck.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from seqkernels import nvrtc
from seqkernels.mamba_step import reference
from seqkernels.mamba_step.cuda import launch
from seqkernels.mamba_step.cuda.launch import Convolve, Projection, Scan, Sizes
from torch import Tensor

SIZE = Sizes(768, 1536, 16, 48, 4)
LAYERS = 24
BF16 = torch.bfloat16
device = "cuda"


def layer(B: int) -> dict[str, Tensor]:
    D, E, N, R, W = SIZE

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(*shape, device=device)).to(dtype)

    return {
        "x": normal(B, D, dtype=BF16), "residual": normal(B, D), "norm_weight": 1 + 0.1 * normal(D),
        "in_proj": normal(2 * E, D, scale=D**-0.5, dtype=BF16), "xz": normal(B, 2 * E, dtype=BF16),
        "conv_weight": normal(E, W, scale=0.5), "conv_bias": normal(E), "conv_state": normal(B, W - 1, E),
        "x_proj": normal(R + 2 * N, E, scale=E**-0.5, dtype=BF16), "dt_bias": normal(E) - 2,
        "dt_proj": normal(E, R, scale=R**-0.5, dtype=BF16), "a": -1 - 3 * normal(E, N).abs(), "d": normal(E),
        "state": normal(B, E, N), "out_proj": normal(D, E, scale=E**-0.5, dtype=BF16),
    }  # fmt: skip


def scan_weights(t: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return t["dt_proj"], t["dt_bias"], t["a"], t["d"]


def layers(B: int) -> list[dict[str, Tensor]]:
    return [layer(B) for _ in range(LAYERS if device == "cuda" else 1)]


def compile_in_parallel(parts: list[Callable[[], None]]) -> None:
    """Runs the parts on the CPU without kernels, to learn which these are, and compiles them on every core."""
    global device
    wanted: set[tuple[Path, tuple[tuple[str, int], ...]]] = set()

    class Recorded:
        def launch(self, *_grid: Any, **_arguments: Any) -> None:
            pass

    def record(source: Path, entry: str, args: str, defines: dict[str, int], index: int) -> Recorded:
        wanted.add((source, tuple(defines.items())))
        return Recorded()

    real, nvrtc.kernel, device = nvrtc.kernel, record, "cpu"
    for part in parts:
        part()
    nvrtc.kernel, device = real, "cuda"
    with multiprocessing.get_context("fork").Pool(min(16, os.cpu_count() or 1)) as pool:
        pool.map(_compile, sorted(wanted), chunksize=1)


def _compile(wanted: tuple[Path, tuple[tuple[str, int], ...]]) -> None:
    with contextlib.suppress(nvrtc.CompileError):  # the part that asks for it will say so
        nvrtc.cached_cubin(wanted[0], dict(wanted[1]), 90)


def graph_us(call: Callable[[], Any], repeat: int = 30) -> float:
    """Median time of a graph of `call` in microseconds."""
    if device == "cpu":
        call()
        return 0.0
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
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


def chain(
    t: dict[str, Tensor], x: Tensor, cut_in: Projection, cut_scan: Scan, cut_out: Projection, parts: str = "all"
) -> Tensor:
    made = launch.project_in(
        x, t["residual"], t["norm_weight"], 1e-5, t["in_proj"], None, t["conv_weight"], t["conv_bias"], t["x_proj"],
        t["conv_state"], t["conv_state"], SIZE, cut_in, True,
    )  # fmt: skip
    if parts == "in":
        return x
    weights = scan_weights(t)
    y = launch.scan(made.signal, made.gate, made.partial, t["state"], t["state"], *weights, SIZE, cut_scan, False)
    return x if parts == "in+scan" else launch.project_out(y, t["out_proj"], None, SIZE, cut_out)


def compare() -> None:
    for B in (1, 2, 4):
        t = layer(B)
        exact = {name: tensor.double() for name, tensor in t.items()}
        total = exact["x"] + exact["residual"]
        xz = torch.nn.functional.rms_norm(total, (SIZE.D,), exact["norm_weight"], 1e-5) @ exact["in_proj"].T
        names = ("conv_state", "state", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "a", "d")
        arguments: Any = [exact[name] for name in names]
        y, *states = reference.step(xz, *arguments, inplace=False)
        out = chain(t, t["x"], Projection(8, 3), Scan(16, 16, 1), Projection(8, 1), "all")
        pairs = zip(("out", "conv", "ssm"), (out, t["conv_state"], t["state"]), (y @ exact["out_proj"].T, *states))
        print("block", B, {n: f"{float((a - e).norm() / e.norm()):.1e}" for n, a, e in pairs})
    for B in (1, 16, 128, 131):
        t = layer(B)
        exact = {name: tensor.double() for name, tensor in t.items()}
        arguments = [exact[name] for name in names]
        expected = reference.step(exact["xz"], *arguments, inplace=False)
        plan = launch.plan_step(SIZE, B, BF16)
        assert plan is not None
        y = between(t, *plan)
        pairs = zip(("y", "conv", "ssm"), (y, t["conv_state"], t["state"]), expected)
        print("between", B, {n: f"{float((a - e).norm() / e.norm()):.1e}" for n, a, e in pairs})


def between(t: dict[str, Tensor], convolve: Convolve, scan: Scan) -> Tensor:
    state = t["conv_state"]
    signal, partial = launch.convolve(
        t["xz"], state, state, t["conv_weight"], t["conv_bias"], t["x_proj"], SIZE, convolve
    )
    weights = scan_weights(t)
    return launch.scan(signal, t["xz"][:, SIZE.E :], partial, t["state"], t["state"], *weights, SIZE, scan, True)


def report(what: str, rows: list[tuple[float, Any]]) -> None:
    if device == "cpu":
        return
    print(f"== {what}: us a layer")
    for us, cut in sorted(rows, key=lambda row: row[0])[:10]:
        print(f"   {us / LAYERS:7.2f}  {cut}")
    sys.stdout.flush()


def tried(call: Callable[[], Any], rows: list[tuple[float, Any]], cut: Any) -> None:
    try:
        rows.append((graph_us(call), cut))
    except RuntimeError as error:
        print("   refused", cut, str(error).splitlines()[-1][:120])


FIRST = (Projection(8, 3), Scan(32, 16, 1), Projection(8, 1))


def few_rows(B: int, cuts: list[tuple[Projection, Scan, Projection]]) -> None:
    weights = layers(B)

    def run(cut_in: Projection, cut_scan: Scan, cut_out: Projection, parts: str = "all") -> None:
        x = weights[0]["x"]
        for t in weights:
            x = chain(t, x, cut_in, cut_scan, cut_out, parts)

    for parts in ("in", "in+scan", "all"):
        us = graph_us(lambda parts=parts: run(*FIRST, parts)) / LAYERS
        if device == "cuda":
            print(f"B {B} {parts}: {us:.2f} us a layer")
    rows: list[tuple[float, Any]] = []
    for cut in cuts:
        tried(lambda cut=cut: run(*cut), rows, cut)
    report(f"block, B {B}", rows)


def few() -> None:
    ins = [Projection(*c) for c in ((4, 6), (12, 2), (16, 2), (6, 4))]
    scans = [Scan(16, 16, 1), Scan(64, 16, 1), Scan(64, 8, 1), Scan(48, 16, 1), Scan(96, 8, 1), Scan(32, 8, 1)]
    outs = [Projection(*c) for c in ((6, 1), (4, 1), (12, 1))]
    cuts = [FIRST, *((i, *FIRST[1:]) for i in ins), *((FIRST[0], s, FIRST[2]) for s in scans)]
    few_rows(1, [*cuts, *((*FIRST[:2], o) for o in outs)])


def four() -> None:
    ins = [Projection(*c) for c in ((8, 3), (8, 2), (8, 1), (4, 2), (16, 1))]
    few_rows(4, [(i, s, FIRST[2]) for i in ins for s in (Scan(16, 16, 1), Scan(16, 16, 4), Scan(32, 8, 2))])


def pairs() -> None:
    """The two kernels between the projections, one behind the other, and each alone."""
    for B in (128, 16):
        weights = layers(B)
        rows: list[tuple[float, Any]] = []
        convolves = [Convolve(128, 8, 4), Convolve(128, 16, 4), Convolve(128, 8, 2), Convolve(64, 8, 4)]
        convolves += [cut._replace(tensor_cores=True) for cut in convolves]
        convolves += [Convolve(64, 16, 4), Convolve(64, 8, 2), Convolve(256, 8, 4), Convolve(256, 16, 8)]
        scans = [Scan(128, 2, 4), Scan(64, 4, 8), Scan(64, 4, 4), Scan(64, 2, 4), Scan(128, 2, 2)]
        first = convolves[0], scans[0]
        for cut in [*((c, first[1]) for c in convolves), *((first[0], s) for s in scans[1:])]:
            if cut[1].shared_bytes(SIZE, SIZE.E // cut[0].channels, 2) > 48 * 1024:
                cut = (cut[0], Scan(64, 4, 4))

            def run(cut=cut, weights=weights) -> None:
                for t in weights:
                    between(t, *cut)

            tried(run, rows, cut)
        report(f"convolve and scan, B {B}", rows)
        rows = []
        for cut in convolves:

            def run_first(cut=cut, weights=weights) -> None:
                for t in weights:
                    s = t["conv_state"]
                    launch.convolve(t["xz"], s, s, t["conv_weight"], t["conv_bias"], t["x_proj"], SIZE, cut)

            tried(run_first, rows, cut)
        report(f"convolve alone, B {B}", rows)


def step() -> None:
    from bench import decode_rows

    for row in decode_rows():
        print({key: row[key] for key in ("B", "times", "peer_ms")}, flush=True)


def kernels() -> None:
    from bench import language_model
    from torch.profiler import ProfilerActivity, profile

    from seqmodels.inference.graph import cuda_graph, decoding_copy
    from seqmodels.layers.state import state_tensors, updating_in_place

    model = decoding_copy(language_model(768, 24, 50_280), BF16)
    for B in (1, 128):
        ids_B1 = torch.zeros(B, 1, dtype=torch.int64, device="cuda")
        with torch.no_grad(), updating_in_place():
            _, state = model(ids_B1)
            replay = cuda_graph(lambda ids=ids_B1, state=state: model(ids, state), list(state_tensors(state)))
            replay()
            with profile(activities=[ProfilerActivity.CUDA]) as profiled:
                replay()
                torch.cuda.synchronize()
        rows = [e for e in profiled.key_averages() if e.self_device_time_total]
        print(f"== kernels, B {B}: {sum(e.self_device_time_total for e in rows):.0f} us")
        for e in sorted(rows, key=lambda e: -e.self_device_time_total)[:12]:
            print(f"   {e.self_device_time_total:7.1f} us x{e.count:4d}  {e.key[:90]}", flush=True)


def draws() -> None:
    from seqmodels.inference.sampling import Sampling

    for B in (1, 128):
        logits, uniform = torch.randn(B, 50_280, device="cuda"), torch.rand(B, device="cuda", dtype=torch.float64)
        for sampling in (Sampling(top_k=50), Sampling(), Sampling(top_k=50, top_p=0.9), Sampling(temperature=0)):
            us = graph_us(lambda s=sampling, x=logits, u=uniform: s.pick(x, u))
            print(f"draw, B {B}, {sampling}: {us:.0f} us")
        print(f"log-softmax, B {B}: {graph_us(lambda x=logits: torch.log_softmax(x, -1)):.0f} us", flush=True)


def main() -> None:
    parts = {f.__name__: f for f in (compare, step, kernels, pairs, few, four, draws)}
    chosen = sys.argv[1:] or list(parts)
    torch.manual_seed(0)
    begin = time.perf_counter()
    compile_in_parallel([parts[name] for name in chosen if name in ("few", "four", "pairs")])
    print(f"-- compiled: {time.perf_counter() - begin:.0f} s so far", flush=True)
    for name in chosen:
        try:
            parts[name]()
        except Exception:
            traceback.print_exc()
        print(f"-- {name}: {time.perf_counter() - begin:.0f} s so far", flush=True)


if __name__ == "__main__":
    main()
