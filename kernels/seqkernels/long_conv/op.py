"""`long_conv`: the public op. Checks the arguments and picks an implementation.

Every implementation receives, positionally, `(u_BLE, kernel_EK)`; its `gradients` receives `(dy_BLE, u_BLE, kernel_EK,
needs_u, needs_kernel)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqkernels.checks import accumulation_dtype, check_device, check_float
from seqkernels.dispatch import Registry
from seqkernels.long_conv.sizes import channel_blocks

OP = "long_conv"

_MODULES = {
    "triton": "seqkernels.long_conv.gpu",
    "torch": "seqkernels.long_conv.fft",
    "reference": "seqkernels.long_conv.reference",
}
REGISTRY = Registry(op=OP, entry="conv", modules=_MODULES)
_GRADIENTS = Registry(op=OP, entry="gradients", modules=_MODULES)


def long_conv(
    u_BLE: Float[Tensor, "B L E"], kernel_EK: Float[Tensor, "E K"], *, implementation: str = "auto"
) -> Float[Tensor, "B L E"]:
    """Causal convolution of every channel with a kernel of its own, as long as the sequence may be.

    Computed by FFT, in fp32 (float64 for float64) whatever the dtype of u; time O(L log L).

    Args:
        u_BLE: input; fp32, bf16, fp16 or float64.
        kernel_EK: taps, the present first, in the accumulation dtype of u; any K >= 1.
        implementation: "auto", "triton" (moves data on the GPU; the FFT is PyTorch's), "torch" or "reference".

    Returns:
        y_BLE in the accumulation dtype of u.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; an implementation that cannot run here.
    """
    check_float(OP, "u_BLE", u_BLE)
    if u_BLE.dim() != 3 or 0 in u_BLE.shape:
        raise ValueError(f"{OP}: u_BLE has shape {tuple(u_BLE.shape)}; accepted is (B, L, E), none of them 0")
    if kernel_EK.dim() != 2 or kernel_EK.shape[0] != u_BLE.shape[2] or kernel_EK.shape[1] < 1:
        raise ValueError(
            f"{OP}: kernel_EK has shape {tuple(kernel_EK.shape)}; accepted is (E, K) with E={u_BLE.shape[2]}, K >= 1"
        )
    if kernel_EK.dtype != accumulation_dtype(u_BLE.dtype):
        raise ValueError(
            f"{OP}: kernel_EK is {kernel_EK.dtype}; accepted beside {u_BLE.dtype} is {accumulation_dtype(u_BLE.dtype)}"
        )
    check_device(OP, "kernel_EK", kernel_EK, "u_BLE", u_BLE)
    return REGISTRY.choose(implementation, u_BLE, kernel_EK)(u_BLE, kernel_EK)


def implicit_long_conv(
    u_BLE: Float[Tensor, "B L E"],
    make_kernel: Callable[..., Float[Tensor, "E K"]],
    parameters: Sequence[Tensor],
    *,
    implementation: str = "auto",
) -> Float[Tensor, "B L E"]:
    """`long_conv` with kernels that are made when they are needed, and never kept: for backward they are made again.

    Args:
        u_BLE: input, as in `long_conv`.
        make_kernel: the channels' parts of `parameters` to kernel_EK in the accumulation dtype of u; differentiable.
        parameters: tensors whose first dimension is E.
        implementation: as in `long_conv`.

    Returns:
        y_BLE in the accumulation dtype of u. Gradients reach u and the parameters.
    """
    if torch.compiler.is_compiling():  # which decides by itself what to keep and what to make again
        return REGISTRY.choose(implementation, u_BLE, parameters[0])(u_BLE, make_kernel(*parameters))
    return _Implicit.apply(implementation, make_kernel, u_BLE, *parameters)  # type: ignore[return-value]


class _Implicit(torch.autograd.Function):
    """Blocks of channels, one after the other, each with its kernel."""

    @staticmethod
    def forward(
        ctx: Any, implementation: str, make_kernel: Callable[..., Tensor], u_BLE: Tensor, *parameters: Tensor
    ) -> Tensor:
        ctx.implementation, ctx.make_kernel = implementation, make_kernel
        ctx.save_for_backward(u_BLE, *parameters)
        run = REGISTRY.choose(implementation, u_BLE, parameters[0])
        outputs = [run(u_BLE[..., e], make_kernel(*(p[e] for p in parameters))) for e in channel_blocks(u_BLE)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_BLE: Tensor) -> Any:
        u_BLE, *parameters = ctx.saved_tensors
        _, _, needs_u, *needs = ctx.needs_input_grad
        run = _GRADIENTS.choose(ctx.implementation, u_BLE, parameters[0])
        inputs: list[Tensor] = []
        of_parameters: list[list[Tensor]] = [[] for need in needs if need]
        for e in channel_blocks(u_BLE):
            leaves = [p[e].detach().requires_grad_(need) for p, need in zip(parameters, needs, strict=True)]
            with torch.enable_grad():
                kernel_EK = ctx.make_kernel(*leaves)
            du_BLE, dkernel_EK = run(dy_BLE[..., e], u_BLE[..., e], kernel_EK.detach(), needs_u, any(needs))
            inputs.append(du_BLE)
            if any(needs):
                wanted = [leaf for leaf in leaves if leaf.requires_grad]
                for blocks, grad in zip(of_parameters, torch.autograd.grad(kernel_EK, wanted, dkernel_EK), strict=True):
                    blocks.append(grad)
        whole = (torch.cat(blocks) for blocks in of_parameters)
        du = (inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=2)) if needs_u else None
        return None, None, du, *(next(whole) if need else None for need in needs)
