"""Classes of positions that a language model of DNA is judged by: repeats or not, and bases next to N."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from domains.dna.tokenizer import N, soft_mask

MARK_NAMES = ("repeat", "unique", "n_adjacent")  # bit 0, 1 and 2 of a mark
N_REACH_BASES = 10


def position_marks(raw: UInt8[np.ndarray, " S"], ids: UInt8[np.ndarray, " S"]) -> UInt8[np.ndarray, " S"]:
    """Bits of every position, in the order of `MARK_NAMES`.

    Args:
        raw: ASCII codes as the FASTA has them: lower case is a soft-masked repeat, upper case is not.
        ids: their token ids.

    Returns:
        "repeat" or "unique" at each position, and "n_adjacent" at bases with an N of the same window at most
        `N_REACH_BASES` away.
    """
    is_repeat = soft_mask(raw)
    n_before = np.concatenate([[0], np.cumsum(ids == N)])
    place = np.arange(len(ids))
    low, high = np.maximum(place - N_REACH_BASES, 0), np.minimum(place + N_REACH_BASES + 1, len(ids))
    near_n = (n_before[high] > n_before[low]) & (ids != N)
    return (is_repeat * 1 + ~is_repeat * 2 + near_n * 4).astype(np.uint8)
