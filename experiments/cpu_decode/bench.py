"""How long does one step of decoding take on a CPU? Appends rows to experiments/results/cpu_decode.csv.

    python experiments/cpu_decode/bench.py [--threads 1] [--seconds 3] [--commit HASH] [--csv FILE]

Three things, each with the best implementation and with the PyTorch reference of the decode step, in turn in the same
run, so that their ratio holds on a busy machine too:

- `op`: `mamba_step`, states in place;
- `model`: one step of a model, from an id to logits, states in place;
- `generate`: one step of generation: drawing a symbol and accounting for it, and the model's step.

Times are those of single calls in microseconds (20th, 50th and 80th percentile).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numba
import torch
from seqkernels import mamba_step
from seqkernels.bench import append_csv, commit, cpu_name
from seqkernels.mamba_step.spec import bench_sample

from seqmodels.backbones.stack import Stack
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference.decode import Decoder
from seqmodels.inference.sampling import Sampling
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.state import updating_in_place
from seqmodels.model import SequenceModel

RESULTS = Path(__file__).parents[1] / "results" / "cpu_decode.csv"
OPS = ((1, 128, 4), (8, 128, 4), (1, 512, 16), (1, 1536, 48), (16, 1536, 48))  # B, E, R
MODELS = ((64, 6, 1), (64, 6, 8), (256, 8, 1))  # d_model, layers, B
STATES, TAPS, VOCABULARY = 16, 4, 256  # mu-law audio has 256 levels
CALLS_IN_TURN = 20

Calls = dict[str, Callable[[], object]]  # implementation to a call


def op_calls(B: int, E: int, R: int) -> Calls:
    """The decode step alone."""
    shape = {"B": B, "E": E, "N": STATES, "R": R, "W": TAPS}
    arguments = bench_sample(shape, torch.device("cpu"), torch.float32).tensors
    make = partial(mamba_step, **arguments, inplace=True)  # type: ignore[arg-type]
    return {name: partial(make, implementation=name) for name in ("auto", "reference")}


def model_of(d_model: int, n_layers: int, implementation: str) -> SequenceModel:
    """A model of raw audio."""
    torch.manual_seed(0)
    layer = partial(Mamba, d_state=STATES, d_conv=TAPS, implementation=implementation)
    backbone = Stack(vocab_size=VOCABULARY, d_model=d_model, n_layers=n_layers, layer=layer)
    return SequenceModel(backbone, NextTokenHead(d_model=d_model, vocab_size=VOCABULARY)).eval()


def model_calls(d_model: int, n_layers: int, B: int, *, drawing: bool) -> Calls:
    """One step of the model, or one step of generation."""
    calls: Calls = {}
    for name in ("auto", "reference"):
        model = model_of(d_model, n_layers, name)
        logits, state = model(torch.zeros(B, 4, dtype=torch.int64))
        decoder = Decoder(model, logits[:, -1], state, Sampling(), 1)
        decoder.uniform_QB.uniform_()
        first_ids_B1 = torch.zeros(B, 1, dtype=torch.int64)

        def draw(decoder: Decoder = decoder) -> None:
            decoder.position_1.zero_()
            decoder.step()

        def step(decoder: Decoder = decoder, ids_B1: torch.Tensor = first_ids_B1) -> None:
            with updating_in_place():
                decoder.model(ids_B1, decoder.state)

        calls[name] = draw if drawing else step
    return calls


def measure(calls: Calls, seconds: float) -> dict[str, list[float]]:
    """Sorted times in microseconds; the implementations take turns until the time is up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            call()  # brings its data back into the cache
            for _ in range(CALLS_IN_TURN):
                begin = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - begin) * 1e6)
    return {name: sorted(values) for name, values in times.items()}


def cases() -> Iterator[tuple[dict[str, Any], Calls]]:
    """What is measured: columns, and the calls."""
    for B, E, R in OPS:
        yield {"what": "op", "B": B, "E": E, "R": R}, op_calls(B, E, R)
    for d_model, n_layers, B in MODELS:
        columns = {"B": B, "E": 2 * d_model, "R": -(-d_model // 16), "d_model": d_model, "n_layers": n_layers}
        for what in ("model", "generate"):
            yield {"what": what, **columns}, model_calls(d_model, n_layers, B, drawing=what == "generate")


def main() -> None:
    parser = argparse.ArgumentParser(description="Times of decode steps on a CPU.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3, help="time for each case")
    parser.add_argument("--commit", default="", help="for code outside of a checkout")
    parser.add_argument("--csv", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": cpu_name(),
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, numba {numba.__version__}",
        "commit": arguments.commit or commit(),
        "threads": arguments.threads,
    }
    with torch.no_grad():
        for columns, calls in cases():
            times = measure(calls, arguments.seconds)
            p50 = {name: values[len(values) // 2] for name, values in times.items()}
            rows = []
            for name, values in times.items():
                p20, p80 = (values[int(share * len(values))] for share in (0.2, 0.8))
                shape = {"what": "", "B": "", "E": "", "N": STATES, "R": "", "W": TAPS, "d_model": "", "n_layers": ""}
                figures = {"us_p20": f"{p20:.1f}", "us_p50": f"{p50[name]:.1f}", "us_p80": f"{p80:.1f}"}
                ratio = {"times_faster_than_reference": f"{p50['reference'] / p50[name]:.2f}"}
                rows.append(facts | shape | columns | {"implementation": name} | figures | ratio)
                print(*(columns | {"implementation": name} | figures | ratio).items())
            append_csv(arguments.csv, rows)


if __name__ == "__main__":
    main()
