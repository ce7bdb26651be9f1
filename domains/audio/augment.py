"""Random changes of a waveform that leave its meaning alone; training only, drawn from the sample's own dice."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


class WaveformAugment:
    """Gain, polarity and noise.

    Args:
        gain_db: loudness changes by a uniform draw from -gain_db..+gain_db, never so far that the clip passes ±1.
        flip_polarity: turn the waveform over with chance 1/2 (inaudible).
        noise_dbfs: add white Gaussian noise of this RMS in dB below full scale, e.g. -50; None adds none.

    Raises:
        ValueError: a gain below 0 or a noise level above 0.
    """

    def __init__(self, *, gain_db: float = 0.0, flip_polarity: bool = False, noise_dbfs: float | None = None) -> None:
        if gain_db < 0:
            raise ValueError(f"gain_db={gain_db} is a range to both sides; give 0 or more")
        if noise_dbfs is not None and noise_dbfs > 0:
            raise ValueError(f"noise_dbfs={noise_dbfs} lies above full scale; give 0 or less, e.g. -50")
        self.gain_db, self.flip_polarity, self.noise_dbfs = gain_db, flip_polarity, noise_dbfs

    def __call__(self, samples: Float[np.ndarray, " L"], rng: np.random.Generator) -> Float[np.ndarray, " L"]:
        """A changed copy in [-1, 1]. Draws the same number of times whatever the settings of the others."""
        decibels, side = rng.uniform(-1, 1), rng.random()
        peak = float(np.abs(samples).max(initial=0.0))
        gain = 10 ** (self.gain_db * decibels / 20)
        gain = min(gain, max(1.0, 1 / peak)) if peak > 0 else gain
        if self.flip_polarity and side < 0.5:
            gain = -gain
        changed = samples * np.float32(gain)
        if self.noise_dbfs is not None:
            changed = changed + rng.standard_normal(len(samples), np.float32) * np.float32(10 ** (self.noise_dbfs / 20))
        return np.clip(changed, -1, 1)
