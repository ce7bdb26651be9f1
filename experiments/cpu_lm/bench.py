"""Training speed of a Mamba language model on a CPU: forward and backward of ours and of others, in one run.

    python experiments/cpu_lm/bench.py                       all variants; rows go to experiments/results/cpu_lm.csv
    python experiments/cpu_lm/bench.py --variants ours,time_loop --steps 5 --csv /tmp/try.csv

Every variant runs in a process of its own, one after the other, so that its peak memory is its own. One step is the
mean next-token loss of B sequences of L symbols and its gradients: no optimizer. Weights fp32, vocabulary 16.

| variant | what it is |
|---|---|
| ours | `seqmodels` Stack of Mamba layers, implementation "auto" |
| time_loop | the same model, its scan a plain PyTorch loop over `unbind(1)`; convolution and norm stay ours |
| no_scan | the same model with the scan left out (a product in its place keeps every projection in use): the ceiling |
| mambapy | `mambapy.mamba.Mamba` with its parallel scan |
| transformers | `MambaForCausalLM(use_mambapy=True)` |
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results" / "cpu_lm.csv"
VOCABULARY = 16
WARM_UP_STEPS = 2


def time_loop(x_BLE, dt_BLE, a_EN, b_BLN, c_BLN, *, d_E, z_BLE, dt_bias_E, initial_state_BEN=None, **_):
    """The scan as one writes it first: eq. (2a), (2b), one step after the other."""
    import torch
    import torch.nn.functional as F

    dt_BLE = F.softplus(dt_BLE + dt_bias_E)
    h_BEN = x_BLE.new_zeros(x_BLE.shape[0], *a_EN.shape) if initial_state_BEN is None else initial_state_BEN
    ys = []
    for x_BE, dt_BE, b_BN, c_BN in zip(x_BLE.unbind(1), dt_BLE.unbind(1), b_BLN.unbind(1), c_BLN.unbind(1)):
        dtx_BE = dt_BE * x_BE
        h_BEN = torch.exp(dt_BE[..., None] * a_EN) * h_BEN + dtx_BE[..., None] * b_BN[:, None]
        ys.append((h_BEN * c_BN[:, None]).sum(-1))
    return (torch.stack(ys, dim=1) + d_E * x_BLE) * F.silu(z_BLE), h_BEN


def no_scan(x_BLE, dt_BLE, a_EN, b_BLN, c_BLN, *, d_E, z_BLE, dt_bias_E, **_):
    """Elementwise products in the place of the scan: everything around it still has to be computed."""
    import torch.nn.functional as F

    y_BLE = F.softplus(dt_BLE + dt_bias_E) * x_BLE * (b_BLN * c_BLN).sum(-1, keepdim=True) + d_E * x_BLE
    return y_BLE * F.silu(z_BLE), a_EN[None]


def build_ours(scan: Callable | None, d_model: int, n_layers: int) -> Callable:
    """Our model; `scan` takes the place of `selective_scan`."""
    import torch.nn.functional as F

    from seqmodels.backbones.stack import Stack
    from seqmodels.heads.next_token import NextTokenHead
    from seqmodels.layers import mamba
    from seqmodels.model import SequenceModel

    if scan is not None:
        mamba.selective_scan = scan  # type: ignore[assignment]
    layer = functools.partial(mamba.Mamba, implementation="auto")
    stack = Stack(vocab_size=VOCABULARY, d_model=d_model, n_layers=n_layers, layer=layer)
    model = SequenceModel(stack, NextTokenHead(d_model=d_model, vocab_size=VOCABULARY))

    def loss(ids_BL, targets_BL):
        logits, _ = model(ids_BL)
        return F.cross_entropy(logits.flatten(0, 1), targets_BL.flatten())

    return loss


def build_mambapy(d_model: int, n_layers: int) -> Callable:
    """mambapy's stack between an embedding and a linear map (its own LM class imports mamba_ssm)."""
    import torch.nn.functional as F
    from mambapy.mamba import Mamba, MambaConfig, RMSNorm
    from torch import nn

    embedding = nn.Embedding(VOCABULARY, d_model)
    stack, norm = Mamba(MambaConfig(d_model=d_model, n_layers=n_layers)), RMSNorm(d_model)

    def loss(ids_BL, targets_BL):
        logits = F.linear(norm(stack(embedding(ids_BL))), embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets_BL.flatten())

    return loss


