"""The definition of SSD, in plain PyTorch; slow, any floating-point dtype, differentiable by autograd.

Transformers are SSMs, Dao & Gu 2024 (arXiv 2405.21060): the selective state space of Mamba with one decay a head
(section 2.4: A is a scalar times the identity) and heads of P channels that share it. For every head, with a state of
P x N numbers,

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T       (1a), discretised as in Mamba
    y_t = h_t C_t + D x_t                            (1b), with the skip

B and C are shared by the heads of a group (section 7.2). All fast implementations compute this by chunks (section 6).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from seqkernels.checks import accumulation_dtype


def unavailable(x_BLHP: Tensor, a_H: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def ssd(
    x_BLHP: Float[Tensor, "B L H P"],
    dt_BLH: Float[Tensor, "B L H"],
    a_H: Float[Tensor, H],
    b_BLGN: Float[Tensor, "B L G N"],
    c_BLGN: Float[Tensor, "B L G N"],
    d_H: Float[Tensor, H] | None,
    dt_bias_H: Float[Tensor, H] | None,
    dt_softplus: bool,
    initial_state_BHPN: Float[Tensor, "B H P N"] | None,
    cu_seqlens: Int[Tensor, nseq+1] | None,
) -> tuple[Tensor, Tensor]:
    """Run the recurrence step by step; see `seqkernels.ssd.op` for the arguments.

    Returns:
        y_BLHP in x's dtype, and the state after the last step, at least fp32 (leading dimension nseq when packed).
    """
    x, dt, b, c = (t.to(accumulation_dtype(x_BLHP.dtype)) for t in (x_BLHP, dt_BLH, b_BLGN, c_BLGN))
    if dt_bias_H is not None:
        dt = dt + dt_bias_H
    if dt_softplus:
        dt = F.softplus(dt)  # the identity above 20, as published
    if cu_seqlens is None:
        y, final_state = _recurrence(x, dt, a_H, b, c, initial_state_BHPN)
    else:
        pieces = []
        for i, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
            state = None if initial_state_BHPN is None else initial_state_BHPN[i : i + 1]
            x_, dt_, b_, c_ = (t[:, start:end] for t in (x, dt, b, c))
            pieces.append(_recurrence(x_, dt_, a_H, b_, c_, state))
        y, final_state = torch.cat([p[0] for p in pieces], dim=1), torch.cat([p[1] for p in pieces])
    if d_H is not None:
        y = y + d_H[:, None] * x
    return y.to(x_BLHP.dtype), final_state


def _recurrence(
    x_BLHP: Tensor, dt_BLH: Tensor, a_H: Tensor, b_BLGN: Tensor, c_BLGN: Tensor, state_BHPN: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Equations (1a) and (1b), one time step after the other."""
    B, _, H, P = x_BLHP.shape
    if state_BHPN is None:
        state_BHPN = x_BLHP.new_zeros(B, H, P, b_BLGN.shape[-1])
    y: list[Tensor] = []
    for x_BHP, dt_BH, b_BGN, c_BGN in zip(x_BLHP.unbind(1), dt_BLH.unbind(1), b_BLGN.unbind(1), c_BLGN.unbind(1)):
        b_BHN, c_BHN = _per_head(b_BGN, H), _per_head(c_BGN, H)
        decay_BH = torch.exp(dt_BH * a_H)
        input_BHPN = (dt_BH[..., None] * x_BHP)[..., None] * b_BHN[..., None, :]
        state_BHPN = decay_BH[..., None, None] * state_BHPN + input_BHPN
        y.append((state_BHPN * c_BHN[..., None, :]).sum(-1))
    return torch.stack(y, dim=1), state_BHPN


def _per_head(b_BGN: Tensor, heads: int) -> Tensor:
    """Give each head the B or C of its group: heads are divided evenly, in order."""
    return b_BGN.repeat_interleave(heads // b_BGN.shape[1], dim=1)
