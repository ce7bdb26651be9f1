"""`long_conv` on the GPU: `fft.py` with data moved by Triton kernels.

PyTorch's copies between (B, L, E) and (E, B, L) run at a fourth of the memory's speed; here tiles are turned in shared
memory, and the change of dtype and the zeros behind the end cost no pass of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkernels import triton_runtime
from seqkernels.checks import accumulation_dtype
from seqkernels.long_conv.fft import Moves, registered

_POSITIONS, _CHANNELS = 64, 32  # of a tile


def unavailable(u_BLE: Tensor, parameter: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    return triton_runtime.unavailable(u_BLE)


def _channels_first(u: Tensor, size: int, mirrored: bool) -> Tensor:
    u = u if u.stride(2) == 1 or u.shape[2] == 1 else u.contiguous()
    (B, L, E), out = (
        u.shape,
        torch.empty(u.shape[2], u.shape[0], size, dtype=accumulation_dtype(u.dtype), device=u.device),
    )
    with torch.cuda.device_of(u):
        triton_runtime.kernels("long_conv").channels_first[(-(-size // _POSITIONS), -(-E // _CHANNELS), B)](
            u, out, u.stride(0), u.stride(1), L, E, size,
            MIRRORED=mirrored, POSITIONS=_POSITIONS, CHANNELS=_CHANNELS, num_warps=4,
        )  # fmt: skip
    return out


def _channels_last(y: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    y = y.contiguous()
    (E, B, size), out = y.shape, torch.empty(y.shape[1], length, y.shape[0], dtype=dtype, device=y.device)
    with torch.cuda.device_of(y):
        triton_runtime.kernels("long_conv").channels_last[(-(-length // _POSITIONS), -(-E // _CHANNELS), B)](
            y, out, length, E, size, POSITIONS=_POSITIONS, CHANNELS=_CHANNELS, num_warps=4
        )
    return out


conv, gradients = registered("long_conv_triton", Moves(_channels_first, _channels_last))
