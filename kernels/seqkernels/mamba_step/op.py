"""`mamba_step`: the public op. Checks the arguments and picks an implementation.

Every implementation receives, positionally, `(xz_B2E, conv_state, state_BEN, conv_weight_EW, conv_bias_E,
x_proj_weight, dt_proj_weight_ER, dt_bias_E, a_EN, d_E, inplace)` and returns `(y_BE, conv_state, state_BEN)`, where
everything but `xz_B2E` and the two projection weights is in the accumulation dtype: fp32 (float64 for float64).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype, check_all, check_float
from seqkernels.dispatch import Registry

OP = "mamba_step"

REGISTRY = Registry(
    op=OP,
    entry="step",
    modules={
        "cuda": "seqkernels.mamba_step.cuda",
        "triton": "seqkernels.mamba_step.gpu",
        "cpu": "seqkernels.mamba_step.cpu",
        "reference": "seqkernels.mamba_step.reference",
    },
)


def mamba_step(
    xz_B2E: Float[Tensor, "B 2*E"],
    conv_state: Float[Tensor, "B W-1 E"],
    state_BEN: Float[Tensor, "B E N"],
    *,
    conv_weight_EW: Float[Tensor, "E W"],
    conv_bias_E: Float[Tensor, E] | None,
    x_proj_weight: Float[Tensor, "R+2*N E"],
    dt_proj_weight_ER: Float[Tensor, "E R"],
    dt_bias_E: Float[Tensor, E],
    a_EN: Float[Tensor, "E N"],
    d_E: Float[Tensor, E],
    inplace: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Everything of a Mamba block between `in_proj` and `out_proj`, for one position (`reference.py` defines it).

    Args:
        xz_B2E: output of `in_proj`: x, then the gate z; fp32, bf16, fp16 or float64.
        conv_state: the last W-1 inputs of the convolution, fp32 (float64 for float64 inputs).
        state_BEN: the scan's state, fp32 (float64 for float64 inputs).
        conv_weight_EW: filter of the causal convolution.
        conv_bias_E: its bias.
        x_proj_weight: rows for dt (R), then B (N), then C (N), as published.
        dt_proj_weight_ER: from rank R to a step size per channel.
        dt_bias_E: added to the step size before its softplus.
        a_EN: state matrix, real.
        d_E: skip weights.
        inplace: write the new states into the tensors given (for CUDA graphs) and return those; no gradients then.
        implementation: "auto", "cuda", "triton", "cpu" or "reference".

    Returns:
        (y_BE in xz's dtype, new conv_state, new state_BEN).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    check_float(OP, "xz_B2E", xz_B2E)
    shape = xz_B2E.shape
    if len(shape) != 2 or 0 in shape or shape[1] % 2:
        raise ValueError(f"{OP}: xz_B2E has shape {tuple(shape)}; accepted is (B, 2*E), neither of them 0")
    B, E = shape[0], shape[1] // 2
    (W,), (N,), (R,) = conv_weight_EW.shape[-1:] or (0,), a_EN.shape[-1:] or (0,), dt_proj_weight_ER.shape[-1:] or (0,)
    tensors = (
        ("conv_weight_EW", conv_weight_EW, "E W", (E, W)),
        ("a_EN", a_EN, "E N", (E, N)),
        ("dt_proj_weight_ER", dt_proj_weight_ER, "E R", (E, R)),
        ("conv_state", conv_state, "B W-1 E", (B, W - 1, E)),
        ("state_BEN", state_BEN, "B E N", (B, E, N)),
        ("conv_bias_E", conv_bias_E, "E", (E,)),
        ("x_proj_weight", x_proj_weight, "R+2N E", (R + 2 * N, E)),
        ("dt_bias_E", dt_bias_E, "E", (E,)),
        ("d_E", d_E, "E", (E,)),
    )
    check_all(OP, "xz_B2E", xz_B2E, tensors)
    if not W or not N or not R:
        widths = f"W={W} of conv_weight_EW, N={N} of a_EN, R={R} of dt_proj_weight_ER"
        raise ValueError(f"{OP}: {widths}: each must be at least 1")
    real = accumulation_dtype(xz_B2E.dtype)
    for name, tensor in (("conv_state", conv_state), ("state_BEN", state_BEN)):
        if tensor.dtype != real:
            raise ValueError(f"{OP}: {name} is {tensor.dtype}; states are {real} for inputs in {xz_B2E.dtype}")
    needs_grad = torch.is_grad_enabled() and (
        xz_B2E.requires_grad or any(t is not None and t.requires_grad for _, t, *_ in tensors)
    )
    if inplace and needs_grad:
        raise ValueError(f"{OP}: inplace=True has no gradients; call it under torch.no_grad() or with inplace=False")
    weight_dtype = x_proj_weight.dtype if x_proj_weight.dtype == dt_proj_weight_ER.dtype else None
    details = {"needs_grad": needs_grad, "rank": R, "weight_dtype": weight_dtype}
    run = REGISTRY.choose(implementation, xz_B2E, a_EN, **details)
    return run(
        xz_B2E,
        conv_state,
        state_BEN,
        _as(real, conv_weight_EW),
        None if conv_bias_E is None else _as(real, conv_bias_E),
        x_proj_weight,
        dt_proj_weight_ER,
        _as(real, dt_bias_E),
        _as(real, a_EN),
        _as(real, d_E),
        inplace,
    )


def _as(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """`tensor.to(dtype)`, which costs half a microsecond where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)
