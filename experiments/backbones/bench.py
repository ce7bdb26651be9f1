"""Every backbone at 7 million parameters on human DNA: speed and memory of training, decoding, bits/base. One command.

    python experiments/backbones/bench.py --fasta chr20.fa.gz --region 20:40000000-61000000
    python experiments/backbones/bench.py --fasta … --only mamba,transformer --lengths 1024,131072 --tokens 4194304
    python experiments/backbones/bench.py --smoke                      tiny sizes on a CPU: does it run?

Three kinds of rows for each backbone of zoo.py, written as they come:

train    one step (forward, backward, AdamW; bf16 autocast) at each length, 2^18 bases a step or one sequence: median
         time, peak memory. Where memory does not suffice: again with blocks recomputed
quality  bits/base on the region's last tenth after so many bases from its first eight tenths, in windows of 1,024
decode   ms a token and bytes of state after 1,024 and 1,048,576 bases: batch 1, weights in bf16, a CUDA graph a step

A cell that fails, is out of memory or would take too long says so in `status` and `note`; the others go on.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import gzip
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from seqmodels.data.record import Batch
    from seqmodels.layers.state import State
    from seqmodels.model import SequenceModel

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))  # `python experiments/...` puts only this folder on the path
RESULTS = HERE.parent / "results" / "backbones.csv"
COLUMNS = [
    "backbone", "what", "parameters", "L", "B", "ms_p50", "tokens_per_s", "peak_gib", "recomputed_blocks",
    "bits_per_base", "objective", "tokens", "steps", "seconds", "lr", "context", "ms_per_token", "state_bytes",
    "cuda_graph", "prefill_s", "status", "note", "dtype", "gpu", "torch", "triton", "commit", "date",
]  # fmt: skip
TOKENS_PER_STEP = 2**18  # bases of a timed training step, where one sequence is not longer
TRAIN_LENGTH, TRAIN_BATCH_TOKENS = 1024, 2**15
VALID_WINDOWS = 512
MASKED_SHARE = 0.15
PREFILL_CHUNK = 2**16
OUT_OF_MEMORY = "out of memory"
Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Bases:
    """A region's token ids on the device: its first eight tenths for training, its last tenth for validation."""

    train_S: torch.Tensor
    valid_S: torch.Tensor

    @classmethod
    def load(cls, fasta: Path, region: str | None, device: str) -> Bases:
        """Reads a plain or (b)gzipped FASTA: no index needed. `region` is name:start-end, 0-based half-open."""
        import torch

        from domains.dna.tokenizer import DnaTokenizer

        ids_S = torch.from_numpy(DnaTokenizer().encode(read_region(fasta, region))).to(device)
        return cls(ids_S[: int(0.8 * len(ids_S))], ids_S[int(0.9 * len(ids_S)) :])

    def random_windows(self, B: int, L: int, generator: torch.Generator) -> torch.Tensor:
        """(B, L) int64 ids from anywhere in the training part."""
        import torch

        device = self.train_S.device
        start_B = torch.randint(len(self.train_S) - L + 1, (B,), generator=generator, device=device)
        return self.train_S[start_B[:, None] + torch.arange(L, device=device)].long()

    def valid_windows(self, count: int, L: int) -> torch.Tensor:
        """(count, L) int64 ids, evenly spaced over the validation part."""
        import torch

        device = self.valid_S.device
        start_B = torch.linspace(0, len(self.valid_S) - L, count, device=device, dtype=torch.float64).long()
        return self.valid_S[start_B[:, None] + torch.arange(L, device=device)].long()


def read_region(fasta: Path, region: str | None) -> bytes:
    """The bases of `region`, or of the first record; ValueError where there is no such record or place."""
    name, _, span = (region or "").partition(":")
    data = fasta.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    for record in data.split(b">")[1:]:
        header, _, body = record.partition(b"\n")
        if region is None or header.split()[0].decode() == name:
            bases = body.replace(b"\n", b"").replace(b"\r", b"")
            start, end = (int(word) for word in span.split("-")) if span else (0, len(bases))
            if not 0 <= start < end <= len(bases):
                raise ValueError(f"--region {region}: {fasta} has {len(bases)} bases of {header.decode()}")
            return bases[start:end]
    raise ValueError(f"--region {region}: {fasta} has no record {name!r}")


