"""`mamba_step` in CUDA C++, compiled at first use (see `seqkernels.nvrtc`): the kernels `convolve` and `scan`.

In: xz (B, 2*E) and both states. Out: y and the new states. What the first kernel knows of x_proj is a share per
block of channels; the second adds the shares up in order: the same bits every run. No host synchronisation: a CUDA
graph can hold it. No gradients.
The folder also has the kernels that make a whole block's step of few rows (`seqkernels.mamba_block_step`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seqkernels import nvrtc
from seqkernels.dispatch import constant
from seqkernels.mamba_step.cuda import launch
from seqkernels.mamba_step.ops import Weights, implementation

OLDEST_CAPABILITY = (8, 0)


@constant
def gpu_unavailable(device_type: str, index: int) -> str | None:
    """Why CUDA C++ cannot be compiled for or run on this device, in words; None when it can."""
    if device_type != "cuda":
        return f"the tensors are on {device_type}, these kernels need a CUDA GPU"
    if torch.version.hip is not None:
        return "only NVIDIA GPUs are supported"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, needed is 8.0 (Ampere) or newer"
    missing = nvrtc.missing()
    if missing is not None:
        return missing
    if capability[0] * 10 + capability[1] not in nvrtc.supported_architectures():
        return f"NVRTC {'.'.join(map(str, nvrtc.nvrtc_version()))} does not know compute capability {capability}"
    return None


def unavailable(xz_B2E: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    if details.get("needs_grad"):
        return "the fused step has no gradients; call it under torch.no_grad()"
    if a_EN.is_complex():
        return "the state matrix is complex, only real ones are supported"
    index = xz_B2E.device.index
    reason = gpu_unavailable(xz_B2E.device.type, -1 if index is None else index)
    if reason is not None:
        return reason
    if xz_B2E.dtype not in launch.ELEMENT:
        return f"dtype {xz_B2E.dtype} is not supported, only float32, bfloat16 and float16"
    weight_dtype = details.get("weight_dtype", xz_B2E.dtype)
    if weight_dtype != xz_B2E.dtype:
        return f"the projections' weights are {weight_dtype} and the input is {xz_B2E.dtype}; they have to agree"
    E, N = a_EN.shape
    rank: int = details.get("rank", 1)  # type: ignore[assignment]
    return _no_cut(xz_B2E.shape[0], E, N, rank, xz_B2E.dtype)


@constant
def _no_cut(B: int, E: int, N: int, R: int, dtype: torch.dtype) -> str | None:
    if launch.plan_step(launch.Sizes(0, E, N, R, 1), B, dtype) is not None:
        return None
    return f"E={E}, N={N}, R={R} cannot be dealt out to threads evenly (a multiple of 64 for E always can)"


def _run(
    xz: Tensor, conv_state: Tensor, state: Tensor, new_conv_state: Tensor, new_state: Tensor, weights: Weights
) -> Tensor:
    """Both launches; see `seqkernels.mamba_step.ops.Run`."""
    conv_bias = None if weights[1] is None else weights[1].contiguous()
    conv_weight, x_proj, dt_proj, dt_bias, a, d = (aligned(t) for t in (weights[0], *weights[2:]))
    xz = xz if xz.stride(1) == 1 else xz.contiguous()
    (B, E, N), W = state.shape, conv_weight.shape[1]
    size = launch.Sizes(0, E, N, dt_proj.shape[1], W)
    plan = launch.plan_step(size, B, xz.dtype)
    assert plan is not None, "`unavailable` has refused it"
    convolve, scan = plan
    signal, partial = launch.convolve(xz, conv_state, new_conv_state, conv_weight, conv_bias, x_proj, size, convolve)
    old, new = aligned(state), aligned(new_state)
    y = launch.scan(signal, xz[:, E:], partial, old, new, dt_proj, dt_bias, a, d, size, scan, True)
    if new is not new_state:
        new_state.copy_(new)
    return y


def aligned(tensor: Tensor) -> Tensor:
    """Dense, at an address that 16-byte loads can start from; the tensor itself where it is that already."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


step = implementation("cuda", _run)