def build_transformers(d_model: int, n_layers: int) -> Callable:
    """Hugging Face's model with the mambapy scan, its fastest path on a CPU."""
    from domains.audio import torchaudio_guard  # transformers imports torchaudio, which needs it  # noqa: F401, I001
    import torch.nn.functional as F
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=d_model, num_hidden_layers=n_layers, use_mambapy=True, use_cache=False,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = MambaForCausalLM(config).train()

    def loss(ids_BL, targets_BL):
        return F.cross_entropy(model(ids_BL).logits.flatten(0, 1), targets_BL.flatten())

    return loss


VARIANTS: dict[str, Callable[[int, int], Callable]] = {
    "ours": functools.partial(build_ours, None),
    "time_loop": functools.partial(build_ours, time_loop),
    "no_scan": functools.partial(build_ours, no_scan),
    "mambapy": build_mambapy,
    "transformers": build_transformers,
}


def measure(variant: str, args: argparse.Namespace) -> dict[str, float]:
    """Time one variant in this process."""
    import torch
    from seqkernels.bench import peak_rss_bytes, reset_peak_rss

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    loss = VARIANTS[variant](args.d_model, args.layers)
    ids = torch.randint(VOCABULARY, (args.batch, args.length + 1))

    def step() -> float:
        start = time.perf_counter()
        value = loss(ids[:, :-1], ids[:, 1:])
        value.backward()
        return time.perf_counter() - start

    for _ in range(WARM_UP_STEPS):
        step()
    gc.collect()
    reset_peak_rss()
    rates = sorted(args.batch * args.length / step() for _ in range(args.steps))
    return {
        "tokens_per_s": rates[len(rates) // 2],
        "tokens_per_s_lowest": rates[0],
        "tokens_per_s_highest": rates[-1],
        "peak_mib": peak_rss_bytes() / 2**20,
    }


def versions(variant: str) -> str:
    """The packages that the variant's speed depends on."""
    names = ["torch", *{"mambapy": ["mambapy"], "transformers": ["transformers", "mambapy"]}.get(variant, ["numba"])]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def in_own_process(variant: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run `measure` in a fresh process and make a row of it."""
    from seqkernels.bench import commit, cpu_name

    sizes = ("threads", "d_model", "layers", "batch", "length", "steps")
    command = [sys.executable, __file__, "--only", variant]
    command += [part for name in sizes for part in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    load = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{variant} failed:\n{done.stderr}")
    figures = json.loads(done.stdout.splitlines()[-1])
    return {
        "variant": variant,
        **{name: getattr(args, name) for name in sizes},
        "dtype": "float32",
        **{name: f"{value:.1f}" for name, value in figures.items()},
        "machine": cpu_name(),
        "load_before": f"{load:.2f}",
        "versions": versions(variant),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> None:
    """Measure the variants and append their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma-separated")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each variant")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="torch threads")
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args)))
        return
    unknown = sorted(set(args.variants.split(",")) - set(VARIANTS))
    if unknown:
        parser.error(f"unknown variants {', '.join(unknown)}; accepted: {', '.join(VARIANTS)}")
    from seqkernels.bench import append_csv

    rows = []
    for variant in args.variants.split(","):
        rows.append(in_own_process(variant, args))
        append_csv(args.csv, rows[-1:])
        speed, peak = rows[-1]["tokens_per_s"], rows[-1]["peak_mib"]
        print(f"{variant:13s} {speed:>8s} tokens/s   peak {peak:>7s} MiB", flush=True)


if __name__ == "__main__":
    main()
