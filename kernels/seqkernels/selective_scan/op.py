"""`selective_scan`: the public op. Checks the arguments, brings them into one form, picks an implementation.

Every implementation receives, positionally, `(x_BLE, dt_BLE, a_EN, b_BLGN, c_BLGN, d_E, z_BLE, dt_bias_E, dt_softplus,
initial_state_BEN, cu_seqlens)` and returns `(y_BLE, final_state_BEN)`, where

* x, dt, z share one dtype (fp32, bf16, fp16, float64), and so do b and c unless `a_EN` is complex;
* a, d, dt_bias and the initial state are in the accumulation dtype: fp32 (float64 for float64 inputs); with a complex
  `a_EN`, a, b, c and the states are complex64 (complex128);
* b and c have a group dimension; strides are arbitrary; L >= 1.
"""

from __future__ import annotations

from jaxtyping import Complex, Float, Int
from torch import Tensor

from seqkernels.checks import (
    accumulation_dtype,
    check_cu_seqlens,
    check_device,
    check_float,
    check_like,
    check_shape,
    complex_of,
)
from seqkernels.dispatch import Registry

OP = "selective_scan"

REGISTRY = Registry(
    op=OP,
    entry="scan",
    modules={
        "cuda": "seqkernels.selective_scan.cuda",
        "cpu": "seqkernels.selective_scan.cpu",
        "reference": "seqkernels.selective_scan.reference",
    },
)


