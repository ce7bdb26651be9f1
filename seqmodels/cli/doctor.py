"""`seqmodels doctor`: what this machine has, and what that means for the speed and the features here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGES = (
    *("seqmodels-mamba", "torch", "triton", "numpy", "numba", "lightning", "hydra-core", "omegaconf", "torchaudio"),
    *("soundfile", "pyfaidx", "pysam", "safetensors", "tensorboard", "rich", "matplotlib"),
    "nvidia-cuda-nvrtc",
)


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    if words:
        raise ValueError(f"doctor takes no options, got {' '.join(words)}")
    for title, lines in (
        ("machine", _machine()),
        ("packages", _packages()),
        ("implementations, in the order in which auto tries them", _implementations()),
        ("audio", _torchaudio()),
        ("folders", _folders()),
    ):
        print(title)
        for line in lines:
            print(f"  {line}")
        print()
    return 0


def _machine() -> Iterator[str]:
    import torch

    yield f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {sys.executable}"
    threads = torch.get_num_threads()
    yield f"CPU: {os.cpu_count()} cores, torch uses {threads} thread{'s' * (threads > 1)}"
    if not torch.cuda.is_available():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield f"GPU: none that torch can use (torch was built {built})"
        return
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        memory = facts.total_memory / 2**30
        yield f"GPU {index}: {facts.name}, {memory:.0f} GiB, compute capability {facts.major}.{facts.minor}"
    bf16 = "bf16 autocast" if torch.cuda.is_bf16_supported() else "fp32 (this GPU has no bf16)"
    yield f"CUDA {torch.version.cuda}; trainer.precision=auto is {bf16}"


def _packages() -> Iterator[str]:
    for name in PACKAGES:
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name}: not installed"


def _implementations() -> Iterator[str]:
    from seqkernels.dispatch import table

    rows = table()
    taken: set[str] = set()
    width = max(len(row.op) for row in rows)
    for row in rows:
        if row.available:
            fate = "can run" if row.op in taken else "taken"
            taken.add(row.op)
        else:
            fate = f"cannot run: {row.reason}"
        yield f"{row.op:{width}}  {row.implementation:10} {fate}"


def _torchaudio() -> Iterator[str]:
    # The guard belongs to the audio domain, which this package must not import: found by name, as in a configuration.
    from seqmodels.instantiate import locate

    try:
        yield str(locate("domains.audio.torchaudio_guard.state")())
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        yield f"torchaudio cannot be used: {error}"


def _folders() -> Iterator[str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    places = {
        "runs (where you are)": Path.cwd(),
        "cache (compiled kernels)": cache,
        "temporary files": Path(tempfile.gettempdir()),
    }
    for what, path in places.items():
        yield f"{what}: {path}, {_writable(path)}"


def _writable(path: Path) -> str:
    while not path.exists():
        path = path.parent
    try:
        with tempfile.TemporaryFile(dir=path):
            return "can be written"
    except OSError as error:
        return f"CANNOT be written: {error.strerror}"
