"""Random changes to a training window: the other strand, and a shift of a few bases.

Each takes the sample's own random generator, so that (seed, epoch, index) fixes the result on any worker.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from domains.dna.intervals import Interval


def random_strand(window: Interval, rng: np.random.Generator) -> Interval:
    """The window on a strand drawn with equal chance: `-` reads as the reverse complement."""
    return replace(window, strand="-") if rng.random() < 0.5 else window


def random_shift(window: Interval, rng: np.random.Generator, *, max_bases: int, inside: Interval) -> Interval:
    """The window moved by up to `max_bases` either way, uniformly, but never out of `inside`."""
    low = max(-max_bases, inside.start - window.start)
    high = min(max_bases, inside.end - window.end)
    if low >= high:
        return window
    by = int(rng.integers(low, high + 1))
    return replace(window, start=window.start + by, end=window.end + by)
