"""How fast does `seqmodels generate` make sound? Appends rows to experiments/results/generation.csv.

    python experiments/audio/generation_speed.py [--csv FILE] [--seconds 55] [--smoke]

The spoken-digits U-Net (6.1 M) and the 24 x 768 stack (130 M), both over 256 mu-law levels with fresh weights, at batch
1, 16 and 128; weights in fp32 as checkpoints hold them, and with matrices in bf16. Everything goes through
`generate_pieces`: drawing, log-likelihoods, CUDA graphs and the copy of each piece to the host are in the figures; the
first piece, which captures the graphs, stands in a column of its own. Peer: mamba_ssm's CUDA-graph decode of a stack of
the same size in bf16, with the published vocabulary of 50,280 and without drawing. `--smoke` takes tiny models, to see
that it runs; without a GPU it times the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from seqkernels.bench import append_csv, environment

from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference.generate import generate_pieces, read_prefix
from seqmodels.inference.graph import decoding_copy
from seqmodels.inference.sampling import Sampling
from seqmodels.instantiate import build
from seqmodels.model import SequenceModel

RESULTS = Path(__file__).parents[1] / "results" / "generation.csv"
MODELS = {"unet_sc09_6m": ("d_model=8", "n_layers=1"), "mamba_130m": ("d_model=16", "n_layers=1")}  # and when tiny
BATCHES = (1, 16, 128)
LEVELS, START_ID, SAMPLE_RATE_HZ = 256, 128, 16_000
PEER_MS = {("mamba_130m", 1): 1.237, ("mamba_130m", 16): 1.233, ("mamba_130m", 128): 1.475}
PIECES, CHUNK_LEN = 5, 256  # timed after the first


def model_of(name: str, device: torch.device, smoke: bool) -> SequenceModel:
    """conf/backbone/<name>.yaml over 256 levels, in evaluation mode."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    small = [f"backbone.{word}" for word in MODELS[name]] if smoke else []
    with initialize_config_module("seqmodels.conf", version_base="1.3"):
        config = compose(overrides=[f"+backbone={name}", *small])
    spec: Any = OmegaConf.to_container(config.backbone, resolve=True)
    torch.manual_seed(0)
    with device:
        backbone = build(spec, vocab_size=LEVELS)
        return SequenceModel(backbone, NextTokenHead(d_model=backbone.d_model, vocab_size=LEVELS)).eval()


def measured(model: SequenceModel, batch: int, chunk_len: int) -> dict[str, Any]:
    """Seconds of the first piece, and of a step behind it."""
    prefix = read_prefix(model, start_id=START_ID)
    steps = chunk_len * (1 + PIECES)
    pieces = generate_pieces(
        model, steps, prefix=prefix, rows=range(batch), sampling=Sampling(seed=0), chunk_len=chunk_len
    )
    times = []
    for _ in range(1 + PIECES):
        begin = time.perf_counter()
        next(pieces).ids_BL.cpu()  # waits for the device
        times.append(time.perf_counter() - begin)
    step_s = statistics.median(times[1:]) / chunk_len
    return {
        "steps": chunk_len * PIECES,
        "first_piece_s": f"{times[0]:.3f}",
        "ms_per_step": f"{1e3 * step_s:.4f}",
        "samples_per_s": f"{batch / step_s:.0f}",
        "real_time": f"{1 / step_s / SAMPLE_RATE_HZ:.4f}",  # of each row, at 16 kHz; 1 is as fast as it is heard
    }


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row a model, precision and batch, until the time is up."""
    deadline = time.perf_counter() + options.seconds
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chunk_len = 4 if options.smoke else CHUNK_LEN
    for name in MODELS:
        model = model_of(name, device, options.smoke)
        for dtype in ("bf16", "fp32"):
            decoded = model if dtype == "fp32" else decoding_copy(model, torch.bfloat16)
            for batch in BATCHES[:2] if options.smoke else BATCHES:
                if time.perf_counter() > deadline:
                    print(f"left out for time: {name} {dtype} batch {batch}")
                    continue
                row = measured(decoded, batch, chunk_len)
                like_peer = dtype == "bf16" and device.type == "cuda" and not options.smoke
                peer_ms = PEER_MS.get((name, batch)) if like_peer else None
                yield {
                    "model": name,
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                    "dtype": dtype,
                    "B": batch,
                    **row,
                    "peer_ms": peer_ms or "",
                    "ratio": f"{peer_ms / float(row['ms_per_step']):.2f}" if peer_ms else "",
                    **environment(device),
                }


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=RESULTS, help="file to append rows to")
    parser.add_argument("--seconds", type=float, default=55, help="begin no measurement after so many seconds")
    parser.add_argument("--commit", default=None, help="what to write where there is no git")
    parser.add_argument("--smoke", action="store_true", help="tiny models, a few steps")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    options = arguments(words)
    for row in rows(options):
        row["commit"] = options.commit or row["commit"]
        append_csv(options.csv, [row])
        shown = ("model", "dtype", "B", "first_piece_s", "ms_per_step", "samples_per_s", "real_time", "ratio")
        print({key: row[key] for key in shown}, flush=True)


if __name__ == "__main__":
    main()
