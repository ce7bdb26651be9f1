"""`mamba_block_step`: the public op. Checks the arguments and picks an implementation.

Every implementation receives, positionally, `(x_BD, residual_BD, conv_state, state_BEN, weights, eps, inplace)`, with
`weights` a `BlockWeights`, and returns `(out_BD, residual_BD, conv_state, state_BEN)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype, check_all, check_float
from seqkernels.dispatch import Registry
from seqkernels.mamba_block_step.weights import BlockWeights

OP = "mamba_block_step"

REGISTRY = Registry(
    op=OP,
    entry="step",
    modules={
        "cuda": "seqkernels.mamba_block_step.gpu",
        "reference": "seqkernels.mamba_block_step.reference",
    },
)


def mamba_block_step(
    x_BD: Float[Tensor, "B D"],
    conv_state: Float[Tensor, "B W-1 E"],
    state_BEN: Float[Tensor, "B E N"],
    *,
    norm_weight_D: Float[Tensor, " D"],
    in_proj_weight: Float[Tensor, "2*E D"],
    conv_weight_EW: Float[Tensor, "E W"],
    conv_bias_E: Float[Tensor, " E"] | None,
    x_proj_weight: Float[Tensor, "R+2*N E"],
    dt_proj_weight_ER: Float[Tensor, "E R"],
    dt_bias_E: Float[Tensor, " E"],
    a_EN: Float[Tensor, "E N"],
    d_E: Float[Tensor, " E"],
    out_proj_weight_DE: Float[Tensor, "D E"],
    residual_BD: Float[Tensor, "B D"] | None = None,
    in_proj_bias_2E: Float[Tensor, " 2*E"] | None = None,
    out_proj_bias_D: Float[Tensor, " D"] | None = None,
    eps: float = 1e-5,
    inplace: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One decode step of a whole pre-norm Mamba block: residual add, RMS norm, in_proj, `mamba_step`, out_proj.

    For a few rows, where a step is a chain of short kernels: fewer of them, each begun before the last has ended.
    `fits` says whether they can run; where not, the single ops (`rms_norm`, `mamba_step`, torch's products) are faster
    than the "reference" that "auto" then takes.

    Args:
        x_BD: the block's input, which has yet to be added to the residual stream; fp32, bf16, fp16 or float64.
        conv_state: the last W-1 inputs of the convolution, fp32 (float64 for float64 inputs).
        state_BEN: the scan's state, fp32 (float64 for float64 inputs).
        norm_weight_D: scale of the norm.
        in_proj_weight: rows for the signal, then the gate, in x's dtype, as the other projections.
        conv_weight_EW: filter of the causal convolution.
        conv_bias_E: its bias.
        x_proj_weight: rows for dt (R), then B (N), then C (N).
        dt_proj_weight_ER: from rank R to a step size per channel.
        dt_bias_E: added to the step size before its softplus.
        a_EN: state matrix, real.
        d_E: skip weights.
        out_proj_weight_DE: back to the model's width.
        residual_BD: the residual stream, fp32 (float64 for float64 inputs); None: x begins it.
        in_proj_bias_2E: bias of in_proj.
        out_proj_bias_D: bias of out_proj.
        eps: added to the mean square under the root; must be positive.
        inplace: write the new states into the tensors given (for CUDA graphs) and return those; no gradients then.
        implementation: "auto", "cuda" or "reference".

    Returns:
        (out_BD in x's dtype, x + residual in fp32 (float64), new conv_state, new state_BEN).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    weights = BlockWeights(
        norm_weight_D, in_proj_weight, in_proj_bias_2E, conv_weight_EW, conv_bias_E, x_proj_weight, dt_proj_weight_ER,
        dt_bias_E, a_EN, d_E, out_proj_weight_DE, out_proj_bias_D,
    )  # fmt: skip
    _check(x_BD, residual_BD, conv_state, state_BEN, weights)
    if not eps > 0:
        raise ValueError(f"{OP}: eps={eps!r} must be positive")
    everything = (x_BD, residual_BD, conv_state, state_BEN, *weights)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in everything)
    if inplace and needs_grad:
        raise ValueError(f"{OP}: inplace=True has no gradients; call it under torch.no_grad() or with inplace=False")
    projections = (in_proj_weight, x_proj_weight, dt_proj_weight_ER, out_proj_weight_DE)
    details = _details(dt_proj_weight_ER.shape[1], projections)
    run = REGISTRY.choose(implementation, x_BD, a_EN, needs_grad=needs_grad, **details)
    return run(x_BD, residual_BD, conv_state, state_BEN, _in_their_dtypes(weights, x_BD.dtype), eps, inplace)


def fits(x_BD: Tensor, a_EN: Tensor, rank: int, projections: Sequence[Tensor]) -> bool:
    """Whether the fused kernels can run on these tensors, without gradients.

    Args:
        x_BD: the block's input.
        a_EN: state matrix.
        rank: R of dt.
        projections: weights of in_proj, x_proj, dt_proj and out_proj.
    """
    return REGISTRY.unavailable("cuda", x_BD, a_EN, needs_grad=False, **_details(rank, projections)) is None


def _details(rank: int, projections: Sequence[Tensor]) -> dict[str, object]:
    """What an implementation may limit beside x and a."""
    first, *others = (weight.dtype for weight in projections)
    return {"rank": rank, "weight_dtype": first if all(dtype == first for dtype in others) else None}


def _check(
    x_BD: Tensor, residual_BD: Tensor | None, conv_state: Tensor, state_BEN: Tensor, weights: BlockWeights
) -> None:
    """Raise ValueError unless everything has the shape, dtype and device it should."""
    check_float(OP, "x_BD", x_BD)
    if x_BD.dim() != 2 or 0 in x_BD.shape:
        raise ValueError(f"{OP}: x_BD has shape {tuple(x_BD.shape)}; accepted is (B, D), neither of them 0")
    B, D = x_BD.shape
    E, (W,) = weights.d_E.numel(), weights.conv_EW.shape[-1:] or (0,)
    (N,), (R,) = weights.a_EN.shape[-1:] or (0,), weights.dt_proj_ER.shape[-1:] or (0,)
    tensors = (
        ("conv_weight_EW", weights.conv_EW, "E W", (E, W)),
        ("a_EN", weights.a_EN, "E N", (E, N)),
        ("dt_proj_weight_ER", weights.dt_proj_ER, "E R", (E, R)),
        ("residual_BD", residual_BD, "B D", (B, D)),
        ("conv_state", conv_state, "B W-1 E", (B, W - 1, E)),
        ("state_BEN", state_BEN, "B E N", (B, E, N)),
        ("norm_weight_D", weights.norm_D, "D", (D,)),
        ("in_proj_weight", weights.in_proj, "2E D", (2 * E, D)),
        ("in_proj_bias_2E", weights.in_bias_2E, "2E", (2 * E,)),
        ("conv_bias_E", weights.conv_bias_E, "E", (E,)),
        ("x_proj_weight", weights.x_proj, "R+2N E", (R + 2 * N, E)),
        ("dt_bias_E", weights.dt_bias_E, "E", (E,)),
        ("d_E", weights.d_E, "E", (E,)),
        ("out_proj_weight_DE", weights.out_proj_DE, "D E", (D, E)),
        ("out_proj_bias_D", weights.out_bias_D, "D", (D,)),
    )
    check_all(OP, "x_BD", x_BD, tensors)
    if not E or not W or not N or not R:
        widths = f"E={E} of d_E, W={W} of conv_weight_EW, N={N} of a_EN, R={R} of dt_proj_weight_ER"
        raise ValueError(f"{OP}: {widths}: each must be at least 1")
    real = accumulation_dtype(x_BD.dtype)
    for name, tensor in (("residual_BD", residual_BD), ("conv_state", conv_state), ("state_BEN", state_BEN)):
        if tensor is not None and tensor.dtype != real:
            raise ValueError(f"{OP}: {name} is {tensor.dtype}; accepted is {real} for inputs in {x_BD.dtype}")


def _in_their_dtypes(weights: BlockWeights, dtype: torch.dtype) -> BlockWeights:
    """What is not a projection in the accumulation dtype; biases of projections in x's."""
    real = accumulation_dtype(dtype)

    def as_(tensor: Tensor | None, wanted: torch.dtype) -> Tensor | None:
        return tensor if tensor is None or tensor.dtype == wanted else tensor.to(wanted)

    exact = ("norm_D", "conv_EW", "conv_bias_E", "dt_bias_E", "a_EN", "d_E")
    changed = {name: as_(getattr(weights, name), real) for name in exact}
    changed |= {name: as_(getattr(weights, name), dtype) for name in ("in_bias_2E", "out_bias_D")}
    return weights._replace(**changed)
