"""Whole Mamba layers, training steps and decode steps on a GPU, as rows of experiments/results/mamba_model.csv.

    python experiments/mamba_model/bench.py FILE.csv [COMMIT] [layer] [train] [decode] [generate]

Needs a GPU; without names it runs all parts.

Parameters fp32 under bf16 autocast in training, backward in the calling thread as `seqmodels train` runs it; decode
runs as `seqmodels.inference` runs it, one CUDA graph a step. Times are CUDA-event times (20th, 50th, 80th percentile).
Peer times: mamba_ssm 2.3.2 on the same kind of GPU.
"""

from __future__ import annotations

import csv
import datetime
import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from triton.testing import do_bench

from seqmodels.backbones.stack import Stack
from seqmodels.data.record import Batch
from seqmodels.heads.base import LossSums
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference.generate import generate
from seqmodels.inference.graph import cuda_graph, decoding_copy
from seqmodels.inference.sampling import Sampling
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.state import state_tensors, updating_in_place
from seqmodels.model import SequenceModel
from seqmodels.training.graphed import GraphedLoss

# (d_model, B, L): mamba_ssm's (forward, forward + backward) ms of one layer
LAYERS = {
    (1024, 8, 2048): (1.014, 4.314),
    (256, 1, 1_048_576): (15.36, 85.52),
    (256, 8, 16_384): (1.875, 8.006),
    (512, 4, 16_384): (1.992, 8.279),
}
# (d_model, n_layers, B, L): mamba_ssm's ms and GiB of one training step, vocabulary 16
TRAINING = {
    (256, 8, 1, 1_048_576): (755.0, 47.4),
    (256, 8, 8, 131_072): (587.0, 47.4),
    (128, 8, 1, 1_048_576): (402.0, 24.3),
    (768, 24, 8, 2048): (81.5, 6.9),
}
DECODE = {1: 1.237, 16: 1.233, 128: 1.475}  # batch: mamba_ssm's ms a step, 24 x 768, CUDA graph
COLUMNS = [
    "what", "mode", "recompute", "d_model", "n_layers", "B", "L", "dtype", "ms_p20", "ms_p50", "ms_p80", "tokens_per_s",
    "peak_gib", "peer_ms", "ratio", "gpu", "torch", "triton", "commit", "date",
]  # fmt: skip


