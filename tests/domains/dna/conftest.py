"""Small FASTA files written on the spot; the cache folder is a temporary one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pysam
import pytest

WriteFasta = Callable[..., Path]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of a test goes to the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SEQMODELS_CACHE", str(folder))
    return folder


@pytest.fixture
def write_fasta(tmp_path: Path) -> WriteFasta:
    """Writes records as FASTA; `bgzip=True` as bgzip, `width` letters a line."""

    def write(
        records: dict[str, str], name: str = "x.fa", *, width: int = 60, end: str = "\n", bgzip: bool = False
    ) -> Path:
        text = "".join(
            f">{key} described{end}" + "".join(letters[i : i + width] + end for i in range(0, len(letters), width))
            for key, letters in records.items()
        )
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if bgzip:
            with pysam.BGZFile(str(path), "wb", None) as file:
                file.write(text.encode())
        else:
            path.write_bytes(text.encode())
        return path

    return write


@pytest.fixture
def random_bases() -> Callable[..., str]:
    """A function (length, seed, letters) -> a sequence of letters, the same for the same seed."""

    def make(length: int, seed: int = 0, letters: str = "ACGT") -> str:
        return "".join(np.random.default_rng(seed).choice(list(letters), size=length))

    return make
