"""Softmax attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1) with grouped queries, rotary positions, windows.

    q, k, v = in_proj x             (B, L, H P) | (B, L, G P) | (B, L, G P)
    q, k    = rotary q, rotary k    by the position since the sequence's start (Su et al. 2021, arXiv:2104.09864)
    s_ij    = q_i . k_j / sqrt(P)   j <= i; with a window W, i - W < j
    y_i     = out_proj sum_j softmax_j(s_ij) v_j

G key and value heads serve H query heads, H / G consecutive ones each (Ainslie et al. 2023, arXiv:2305.13245). Names,
order of q | k | v and the halves that rotary turns against each other are those of the published hybrids
(`in_proj`, optional `conv1d`, `out_proj`), so their weights load unchanged.

Memory is O(L) everywhere (PyTorch's fused kernels); no mask of L x L entries is made on a GPU. The state is the past's
keys and values (kv_cache.py): it grows with the context, unless there is a window.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from seqkernels import causal_conv1d
from seqkernels.checks import check_cu_seqlens
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from seqmodels.layers.base import SequenceLayer, require_positive
from seqmodels.layers.kv_cache import KVCache, PaddedKVCache, WindowCache
from seqmodels.layers.state import State, concat_states, may_update_in_place

MASK_ENTRIES = 2**22  # of one block of queries where a mask must be written out (CPU, float64)
MIN_BLOCK = 128  # queries of one block of windowed attention, at least
MAX_BLOCKS = 2**15  # blocks of one launch of windowed attention (a GPU grid's third dimension ends at 65,535)

Cache = KVCache | PaddedKVCache | WindowCache


class Attention(SequenceLayer):
    """Grouped-query softmax attention, causal or not, O(L^2) time (O(L W) with a window), O(L) memory.

    A step reads the whole cache. Inside `updating_in_place` a cache with room (`reserve_state`) is written in place,
    without growing or waiting for the GPU, so a CUDA graph can hold it; reading past the room gives NaN.

    With causal=False there is no state, and every position counts: pack sequences (`cu_seqlens`) instead of padding.

    Args:
        d_model: width D of input and output.
        n_heads: query heads H.
        n_kv_heads: key and value heads G, a divisor of n_heads; None is n_heads.
        head_dim: width P of a head; None is d_model / n_heads.
        rotary_dim: how many of a head's dimensions turn with the position (the first ones); None all, 0 none.
        rotary_base: wavelengths run from 2 pi to 2 pi * rotary_base positions.
        causal: whether a position sees itself and the past alone.
        window: how many positions one sees, itself included; None all. Needs causal.
        d_conv: width of a causal convolution over q, k and v, 2 to 8; 0 is none. Needs causal.
        qkv_bias: whether in_proj has a bias.
        out_bias: whether out_proj has a bias.

    Raises:
        ValueError: a size below 1, heads that do not divide, a rotary_dim that is odd or above head_dim, d_conv
            neither 0 nor in 2..8, or window or d_conv without causal.
    """

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 8,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_dim: int | None = None,
        rotary_base: float = 10000.0,
        causal: bool = True,
        window: int | None = None,
        d_conv: int = 0,
        qkv_bias: bool = False,
        out_bias: bool = False,
    ):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = _heads(d_model, n_heads, n_kv_heads, head_dim)
        self.rotary_dim = self.head_dim if rotary_dim is None else rotary_dim
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ValueError(f"rotary_dim={self.rotary_dim}: must be even and from 0 to head_dim={self.head_dim}")
        if not rotary_base > 0:
            raise ValueError(f"rotary_base={rotary_base}: must be above 0")
        if d_conv != 0 and not 2 <= d_conv <= 8:
            raise ValueError(f"d_conv={d_conv}: must be 0 (none) or from 2 to 8")
        if not causal and (window is not None or d_conv):
            raise ValueError(f"window={window} and d_conv={d_conv} look back only: they need causal=True")
        if window is not None:
            require_positive(window=window)
        self.rotary_base, self.window, self.is_causal = rotary_base, window, causal

        width = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        self.in_proj = nn.Linear(d_model, width, bias=qkv_bias)
        # Holds the published (E, 1, W) weight and its initialisation; the op in seqkernels does the work.
        self.conv1d = nn.Conv1d(width, width, d_conv, groups=width) if d_conv else None
        self.out_proj = nn.Linear(self.n_heads * self.head_dim, d_model, bias=out_bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """torch's initialisation of the matrices, as published; linear biases start at zero."""
        for linear in (self.in_proj, self.out_proj):
            linear.reset_parameters()
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.conv1d is not None:
            self.conv1d.reset_parameters()

    def forward(
        self,
        x_BLD: Float[Tensor, "B L D"],
        state: Cache | tuple[()] | None = None,
        *,
        cu_seqlens: Int[Tensor, " nseq_plus_1"] | None = None,
    ) -> tuple[Float[Tensor, "B L D"], State]:
        """See `SequenceLayer.forward`; not causal, it returns `()` and takes no state.

        Raises:
            ValueError: a state of another batch size or kind, or bad cu_seqlens.
        """
        B, L = x_BLD.shape[:2]
        rows = B if cu_seqlens is None else check_cu_seqlens("Attention", cu_seqlens, B, L)
        past = self._checked(state, rows)
        qkv_BLE, conv = self._short_convolution(self.in_proj(x_BLD), past, cu_seqlens)
        if cu_seqlens is not None:
            spans = list(pairwise(cu_seqlens.tolist()))
            y_BLE, new_state = self._one_by_one([qkv_BLE[:, a:b] for a, b in spans], past, join_dim=1)
        elif not isinstance(past, PaddedKVCache):
            y_BLE, new_state = self._attend(qkv_BLE, past)
        elif L == 1 and may_update_in_place() and not torch.is_grad_enabled():
            y_BLE, new_state = self._step_in_place(qkv_BLE, past)
        else:
            y_BLE, new_state = self._one_by_one(list(qkv_BLE.split(1)), past, join_dim=0)
        if conv is not None:
            new_state = new_state._replace(conv=conv)
        return self.out_proj(y_BLE), new_state

    def _checked(self, state: Any, rows: int) -> Cache | None:
        """The state if it fits this layer and batch."""
        if state is None or (not self.is_causal and state == ()):
            return None
        if not self.is_causal:
            raise ValueError("attention with causal=False reads a sequence as a whole: it takes no state")
        expected = (WindowCache,) if self.window else (KVCache, PaddedKVCache)
        shape = (rows, self.n_kv_heads, self.head_dim)
        if not isinstance(state, expected) or (state.k_BTGP.shape[0], *state.k_BTGP.shape[2:]) != shape:
            found = tuple(state.k_BTGP.shape) if isinstance(state, Cache) else ""
            raise ValueError(
                f"the state is a {type(state).__name__} {found}; this layer and batch need a {expected[0].__name__} "
                f"of shape ({rows}, positions, {self.n_kv_heads}, {self.head_dim})"
            )
        return state

    def _short_convolution(
        self, qkv_BLE: Float[Tensor, "B L E"], past: Cache | None, cu_seqlens: Tensor | None
    ) -> tuple[Float[Tensor, "B L E"], Tensor | None]:
        if self.conv1d is None:
            return qkv_BLE, None
        y_BLE, state = causal_conv1d(
            qkv_BLE,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            initial_state=None if past is None else past.conv,  # type: ignore[arg-type] - () without a conv1d only
            cu_seqlens=cu_seqlens,
            return_final_state=True,
        )
        return y_BLE, state

    def _one_by_one(
        self, pieces: list[Tensor], past: Cache | None, join_dim: int
    ) -> tuple[Float[Tensor, "B L E"], State]:
        """Rows of unequal length: packed sequences, and batches whose pasts differ in length."""
        pasts = [None] * len(pieces) if past is None else past.rows()
        pairs = [self._attend(piece, own) for piece, own in zip(pieces, pasts, strict=True)]
        return torch.cat([y for y, _ in pairs], dim=join_dim), concat_states([state for _, state in pairs])

    def _attend(
        self, qkv_BLE: Float[Tensor, "B L QKV"], past: KVCache | WindowCache | None
    ) -> tuple[Float[Tensor, "B L E"], State]:
        """Rows that all have read equally many positions (or, with a window, whose masks say how many)."""
        L = qkv_BLE.shape[1]
        position_L = torch.arange(L, device=qkv_BLE.device)
        if isinstance(past, WindowCache):
            q, k, v = self._heads(qkv_BLE, past.seen_B[:, None] + position_L)
        else:
            q, k, v = self._heads(qkv_BLE, position_L + (0 if past is None else past.k_BTGP.shape[1]))
        if self.window is not None:
            return _windowed(q, k, v, past, self.window).flatten(2), self._next_window(k, v, past)  # type: ignore[arg-type]
        if not self.is_causal:
            return _fused(q, k, v).flatten(2), ()
        empty = k[:, :0]  # joined even to nothing: a state must not keep the memory of q
        k = torch.cat([empty if past is None else past.k_BTGP.to(k.dtype), k], dim=1)
        v = torch.cat([empty if past is None else past.v_BTGP.to(v.dtype), v], dim=1)
        return _causal(q, k, v).flatten(2), KVCache(k, v)

    def _heads(
        self, qkv_BLE: Float[Tensor, "B L E"], positions: Int[Tensor, "*B L"]
    ) -> tuple[Float[Tensor, "B L H P"], Float[Tensor, "B L G P"], Float[Tensor, "B L G P"]]:
        """q, k and v by heads, q and k turned to their positions."""
        H, G = self.n_heads, self.n_kv_heads
        qkv = qkv_BLE.unflatten(-1, (H + 2 * G, self.head_dim))
        qk, v = qkv.split([H + G, G], dim=2)
        if self.rotary_dim:
            qk = rotate(qk, positions, self.rotary_dim, self.rotary_base)
        q, k = qk.split([H, G], dim=2)
        return q, k, v

    def _next_window(
        self, k: Float[Tensor, "B L G P"], v: Float[Tensor, "B L G P"], past: WindowCache | None
    ) -> WindowCache:
        """The last W-1 keys and values, in memory of their own."""
        assert self.window is not None
        B, L = k.shape[:2]
        kept = self.window - 1

        if past is None:
            return WindowCache(_last(kept, None, k), _last(kept, None, v), torch.full((B,), L, device=k.device))
        return WindowCache(_last(kept, past.k_BTGP, k), _last(kept, past.v_BTGP, v), past.seen_B + L)

    def _step_in_place(
        self, qkv_B1E: Float[Tensor, "B 1 QKV"], past: PaddedKVCache
    ) -> tuple[Float[Tensor, "B 1 E"], PaddedKVCache]:
        """One position written into the cache's room, without asking the GPU how much there is."""
        q, k, v = self._heads(qkv_B1E, past.length_B[:, None])
        B, T = past.k_BTGP.shape[:2]
        row_B, slot_B = torch.arange(B, device=k.device), past.length_B.clamp(max=T - 1)
        for cache, new in ((past.k_BTGP, k), (past.v_BTGP, v)):
            cache.index_put_((row_B, slot_B), new.squeeze(1).to(cache.dtype))
        is_read_BT = torch.arange(T, device=k.device) <= past.length_B[:, None]
        y = _one_query(q, past.k_BTGP.to(q.dtype), past.v_BTGP.to(q.dtype), is_read_BT)
        has_room_B = past.length_B < T
        y = y.masked_fill(~has_room_B[:, None, None, None], torch.nan)  # loud, where an exception would need a wait
        return y.flatten(2), past._replace(length_B=past.length_B + 1)

    def extra_repr(self) -> str:
        parts = [f"n_heads={self.n_heads}", f"n_kv_heads={self.n_kv_heads}", f"head_dim={self.head_dim}"]
        parts += [f"rotary_dim={self.rotary_dim}", f"causal={self.is_causal}"]
        return ", ".join(parts + ([] if self.window is None else [f"window={self.window}"]))


