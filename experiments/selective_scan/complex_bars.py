"""Times of the scan with complex states beside the real one at the same sizes, as rows of experiments/results/*.csv.

    python experiments/selective_scan/complex_bars.py FILE.csv [COMMIT] [--seconds S] [--layouts]     needs a GPU

CUDA-event times (20th, 50th, 80th percentile), bf16, N = 16, with z, D, bias and softplus, backward in the calling
thread; each row is written as it is measured. --layouts times the kernels alone under other layouts, for the thresholds
in plan.py.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import time
from pathlib import Path

import torch
import triton
from bars import driver_version
from seqkernels import selective_scan
from seqkernels.selective_scan.cuda import complex_launch, plan
from seqkernels.selective_scan.spec import ALL, sample
from triton.testing import do_bench

SHAPES = ((256, 512, 1024), (16, 512, 16384), (2, 512, 131072), (1, 512, 1048576))  # B, E, L
N = 16
COLUMNS = (
    *("op", "states", "mode", "B", "E", "L", "N", "dtype", "ms_p20", "ms_p50", "ms_p80", "gelems_per_s", "of_real"),
    *("peak_mib", "gpu", "driver", "torch", "triton", "commit", "date"),
)


def inputs(B: int, E: int, L: int, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    options = ALL | {"complex"} if kind == "complex" else ALL
    call = sample("bench", (B, L, E, N), torch.device("cuda"), torch.bfloat16, options=options, large=True)
    return call.tensors, call.options


def measure(B: int, E: int, L: int, kind: str, mode: str) -> dict[str, object]:
    tensors, options = inputs(B, E, L, kind)
    leaves = {name: tensor.detach().requires_grad_(mode != "fwd") for name, tensor in tensors.items()}
    grad = torch.randn_like(leaves["x_BLE"].detach())

    def call() -> None:
        y = selective_scan(**leaves, **options, implementation="cuda")  # type: ignore[arg-type]
        if mode != "fwd":
            torch.autograd.grad(y, list(leaves.values()), grad)

    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    low, middle, high = do_bench(call, warmup=20, rep=200, quantiles=(0.2, 0.5, 0.8))  # type: ignore[misc]
    return {
        "op": "selective_scan", "states": kind, "mode": mode, "B": B, "E": E, "L": L, "N": N, "dtype": "bf16",
        "ms_p20": round(low, 4), "ms_p50": round(middle, 4), "ms_p80": round(high, 4),
        "gelems_per_s": round(B * E * L / middle / 1e6, 1), "peak_mib": peak >> 20,
    }  # fmt: skip


def bars(path: Path, commit: str, until: float) -> None:
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "gpu": torch.cuda.get_device_name(), "driver": driver_version(), "torch": torch.__version__,
        "triton": triton.__version__, "commit": commit, "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    with path.open("a", newline="") as file, torch.autograd.set_multithreading_enabled(False):
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for B, E, L in SHAPES:
            for mode in ("fwd", "fwd+bwd"):
                real: float | None = None
                for kind in ("real", "complex"):
                    if time.monotonic() > until:
                        return
                    row = measure(B, E, L, kind, mode)
                    ms = float(str(row["ms_p50"]))
                    real = real or ms
                    writer.writerow(row | {"of_real": round(ms / real, 2)} | facts)
                    file.flush()
                    print(f"{(B, E, L)!s:20s} {mode:8s} {kind:8s} {ms:9.3f} ms  x{ms / real:.2f}  "
                          f"{row['gelems_per_s']} G el/s  {row['peak_mib']} MiB", flush=True)  # fmt: skip
                    torch.cuda.empty_cache()


def candidates(size: plan.Size) -> tuple[list[plan.Complex], list[plan.Complex]]:
    """Layouts to compare: (forward, backward), the plan's own first."""
    lanes, per_lane = 4, 4
    forward, backward = [plan.complex_forward(size, N)], [plan.complex_backward(size, N)]
    cuts = {cut: None for chunks in (1, 2, 4, 8, 16, 33, 66, 132) for cut in [plan.cut_into(size, chunks)]}
    for cut in cuts:
        slots = cut.slots * size.channels
        if slots < 2**12 or (cut.chunks > 1 and not 2**13 <= slots <= 2**17):
            continue
        forward += [plan.Complex(lanes, per_lane, *shape, cut) for shape in ((4, 4), (4, 5), (8, 2))]
        backward += [plan.Complex(lanes, per_lane, *shape, cut) for shape in ((8, 2), (4, 3))]
    return list(dict.fromkeys(forward)), list(dict.fromkeys(backward))


def layouts(until: float) -> None:
    for B, E, L in SHAPES[:3]:
        tensors, _ = inputs(B, E, L, "complex")
        values = [tensors.get(name) for name in ("x_BLE", "dt_BLE", "a_EN", "b_BLGN", "c_BLGN", "d_E", "z_BLE")]
        values[3:5] = [value[:, :, None] for value in values[3:5] if value is not None]
        p = complex_launch.problem(*values, tensors["dt_bias_E"], True, None, None)  # type: ignore[arg-type]
        grad = torch.randn_like(p.x)
        states = complex_launch.run_forward(p, True)[2]
        forward, backward = candidates(p.size)
        for name, found in (("forward, saving", forward), ("backward", backward)):
            for layout in found:
                if time.monotonic() > until:
                    return

                run = functools.partial(complex_launch.run_forward, p, True, layout)
                if name == "backward":
                    run = functools.partial(complex_launch.run_backward, p, grad, None, states, layout)
                ms = do_bench(run, warmup=10, rep=60, return_mode="median")
                print(f"{(B, E, L)!s:20s} {name:16s} {ms:9.3f} ms  warps {layout.warps} x {layout.min_blocks}, "
                      f"{layout.cut.chunks} chunks of {layout.cut.chunk_length}", flush=True)  # fmt: skip
        del tensors, values, p, grad, states
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of the scan with complex states beside the real one.")
    parser.add_argument("csv", type=Path, help="rows are appended here")
    parser.add_argument("commit", nargs="?", default="unknown", help="for the commit column")
    parser.add_argument("--seconds", type=float, default=120.0, help="begin nothing after this many")
    parser.add_argument("--layouts", action="store_true", help="also time other layouts of the kernels")
    options = parser.parse_args()
    until = time.monotonic() + options.seconds
    bars(options.csv, options.commit, until)
    if options.layouts:
        layouts(until)


if __name__ == "__main__":
    main()
