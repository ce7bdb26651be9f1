"""The definition of the selective scan, in plain PyTorch; slow, any floating-point dtype, differentiable by autograd.

Mamba: Linear-Time Sequence Modeling with Selective State Spaces, Gu & Dao 2023 (arXiv 2312.00752): for every channel
e with a state of size N,

    h_t = Abar_t h_{t-1} + Bbar_t x_t        (2a)
    y_t = C_t h_t                            (2b)

    Abar_t = exp(dt_t A)                     (4), zero-order hold
    Bbar_t = dt_t B_t                        the Euler step: the published code takes it in place of (4)'s
                                             (dt A)^-1 (exp(dt A) - I) dt B, and published weights expect it

The output then gets the skip D x_t and the gate silu(z_t). With complex A, B, C the state is complex and stands for
itself and its conjugate, so y_t = 2 Re(C_t h_t).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Int
from torch import Tensor

from seqkernels.checks import accumulation_dtype


def unavailable(x_BLE: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def scan(
    x_BLE: Float[Tensor, "B L E"],
    dt_BLE: Float[Tensor, "B L E"],
    a_EN: Float[Tensor, "E N"] | Complex[Tensor, "E N"],
    b_BLGN: Float[Tensor, "B L G N"] | Complex[Tensor, "B L G N"],
    c_BLGN: Float[Tensor, "B L G N"] | Complex[Tensor, "B L G N"],
    d_E: Float[Tensor, E] | None,
    z_BLE: Float[Tensor, "B L E"] | None,
    dt_bias_E: Float[Tensor, E] | None,
    dt_softplus: bool,
    initial_state_BEN: Float[Tensor, "B E N"] | Complex[Tensor, "B E N"] | None,
    cu_seqlens: Int[Tensor, nseq+1] | None,
) -> tuple[Tensor, Tensor]:
    """Scan each sequence step by step; see `seqkernels.selective_scan.op` for the arguments.

    Returns:
        y_BLE in x's dtype, and the state after the last step, at least fp32 (leading dimension nseq when packed).
    """
    accumulate = accumulation_dtype(x_BLE.dtype)
    x, dt, b, c = (_at_least(t, accumulate) for t in (x_BLE, dt_BLE, b_BLGN, c_BLGN))
    if dt_bias_E is not None:
        dt = dt + dt_bias_E
    if dt_softplus:
        dt = F.softplus(dt)  # the identity above 20, as published
    if cu_seqlens is None:
        y, final_state = _recurrence(x, dt, a_EN, b, c, initial_state_BEN)
    else:
        bounds = cu_seqlens.tolist()
        pieces = []
        for i, (start, end) in enumerate(pairwise(bounds)):
            state = None if initial_state_BEN is None else initial_state_BEN[i : i + 1]
            x_, dt_, b_, c_ = (t[:, start:end] for t in (x, dt, b, c))
            pieces.append(_recurrence(x_, dt_, a_EN, b_, c_, state))
        y, final_state = torch.cat([p[0] for p in pieces], dim=1), torch.cat([p[1] for p in pieces])
    if d_E is not None:
        y = y + d_E * x
    if z_BLE is not None:
        y = y * F.silu(z_BLE.to(accumulate))
    return y.to(x_BLE.dtype), final_state


def _at_least(tensor: Tensor, accumulate: torch.dtype) -> Tensor:
    """Raise a real tensor to the accumulation dtype; complex ones arrive in theirs."""
    return tensor if tensor.is_complex() else tensor.to(accumulate)


def _recurrence(
    x_BLE: Tensor, dt_BLE: Tensor, a_EN: Tensor, b_BLGN: Tensor, c_BLGN: Tensor, state_BEN: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Equations (2a) and (2b), one time step after the other."""
    B, _, E = x_BLE.shape
    if state_BEN is None:
        state_BEN = a_EN.new_zeros(B, *a_EN.shape)
    y: list[Tensor] = []
    for x_BE, dt_BE, b_BGN, c_BGN in zip(x_BLE.unbind(1), dt_BLE.unbind(1), b_BLGN.unbind(1), c_BLGN.unbind(1)):
        abar_BEN = torch.exp(dt_BE[..., None] * a_EN)
        bbar_BEN = dt_BE[..., None] * _per_channel(b_BGN, E)
        state_BEN = abar_BEN * state_BEN + bbar_BEN * x_BE[..., None]
        y_BE = (_per_channel(c_BGN, E) * state_BEN).sum(-1)
        y.append(2 * y_BE.real if y_BE.is_complex() else y_BE)
    return torch.stack(y, dim=1), state_BEN


def _per_channel(b_BGN: Tensor, channels: int) -> Tensor:
    """Give each channel the B or C of its group: channels are divided evenly, in order."""
    return b_BGN.repeat_interleave(channels // b_BGN.shape[1], dim=1)
