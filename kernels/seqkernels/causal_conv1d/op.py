"""`causal_conv1d`: the public op. Checks the arguments and picks an implementation.

Every implementation receives, positionally, `(x_BLE, weight_EW, bias_E, activation, initial_state, cu_seqlens)` and
returns `(y_BLE, final_state)`, where weight, bias and the states are in the accumulation dtype: fp32 (float64 for
float64 inputs). Strides are arbitrary; L >= 1, shorter than W too.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from seqkernels.checks import accumulation_dtype, check_cu_seqlens, check_device, check_float, check_shape
from seqkernels.dispatch import Registry

OP = "causal_conv1d"

REGISTRY = Registry(
    op=OP,
    entry="conv",
    modules={
        "triton": "seqkernels.causal_conv1d.gpu",
        "cpu": "seqkernels.causal_conv1d.cpu",
        "reference": "seqkernels.causal_conv1d.reference",
    },
)


def causal_conv1d(
    x_BLE: Float[Tensor, "B L E"],
    weight_EW: Float[Tensor, "E W"],
    bias_E: Float[Tensor, E] | None = None,
    *,
    activation: str | None = None,
    initial_state: Float[Tensor, "S W-1 E"] | None = None,
    cu_seqlens: Int[Tensor, nseq+1] | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Causal depthwise convolution over time, with the activation fused (`reference.py` defines it).

    Gradients flow to every tensor, the initial state included, and from the final state.

    Args:
        x_BLE: input in fp32, bf16, fp16 or float64; arithmetic is fp32 (float64 for float64).
        weight_EW: one filter of W = 2 to 8 taps per channel; the last tap meets the present input.
        bias_E: added before the activation.
        activation: None or "silu".
        initial_state: the W-1 inputs before the first, zeros when absent; (nseq, W-1, E) with `cu_seqlens`.
        cu_seqlens: boundaries 0, ..., L of sequences packed end to end in a batch of 1; nothing crosses them.
        return_final_state: also return the last W-1 inputs of each sequence.
        implementation: "auto", "triton", "cpu" or "reference".

    Returns:
        y_BLE in x's dtype, or (y_BLE, final_state) with the state (B or nseq, W-1, E) in fp32.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    check_float(OP, "x_BLE", x_BLE)
    if x_BLE.dim() != 3 or 0 in x_BLE.shape:
        raise ValueError(f"{OP}: x_BLE has shape {tuple(x_BLE.shape)}; accepted is (B, L, E), none of them 0")
    B, L, E = x_BLE.shape
    check_float(OP, "weight_EW", weight_EW)
    if weight_EW.dim() != 2 or weight_EW.shape[0] != E or not 2 <= weight_EW.shape[1] <= 8:
        raise ValueError(
            f"{OP}: weight_EW has shape {tuple(weight_EW.shape)}; x_BLE asks for ({E}, W) with W from 2 to 8 "
            "(of a Conv1d weight (E, 1, W) give weight[:, 0])"
        )
    if activation not in (None, "silu"):
        raise ValueError(f"{OP}: activation={activation!r} is unknown; accepted: None, 'silu'")
    if cu_seqlens is None:
        sequences = B
    else:
        check_device(OP, "cu_seqlens", cu_seqlens, "x_BLE", x_BLE)
        sequences = check_cu_seqlens(OP, cu_seqlens, B, L)
    if bias_E is not None:
        check_shape(OP, "bias_E", bias_E, "E", (E,))
    if initial_state is not None:
        check_shape(OP, "initial_state", initial_state, "B W-1 E", (sequences, weight_EW.shape[1] - 1, E))
    for name, tensor in (("weight_EW", weight_EW), ("bias_E", bias_E), ("initial_state", initial_state)):
        if tensor is not None:
            check_float(OP, name, tensor)
            check_device(OP, name, tensor, "x_BLE", x_BLE)
    run = REGISTRY.choose(implementation, x_BLE, weight_EW, packed=cu_seqlens is not None)
    real = accumulation_dtype(x_BLE.dtype)
    bias_E, initial_state = (None if t is None else t.to(real) for t in (bias_E, initial_state))
    y_BLE, final_state = run(x_BLE, weight_EW.to(real), bias_E, activation, initial_state, cu_seqlens)
    return (y_BLE, final_state) if return_final_state else y_BLE
