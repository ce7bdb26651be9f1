"""Time an op at the shapes of its OpSpec and append the figures to a CSV file.

    python -m seqkernels.bench op=selective_scan implementation=cpu mode=fwd dtype=float32 csv=results.csv

On a GPU: CUDA events after a warm-up, over several copies of the inputs so that no call finds its inputs in the cache.
On a CPU: `time.perf_counter`. Reported are the 20th, 50th and 80th percentile of single calls.
"""

from __future__ import annotations

import csv
import datetime
import functools
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqkernels.spec import OpSpec, Sample, get

COLUMNS = (
    "op", "implementation", "mode", "B", "E", "L", "N", "dtype", "ms_p20", "ms_p50", "ms_p80", "gelems_per_s",
    "bound_share", "peak_mib", "gpu", "driver", "torch", "triton", "commit", "date", "D", "R", "W", "plan",
)  # fmt: skip
MODES = ("fwd", "fwd+bwd")
WARM_UP_CALLS = 3
CACHE_BYTES = 128 * 2**20  # twice the L2 cache of an H200
MAX_CALLS, MIN_CALLS = 200, 7

Row = dict[str, Any]


def run(
    op: str,
    *,
    shapes: Sequence[Mapping[str, int]] | None = None,
    mode: str | None = None,
    implementation: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    csv_path: str | Path | None = None,
    seconds: float = 1.0,
) -> list[Row]:
    """Time one op.

    Args:
        op: name of the op.
        shapes: sizes by legend letter; None for those of the op's spec.
        mode: "fwd" or "fwd+bwd"; None for both (forward only where the op has no backward on this device).
        implementation: name; None for all that can run.
        dtype: of the inputs; None for bf16 on a GPU, fp32 on a CPU.
        device: "cuda" or "cpu"; None for the GPU when there is one.
        csv_path: file to append the rows to.
        seconds: about how long to time each shape.

    Returns:
        One row (keys `COLUMNS`) per shape, implementation and mode.

    Raises:
        ValueError: unknown op, mode or implementation, or one that cannot run here.
    """
    spec = get(op)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    if mode is not None and mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; accepted: {', '.join(MODES)}")
    shapes = spec.bench_shapes[device.type] if shapes is None else shapes
    rows: list[Row] = []
    for shape in shapes:
        for name in _implementations(spec, implementation, device, dtype):
            for one_mode in MODES if mode is None else (mode,):
                row = measure(spec, shape, one_mode, name, dtype, device, seconds)
                if row is None:
                    continue
                rows.append(row)
                if csv_path is not None:
                    append_csv(csv_path, [row])
    return rows


def _implementations(
    spec: OpSpec, implementation: str | None, device: torch.device, dtype: torch.dtype
) -> Iterable[str]:
    """The names to time: the given one, which then must run, or all that can, without the reference on a GPU."""
    x, parameter = spec.probe(device, dtype)
    if implementation is not None:
        spec.registry.choose(implementation, x, parameter)
        return [implementation]
    names = [n for n in spec.registry.modules if spec.registry.unavailable(n, x, parameter) is None]
    return [name for name in names if name != "reference" or device.type == "cpu"]


def measure(
    spec: OpSpec,
    shape: Mapping[str, int],
    mode: str,
    implementation: str,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float,
) -> Row | None:
    """Time one shape; None where this implementation has no backward and one was asked for."""
    sample = spec.bench_sample(shape, device, dtype)
    calls = [_call(spec, copy, mode, implementation) for copy in _copies(sample, device)]
    try:
        calls[0]()
    except ValueError:
        if mode == "fwd+bwd":
            return None
        raise
    times, peak = time_calls(calls, device, seconds)
    p20, p50, p80 = (times[int(share * (len(times) - 1))] for share in (0.2, 0.5, 0.8))
    bound = spec.bound_ms(shape, dtype, mode) if spec.bound_ms is not None else 0.0
    facts = environment(device)
    on_bound_gpu = bound > 0 and "H200" in facts["gpu"]
    return {
        **dict.fromkeys(COLUMNS, ""),
        "op": spec.name,
        "implementation": implementation,
        "mode": mode,
        **{letter: size for letter, size in shape.items() if letter in COLUMNS},
        "dtype": str(dtype).removeprefix("torch."),
        "ms_p20": f"{p20:.4g}",
        "ms_p50": f"{p50:.4g}",
        "ms_p80": f"{p80:.4g}",
        "gelems_per_s": f"{spec.elements(shape) / p50 / 1e6:.4g}",
        "bound_share": f"{bound / p50:.3f}" if on_bound_gpu else "",
        "peak_mib": "" if peak is None else f"{peak / 2**20:.1f}",
        **facts,
    }


