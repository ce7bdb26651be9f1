"""`mamba_step` on CPUs: one numba kernel for everything between in_proj and out_proj.

In: xz (B, 2*E) and both states. Out: y and the new states, in new tensors or in the given ones (`inplace`).
A step of a small model takes a few microseconds, less than torch takes to dispatch a handful of operations: so the
kernel gets addresses, and runs on the calling thread. Rows of large batches are spread over threads, and the
projections of large models are torch's matrix products. Arithmetic is fp32 for fp32, bf16 and fp16 inputs, float64
for float64. No gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from seqkernels.addresses import ONE, contiguous, may_bypass_dispatcher
from seqkernels.mamba_step import cpu_kernels
from seqkernels.threads import run_tasks

# Multiplications of both projections from which torch's matrix products take less time than the kernel's, measured.
TORCH_PROJECTS_FROM = 1 << 20


def unavailable(xz_B2E: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Why this implementation cannot run on these tensors, None when it can."""
    if xz_B2E.device.type != "cpu":
        return f"the tensors are on {xz_B2E.device.type}, these kernels are for CPUs"
    if details.get("needs_grad"):
        return "the fused step has no gradients; call it under torch.no_grad()"
    if a_EN.is_complex():
        return "the state matrix is complex, only real ones are supported"
    return None


def step(
    xz_B2E: Tensor,
    conv_state: Tensor,
    state_BEN: Tensor,
    conv_weight_EW: Tensor,
    conv_bias_E: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight_ER: Tensor,
    dt_bias_E: Tensor,
    a_EN: Tensor,
    d_E: Tensor,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance one position; see `seqkernels.mamba_step.op` for the arguments.

    Returns:
        y_BE in xz's dtype, the new convolution state, the new scan state.
    """
    weights = (conv_weight_EW, conv_bias_E, x_proj_weight, dt_proj_weight_ER, dt_bias_E, a_EN, d_E)
    direct = may_bypass_dispatcher(xz_B2E)
    if inplace:
        y_BE = (_run_inplace if direct else _step_inplace)(xz_B2E, conv_state, state_BEN, *weights)
        if direct:  # autograd cannot see it otherwise, where a graph has saved the states
            increment_version((conv_state, state_BEN))
        return y_BE, conv_state, state_BEN
    return (_run if direct else _step)(xz_B2E, conv_state, state_BEN, *weights)


def _run(xz: Tensor, conv_state: Tensor, state: Tensor, *weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    new_conv_state, new_state = (t.clone(memory_format=torch.contiguous_format) for t in (conv_state, state))
    return _advance(xz, new_conv_state, new_state, weights), new_conv_state, new_state


def _run_inplace(xz: Tensor, conv_state: Tensor, state: Tensor, *weights: Tensor | None) -> Tensor:
    dense_conv_state, dense_state = conv_state.contiguous(), state.contiguous()
    y = _advance(xz, dense_conv_state, dense_state, weights)
    for given, dense in ((conv_state, dense_conv_state), (state, dense_state)):
        if dense is not given:
            given.copy_(dense)
    return y


def _advance(xz: Tensor, conv_state: Tensor, state: Tensor, weights: tuple[Any, ...]) -> Tensor:
    """Run the kernels, which write over both states; these are contiguous. Returns y_BE."""
    conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a, d = weights
    real = state.dtype
    rows = xz if xz.dtype == real and xz.stride(1) == 1 else xz.to(real).contiguous()
    x_proj, dt_proj = contiguous(x_proj, real), contiguous(dt_proj, real)
    # The others are of the states' dtype already; in any case `contiguous` copies nothing that is.
    conv_weight, dt_bias, a, d = conv_weight.contiguous(), dt_bias.contiguous(), a.contiguous(), d.contiguous()
    conv_bias = None if conv_bias is None else conv_bias.contiguous()
    (B, E, N), R = state.shape, dt_proj.shape[1]
    y = state.new_empty(B, E)
    addresses = (
        rows.data_ptr(),
        conv_state.data_ptr(),
        state.data_ptr(),
        conv_weight.data_ptr(),
        0 if conv_bias is None else conv_bias.data_ptr(),
        x_proj.data_ptr(),
        dt_proj.data_ptr(),
        dt_bias.data_ptr(),
        a.data_ptr(),
        d.data_ptr(),
        y.data_ptr(),
    )
    call = (addresses, (B, E, N, R, conv_weight.shape[1], rows.stride(0)), ONE[real])
    work = B * E * N // 2
    if B * E * 2 * (R + N) < TORCH_PROJECTS_FROM:
        run_tasks(cpu_kernels.step, B, work, *call)
    else:
        _run_in_parts(call, work, x_proj, dt_proj, y)
    return y if y.dtype == xz.dtype else y.to(xz.dtype)


def _run_in_parts(call: tuple, work: int, x_proj: Tensor, dt_proj: Tensor, y: Tensor) -> None:
    """Convolution, torch's matrix products, scan; `y` is given for its shape and dtype."""
    x = torch.empty_like(y)
    run_tasks(cpu_kernels.convolve, len(y), work // 4, *call, x.numpy())
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        dt_b_c = x @ x_proj.T
        dt = dt_b_c[:, : dt_proj.shape[1]] @ dt_proj.T
    run_tasks(cpu_kernels.scan, len(y), work, *call, (x.numpy(), dt_b_c.numpy(), dt.numpy()))


@torch.library.custom_op("seqkernels::mamba_step_cpu", mutates_args=())
def _step(
    xz: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    d: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return _run(xz, conv_state, state, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a, d)


@_step.register_fake
def _step_fake(xz, conv_state, state, *weights):
    return _empty_y(xz, state), conv_state.new_empty(conv_state.shape), state.new_empty(state.shape)


@torch.library.custom_op("seqkernels::mamba_step_cpu_", mutates_args=("conv_state", "state"))
def _step_inplace(
    xz: Tensor,
    conv_state: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    a: Tensor,
    d: Tensor,
) -> Tensor:
    return _run_inplace(xz, conv_state, state, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a, d)


@_step_inplace.register_fake
def _step_inplace_fake(xz, conv_state, state, *weights):
    return _empty_y(xz, state)


def _empty_y(xz: Tensor, state: Tensor) -> Tensor:
    return xz.new_empty(state.shape[:2])
