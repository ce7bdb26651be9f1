"""Mamba-2 layers and the SSD op on a GPU, as rows of experiments/results/ssd.csv.

    python experiments/ssd/bench.py FILE.csv [COMMIT] [first] [layer] [op] [decode] [profile]

Needs a GPU; without names it runs all parts. Parameters fp32 under bf16 autocast, backward in the calling thread, as
`seqmodels train` has both. Times are CUDA-event times (20th, 50th, 80th percentile). "first" is the first forward and
backward of the process at each shape, compilation included (clear Triton's cache for an honest one). "profile" prints
the time of each kernel and writes no row. Peer times: mamba_ssm 2.3.2 on the same kind of GPU, d_state 128, head dim
64.
"""

from __future__ import annotations

import csv
import datetime
import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from seqkernels import gated_rms_norm, ssd
from seqkernels.ssd.spec import sample
from triton.testing import do_bench

from seqmodels.backbones.stack import Stack
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference.graph import cuda_graph, decoding_copy
from seqmodels.layers.mamba2 import Mamba2
from seqmodels.layers.state import assign_state, state_tensors, updating_in_place
from seqmodels.model import SequenceModel

# (d_model, B, L): mamba_ssm's forward + backward ms of one layer
LAYERS = {(1024, 8, 2048): 5.150, (512, 4, 16_384): 5.506, (256, 1, 1_048_576): 53.24}
COLUMNS = [
    "what", "mode", "d_model", "B", "L", "H", "P", "N", "dtype", "ms_p20", "ms_p50", "ms_p80", "tokens_per_s",
    "peak_gib", "peer_ms", "ratio", "gpu", "torch", "triton", "commit", "date",
]  # fmt: skip


def time_ms(call: Callable[[], Any]) -> tuple[float, float, float]:
    low, middle, high = do_bench(call, warmup=100, rep=500, quantiles=(0.2, 0.5, 0.8))  # type: ignore[misc]
    return low, middle, high


def peak_gib(call: Callable[[], Any]) -> float:
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30


class OutputAlone(torch.nn.Module):
    """A layer under autocast, without its state."""

    def __init__(self, layer: Mamba2):
        super().__init__()
        self.layer = layer

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return self.layer(x_BLD)[0]


