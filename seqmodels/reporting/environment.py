"""What a result was made with: versions of the software and the machine, in words for a report."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("seqmodels-mamba", "torch", "numpy", "numba", "lightning", "triton", "torchaudio", "soundfile", "pyfaidx")


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions by distribution name, Python first; packages that are not installed are left out."""
    found = {"Python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = source_commit()
    return {**found, "commit": commit} if commit else found


def machine() -> dict[str, str]:
    """The machine in words: processor, cores, memory, and the GPU when torch is loaded and sees one."""
    facts = {"system": f"{platform.system()} {platform.machine()}", "processor": _processor_name()}
    facts["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none used"
    return facts


def source_commit() -> str | None:
    """Short hash of the checkout this package runs from, with "+changes" when it is not clean; None outside of git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "--short", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
