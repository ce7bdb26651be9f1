"""`gated_rms_norm`: the public op. Checks the arguments and picks an implementation.

Every implementation receives, positionally, `(x, z, weight, groups, eps)` and returns y, where x and z share shape
and dtype and the weight is in the accumulation dtype. Strides are arbitrary.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype, check_device, check_float, check_like, check_shape
from seqkernels.dispatch import Registry

OP = "gated_rms_norm"

REGISTRY = Registry(
    op=OP,
    entry="norm",
    modules={"triton": "seqkernels.gated_rms_norm.gpu", "reference": "seqkernels.gated_rms_norm.reference"},
)


def gated_rms_norm(
    x: Float[Tensor, "*batch E"],
    z: Float[Tensor, "*batch E"],
    weight: Float[Tensor, E],
    *,
    groups: int = 1,
    eps: float = 1e-5,
    implementation: str = "auto",
) -> Tensor:
    """RMS norm of x * silu(z), in groups of channels (Dao & Gu 2024, section 7.1; `reference.py` defines it).

    Args:
        x: to be gated and normalised over its last dimension; fp32, bf16, fp16 or float64, arithmetic at least fp32.
        z: gate, x's shape and dtype.
        weight: scale of each channel.
        groups: equal groups of neighbouring channels, each with a mean of its own.
        eps: added to the mean square.
        implementation: "auto", "triton" or "reference".

    Returns:
        y in x's shape and dtype.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    check_float(OP, "x", x)
    if x.dim() < 1 or 0 in x.shape:
        raise ValueError(f"{OP}: x has shape {tuple(x.shape)}; accepted is (..., E), none of them 0")
    check_shape(OP, "z", z, "... E", tuple(x.shape))
    check_like(OP, "z", z, "x", x)
    check_float(OP, "weight", weight)
    check_shape(OP, "weight", weight, "E", (x.shape[-1],))
    check_device(OP, "weight", weight, "x", x)
    if groups < 1 or x.shape[-1] % groups:
        raise ValueError(f"{OP}: groups={groups}; accepted are divisors of E={x.shape[-1]}")
    run = REGISTRY.choose(implementation, x, weight, groups=groups)
    return run(x, z, weight.to(accumulation_dtype(x.dtype)), groups, eps)
