"""The definition of the causal depthwise convolution, in plain PyTorch.

Each channel e is filtered on its own: y_t = bias + sum over w of weight[w] * x_{t - (W-1) + w}, then silu if asked.
Before the first position stand the W-1 inputs of the initial state (zeros when absent). This is
`torch.nn.Conv1d(E, E, W, groups=E, padding=W-1)` cut to L, in channel-last layout; `weight_EW` is its weight without
the middle dimension.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqkernels.checks import accumulation_dtype


def unavailable(x_BLE: Tensor, weight_EW: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def conv(
    x_BLE: Float[Tensor, "B L E"],
    weight_EW: Float[Tensor, "E W"],
    bias_E: Float[Tensor, E] | None,
    activation: str | None,
    initial_state: Float[Tensor, "B W-1 E"] | None,
    cu_seqlens: Int[Tensor, nseq+1] | None,
) -> tuple[Tensor, Tensor]:
    """Filter each sequence; see `seqkernels.causal_conv1d.op` for the arguments.

    Returns:
        y_BLE in x's dtype, and the last W-1 inputs of each sequence, at least fp32 (leading dimension nseq if packed).
    """
    x = x_BLE.to(accumulation_dtype(x_BLE.dtype))
    if cu_seqlens is None:
        y, final_state = _filter(x, weight_EW, initial_state)
    else:
        bounds = cu_seqlens.tolist()
        pieces = []
        for i, (start, end) in enumerate(pairwise(bounds)):
            state = None if initial_state is None else initial_state[i : i + 1]
            pieces.append(_filter(x[:, start:end], weight_EW, state))
        y, final_state = torch.cat([p[0] for p in pieces], dim=1), torch.cat([p[1] for p in pieces])
    if bias_E is not None:
        y = y + bias_E
    if activation == "silu":
        y = F.silu(y)
    return y.to(x_BLE.dtype), final_state


def _filter(x_BLE: Tensor, weight_EW: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The sum over the W taps as W shifted multiply-adds, and the last W-1 inputs."""
    B, L, E = x_BLE.shape
    W = weight_EW.shape[1]
    if state is None:
        state = x_BLE.new_zeros(B, W - 1, E)
    padded = torch.cat([state, x_BLE], dim=1)
    y = padded[:, :L] * weight_EW[:, 0]
    for w in range(1, W):
        y = y + padded[:, w : w + L] * weight_EW[:, w]
    return y, padded[:, L:]
