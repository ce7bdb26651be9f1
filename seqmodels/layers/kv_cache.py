"""What attention carries from piece to piece: the keys and values of the past, in the activations' dtype.

Letters beside the legend's: T cached positions, G groups of query heads that share a key and a value head.

- `KVCache`: every row holds T positions; grows with each. What attention returns.
- `PaddedKVCache`: rows of any length up to T, filled from the left. Packed sequences of unequal length, joined caches,
  and the room that `reserve_state` makes, which steps fill in place.
- `WindowCache`: the last W-1 positions, filled from the right, constant in size. Sliding windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class KVCache(NamedTuple):
    """Keys and values of T positions, the same T for every row; T says how many positions were read.

    Attributes:
        k_BTGP: keys, already rotated where positions are rotary.
        v_BTGP: values.
        conv: (B, W-1, E) fp32, last inputs of the short convolution; `()` without one.
    """

    k_BTGP: Float[Tensor, "B T G P"]
    v_BTGP: Float[Tensor, "B T G P"]
    conv: Tensor | tuple[()] = ()

    holds_activations = True  # type: ignore[misc] - a mark of the type (see state.py), not a field

    def rows(self) -> list[KVCache]:
        """Every row as a cache of its own, without its convolution's state."""
        return [KVCache(k, v) for k, v in zip(self.k_BTGP.split(1), self.v_BTGP.split(1))]

    def empty_rows(self, count: int) -> KVCache:
        """Rows that have read nothing."""
        return _nothing(self, count)

    def concat_rows(self, states: Sequence[KVCache | PaddedKVCache]) -> KVCache | PaddedKVCache:
        """Joins caches along the batch; of unequal lengths too."""
        return _join(states)

    def reserve(self, positions: int) -> PaddedKVCache:
        """The same past in a buffer with room for `positions` more."""
        B, T = self.k_BTGP.shape[:2]
        length_B = torch.full((B,), T, dtype=torch.int64, device=self.k_BTGP.device)
        return PaddedKVCache(_pad(self.k_BTGP, T + positions), _pad(self.v_BTGP, T + positions), length_B, self.conv)


class PaddedKVCache(NamedTuple):
    """Keys and values of rows of unequal length, or with room behind them: row b holds positions 0..length_B[b]-1.

    Attributes:
        k_BTGP: keys; what lies at and behind a row's length is finite and has no effect.
        v_BTGP: values.
        length_B: positions read by each row, int64.
        conv: as in `KVCache`.
    """

    k_BTGP: Float[Tensor, "B T G P"]
    v_BTGP: Float[Tensor, "B T G P"]
    length_B: Int[Tensor, " B"]
    conv: Tensor | tuple[()] = ()

    holds_activations = True  # type: ignore[misc]

    def rows(self) -> list[KVCache]:
        """Every row without its padding. Waits for the GPU: lengths are read."""
        return [
            KVCache(k[:, :length], v[:, :length])
            for k, v, length in zip(self.k_BTGP.split(1), self.v_BTGP.split(1), self.length_B.tolist())
        ]

    def select_rows(self, rows_K: Sequence[int] | Int[Tensor, " K"]) -> KVCache | PaddedKVCache:
        """Rows in a buffer as long as the longest of them: room that was reserved is given up."""
        rows_K = torch.as_tensor(rows_K, device=self.k_BTGP.device, dtype=torch.int64)
        length_K = self.length_B.index_select(0, rows_K)
        longest = int(length_K.max())
        k, v = (tensor.index_select(0, rows_K)[:, :longest] for tensor in (self.k_BTGP, self.v_BTGP))
        conv = self.conv.index_select(0, rows_K) if isinstance(self.conv, Tensor) else ()
        if bool((length_K == longest).all()):
            return KVCache(k, v, conv)
        return PaddedKVCache(k, v, length_K, conv)

    def empty_rows(self, count: int) -> KVCache:
        """Rows that have read nothing."""
        return _nothing(self, count)

    def concat_rows(self, states: Sequence[KVCache | PaddedKVCache]) -> KVCache | PaddedKVCache:
        """Joins caches along the batch; room that was reserved is given up."""
        return _join(states)

    def reserve(self, positions: int) -> PaddedKVCache:
        """The same past in a buffer with room for `positions` more behind the longest row."""
        capacity = int(self.length_B.max()) + positions
        k, v = (_pad(tensor[:, :capacity], capacity) for tensor in (self.k_BTGP, self.v_BTGP))
        return PaddedKVCache(k, v, self.length_B, self.conv)


class WindowCache(NamedTuple):
    """The last W-1 keys and values, oldest first; zeros stand for what came before the start.

    Attributes:
        k_BTGP: keys, T = W-1.
        v_BTGP: values.
        seen_B: positions read by each row since its start, int64: the position of the next one.
        conv: as in `KVCache`.
    """

    k_BTGP: Float[Tensor, "B T G P"]
    v_BTGP: Float[Tensor, "B T G P"]
    seen_B: Int[Tensor, " B"]
    conv: Tensor | tuple[()] = ()

    holds_activations = True  # type: ignore[misc]

    def rows(self) -> list[WindowCache]:
        """Every row as a cache of its own, without its convolution's state."""
        parts = zip(self.k_BTGP.split(1), self.v_BTGP.split(1), self.seen_B.split(1))
        return [WindowCache(k, v, seen) for k, v, seen in parts]


def _join(states: Sequence[KVCache | PaddedKVCache]) -> KVCache | PaddedKVCache:
    """One cache of all rows of all states: exact where the rows have one length, else padded on the right."""
    convs = [state.conv for state in states if isinstance(state.conv, Tensor)]
    conv = torch.cat(convs) if convs else ()
    same = len({state.k_BTGP.shape[1] for state in states}) == 1
    if not same or any(isinstance(state, PaddedKVCache) for state in states):
        states = [row for state in states for row in state.rows()]
    lengths = [state.k_BTGP.shape[1] for state in states]
    k, v = (torch.cat([_pad(t, max(lengths)) for t in tensors]) for tensors in (
        [state.k_BTGP for state in states], [state.v_BTGP for state in states]))  # fmt: skip
    if len(set(lengths)) == 1:
        return KVCache(k, v, conv)
    return PaddedKVCache(k, v, torch.tensor(lengths, device=k.device), conv)


def _nothing(like: KVCache | PaddedKVCache, count: int) -> KVCache:
    k, v = (tensor.new_zeros(count, 0, *tensor.shape[2:]) for tensor in (like.k_BTGP, like.v_BTGP))
    return KVCache(k, v, like.conv.new_zeros(count, *like.conv.shape[1:]) if isinstance(like.conv, Tensor) else ())


def _pad(tensor_BTGP: Float[Tensor, "B T G P"], length: int) -> Float[Tensor, "B length G P"]:
    """Zeros behind the cached positions up to `length`."""
    return F.pad(tensor_BTGP, (0, 0, 0, 0, 0, length - tensor_BTGP.shape[1]))