def rotate(
    x_BLHP: Float[Tensor, "B L H P"], positions: Int[Tensor, "*B L"], rotary_dim: int, base: float
) -> Float[Tensor, "B L H P"]:
    """Rotary positions: dimensions (i, i + R/2), i < R/2, turn by position * base^(-2i/R) (RoFormer, eq. 34).

    Angles are made in float64: in fp32 those of position 1,000,000 would be off by up to 0.06.

    Args:
        x_BLHP: queries or keys.
        positions: whole numbers, (L,) or one row a sequence (B, L).
        rotary_dim: R, even; the dimensions from R on stay.
        base: wavelengths are 2 pi base^(2i/R) positions.
    """
    half = rotary_dim // 2
    exponent = torch.arange(half, device=x_BLHP.device, dtype=torch.float64) / half
    angle = (positions.to(torch.float64).unsqueeze(-1) * base**-exponent).unsqueeze(-2)  # (*B, L, 1, R/2)
    dtype = torch.promote_types(x_BLHP.dtype, torch.float32)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    first, second, rest = x_BLHP.split([half, half, x_BLHP.shape[-1] - rotary_dim], dim=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([part.to(x_BLHP.dtype) for part in (*turned, rest)], dim=-1)


def _fused(
    q: Float[Tensor, "B L H P"],
    k: Float[Tensor, "B T G P"],
    v: Float[Tensor, "B T G P"],
    mask: Tensor | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "B L H P"]:
    """PyTorch's fused attention. Key heads are repeated here: its own way for groups lacks kernels on most paths."""
    repeats = q.shape[2] // k.shape[2]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
    q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal).transpose(1, 2)


