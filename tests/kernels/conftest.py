"""CUDA sources compiled with g++ and run on the CPU (cuda_on_cpu/), for the tests of emulated kernels."""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HEADER = Path(__file__).parent / "cuda_on_cpu" / "cuda_on_cpu.h"
COMMAND = ["g++", "-std=c++20", "-O1", "-w", "-fPIC", "-fvisibility=hidden"]


@pytest.fixture(scope="session")
def compiled_for_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """C++ behind `#include "cuda_on_cpu.h"` to a library; the header, half of the work, is compiled once."""
    folder = tmp_path_factory.mktemp("emulated")
    shutil.copy(HEADER, folder)
    subprocess.run([*COMMAND, "-x", "c++-header", HEADER.name], cwd=folder, check=True)

    def compiled(text: str) -> ctypes.CDLL:
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        (folder / f"{name}.cpp").write_text(f'#include "{HEADER.name}"\n{text}')
        subprocess.run([*COMMAND, "-shared", f"{name}.cpp", "-o", f"{name}.so"], cwd=folder, check=True)
        return ctypes.CDLL(str(folder / f"{name}.so"))

    return compiled
