"""One decode step of a Mamba-2 block between its projections, in one Triton kernel: convolution, recurrence, skip.

For stepping without gradients on a GPU, where twenty small kernels a layer would take longer than the matrices. The
definition is `Mamba2._step` in seqmodels/layers/mamba2.py, which runs everywhere.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqkernels import triton_runtime
from seqkernels.library import register
from seqkernels.ssd.op import REGISTRY


class StepWeights(NamedTuple):
    """What a block's step reads beside its inputs and states; any floating-point dtypes.

    Attributes:
        conv_weight_CW: filter of each channel of x, b, c.
        conv_bias_C: its bias, or None.
        dt_bias_H, a_log_H, d_H: step-size bias, log of the decay rate, skip weight.
    """

    conv_weight_CW: Tensor
    conv_bias_C: Tensor | None
    dt_bias_H: Tensor
    a_log_H: Tensor
    d_H: Tensor


def can_run(xbc_BC: Tensor, implementation: str) -> bool:
    """Whether the kernel is among what a name of `ssd`'s stands for, and runs on these tensors here."""
    return REGISTRY.asked(implementation) in ("auto", "triton") and triton_runtime.unavailable(xbc_BC) is None


def decode_step(
    xbc_BC: Tensor,
    dt_BH: Tensor,
    conv_BWC: Tensor,
    ssm_BHPN: Tensor,
    weights: StepWeights,
    *,
    groups: int,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step every row by one position.

    Args:
        xbc_BC: x (H * P), b and c (groups * N each) of the position, dense in C.
        dt_BH: step sizes before bias and softplus.
        conv_BWC: the last W-1 inputs of the convolution, fp32; not written.
        ssm_BHPN: state, fp32, dense; written when `inplace`.
        weights: of the block.
        groups: of b and c.
        inplace: whether the new state may take the old one's memory.

    Returns:
        y (B, H * P) in xbc's dtype, the new window, the new state.
    """
    arguments = (xbc_BC, dt_BH, conv_BWC.contiguous(), ssm_BHPN, *weights, groups)
    if not inplace or not ssm_BHPN.is_contiguous():
        return step_op(*arguments)
    y_BE, window = _empty(xbc_BC, conv_BWC, ssm_BHPN)
    _launch(arguments, y_BE, window, ssm_BHPN)
    return y_BE, window, ssm_BHPN


def _step(
    xbc: Tensor,
    dt: Tensor,
    conv: Tensor,
    ssm: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    dt_bias: Tensor,
    a_log: Tensor,
    d: Tensor,
    groups: int,
) -> tuple[Tensor, Tensor, Tensor]:
    y, window = _empty(xbc, conv, ssm)
    after = torch.empty(ssm.shape, dtype=ssm.dtype, device=ssm.device)
    _launch((xbc, dt, conv, ssm.contiguous(), conv_weight, conv_bias, dt_bias, a_log, d, groups), y, window, after)
    return y, window, after


def _step_fake(xbc, dt, conv, ssm, conv_weight, conv_bias, dt_bias, a_log, d, groups):
    return *_empty(xbc, conv, ssm), torch.empty(ssm.shape, dtype=ssm.dtype, device=ssm.device)


def _empty(xbc: Tensor, conv: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor]:
    B, H, P, _ = ssm.shape
    y = torch.empty((B, H * P), dtype=xbc.dtype, device=xbc.device)
    return y, torch.empty(conv.shape, dtype=conv.dtype, device=conv.device)


def _launch(arguments: tuple, y: Tensor, window: Tensor, after: Tensor) -> None:
    xbc, dt, conv, ssm, conv_weight, conv_bias, dt_bias, a_log, d, groups = arguments
    xbc = xbc if xbc.stride(-1) == 1 else xbc.contiguous()
    dt = dt if dt.stride(-1) == 1 else dt.contiguous()
    B, H, P, N = ssm.shape
    block_p = min(16, 1 << (P - 1).bit_length())
    with torch.cuda.device_of(xbc):
        triton_runtime.kernels("ssd").decode_step[(B * H, -(-P // block_p))](
            xbc, dt, conv, window, conv_weight.contiguous(), conv_weight if conv_bias is None else conv_bias,
            dt_bias, a_log, d, ssm, after, y, xbc.stride(0), dt.stride(0), H, P, N, H // groups, groups,
            W=conv_weight.shape[1], HAS_BIAS=conv_bias is not None, PRECISE=xbc.dtype == torch.float32,
            BLOCK_P=block_p, BLOCK_N=1 << (N - 1).bit_length(), num_warps=4,
        )  # fmt: skip


step_op = register("ssd_step_triton", _step, _step_fake, devices=("CUDA", "CPU"))  # CPU: Triton's interpreter