def selective_scan(
    x_BLE: Float[Tensor, "B L E"],
    dt_BLE: Float[Tensor, "B L E"],
    a_EN: Float[Tensor, "E N"] | Complex[Tensor, "E N"],
    b_BLGN: Float[Tensor, "B L *G N"] | Complex[Tensor, "B L *G N"],
    c_BLGN: Float[Tensor, "B L *G N"] | Complex[Tensor, "B L *G N"],
    *,
    d_E: Float[Tensor, E] | None = None,
    z_BLE: Float[Tensor, "B L E"] | None = None,
    dt_bias_E: Float[Tensor, E] | None = None,
    dt_softplus: bool = False,
    initial_state_BEN: Float[Tensor, "S E N"] | Complex[Tensor, "S E N"] | None = None,
    cu_seqlens: Int[Tensor, nseq+1] | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective state-space scan with skip and gate (Gu & Dao 2023, eq. 2a, 2b, 4; `reference.py` defines it).

    Gradients flow to every tensor, the initial state included, and from the final state.

    Args:
        x_BLE: input in fp32, bf16, fp16 or float64; arithmetic and state are fp32 (float64 for float64).
        dt_BLE: step sizes, x's dtype.
        a_EN: state matrix (diagonal); real and negative, or complex with a negative real part.
        b_BLGN: input projection, (B, L, N) or (B, L, G, N) with E divisible by G; x's dtype, complex if `a_EN` is.
        c_BLGN: output projection, as `b_BLGN`.
        d_E: skip weights: y gets D * x.
        z_BLE: gate: y is multiplied by silu(z).
        dt_bias_E: added to dt before the softplus.
        dt_softplus: apply softplus to dt (identity above 20).
        initial_state_BEN: state before the first step, zero when absent; (nseq, E, N) with `cu_seqlens`.
        cu_seqlens: boundaries 0, ..., L of sequences packed end to end in a batch of 1; the state restarts at each.
        return_final_state: also return the state after the last step of each sequence.
        implementation: "auto", "cuda", "cpu" or "reference".

    Returns:
        y_BLE in x's dtype, or (y_BLE, final_state_BEN) with the state in fp32 (complex64 with complex `a_EN`).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    sequences = _check_inputs(x_BLE, dt_BLE, z_BLE, cu_seqlens)
    b_BLGN, c_BLGN = (t[:, :, None] if t.dim() == 3 else t for t in (b_BLGN, c_BLGN))
    _check_parameters(x_BLE, a_EN, b_BLGN, c_BLGN, d_E, dt_bias_E)
    real = accumulation_dtype(x_BLE.dtype)
    state_dtype = complex_of(real) if a_EN.is_complex() else real
    if initial_state_BEN is not None:
        check_shape(OP, "initial_state_BEN", initial_state_BEN, "B E N", (sequences, *a_EN.shape))
        check_device(OP, "initial_state_BEN", initial_state_BEN, "x_BLE", x_BLE)
        if initial_state_BEN.is_complex() and not a_EN.is_complex():
            raise ValueError(f"{OP}: initial_state_BEN is complex but a_EN is real; give a real state")
        initial_state_BEN = initial_state_BEN.to(state_dtype)
    if a_EN.is_complex():
        b_BLGN, c_BLGN = b_BLGN.to(state_dtype), c_BLGN.to(state_dtype)
    run = REGISTRY.choose(implementation, x_BLE, a_EN, groups=b_BLGN.shape[2], packed=cu_seqlens is not None)
    y_BLE, final_state_BEN = run(
        x_BLE,
        dt_BLE,
        a_EN.to(state_dtype),
        b_BLGN,
        c_BLGN,
        None if d_E is None else d_E.to(real),
        z_BLE,
        None if dt_bias_E is None else dt_bias_E.to(real),
        dt_softplus,
        initial_state_BEN,
        cu_seqlens,
    )
    return (y_BLE, final_state_BEN) if return_final_state else y_BLE


def _check_inputs(x_BLE: Tensor, dt_BLE: Tensor, z_BLE: Tensor | None, cu_seqlens: Tensor | None) -> int:
    """Check the (B, L, E) tensors; return the number of sequences, the leading dimension of states."""
    check_float(OP, "x_BLE", x_BLE)
    if x_BLE.dim() != 3 or 0 in x_BLE.shape:
        raise ValueError(f"{OP}: x_BLE has shape {tuple(x_BLE.shape)}; accepted is (B, L, E), none of them 0")
    for name, tensor in (("dt_BLE", dt_BLE), ("z_BLE", z_BLE)):
        if tensor is not None:
            check_shape(OP, name, tensor, "B L E", tuple(x_BLE.shape))
            check_like(OP, name, tensor, "x_BLE", x_BLE)
    if cu_seqlens is None:
        return x_BLE.shape[0]
    check_device(OP, "cu_seqlens", cu_seqlens, "x_BLE", x_BLE)
    return check_cu_seqlens(OP, cu_seqlens, x_BLE.shape[0], x_BLE.shape[1])


def _check_parameters(
    x_BLE: Tensor, a_EN: Tensor, b_BLGN: Tensor, c_BLGN: Tensor, d_E: Tensor | None, dt_bias_E: Tensor | None
) -> None:
    B, L, E = x_BLE.shape
    if a_EN.dim() != 2 or a_EN.shape[0] != E or a_EN.shape[1] < 1:
        raise ValueError(f"{OP}: a_EN has shape {tuple(a_EN.shape)}; x_BLE asks for ({E}, N) with N >= 1")
    if not (a_EN.is_floating_point() or a_EN.is_complex()):
        raise ValueError(f"{OP}: a_EN has dtype {a_EN.dtype}; accepted are floating-point and complex dtypes")
    check_device(OP, "a_EN", a_EN, "x_BLE", x_BLE)
    for name, tensor in (("b_BLGN", b_BLGN), ("c_BLGN", c_BLGN)):
        if tensor.dim() != 4 or tensor.shape[2] < 1 or E % tensor.shape[2] != 0:
            raise ValueError(
                f"{OP}: {name} has shape {tuple(tensor.shape)}; accepted are (B, L, N) and (B, L, G, N) "
                f"with E={E} divisible by G"
            )
        check_shape(OP, name, tensor, "B L G N", (B, L, b_BLGN.shape[2], a_EN.shape[1]))
        if a_EN.is_complex() != tensor.is_complex():
            raise ValueError(
                f"{OP}: {name} is {tensor.dtype} but a_EN is {a_EN.dtype}; either all of a, b, c are complex or none"
            )
        if a_EN.is_complex():
            check_device(OP, name, tensor, "x_BLE", x_BLE)
        else:
            check_like(OP, name, tensor, "x_BLE", x_BLE)
    for name, tensor in (("d_E", d_E), ("dt_bias_E", dt_bias_E)):
        if tensor is not None:
            check_float(OP, name, tensor)
            check_shape(OP, name, tensor, "E", (E,))
            check_device(OP, name, tensor, "x_BLE", x_BLE)