def time_ms(call: Callable[[], Any], *, reps_ms: int = 400) -> tuple[float, float, float]:
    low, middle, high = do_bench(call, warmup=100, rep=reps_ms, quantiles=(0.2, 0.5, 0.8))  # type: ignore[misc]
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

    def __init__(self, layer: Mamba):
        super().__init__()
        self.layer = layer

    def forward(self, x_BLD: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return self.layer(x_BLD)[0]


def layer_rows() -> Iterator[dict[str, Any]]:
    for (d_model, B, L), (peer_forward, peer_both) in LAYERS.items():
        layer = Mamba(d_model).cuda()
        x = torch.randn(B, L, d_model, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        grad = torch.randn_like(x)

        def forward(layer=layer, x=x) -> torch.Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return layer(x)[0]

        leaves = [x, *layer.parameters()]

        def both(forward=forward, grad=grad, leaves=leaves) -> None:
            torch.autograd.grad(forward(), leaves, grad)

        shape = dict(what="layer", recompute=layer.recompute, d_model=d_model, n_layers=1, B=B, L=L)
        graphed = torch.cuda.make_graphed_callables(OutputAlone(layer), (x,))

        def both_graphed(graphed=graphed, x=x, grad=grad, leaves=leaves) -> None:
            torch.autograd.grad(graphed(x), leaves, grad)  # type: ignore[arg-type, call-overload]

        with torch.no_grad():
            yield shape | dict(mode="fwd", peer_ms=peer_forward, times=time_ms(forward), peak_gib=peak_gib(forward))
        yield shape | dict(mode="fwd+bwd", peer_ms=peer_both, times=time_ms(both), peak_gib=peak_gib(both))
        times = time_ms(both_graphed)
        yield shape | dict(mode="fwd+bwd, cuda graph", peer_ms=peer_both, times=times, peak_gib=peak_gib(both_graphed))
        del layer, x, grad, leaves, graphed
        torch.cuda.empty_cache()


# Kept for backward: everything; not what the scan reads; not the scan; the inputs of blocks alone (checkpoint_blocks)
RECOMPUTE = ("nothing", "inputs", "all", "blocks")


def language_model(d_model: int, n_layers: int, vocab_size: int, recompute: str = "nothing") -> SequenceModel:
    backbone = Stack(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        layer=partial(Mamba, recompute="nothing" if recompute == "blocks" else recompute),
        checkpoint_blocks=recompute == "blocks",
    )
    return SequenceModel(backbone, NextTokenHead(d_model=d_model, vocab_size=backbone.embedding.num_embeddings)).cuda()


def training_rows() -> Iterator[dict[str, Any]]:
    for (d_model, n_layers, B, L), (peer_ms, _peer_gib) in TRAINING.items():
        for recompute in RECOMPUTE:
            torch.manual_seed(0)
            model = language_model(d_model, n_layers, 16, recompute)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
            ids = torch.randint(0, 16, (B, L + 1), device="cuda")
            lengths = torch.full((B,), L, device="cuda")
            batch = Batch(ids[:, :-1], lengths, tuple(str(row) for row in range(B)), target_ids_BL=ids[:, 1:])

            def step(losses: Callable[[Batch], LossSums], optimizer=optimizer, batch=batch) -> None:
                with torch.autocast("cuda", torch.bfloat16):
                    sums = losses(batch)
                sums.mean_loss().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

            def launched(batch: Batch, model=model) -> LossSums:
                return model.head.loss(model(batch.input_ids_BL)[0], batch)

            shape = dict(what="training step", recompute=recompute, d_model=d_model, n_layers=n_layers, B=B, L=L)
            run: Any = partial(step, launched)
            times = time_ms(run, reps_ms=1500)
            yield shape | dict(mode="fwd+bwd+adamw", peer_ms=peer_ms, times=times, peak_gib=peak_gib(run))
            if recompute == "nothing" and L < 100_000:  # what a step takes when the GPU does not wait for Python
                torch.cuda.empty_cache()
                run = partial(step, GraphedLoss(model))
                times, mode = time_ms(run, reps_ms=1500), "fwd+bwd+adamw, cuda graph"
                peak = torch.cuda.memory_reserved() / 2**30  # a graph's own memory counts as reserved alone
                yield shape | dict(mode=mode, peer_ms=peer_ms, times=times, peak_gib=peak)
            del run, launched, step, model, optimizer, batch, ids
            gc.collect()  # a graph's memory goes with its last reference, and modules refer to one another
            torch.cuda.empty_cache()


def decode_rows() -> Iterator[dict[str, Any]]:
    """One step of the 130M model in bf16, the states updated in place, launched as one graph; without sampling."""
    model = decoding_copy(language_model(768, 24, 50_280), torch.bfloat16)
    for B, peer_ms in DECODE.items():
        ids_B1 = torch.zeros(B, 1, dtype=torch.int64, device="cuda")
        with torch.no_grad(), updating_in_place():
            _, state = model(ids_B1)

            def step(ids_B1=ids_B1, state=state) -> None:
                model(ids_B1, state)

            replay = cuda_graph(step, list(state_tensors(state)))
            shape = dict(what="decode step", mode="cuda graph", d_model=768, n_layers=24, B=B, L=1)
            yield shape | dict(peer_ms=peer_ms, times=time_ms(replay), peak_gib=peak_gib(replay))


def generate_rows() -> Iterator[dict[str, Any]]:
    """The same through `generate`: sampling and log-likelihoods included, tokens on the host at the end."""
    model = decoding_copy(language_model(768, 24, 50_280), torch.bfloat16)
    for B, peer_ms in DECODE.items():
        generate(model, 8, start_id=0, batch_size=B, chunk_len=8)

        def run(B=B) -> None:
            generate(model, 512, start_id=0, batch_size=B, sampling=Sampling(top_k=50), chunk_len=512)

        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        times = []
        for _ in range(3):
            begin.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 512)
        times.sort()
        shape = dict(what="generate, per token", mode="top-k 50", d_model=768, n_layers=24, B=B, L=1)
        yield shape | dict(peer_ms=peer_ms, times=tuple(times), peak_gib=peak_gib(run))


def one_thread(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    with torch.autograd.set_multithreading_enabled(False):
        yield from rows


def main() -> None:
    import triton

    path, *words = sys.argv[1:]
    parts = {"layer": layer_rows, "train": training_rows, "decode": decode_rows, "generate": generate_rows}
    chosen = [word for word in words if word in parts] or list(parts)
    commit = next((word for word in words if word not in parts), "unknown")
    new = not Path(path).exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        for part in chosen:
            for row in one_thread(parts[part]()):
                low, middle, high = row.pop("times")
                row |= dict(
                    dtype="bf16", ms_p20=round(low, 4), ms_p50=round(middle, 4), ms_p80=round(high, 4),
                    tokens_per_s=round(row["B"] * row["L"] / middle * 1e3), peak_gib=round(row["peak_gib"], 2),
                    ratio=round(row["peer_ms"] / middle, 2), gpu=torch.cuda.get_device_name(), torch=torch.__version__,
                    triton=triton.__version__, commit=commit, date=datetime.date.today().isoformat(),
                )  # fmt: skip
                writer.writerow(row)
                file.flush()
                print(
                    {
                        key: row.get(key)
                        for key in ("what", "mode", "recompute", "d_model", "B", "L", "ms_p50", "peak_gib", "ratio")
                    },
                    flush=True,
                )


if __name__ == "__main__":
    main()
