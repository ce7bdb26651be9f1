"""Forward and forward+backward of the public op at every shape of the bars, as rows of experiments/results/*.csv.

    python experiments/selective_scan/bars.py FILE.csv [COMMIT]        needs a GPU; autograd and allocations included

Times are CUDA-event times (20th, 50th, 80th percentile), bf16, N = 16, with z, D, bias and softplus; backward in the
calling thread, as in `seqmodels train`.
"""

from __future__ import annotations

import csv
import datetime
import sys
from pathlib import Path

import torch
import triton
from seqkernels import selective_scan
from seqkernels.selective_scan.spec import SPEC
from sweep import BARS
from triton.testing import do_bench

COLUMNS = (
    *("op", "implementation", "mode", "B", "E", "L", "N", "dtype", "ms_p20", "ms_p50", "ms_p80", "gelems_per_s"),
    *("bound_share", "peak_mib", "gpu", "driver", "torch", "triton", "commit", "date"),
)


def driver_version() -> str:
    path = Path("/proc/driver/nvidia/version")
    words = path.read_text().split() if path.exists() else []
    return next((word for word in words if "." in word and word[0].isdigit()), "unknown")


def measure(shape: dict[str, int], mode: str) -> dict[str, object]:
    sample = SPEC.bench_sample(shape, torch.device("cuda"), torch.bfloat16)
    leaves = {n: t.detach().requires_grad_(mode != "fwd") for n, t in sample.tensors.items()}
    grad = torch.randn_like(leaves["x_BLE"].detach())

    def call() -> None:
        y = selective_scan(**leaves, **sample.options, implementation="cuda")
        assert isinstance(y, torch.Tensor)
        if mode != "fwd":
            torch.autograd.grad(y, list(leaves.values()), grad)

    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    low, middle, high = do_bench(call, warmup=20, rep=100, quantiles=(0.2, 0.5, 0.8))  # type: ignore[misc]
    assert SPEC.bound_ms is not None
    return {
        "op": SPEC.name, "implementation": "cuda", "mode": mode, **shape, "dtype": "bf16",
        "ms_p20": round(low, 4), "ms_p50": round(middle, 4), "ms_p80": round(high, 4),
        "gelems_per_s": round(SPEC.elements(shape) / middle / 1e6, 1),
        "bound_share": round(SPEC.bound_ms(shape, torch.bfloat16, mode) / middle, 3), "peak_mib": peak >> 20,
        "gpu": torch.cuda.get_device_name(), "driver": driver_version(), "torch": torch.__version__,
        "triton": triton.__version__, "commit": (sys.argv[2:] or ["unknown"])[0],
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def main() -> None:
    path = Path(sys.argv[1])
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as file, torch.autograd.set_multithreading_enabled(False):
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for (B, E, L), peer in BARS.items():
            for mode, peer_ms in zip(("fwd", "fwd+bwd"), peer):
                row = measure({"B": B, "E": E, "L": L, "N": 16}, mode)
                writer.writerow(row)
                file.flush()
                ms = float(str(row["ms_p50"]))
                ratio = f"x{peer_ms / ms:.2f} of mamba_ssm"
                print(f"{(B, E, L)!s:22s} {mode:8s} {ms:8.3f} ms  {ratio}  {row['peak_mib']} MiB", flush=True)
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