def layer_calls(d_model: int, B: int, L: int, *, graphed: bool = False) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward, and forward with backward, of one layer; launched kernel by kernel or as CUDA graphs."""
    torch.manual_seed(0)
    layer = Mamba2(d_model).cuda()
    x = torch.randn(B, L, d_model, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad, leaves = torch.randn_like(x), [x, *layer.parameters()]
    run: Callable[..., torch.Tensor] = OutputAlone(layer)
    if graphed:
        run = torch.cuda.make_graphed_callables(run, (x,))  # type: ignore[assignment, arg-type]
    return torch.no_grad()(lambda: run(x)), lambda: torch.autograd.grad(run(x), leaves, grad)


def sizes(d_model: int) -> dict[str, int]:
    return {"d_model": d_model, "H": 2 * d_model // 64, "P": 64, "N": 128}


def first_rows() -> Iterator[dict[str, Any]]:
    for d_model, B, L in LAYERS:
        _, both = layer_calls(d_model, B, L)
        begin = time.perf_counter()
        both()
        torch.cuda.synchronize()
        elapsed = (time.perf_counter() - begin) * 1e3
        yield {"what": "layer, first call", "mode": "fwd+bwd", **sizes(d_model), "B": B, "L": L, "times": [elapsed] * 3}


def layer_rows() -> Iterator[dict[str, Any]]:
    for (d_model, B, L), peer in LAYERS.items():
        forward, both = layer_calls(d_model, B, L)
        shape = {"what": "layer", **sizes(d_model), "B": B, "L": L}
        yield shape | {"mode": "fwd", "times": time_ms(forward), "peak_gib": peak_gib(forward)}
        yield shape | {"mode": "fwd+bwd", "times": time_ms(both), "peak_gib": peak_gib(both), "peer_ms": peer}
        del forward, both
        torch.cuda.empty_cache()
        if L < 100_000:  # what a layer takes when the GPU does not wait for Python
            _, both = layer_calls(d_model, B, L, graphed=True)
            yield shape | {"mode": "fwd+bwd, cuda graph", "times": time_ms(both), "peer_ms": peer}
            del both
            gc.collect()
            torch.cuda.empty_cache()


def op_rows() -> Iterator[dict[str, Any]]:
    """The recurrence and the gated norm alone, on dense inputs."""
    for d_model, B, L in LAYERS:
        H, P, N = (sizes(d_model)[letter] for letter in "HPN")
        shape = {**sizes(d_model), "B": B, "L": L}
        call = sample("bench", (B, L, H, P, N), torch.device("cuda"), torch.bfloat16, large=True)
        yield from pair_of_rows("ssd", ssd, call.tensors, call.options, shape)
        x, z = (torch.randn(B, L, H * P, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        weight = torch.ones(H * P, device="cuda")
        yield from pair_of_rows("gated_rms_norm", gated_rms_norm, {"x": x, "z": z, "weight": weight}, {}, shape)
        torch.cuda.empty_cache()


def pair_of_rows(
    name: str, op: Callable[..., Any], tensors: dict[str, torch.Tensor], options: dict[str, Any], shape: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    leaves = {key: tensor.requires_grad_() for key, tensor in tensors.items()}

    def forward() -> torch.Tensor:
        return op(**leaves, **options)

    above = torch.randn_like(forward())

    def both() -> None:
        torch.autograd.grad(forward(), list(leaves.values()), above)

    for mode, run in (("fwd", torch.no_grad()(forward)), ("fwd+bwd", both)):
        yield {"what": name, "mode": mode, **shape, "times": time_ms(run), "peak_gib": peak_gib(run)}


def decode_rows() -> Iterator[dict[str, Any]]:
    """One step of 24 x 768 in bf16, the states updated in place, launched as one graph; without sampling."""
    backbone = Stack(vocab_size=50_280, d_model=768, n_layers=24, layer=Mamba2)
    head = NextTokenHead(d_model=768, vocab_size=backbone.embedding.num_embeddings)
    model = decoding_copy(SequenceModel(backbone, head).cuda(), torch.bfloat16)
    for B in (1, 16, 128):
        ids_B1 = torch.zeros(B, 1, dtype=torch.int64, device="cuda")
        with torch.no_grad(), updating_in_place():
            _, state = model(ids_B1)
            assign_state(state, model(ids_B1, state)[1])  # compiles

            def step(ids_B1=ids_B1, state=state) -> None:
                assign_state(state, model(ids_B1, state)[1])

            replay = cuda_graph(step, list(state_tensors(state)))
            shape = {"what": "decode step, 24 layers", "mode": "cuda graph", **sizes(768), "B": B, "L": 1}
            yield shape | {"times": time_ms(replay), "peak_gib": peak_gib(replay)}


def profile() -> None:
    """Time of every kernel of one forward and backward, per shape."""
    from torch.profiler import ProfilerActivity, profile

    for d_model, B, L in LAYERS:
        _, both = layer_calls(d_model, B, L)
        for _ in range(3):
            both()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        both()
        launched = (time.perf_counter() - begin) * 1e3
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as record:
            for _ in range(5):
                both()
            torch.cuda.synchronize()
        print(f"\nd_model {d_model}, B {B}, L {L}: the host needs {launched:.2f} ms to launch forward and backward")
        print("   ms per call  calls  kernel")
        events = sorted(record.key_averages(), key=lambda event: -event.self_device_time_total)
        for event in events[:28]:
            print(f"  {event.self_device_time_total / 5e3:12.4f} {event.count / 5:6.1f}  {event.key[:100]}", flush=True)
        del both
        torch.cuda.empty_cache()


def one_thread(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with torch.autograd.set_multithreading_enabled(False):
        yield from rows


def main() -> None:
    import triton

    path, *words = sys.argv[1:]
    parts = {"first": first_rows, "layer": layer_rows, "op": op_rows, "decode": decode_rows}
    names = (*parts, "profile")
    chosen = [word for word in words if word in names] or names
    commit = next((word for word in words if word not in names), "unknown")
    new = not Path(path).exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for part in chosen:
            if part == "profile":
                profile()
                continue
            for row in one_thread(parts[part]()):
                low, middle, high = row.pop("times")
                peer = row.get("peer_ms")
                row |= {
                    "dtype": "bf16", "ms_p20": round(low, 4), "ms_p50": round(middle, 4), "ms_p80": round(high, 4),
                    "tokens_per_s": round(row["B"] * row["L"] / middle * 1e3),
                    "peak_gib": round(row["peak_gib"], 2) if "peak_gib" in row else "",
                    "ratio": round(peer / middle, 2) if peer else "",
                    "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
                    "commit": commit, "date": datetime.date.today().isoformat(),
                }  # fmt: skip
                writer.writerow(row)
                file.flush()
                shown = ("what", "mode", "d_model", "B", "L", "ms_p50", "peak_gib", "ratio")
                print({key: row.get(key) for key in shown}, flush=True)


if __name__ == "__main__":
    main()