def _one_query(
    q: Float[Tensor, "B 1 H P"],
    k: Float[Tensor, "B T G P"],
    v: Float[Tensor, "B T G P"],
    is_read_BT: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B 1 H P"]:
    """One position: the heads of a group stand as its queries, so that no key is copied."""
    mask = None if is_read_BT is None else is_read_BT[:, None, None, :]
    grouped = q.squeeze(1).unflatten(1, (k.shape[2], -1))
    y = F.scaled_dot_product_attention(grouped, k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask)
    return y.flatten(1, 2).unsqueeze(1)


def _causal(
    q: Float[Tensor, "B L H P"], k: Float[Tensor, "B T G P"], v: Float[Tensor, "B T G P"]
) -> Float[Tensor, "B L H P"]:
    """The L queries are the last of the T positions; each sees itself and what came before."""
    L, T = q.shape[1], k.shape[1]
    if L == 1:
        return _one_query(q, k, v)
    if L == T:
        return _fused(q, k, v, is_causal=True)
    if q.is_cuda and q.dtype != torch.float64:
        return _fused(q, k, v, mask=causal_lower_right(L, T))
    block = max(MASK_ENTRIES // T, 1)
    pieces = []
    for first in range(0, L, block):
        last = min(first + block, L)
        seen = T - L + last
        mask = torch.ones(last - first, seen, dtype=torch.bool, device=q.device).tril(T - L + first)
        pieces.append(_fused(q[:, first:last], k[:, :seen], v[:, :seen], mask=mask))
    return torch.cat(pieces, dim=1)


def _windowed(
    q: Float[Tensor, "B L H P"],
    k: Float[Tensor, "B L G P"],
    v: Float[Tensor, "B L G P"],
    past: WindowCache | None,
    window: int,
) -> Float[Tensor, "B L H P"]:
    """Each position sees the last `window`: the first W of a piece meet the past, the others only this piece."""
    L, head = q.shape[1], min(q.shape[1], window)
    if past is None:
        y = _causal(q[:, :head], k[:, :head], v[:, :head])
    else:
        keys = torch.cat([past.k_BTGP.to(k.dtype), k[:, :head]], dim=1)
        values = torch.cat([past.v_BTGP.to(v.dtype), v[:, :head]], dim=1)
        is_real_BT = torch.arange(keys.shape[1], device=k.device) >= window - 1 - past.seen_B[:, None]
        if L == 1:
            y = _one_query(q, keys, values, is_real_BT)
        else:
            y = _fused(q[:, :head], keys, values, _band(head, window, q.device) & is_real_BT[:, None, None, :])
    return y if window >= L else torch.cat([y, _banded(q[:, window:], k[:, 1:], v[:, 1:], window)], dim=1)


def _banded(
    q: Float[Tensor, "B L H P"], k: Float[Tensor, "B T G P"], v: Float[Tensor, "B T G P"], window: int
) -> Float[Tensor, "B L H P"]:
    """Query i sees keys i..i+W-1 (T = L + W - 1), in blocks of queries that share one band-shaped mask."""
    B, L = q.shape[:2]
    block = min(L, max(window, MIN_BLOCK, -(-B * L // MAX_BLOCKS)))
    missing = -L % block
    q, k, v = (F.pad(heads, (0, 0, 0, 0, 0, missing)) for heads in (q, k, v))
    q = q.unflatten(1, (-1, block)).flatten(0, 1)
    k, v = (
        heads.unfold(1, block + window - 1, block).permute(0, 1, 4, 2, 3).flatten(0, 1) for heads in (k, v)
    )  # (B blocks, block + W - 1, G, P)
    y = _fused(q, k, v, _band(block, window, q.device))
    return y.unflatten(0, (B, -1)).flatten(1, 2)[:, :L]


def _band(queries: int, window: int, device: torch.device) -> Bool[Tensor, "queries keys"]:
    """True where key j is one of the W that query i sees: i <= j < i + W."""
    ones = torch.ones(queries, queries + window - 1, dtype=torch.bool, device=device)
    return ones.triu().tril(window - 1)


def _heads(d_model: int, n_heads: int, n_kv_heads: int | None, head_dim: int | None) -> tuple[int, int, int]:
    """H, G and P, checked."""
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    require_positive(d_model=d_model, n_heads=n_heads, n_kv_heads=n_kv_heads)
    if n_heads % n_kv_heads:
        raise ValueError(f"n_kv_heads={n_kv_heads}: must divide n_heads={n_heads}")
    if head_dim is None:
        if d_model % n_heads:
            raise ValueError(f"n_heads={n_heads}: must divide d_model={d_model}, or give head_dim")
        head_dim = d_model // n_heads
    require_positive(head_dim=head_dim)
    return n_heads, n_kv_heads, head_dim


def _last(kept: int, old: Tensor | None, new: Tensor) -> Tensor:
    """The last `kept` positions of old and new together, zeros where there are none."""
    B, L = new.shape[:2]
    if kept <= L:
        return new[:, L - kept :].clone()
    old = new.new_zeros(B, kept, *new.shape[2:]) if old is None else old.to(new.dtype)
    return torch.cat([old[:, L:], new], dim=1)
