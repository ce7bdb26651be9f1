"""Small, exact sound for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Band-limited noise whose 16-bit values are exact in float32: noise(samples, channels=1, seed=0)."""

    def make(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        rough = np.cumsum(rng.standard_normal((samples, channels)), axis=0) * 0.01
        waves = np.sin(np.arange(samples) / 7)[:, None] * 0.3 + np.clip(rough, -0.5, 0.5)
        exact = np.rint(waves * 32768).clip(-32768, 32767) / 32768
        return exact.astype(np.float32).squeeze(1) if channels == 1 else exact.astype(np.float32)

    return make


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., str]:
    """Writes samples: put("a/b.wav", samples, rate, subtype=…, format=…); returns the path."""

    def write(name: str, samples: np.ndarray, rate_hz: int = 8000, **options: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, rate_hz, **options)
        return str(path)

    return write
