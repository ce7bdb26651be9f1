"""`ssd`: the public op. Checks the arguments, brings them into one form, picks an implementation.

Every implementation receives, positionally, `(x_BLHP, dt_BLH, a_H, b_BLGN, c_BLGN, d_H, dt_bias_H, dt_softplus,
initial_state_BHPN, cu_seqlens)` and returns `(y_BLHP, final_state_BHPN)`, where

* x, dt, b, c share one dtype (fp32, bf16, fp16, float64);
* a, d, dt_bias and the initial state are in the accumulation dtype: fp32 (float64 for float64 inputs);
* b and c have a group dimension; strides are arbitrary; L >= 1.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from seqkernels.checks import (
    accumulation_dtype,
    check_all,
    check_cu_seqlens,
    check_device,
    check_float,
    check_like,
    check_shape,
)
from seqkernels.dispatch import Registry

OP = "ssd"

REGISTRY = Registry(
    op=OP,
    entry="ssd",
    modules={
        "triton": "seqkernels.ssd.gpu",
        "torch": "seqkernels.ssd.chunked",
        "reference": "seqkernels.ssd.reference",
    },
)


def ssd(
    x_BLHP: Float[Tensor, "B L H P"],
    dt_BLH: Float[Tensor, "B L H"],
    a_H: Float[Tensor, H],
    b_BLGN: Float[Tensor, "B L *G N"],
    c_BLGN: Float[Tensor, "B L *G N"],
    *,
    d_H: Float[Tensor, H] | None = None,
    dt_bias_H: Float[Tensor, H] | None = None,
    dt_softplus: bool = False,
    initial_state_BHPN: Float[Tensor, "S H P N"] | None = None,
    cu_seqlens: Int[Tensor, nseq+1] | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's state-space recurrence with skip (Dao & Gu 2024, eq. 1 with scalar A; `reference.py` defines it).

    Gradients flow to every tensor, the initial state included, and from the final state.

    Args:
        x_BLHP: input of H heads with P channels each, in fp32, bf16, fp16 or float64; the state is fp32 (float64 for
            float64). Products of bf16 and fp16 inputs run on tensor cores with fp32 sums; those of fp32 are fp32.
        dt_BLH: step sizes, x's dtype; positive once bias and softplus are applied.
        a_H: decay rate of each head, not positive.
        b_BLGN: input projection, (B, L, N) or (B, L, G, N) with H divisible by G; x's dtype.
        c_BLGN: output projection, as `b_BLGN`.
        d_H: skip weights: y gets D * x.
        dt_bias_H: added to dt before the softplus.
        dt_softplus: apply softplus to dt (identity above 20).
        initial_state_BHPN: state before the first step, zero when absent; (nseq, H, P, N) with `cu_seqlens`.
        cu_seqlens: boundaries 0, ..., L of sequences packed end to end in a batch of 1; the state restarts at each.
        return_final_state: also return the state after the last step of each sequence.
        implementation: "auto", "triton", "torch" (chunks as matrix products, any device) or "reference".

    Returns:
        y_BLHP in x's dtype, or (y_BLHP, final_state_BHPN) with the state in fp32.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    sequences = _check_inputs(x_BLHP, dt_BLH, cu_seqlens)
    b_BLGN, c_BLGN = (t[:, :, None] if t.dim() == 3 else t for t in (b_BLGN, c_BLGN))
    _check_projections(x_BLHP, b_BLGN, c_BLGN)
    H, P = x_BLHP.shape[2:]
    per_head = [("a_H", a_H), ("d_H", d_H), ("dt_bias_H", dt_bias_H)]
    state = ("initial_state_BHPN", initial_state_BHPN, "B H P N", (sequences, H, P, b_BLGN.shape[3]))
    check_all(OP, "x_BLHP", x_BLHP, [*((name, t, "H", (H,)) for name, t in per_head), state])
    real = accumulation_dtype(x_BLHP.dtype)
    run = REGISTRY.choose(implementation, x_BLHP, a_H, groups=b_BLGN.shape[2], packed=cu_seqlens is not None)
    y_BLHP, final_state_BHPN = run(
        x_BLHP,
        dt_BLH,
        a_H.to(real),
        b_BLGN,
        c_BLGN,
        None if d_H is None else d_H.to(real),
        None if dt_bias_H is None else dt_bias_H.to(real),
        dt_softplus,
        None if initial_state_BHPN is None else initial_state_BHPN.to(real),
        cu_seqlens,
    )
    return (y_BLHP, final_state_BHPN) if return_final_state else y_BLHP


def _check_inputs(x_BLHP: Tensor, dt_BLH: Tensor, cu_seqlens: Tensor | None) -> int:
    """Check x, dt and the boundaries; return the number of sequences, the leading dimension of states."""
    check_float(OP, "x_BLHP", x_BLHP)
    if x_BLHP.dim() != 4 or 0 in x_BLHP.shape:
        raise ValueError(f"{OP}: x_BLHP has shape {tuple(x_BLHP.shape)}; accepted is (B, L, H, P), none of them 0")
    check_shape(OP, "dt_BLH", dt_BLH, "B L H", tuple(x_BLHP.shape[:3]))
    check_like(OP, "dt_BLH", dt_BLH, "x_BLHP", x_BLHP)
    if cu_seqlens is None:
        return x_BLHP.shape[0]
    check_device(OP, "cu_seqlens", cu_seqlens, "x_BLHP", x_BLHP)
    return check_cu_seqlens(OP, cu_seqlens, x_BLHP.shape[0], x_BLHP.shape[1])


def _check_projections(x_BLHP: Tensor, b_BLGN: Tensor, c_BLGN: Tensor) -> None:
    B, L, H, _ = x_BLHP.shape
    if b_BLGN.dim() != 4 or b_BLGN.shape[:2] != (B, L) or 0 in b_BLGN.shape or H % b_BLGN.shape[2]:
        raise ValueError(
            f"{OP}: b_BLGN has shape {tuple(b_BLGN.shape)}; accepted is ({B}, {L}, N) or ({B}, {L}, G, N) with "
            f"H={H} divisible by G"
        )
    check_shape(OP, "c_BLGN", c_BLGN, "B L G N", tuple(b_BLGN.shape))
    for name, tensor in (("b_BLGN", b_BLGN), ("c_BLGN", c_BLGN)):
        check_like(OP, name, tensor, "x_BLHP", x_BLHP)
