"""`selective_scan` on NVIDIA GPUs from compute capability 8.0 on: CUDA C++ compiled at first use (`seqkernels.nvrtc`).

Reading order: `common.cuh` (numbers, chunks and tiles), `forward.cu`, `backward.cu`, `ends.cu` and `carry.cu`
(sequences cut over blocks), `reduce.cu`; then `plan.py` (which layout for which size), `launch.py`, `ops.py`. Complex
a, b, c have kernels of their own: `complex.cuh` first, `complex_launch.py`, `complex_ops.py`.

State and arithmetic are fp32 whatever the dtype of x. Nothing depends on the order in which blocks run: results are the
same bit for bit from run to run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seqkernels import nvrtc
from seqkernels.dispatch import constant, planned_memory
from seqkernels.selective_scan.cuda import plan

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MIN_CAPABILITY = (8, 0)  # cp.async and bf16
MAX_STATES = 256


@constant
def _no_device(index: int | None) -> str | None:
    capability = torch.cuda.get_device_capability(index)
    if capability < _MIN_CAPABILITY:
        name = torch.cuda.get_device_name(index)
        return f"needs compute capability 8.0 or newer, {name} has {capability[0]}.{capability[1]}"
    if missing := nvrtc.missing():
        return missing
    architecture = capability[0] * 10 + capability[1]
    if architecture not in nvrtc.supported_architectures():
        version = ".".join(map(str, nvrtc.nvrtc_version()))
        return f"NVRTC {version} does not know compute capability {capability[0]}.{capability[1]}: install a newer one"
    return None


def memory_bytes(index: int | None) -> int:
    """Of the GPU, or of the one that is planned for."""
    planned = planned_memory()
    return _memory_bytes(index) if planned is None else planned


@constant
def _memory_bytes(index: int | None) -> int:
    return torch.cuda.get_device_properties(index).total_memory


def unavailable(x_BLE: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    if x_BLE.device.type != "cuda":
        return f"needs a CUDA GPU, x is on {x_BLE.device.type}"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    if x_BLE.dtype not in _DTYPES:
        return f"handles float32, bfloat16 and float16, x is {x_BLE.dtype}"
    if a_EN.shape[1] > MAX_STATES:
        return f"handles up to {MAX_STATES} states, a has {a_EN.shape[1]}"
    return _no_device(x_BLE.device.index)


def scan(
    x_BLE: Tensor,
    dt_BLE: Tensor,
    a_EN: Tensor,
    b_BLGN: Tensor,
    c_BLGN: Tensor,
    d_E: Tensor | None,
    z_BLE: Tensor | None,
    dt_bias_E: Tensor | None,
    dt_softplus: bool,
    initial_state_BEN: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Scan; see `seqkernels.selective_scan.op` for the arguments.

    The kernels take states in sixteens and the channels of a group in sixty-fours (complex ones: `plan.complex_units`);
    other sizes are padded with zeros, which costs copies of x, dt and z where E needs it.

    Returns:
        y_BLE in x's dtype, and the state after the last step in fp32.
    """
    wants_grad = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad
        for tensor in (x_BLE, dt_BLE, a_EN, b_BLGN, c_BLGN, d_E, z_BLE, dt_bias_E, initial_state_BEN)
    )
    (B, L, E), N, G = x_BLE.shape, a_EN.shape[1], b_BLGN.shape[2]
    per_group = E // G
    if a_EN.is_complex():
        channel_unit, all_states = plan.complex_units(N)
        more_channels, more_states = -per_group % channel_unit, all_states - N
    else:
        more_channels, more_states = -per_group % plan.CHANNEL_UNIT, -N % plan.STATES

    def pad_states(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or not more_states else F.pad(tensor, (0, more_states))

    def pad_channels(tensor: Tensor | None, dim: int) -> Tensor | None:
        if tensor is None or not more_channels:
            return tensor
        apart = tensor.unflatten(dim, (G, per_group))
        return F.pad(apart, (0, 0) * (-dim - 1) + (0, more_channels)).flatten(dim - 1, dim)

    padded = (
        pad_channels(x_BLE, -1),
        pad_channels(dt_BLE, -1),
        pad_states(pad_channels(a_EN, -2)),
        pad_states(b_BLGN),
        pad_states(c_BLGN),
        pad_channels(d_E, -1),
        pad_channels(z_BLE, -1),
        pad_channels(dt_bias_E, -1),
        dt_softplus,
        pad_states(pad_channels(initial_state_BEN, -2)),
        cu_seqlens,
    )
    if a_EN.is_complex():
        from seqkernels.selective_scan.cuda.complex_ops import forward_op as complex_forward_op

        y_BLE, final_BEN, _ = complex_forward_op(*padded, wants_grad)
    else:
        from seqkernels.selective_scan.cuda.ops import forward_op

        save_every = 0
        if wants_grad:
            memory = memory_bytes(x_BLE.device.index)
            save_every = plan.save_every(B * L, E + G * more_channels, N + more_states, memory)
        y_BLE, final_BEN, _, _ = forward_op(*padded, save_every)
    if more_channels:
        y_BLE = y_BLE.unflatten(-1, (G, -1))[..., :per_group].flatten(-2)
        final_BEN = final_BEN.unflatten(-2, (G, -1))[:, :, :per_group].flatten(-3, -2)
    return y_BLE, final_BEN[..., :N] if more_states else final_BEN
