"""Estimated memory beside measured peaks, as rows of experiments/results/describe_memory.csv.

    python experiments/describe/check_memory.py FILE.csv [COMMIT] [NAME...]

Needs a GPU. Training: the third step (forward, loss, backward, fused AdamW) under bf16 autocast. Reading: a prompt in
the pieces that generation reads, without gradients. Peaks are `torch.cuda.max_memory_allocated`; estimates are what
`seqmodels describe` prints for this GPU's memory. Names pick cases, by default all run.
"""

from __future__ import annotations

import csv
import datetime
import gc
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from seqmodels.data.record import Batch
from seqmodels.describe import GIB, TrainingMemory, describe
from seqmodels.inference.generate import PREFILL_CHUNK
from seqmodels.instantiate import build
from seqmodels.layers.state import state_bytes
from seqmodels.model import SequenceModel, model_spec

VOCABULARY = 16
LAYERS = "seqmodels.layers"
COLUMNS = [
    "name", "mode", "B", "L", "measured_gib", "estimated_gib", "measured_over_estimated", "state_bytes",
    "estimated_state_bytes", "seconds_to_estimate", "gpu", "gpu_gib", "torch", "commit", "date",
]  # fmt: skip


class Case(NamedTuple):
    """A backbone's spec at a batch size and a length."""

    backbone: dict[str, Any]
    B: int
    L: int


def layer(name: str, **arguments: Any) -> dict[str, Any]:
    """The spec of a layer factory."""
    return {"_target_": f"{LAYERS}.{name}", "_partial_": True, **arguments}


def stack(d_model: int, **arguments: Any) -> dict[str, Any]:
    return {"_target_": "seqmodels.backbones.stack.Stack", "d_model": d_model, **arguments}


def mamba(d_model: int, n_layers: int, recompute: str = "nothing", **arguments: Any) -> dict[str, Any]:
    return stack(d_model, n_layers=n_layers, layer=layer("mamba.Mamba", recompute=recompute), **arguments)


def cases() -> Iterator[tuple[str, Case]]:
    """Name and case; lengths and sizes of the papers' DNA and audio models."""
    for d_model, n_layers, B, L in ((256, 8, 1, 2**20), (128, 8, 1, 2**20), (768, 24, 8, 2048)):
        for recompute in ("nothing", "inputs", "all"):
            yield f"mamba_{d_model}x{n_layers}_{recompute}", Case(mamba(d_model, n_layers, recompute), B, L)
        blocks = mamba(d_model, n_layers, checkpoint_blocks=True)
        yield f"mamba_{d_model}x{n_layers}_blocks", Case(blocks, B, L)
    mamba2, mlp = layer("mamba2.Mamba2", d_state=64), layer("mlp.MLP")
    attention = layer("attention.Attention", n_heads=4, n_kv_heads=2, rotary_dim=0)
    gated = layer("mlp.MLP", activation="swiglu", multiple_of=16)
    yield "mamba2_256x16", Case(stack(256, n_layers=16, layer=mamba2), 1, 2**17)
    plus = {"attention": layer("attention.Attention", n_heads=8), "mlp": gated}
    yield "transformer_256x16", Case(stack(256, pattern="*-", n_layers=16, layers=plus), 1, 2**17)
    palette = {"mamba2": mamba2, "attention": attention, "mlp": mlp}
    yield "hybrid_256x14", Case(stack(256, pattern="M-M-M--M*-M-M-", layers=palette), 1, 2**17)
    audio = {"mamba": layer("mamba.Mamba"), "s4d": layer("s4d.S4D"), "mlp": layer("mlp.MLP", ratio=2)}
    unet = {"_target_": "seqmodels.backbones.unet.UNet", "d_model": 64, "pool": [4, 4], "n_layers": 8, "layers": audio}
    yield "unet_sc09_6m", Case({**unet, "outer": "m", "centre": "m"}, 16, 16_000)
    yield "unet_s4d_mamba", Case({**unet, "outer": "s-", "centre": "m"}, 16, 16_000)


def specification(case: Case) -> dict[str, Any]:
    head = {"_target_": "seqmodels.heads.next_token.NextTokenHead"}
    return model_spec(case.backbone, head, vocab_size=VOCABULARY)


def measured_training(model: SequenceModel, case: Case) -> int:
    """Peak bytes of a step, once the optimizer's state is there."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    ids = torch.randint(0, VOCABULARY, (case.B, case.L), device="cuda")
    batch = Batch(ids, torch.full((case.B,), case.L, device="cuda"), ("",) * case.B, target_ids_BL=ids.clone())
    peak = 0
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            logits, _ = model(batch.input_ids_BL)
            loss = model.head.loss(logits, batch).mean_loss()
            del logits
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    return peak


@torch.no_grad()
def measured_reading(model: SequenceModel, case: Case) -> tuple[int, int]:
    """Peak bytes of reading all positions, and bytes of one sequence's state behind them."""
    ids = torch.randint(0, VOCABULARY, (case.B, case.L), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    state = None
    with torch.autocast("cuda", torch.bfloat16):
        for piece in ids.split(PREFILL_CHUNK, dim=1):
            hidden, state = model.backbone(piece, state)
            model.head(hidden[:, -1:])
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - ids.numel() * ids.element_size(), state_bytes(state) // case.B


def rows(name: str, case: Case) -> Iterator[dict[str, Any]]:
    """One row of training, one of reading."""
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory
    begin = time.perf_counter()
    spec = specification(case)
    facts = describe(spec, length=case.L, batch=case.B, gpus={"this": gpu_bytes})
    seconds = time.perf_counter() - begin
    shared = {"name": name, "B": case.B, "L": case.L, "seconds_to_estimate": round(seconds, 1)}
    estimated: TrainingMemory = facts.training[0]
    if estimated.fits:
        torch.manual_seed(0)
        with torch.device("cuda"):
            model = build(spec)
        yield {**shared, "mode": "train", **compared(measured_training(model, case), estimated.peak_bytes)}
        model.zero_grad(set_to_none=True)
        del model
    else:
        yield {**shared, "mode": "train", "measured_gib": "", "estimated_gib": round(estimated.peak_bytes / GIB, 3)}
    gc.collect()
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        model = build(spec).eval()
    peak, state = measured_reading(model, case)
    states = {"state_bytes": state, "estimated_state_bytes": facts.state_bytes}
    yield {**shared, "mode": "read", **compared(peak, facts.reading_bytes), **states}


def compared(measured: int, estimated: int) -> dict[str, Any]:
    return {
        "measured_gib": round(measured / GIB, 3),
        "estimated_gib": round(estimated / GIB, 3),
        "measured_over_estimated": round(measured / estimated, 4),
    }


def main() -> None:
    path, commit, *names = [*sys.argv[1:], *["unknown"] * (len(sys.argv) < 3)]
    properties = torch.cuda.get_device_properties(0)
    machine = {
        "gpu": properties.name,
        "gpu_gib": round(properties.total_memory / GIB, 1),
        "torch": torch.__version__,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }
    new = not Path(path).exists()
    with Path(path).open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        if new:
            writer.writeheader()
        for name, case in cases():
            if names and name not in names:
                continue
            try:
                for row in rows(name, case):
                    print({key: row.get(key) for key in COLUMNS[:9]}, flush=True)
                    writer.writerow({**row, **machine})
            except torch.OutOfMemoryError as error:
                print(f"{name}: out of memory: {str(error).splitlines()[0]}", flush=True)
                writer.writerow({"name": name, "B": case.B, "L": case.L, "measured_gib": "out of memory", **machine})
            file.flush()
            gc.collect()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