def batch_of(ids_BL: torch.Tensor, objective: str, generator: torch.Generator) -> Batch:
    """Inputs and targets: the next base, or 15 % masked ones. N is never a target."""
    import torch

    from domains.dna.tokenizer import BASE_IDS, BOS, MASK
    from seqmodels.data.record import IGNORE_INDEX, Batch

    B, L = ids_BL.shape
    is_base_BL = (ids_BL >= BASE_IDS[0]) & (ids_BL <= BASE_IDS[-1])
    if objective == "next":
        inputs_BL = torch.cat([torch.full_like(ids_BL[:, :1], BOS), ids_BL[:, :-1]], dim=1)
        asked_BL = is_base_BL
    else:
        asked_BL = is_base_BL & (torch.rand(B, L, generator=generator, device=ids_BL.device) < MASKED_SHARE)
        inputs_BL = ids_BL.masked_fill(asked_BL, MASK)
    targets_BL = ids_BL.masked_fill(~asked_BL, IGNORE_INDEX)
    lengths_B = torch.full((B,), L, device=ids_BL.device)
    return Batch(inputs_BL, lengths_B, tuple(str(row) for row in range(B)), target_ids_BL=targets_BL)


# -------------------------------------------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Setting:
    """What all cells of a run share."""

    bases: Bases
    device: str
    options: argparse.Namespace

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    def model(self, name: str, length: int, *, checkpoint_blocks: bool = False) -> SequenceModel:
        """A new model, the same weights every time."""
        import torch

        from domains.dna.tokenizer import VOCAB_SIZE
        from experiments.backbones import zoo

        torch.manual_seed(0)
        small = self.options.smoke
        model = zoo.build_model(name, VOCAB_SIZE, length, small=small, checkpoint_blocks=checkpoint_blocks)
        return model.to(self.device)

    def generator(self, seed: int) -> torch.Generator:
        """Seeded dice on the device."""
        import torch

        return torch.Generator(self.device).manual_seed(seed)

    def autocast(self) -> Any:
        """bf16 on a GPU."""
        import torch

        return torch.autocast(self.device, torch.bfloat16, enabled=self.is_gpu)

    def wait(self) -> None:
        """Until the GPU has done what was asked."""
        import torch

        if self.is_gpu:
            torch.cuda.synchronize()


def training_step(
    model: SequenceModel, optimizer: Any, batch: Batch, setting: Setting, *, clip: bool = False
) -> torch.Tensor:
    """Forward, backward, optimizer; the mean loss, still on the device."""
    import torch

    with setting.autocast():
        logits, _ = model(batch.input_ids_BL)
        loss = model.head.loss(logits, batch).mean_loss()
    with torch.autograd.set_multithreading_enabled(False):  # as `seqmodels train` does
        loss.backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def adamw(model: SequenceModel, lr: float, setting: Setting) -> Any:
    """The published recipe; A_log, D, norms and biases are not decayed."""
    import torch

    from seqmodels.training.param_groups import param_groups

    groups = param_groups(model)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=0.1, fused=setting.is_gpu)


