"""`mamba_step` on the GPU: the whole step between in_proj and out_proj in two Triton launches.

In: xz (B, 2*E) and both states. Out: y and the new states, in new tensors or in the given ones (`inplace`).
At decode sizes the time is that of launches and of one trip through the cache, so everything is fused; for many rows
it is the traffic of the fp32 scan state. No host synchronisation: a CUDA graph can hold it. No gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seqkernels import triton_runtime
from seqkernels.mamba_step.ops import Weights, implementation

#: State elements one program holds at most: 16 a thread.
_MOST_STATE = 2048


def unavailable(xz_B2E: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    if details.get("needs_grad"):
        return "the fused step has no gradients; call it under torch.no_grad()"
    if a_EN.is_complex():
        return "the state matrix is complex, only real ones are supported"
    return triton_runtime.unavailable(xz_B2E)


class Plan(NamedTuple):
    """How the two launches are cut: rows and channels a program."""

    project_rows: int
    project_channels: int
    scan_rows: int
    scan_channels: int
    scan_warps: int = 4


def plan(B: int, E: int, N: int) -> Plan:
    """Few rows: many small programs, since one trip through memory is what takes time.

    Many rows: 16 to a program, so that x_proj runs on the matrix units, and more channels to a scan program.
    """
    scan_rows, scan_channels = (1, 32) if B < 16 else (1, 64) if B < 64 else (1, 128)
    while scan_channels > 1 and scan_channels * _power_of_two(N) > _MOST_STATE:
        scan_channels //= 2
    return Plan(1 if B < 16 else 16, 32, scan_rows, scan_channels)


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _run(
    xz: Tensor,
    conv_state: Tensor,
    state: Tensor,
    new_conv_state: Tensor,
    new_state: Tensor,
    weights: Weights,
) -> Tensor:
    """Both launches; old and new states may be the same dense tensors. Returns y_BE."""
    triton_kernels = triton_runtime.kernels("mamba_step")
    conv_bias = None if weights[1] is None else weights[1].contiguous()
    conv_weight, x_proj, dt_proj, dt_bias, a, d = (t.contiguous() for t in (weights[0], *weights[2:]))
    xz = xz if xz.stride(1) == 1 else xz.contiguous()
    (B, E, N), W, (J, _), R = state.shape, conv_weight.shape[1], x_proj.shape, dt_proj.shape[1]
    cut = plan(B, E, N)
    n_shares = -(-E // cut.project_channels)
    x = torch.empty(B, E, dtype=torch.float32, device=xz.device)
    partial = torch.empty(n_shares, B, J, dtype=torch.float32, device=xz.device)
    y = torch.empty(B, E, dtype=xz.dtype, device=xz.device)
    with torch.cuda.device_of(xz):
        triton_kernels.convolve_and_project[(-(-B // cut.project_rows), n_shares)](
            xz,
            conv_state,
            conv_weight,
            conv_weight if conv_bias is None else conv_bias,
            x_proj,
            new_conv_state,
            x,
            partial,
            xz.stride(0),
            x_proj.stride(0),
            B,
            E,
            J,
            W=W,
            HAS_BIAS=conv_bias is not None,
            BLOCK_B=cut.project_rows,
            BLOCK_E=cut.project_channels,
            BLOCK_J=max(16, min(64 if cut.project_rows == 1 else 128, _power_of_two(J))),
            num_warps=4,
        )
        triton_kernels.scan_and_gate[(-(-B // cut.scan_rows), -(-E // cut.scan_channels))](
            xz,
            x,
            partial,
            state,
            dt_proj,
            dt_bias,
            a,
            d,
            new_state,
            y,
            xz.stride(0),
            dt_proj.stride(0),
            B,
            E,
            N,
            R,
            n_shares,
            BLOCK_SHARES=_power_of_two(n_shares),
            BLOCK_B=cut.scan_rows,
            BLOCK_E=cut.scan_channels,
            BLOCK_N=_power_of_two(N),
            BLOCK_R=_power_of_two(R),
            num_warps=cut.scan_warps,
        )
    return y


step = implementation("triton", _run)