def _copies(sample: Sample, device: torch.device) -> list[Sample]:
    """On a GPU, so many copies of the inputs that going round them empties the cache; else the inputs as they are."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in sample.tensors.values())
    count = 1 if device.type == "cpu" else max(1, min(16, -(-CACHE_BYTES // max(size, 1))))
    more = [
        Sample(sample.id, {name: tensor.clone() for name, tensor in sample.tensors.items()}, sample.options)
        for _ in range(count - 1)
    ]
    return [sample, *more]


def _call(spec: OpSpec, sample: Sample, mode: str, implementation: str) -> Callable[[], object]:
    """A function that runs the op once, with its backward when the mode says so."""
    run_op = functools.partial(spec.op, **sample.tensors, **sample.options, implementation=implementation)
    if mode == "fwd":
        return torch.no_grad()(run_op)
    leaves = [sample.tensors[name].requires_grad_() for name in sample.differentiable()]
    above: list[Tensor] = []

    def both() -> object:
        result = run_op()
        outputs = result if isinstance(result, tuple) else (result,)
        if not above:
            above.extend(torch.randn_like(out) for out in outputs)
        return torch.autograd.grad(outputs, leaves, above)

    return both


def time_calls(
    calls: Sequence[Callable[[], object]], device: torch.device, seconds: float
) -> tuple[list[float], float | None]:
    """Time the calls in turn.

    Returns:
        Sorted times of single calls in ms, and the peak of additional memory of one call in bytes (None on a CPU).
    """
    start = time.perf_counter()
    for index in range(WARM_UP_CALLS):
        calls[index % len(calls)]()
    _synchronise(device)
    one = (time.perf_counter() - start) / WARM_UP_CALLS
    repeats = max(MIN_CALLS, min(MAX_CALLS, int(seconds / max(one, 1e-6))))
    peak = _peak_bytes(calls[0], device)
    if device.type == "cpu":
        times = []
        for index in range(repeats):
            begin = time.perf_counter()
            calls[index % len(calls)]()
            times.append((time.perf_counter() - begin) * 1e3)
        return sorted(times), peak
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for index, (before, after) in enumerate(events):
        before.record()
        calls[index % len(calls)]()
        after.record()
    torch.cuda.synchronize(device)
    return sorted(before.elapsed_time(after) for before, after in events), peak


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(call: Callable[[], object], device: torch.device) -> float | None:
    """How much memory a call takes on top of what is there before; CPUs keep no such count."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def reset_peak_rss() -> None:
    """Let the process's peak resident memory start again from what it is now (Linux; else it stays as it is)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_rss_bytes() -> int:
    """The process's peak resident memory (since `reset_peak_rss`, on Linux); 0 where it cannot be told."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


@functools.cache
def environment(device: torch.device) -> Row:
    """What the figures depend on besides the code: columns gpu (or CPU), driver, torch, triton, commit, date."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        driver = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
    else:
        name, driver = f"{cpu_name()}, {torch.get_num_threads()} threads", ""
    return {
        "gpu": name,
        "driver": driver,
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cpu_name() -> str:
    """The CPU's name as the system tells it, with its number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return f"{named or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """Short hash of the checkout this package stands in, with a + when files differ from it; empty outside of one."""
    here = str(Path(__file__).parent)
    head = _output_of("git", "-C", here, "rev-parse", "--short", "HEAD")
    return head + "+" if head and _output_of("git", "-C", here, "status", "--porcelain", "-uno", ".") else head


def _output_of(*command: str) -> str:
    """Standard output of a command, empty when it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def append_csv(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to a CSV file, with a header when it is new.

    Raises:
        ValueError: the file has another header.
    """
    rows = list(rows)
    if not rows:
        return
    path, columns = Path(path), list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > 0:
        with path.open(newline="") as file:
            header = next(csv.reader(file))
        if set(header) != set(columns):
            differing = ", ".join(sorted(set(header) ^ set(columns)))
            raise ValueError(f"{path}: its columns differ from the new rows' in: {differing}; write to another file")
        columns = header
        new = False
    else:
        new = True
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        writer.writerows(rows)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as aligned text, without columns that are empty throughout."""
    columns = [c for c in COLUMNS[:14] + COLUMNS[20:] if any(str(row[c]) for row in rows)]
    lines = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths)) for line in lines)


def main(arguments: Sequence[str]) -> int:
    """`python -m seqkernels.bench key=value ...`; keys: op, implementation, mode, dtype, device, csv, seconds."""
    accepted = ("op", "implementation", "mode", "dtype", "device", "csv", "seconds")
    given: dict[str, str] = {}
    for argument in arguments:
        key, _, value = argument.partition("=")
        given[key] = value
    unknown = [key for key in given if key not in accepted or not given[key]]
    if unknown or "op" not in given:
        print(f"usage: python -m seqkernels.bench op=NAME [{'=... '.join(accepted[1:])}=...]", file=sys.stderr)
        return 2
    try:
        dtype = getattr(torch, given["dtype"]) if "dtype" in given else None
        rows = run(
            given["op"],
            mode=given.get("mode"),
            implementation=given.get("implementation"),
            dtype=dtype,
            device=given.get("device"),
            csv_path=given.get("csv"),
            seconds=float(given.get("seconds", 1)),
        )
    except (ValueError, AttributeError) as error:
        print(error, file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