def train_rows(name: str, setting: Setting) -> Iterator[Row]:
    """Time and memory of a step at each length, while a step stays under the limit."""
    measured: list[tuple[int, float]] = []  # (length, seconds a token)
    for L in setting.options.lengths:
        B = max(setting.options.tokens_per_step // L, 1)
        shape = dict(what="train", L=L, B=B)
        expected_s = B * L * _seconds_a_token(measured, L)
        if expected_s > setting.options.cell_seconds:
            yield shape | dict(status="skipped", note=f"a step would take about {expected_s:.0f} s")
            continue
        if len(setting.bases.train_S) < L:
            yield shape | dict(status="skipped", note=f"the training part has {len(setting.bases.train_S)} bases")
            continue
        for recompute in (False, True):
            try:
                row: Row = _time_steps(name, B, L, setting, recompute, expected_s)
            except Exception as error:
                row = _failed(error)
            _free(setting)
            if row["status"] == "ok":
                measured.append((L, row["ms_p50"] / 1e3 / (B * L)))
            if row["status"] != OUT_OF_MEMORY:
                break
        yield shape | dict(recomputed_blocks="yes" if recompute else "no") | row  # type: ignore[possibly-undefined]


def _seconds_a_token(measured: Sequence[tuple[int, float]], L: int) -> float:
    """What a token will cost at length L: a straight line through the last two lengths (flat for linear layers)."""
    if len(measured) < 2:
        return measured[-1][1] if measured else 0.0
    (first, cost_first), (second, cost_second) = measured[-2:]
    slope = max((cost_second - cost_first) / (second - first), 0.0)
    return cost_second + slope * (L - second)


def _time_steps(name: str, B: int, L: int, setting: Setting, recompute: bool, expected_s: float) -> Row:
    import torch

    model = setting.model(name, L, checkpoint_blocks=recompute)
    optimizer = adamw(model, 1e-4, setting)
    generator = setting.generator(1)
    objective = _objective(name)
    batch = batch_of(setting.bases.random_windows(B, L, generator), objective, generator)
    is_long = 3 * expected_s > setting.options.cell_seconds  # then one step, without a warm-up before it
    if not is_long:
        training_step(model, optimizer, batch, setting)
    setting.wait()
    if setting.is_gpu:
        torch.cuda.reset_peak_memory_stats()
    times_ms: list[float] = []
    while len(times_ms) < (1 if is_long else 2) or (sum(times_ms) < setting.options.time_ms and len(times_ms) < 20):
        begin = time.perf_counter()
        training_step(model, optimizer, batch, setting)
        setting.wait()
        times_ms.append((time.perf_counter() - begin) * 1e3)
        if is_long:
            break
    middle = statistics.median(times_ms)
    return dict(
        ms_p50=round(middle, 3), tokens_per_s=round(B * L / middle * 1e3), steps=len(times_ms), objective=objective,
        peak_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if setting.is_gpu else "", status="ok",
        note="one step, no warm-up" if is_long else "",
    )  # fmt: skip


def quality_rows(name: str, setting: Setting) -> Iterator[Row]:
    """bits/base after `tokens` bases."""
    from experiments.backbones import zoo
    from seqmodels.training.schedule import warmup_cosine

    options = setting.options
    L, B = options.train_length, max(options.train_batch_tokens // options.train_length, 1)
    steps = max(options.tokens // (B * L), 1)
    model = setting.model(name, L)
    lr, objective = zoo.ZOO[name].lr, _objective(name)
    optimizer = adamw(model, lr, setting)
    scheduler = warmup_cosine(optimizer, total_steps=steps, warmup_fraction=0.1)
    generator = setting.generator(2)
    shape = dict(what="quality", L=L, B=B, objective=objective, lr=lr)
    batch = batch_of(setting.bases.random_windows(B, L, generator), objective, generator)
    training_step(model, adamw(model, 0.0, setting), batch, setting)  # compiles; at rate 0 nothing is learned
    setting.wait()
    begin = time.perf_counter()
    for step in range(steps):
        batch = batch_of(setting.bases.random_windows(B, L, generator), objective, generator)
        training_step(model, optimizer, batch, setting, clip=True)
        scheduler.step()
        if step == min(20, steps - 1):
            setting.wait()
            expected_s = (time.perf_counter() - begin) / (step + 1) * steps
            if expected_s > options.train_seconds:
                yield shape | dict(status="skipped", note=f"{options.tokens} bases would take about {expected_s:.0f} s")
                return
        if step % 100 == 99:
            print(f"{name}: step {step + 1} of {steps}", flush=True)
    setting.wait()
    seconds = time.perf_counter() - begin
    bits = validate(model, objective, setting)
    yield shape | dict(
        bits_per_base=round(bits, 4), tokens=steps * B * L, steps=steps, seconds=round(seconds, 1),
        tokens_per_s=round(steps * B * L / seconds), status="ok" if bits == bits else "diverged",
    )  # fmt: skip


def validate(model: SequenceModel, objective: str, setting: Setting) -> float:
    """Bits per (masked) base over fixed windows of the validation part."""
    import torch

    windows = setting.bases.valid_windows(setting.options.valid_windows, setting.options.train_length)
    generator = setting.generator(3)
    total = None
    model.eval()
    with torch.no_grad(), setting.autocast():
        for ids_BL in windows.split(64):
            batch = batch_of(ids_BL, objective, generator)
            sums = model.head.loss(model(batch.input_ids_BL)[0], batch).detach()
            total = sums if total is None else total + sums
    model.train()
    assert total is not None
    return total.metrics()["bits"]


def decode_rows(name: str, setting: Setting) -> Iterator[Row]:
    """ms a token and bytes of state after short and long contexts."""
    import torch

    from seqmodels.inference.graph import decoding_copy

    if _objective(name) != "next":
        return
    for context in setting.options.contexts:
        try:
            model = setting.model(name, context).eval()
            if setting.is_gpu:
                model = decoding_copy(model, torch.bfloat16)
            row = _time_decoding(model, context, setting)
        except Exception as error:
            row = _failed(error)
        yield dict(what="decode", context=context, B=1) | row
        model = None
        _free(setting)


def _time_decoding(model: SequenceModel, context: int, setting: Setting) -> Row:
    import torch

    from seqmodels.inference.graph import cuda_graph
    from seqmodels.layers.state import assign_state, reserve_state, state_bytes, state_tensors, updating_in_place

    with torch.no_grad(), updating_in_place():
        state, prefill_s, note = state_after(model, context, setting)
        size = state_bytes(state)
        state = reserve_state(state, setting.options.decode_steps * 4 + 64)
        ids_B1 = torch.full((1, 1), 7, device=setting.device)
        cycle = getattr(model.backbone, "steps_per_cycle", 1)  # a pooling backbone: not every step does the same

        def steps() -> None:
            """One cycle; the state's memory stays where it is."""
            new = state
            for _ in range(cycle):
                _, new = model(ids_B1, new)
            assign_state(state, new)

        replay, graph = steps, "no"
        if setting.is_gpu:
            try:
                replay, graph = cuda_graph(steps, list(state_tensors(state))), "yes"
            except RuntimeError as error:
                note = f"{note}; no CUDA graph: {_brief(error)}".lstrip("; ")
        ms = _time_calls(replay, max(setting.options.decode_steps // cycle, 1), setting) / cycle
    return dict(
        ms_per_token=round(ms, 5), state_bytes=size, cuda_graph=graph, prefill_s=prefill_s, status="ok", note=note
    )


def _time_calls(call: Callable[[], None], count: int, setting: Setting) -> float:
    """Median ms of a call over three runs of `count` calls, after as short a warm-up."""
    for _ in range(min(count, 10)):
        call()
    runs = []
    for _ in range(3):
        setting.wait()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        setting.wait()
        runs.append((time.perf_counter() - begin) / count * 1e3)
    return statistics.median(runs)


def state_after(model: SequenceModel, context: int, setting: Setting) -> tuple[State, float | str, str]:
    """The state after `context` bases, the seconds that reading them took, and how it was made.

    A cache of keys and values reads one chunk and is then repeated up to the context's size: what a step costs depends
    on the size alone, and reading 1,048,576 bases would take minutes. Other states read the context.
    """
    ids_S = setting.bases.train_S[:context].long()
    if len(ids_S) < context:
        ids_S = ids_S.repeat(-(-context // len(ids_S)))[:context]
    pieces = ids_S[None].split(PREFILL_CHUNK, dim=1)
    model.backbone(pieces[0])  # compiles
    setting.wait()
    begin = time.perf_counter()
    state, read = None, 0
    for piece in pieces:
        _, state = model.backbone(piece, state)
        read += piece.shape[1]
        if read < context and _has_cache(state):
            return _stretched(state, context), "", f"cache of {read} bases repeated up to the context"
        setting.wait()
        if read < context and time.perf_counter() - begin > setting.options.cell_seconds:
            return state, "", f"state after {read} bases: reading all would take too long"
    return state, round(time.perf_counter() - begin, 4), ""


def _has_cache(state: State) -> bool:
    if isinstance(state, tuple):
        return hasattr(state, "k_BTGP") or any(_has_cache(part) for part in state)
    return False


def _stretched(state: State, context: int) -> State:
    """Caches repeated along their positions up to `context`; other parts as they are."""
    if hasattr(state, "k_BTGP") and hasattr(state, "reserve"):
        repeats = -(-context // state.k_BTGP.shape[1])
        k, v = (cache.repeat(1, repeats, 1, 1)[:, :context] for cache in (state.k_BTGP, state.v_BTGP))
        return state._replace(k_BTGP=k, v_BTGP=v)
    if isinstance(state, tuple):
        parts = [_stretched(part, context) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state


def _objective(name: str) -> str:
    from experiments.backbones import zoo

    return zoo.ZOO[name].objective


def _free(setting: Setting) -> None:
    import torch

    gc.collect()
    if setting.is_gpu:
        torch.cuda.empty_cache()


def _failed(error: Exception) -> Row:
    """What a cell says that raised; an error that spoils the process's GPU is raised again."""
    import torch

    if "CUDA error" in str(error):
        raise error
    if isinstance(error, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
        return dict(status=OUT_OF_MEMORY, note=_brief(error))
    print(f"{type(error).__name__}: {error}", flush=True)
    return dict(status="failed", note=f"{type(error).__name__}: {_brief(error)}")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]


# ------------------------------------------------------------------------------------------------------------- jobs

PARTS: dict[str, Callable[[str, Setting], Iterator[Row]]] = {
    "train": train_rows,
    "decode": decode_rows,
    "quality": quality_rows,
}


@functools.cache
def _setting(device: str) -> Setting:
    options = arguments([word for word in sys.argv[1:] if not word.startswith("--serve")])
    return Setting(Bases.load(options.fasta, options.region, device), device, options)


def run_job(name: str, setting: Setting | None = None) -> Iterator[Row]:
    """All rows of one backbone. A part that fails becomes a row that says so."""
    import torch

    from experiments.backbones import zoo

    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = setting or _setting(device)
    about: Row = dict(
        backbone=name, dtype="bf16 autocast" if setting.is_gpu else "fp32", torch=torch.__version__, triton=_triton(),
        gpu=torch.cuda.get_device_name() if setting.is_gpu else "none (CPU)",
    )  # fmt: skip
    try:
        with torch.device("meta"):
            from domains.dna.tokenizer import VOCAB_SIZE

            model = zoo.build_model(name, VOCAB_SIZE, small=setting.options.smoke)
        about["parameters"] = zoo.parameters(model)
    except (ValueError, ImportError) as error:
        yield about | dict(what="build", status="missing", note=_brief(error))
        return
    for part in setting.options.parts:
        try:
            for row in PARTS[part](name, setting):
                yield about | row
        except Exception as error:
            yield about | dict(what=part) | _failed(error)
        _free(setting)


def _triton() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return triton.__version__


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; --smoke changes the defaults."""

    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fasta", type=Path, help="plain or gzipped FASTA (needed, but for --smoke)")
    parser.add_argument("--region", help="name:start-end, 0-based half-open; default is the whole first record")
    parser.add_argument("--only", help="comma-separated backbones; default all")
    parser.add_argument("--parts", default="train,decode,quality", help="comma-separated, in this order")
    parser.add_argument("--lengths", type=numbers, default=[2**10, 2**14, 2**17, 2**20])
    parser.add_argument("--contexts", type=numbers, default=[2**10, 2**20], help="of decoding")
    parser.add_argument("--tokens", type=int, default=2**24, help="bases that quality trains on")
    parser.add_argument("--train-length", type=int, default=TRAIN_LENGTH, help="window of quality")
    parser.add_argument("--train-seconds", type=float, default=60, help="longest training for quality that is run")
    parser.add_argument("--cell-seconds", type=float, default=8, help="longest training step that is run")
    parser.add_argument("--time-ms", type=float, default=700, help="how long steps of one shape are repeated")
    parser.add_argument("--csv", type=Path, default=RESULTS, help="rows are appended to this file")
    parser.add_argument("--commit", help="the commit measured; default asks git")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    options = parser.parse_args(words)
    options.parts = options.parts.split(",")
    options.tokens_per_step, options.train_batch_tokens = TOKENS_PER_STEP, TRAIN_BATCH_TOKENS
    options.valid_windows, options.decode_steps = VALID_WINDOWS, 256
    if options.smoke:
        options.fasta = options.fasta or ROOT / "domains/dna/examples/vertebrates/hg38.fa.gz"
        options.lengths, options.contexts, options.tokens, options.train_length = [32, 64], [32, 64], 512, 32
        options.tokens_per_step, options.train_batch_tokens, options.time_ms = 64, 64, 1
        options.valid_windows, options.decode_steps = 4, 4
    if options.fasta is None:
        parser.error("--fasta is needed: a FASTA file, for example of human chromosome 20")
    wrong = set(options.parts) - set(PARTS)
    if wrong:
        parser.error(f"--parts {','.join(sorted(wrong))}: known are {', '.join(PARTS)}")
    return options


def main() -> None:
    from experiments.gpu import job_pool

    options = arguments([word for word in sys.argv[1:] if word != job_pool.WORKER_WORD])
    if job_pool.WORKER_WORD in sys.argv:
        job_pool.serve(run_job)
        return
    from seqkernels.bench import append_csv, commit

    from experiments.backbones import zoo

    names = options.only.split(",") if options.only else list(zoo.ZOO)
    if unknown := set(names) - set(zoo.ZOO):
        raise SystemExit(f"--only {','.join(sorted(unknown))}: known are {', '.join(zoo.ZOO)}")
    stamp = dict(commit=options.commit or commit(), date=datetime.date.today().isoformat())
    begin = time.monotonic()
    bad: list[str] = []

    def on_row(name: str, row: Row) -> None:
        append_csv(options.csv, [{column: (row | stamp).get(column, "") for column in COLUMNS}])
        shown = {key: row[key] for key in COLUMNS[3:] if row.get(key) not in (None, "") and key not in _REPEATED}
        print(f"{time.monotonic() - begin:6.1f} s  {name:14s} {row['what']:8s} {shown}", flush=True)
        if row["status"] in ("failed", "missing"):
            bad.append(name)

    def on_failure(name: str, why: str) -> None:
        on_row(name, dict(backbone=name, what="all", status="failed", note=why[:300]))

    words = [word for word in sys.argv[1:] if word != job_pool.WORKER_WORD]
    command = [sys.executable, __file__, *words]
    job_pool.run_jobs(command, names, on_row=on_row, on_failure=on_failure)
    print(f"{len(names)} backbones in {time.monotonic() - begin:.0f} s -> {options.csv}")
    if bad:
        print(f"missing or failed: {', '.join(dict.fromkeys(bad))}")
    raise SystemExit(1 if bad else 0)


_REPEATED = {"dtype", "gpu", "torch", "triton", "parameters", "objective", "commit", "date"}

if __name__ == "__main__":
    main()
