"""`mamba_block_step` in CUDA C++ for a few rows: three kernels, each of which reads its weights before it waits.

In: x (B, D) with B at most 4, the residual and both states. Out: the block's output, the new residual and states.
The norm is made anew by every warp of in_proj's kernel, which is cheaper than a kernel of its own; the convolution and
x_proj's shares follow in the same kernel. Statistics, residual, states and everything between the projections are
fp32; only y is rounded to x's dtype, in front of out_proj. The kernels are `seqkernels/mamba_step/cuda/`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from seqkernels.dispatch import constant, watched
from seqkernels.mamba_block_step.weights import BlockWeights
from seqkernels.mamba_step.cuda import aligned, gpu_unavailable, launch

MOST_ROWS = 4


def unavailable(x_BD: Tensor, a_EN: Tensor, **details: object) -> str | None:
    """Why these kernels cannot run on these tensors here, or None."""
    if details.get("needs_grad"):
        return "the fused step has no gradients; call it under torch.no_grad()"
    if a_EN.is_complex():
        return "the state matrix is complex, only real ones are supported"
    index = x_BD.device.index
    reason = gpu_unavailable(x_BD.device.type, -1 if index is None else index)
    if reason is not None:
        return reason
    if x_BD.dtype not in launch.ELEMENT:
        return f"dtype {x_BD.dtype} is not supported, only float32, bfloat16 and float16"
    if x_BD.shape[0] > MOST_ROWS:
        return f"{x_BD.shape[0]} rows: from {MOST_ROWS + 1} on, matrix products on tensor cores are faster"
    if details.get("weight_dtype", x_BD.dtype) != x_BD.dtype:
        return f"the projections' weights are not all {x_BD.dtype}, the input's dtype"
    (B, D), (E, N), R = x_BD.shape, a_EN.shape, details.get("rank", 1)
    return _no_cut(B, D, E, N, R, x_BD.element_size(), launch.processors(index or 0))  # type: ignore[arg-type]


@constant
def _no_cut(B: int, D: int, E: int, N: int, R: int, element_bytes: int, processors: int) -> str | None:
    if launch.plan_block(launch.Sizes(D, E, N, R, 1), B, element_bytes, processors) is not None:
        return None
    return f"D={D}, E={E}, N={N}, R={R} cannot be dealt out to threads evenly, or its shares of x_proj are too many"


def _run(
    x: Tensor,
    residual: Tensor | None,
    conv_state: Tensor,
    state: Tensor,
    new_conv_state: Tensor,
    new_state: Tensor,
    weights: BlockWeights,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The three launches; old and new states are dense and may be the same. Returns out and the new residual."""
    w = BlockWeights(*(None if t is None else aligned(t) for t in weights))  # type: ignore[arg-type]
    x, residual = aligned(x), None if residual is None else aligned(residual)
    (B, D), (E, N), W = x.shape, w.a_EN.shape, w.conv_EW.shape[1]
    size = launch.Sizes(D, E, N, w.dt_proj_ER.shape[1], W)
    plan = launch.plan_block(size, B, x.element_size(), launch.processors(x.device.index))
    assert plan is not None, "`unavailable` has refused it"
    cut_in, cut_scan, cut_out = plan
    made = launch.project_in(
        x, residual, w.norm_D, eps, w.in_proj, w.in_bias_2E, w.conv_EW, w.conv_bias_E, w.x_proj, conv_state,
        new_conv_state, size, cut_in, launch.unchanged(w),
    )  # fmt: skip
    old, new = aligned(state), aligned(new_state)
    of_scan = (w.dt_proj_ER, w.dt_bias_E, w.a_EN, w.d_E)
    y = launch.scan(made.signal, made.gate, made.partial, old, new, *of_scan, size, cut_scan, False)
    if new is not new_state:
        new_state.copy_(new)
    return launch.project_out(y, w.out_proj_DE, w.out_bias_D, size, cut_out), made.residual


@torch.library.custom_op("seqkernels::mamba_block_step", mutates_args=())
def _step(
    x: Tensor, residual: Tensor | None, conv_state: Tensor, state: Tensor, weights: list[Tensor | None], eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    conv_state, state = conv_state.contiguous(), state.contiguous()
    new = (torch.empty_like(conv_state), torch.empty_like(state))
    return *_run(x, residual, conv_state, state, *new, BlockWeights(*weights), eps), *new  # type: ignore[arg-type]


@_step.register_fake
def _step_fake(x, residual, conv_state, state, weights, eps):
    return *_empty_outputs(x), conv_state.new_empty(conv_state.shape), state.new_empty(state.shape)


@torch.library.custom_op("seqkernels::mamba_block_step_", mutates_args=("conv_state", "state"))
def _step_inplace(
    x: Tensor, residual: Tensor | None, conv_state: Tensor, state: Tensor, weights: list[Tensor | None], eps: float
) -> tuple[Tensor, Tensor]:
    return _overwrite(x, residual, conv_state, state, weights, eps)


@_step_inplace.register_fake
def _step_inplace_fake(x, residual, conv_state, state, weights, eps):
    return _empty_outputs(x)


def _overwrite(
    x: Tensor, residual: Tensor | None, conv_state: Tensor, state: Tensor, weights: list[Tensor | None], eps: float
) -> tuple[Tensor, Tensor]:
    dense = (conv_state.contiguous(), state.contiguous())
    made = _run(x, residual, *dense, *dense, BlockWeights(*weights), eps)  # type: ignore[arg-type]
    for given, written in zip((conv_state, state), dense):
        if written is not given:
            given.copy_(written)
    return made


def _empty_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty(x.shape, dtype=torch.float32)


def step(
    x_BD: Tensor,
    residual_BD: Tensor | None,
    conv_state: Tensor,
    state_BEN: Tensor,
    weights: BlockWeights,
    eps: float,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Advance one position; see `seqkernels.mamba_block_step.op` for the arguments.

    Returns:
        out_BD in x's dtype, the new residual, the new convolution state, the new scan state.
    """
    arguments = (x_BD, residual_BD, conv_state, state_BEN, list(weights), eps)
    if not inplace:
        return _step(*arguments)
    if watched():
        return *_step_inplace(*arguments), conv_state, state_BEN
    made = _overwrite(*arguments)
    increment_version((conv_state, state_BEN))  # autograd cannot see it otherwise, where a graph has saved the states
    return *made, conv_state, state_BEN
