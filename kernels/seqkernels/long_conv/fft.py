"""`long_conv` by FFT, on any device: both factors padded with zeros, so that nothing wraps around.

Channels come first inside, since a transform runs along the last dimension. Nothing is kept for backward but the
inputs: transforms are made again. Channels are worked off in blocks, which bounds the transient memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype
from seqkernels.library import Op, register
from seqkernels.long_conv.sizes import channel_blocks, fft_size


def unavailable(u_BLE: Tensor, parameter: Tensor, **details: object) -> str | None:
    """Return None: this runs everywhere."""
    return None


class Moves(NamedTuple):
    """How data gets to where transforms want it, and back.

    Attributes:
        channels_first: (u_BLE, size, mirrored) to (E, B, size) in the accumulation dtype, zeros behind L. Mirrored:
            position t stands at -t modulo size, which makes the transform the complex conjugate.
        channels_last: ((E, B, size), length, dtype) to (B, length, E).
    """

    channels_first: Callable[[Tensor, int, bool], Tensor]
    channels_last: Callable[[Tensor, int, torch.dtype], Tensor]


def channels_first(u_BLE: Tensor, size: int, mirrored: bool) -> Tensor:
    """See `Moves`."""
    B, L, E = u_BLE.shape
    out_EBn = u_BLE.new_zeros(E, B, size, dtype=accumulation_dtype(u_BLE.dtype))
    if not mirrored:
        out_EBn[..., :L] = u_BLE.permute(2, 0, 1)
        return out_EBn
    out_EBn[..., 0] = u_BLE[:, 0].T
    out_EBn[..., size - L + 1 :] = u_BLE[:, 1:].flip(1).permute(2, 0, 1)
    return out_EBn


def channels_last(y_EBn: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """See `Moves`."""
    E, B, _ = y_EBn.shape
    return y_EBn.new_empty(B, length, E, dtype=dtype).copy_(y_EBn[..., :length].permute(1, 2, 0))


def registered(name: str, moves: Moves) -> tuple[Op, Op]:
    """The ops (u, kernel) -> y and (dy, u, kernel, needs_u, needs_kernel) -> (du, dkernel); empty where not needed."""

    def forward(u: Tensor, kernel: Tensor) -> Tensor:
        outputs = [_convolve(moves, u[..., e], kernel[e]) for e in channel_blocks(u)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)

    def backward(dy: Tensor, u: Tensor, kernel: Tensor, needs_u: bool, needs_kernel: bool) -> tuple[Tensor, Tensor]:
        pieces = [_gradients(moves, dy[..., e], u[..., e], kernel[e], needs_u, needs_kernel) for e in channel_blocks(u)]
        inputs, kernels = zip(*pieces, strict=True)
        return (inputs[0] if len(pieces) == 1 else torch.cat(inputs, dim=2)), torch.cat(kernels)

    def fake(u: Tensor, kernel: Tensor) -> Tensor:
        return torch.empty(u.shape, dtype=kernel.dtype, device=u.device)

    def fake_backward(dy: Tensor, u: Tensor, kernel: Tensor, needs_u: bool, needs_kernel: bool):
        du = torch.empty(u.shape if needs_u else (0, 0, 0), dtype=u.dtype, device=u.device)
        return du, torch.empty(kernel.shape if needs_kernel else (0, 0), dtype=kernel.dtype, device=u.device)

    def save(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    def differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        needs = ctx.needs_input_grad[:2]
        grads = backward_op(dy, *ctx.saved_tensors, *needs)
        return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))  # type: ignore[return-value]

    devices = ("CUDA", "CPU")  # CPU: also Triton's interpreter
    backward_op = register(f"{name}_backward", backward, fake_backward, devices=devices)
    return register(name, forward, fake, save, differentiate, devices=devices), backward_op


def _convolve(moves: Moves, u_BLE: Float[Tensor, "B L E"], kernel_EK: Float[Tensor, "E K"]) -> Tensor:
    L = u_BLE.shape[1]
    kernel_EK = kernel_EK[:, :L]
    size = fft_size(L + kernel_EK.shape[1] - 1)
    spectrum_EBF = torch.fft.rfft(moves.channels_first(u_BLE, size, False))
    spectrum_EBF *= torch.fft.rfft(kernel_EK, n=size, norm="forward")[:, None]  # with the inverse's 1 / size
    y_EBn = torch.fft.irfft(spectrum_EBF, n=size, norm="forward")
    return moves.channels_last(y_EBn, L, y_EBn.dtype)


def _gradients(
    moves: Moves, dy_BLE: Tensor, u_BLE: Tensor, kernel_EK: Tensor, needs_u: bool, needs_kernel: bool
) -> tuple[Tensor, Tensor]:
    """Both are correlations: products with the complex conjugate of the other factor's transform."""
    (_, L, _), K = u_BLE.shape, kernel_EK.shape[1]
    size = fft_size(L + min(K, L) - 1)
    spectrum_EBF = torch.fft.rfft(moves.channels_first(dy_BLE, size, False))
    du_BLE, dkernel_EK = u_BLE.new_empty(0, 0, 0), kernel_EK.new_empty(0, 0)
    if needs_kernel:
        products_EF = (spectrum_EBF * torch.fft.rfft(moves.channels_first(u_BLE, size, True))).sum(dim=1)
        dkernel_EK = torch.fft.irfft(products_EF, n=size)[:, : min(K, L)]
        dkernel_EK = torch.nn.functional.pad(dkernel_EK, (0, K - dkernel_EK.shape[1]))
    if needs_u:
        spectrum_EBF *= torch.fft.rfft(kernel_EK[:, :L], n=size, norm="forward").conj_physical()[:, None]
        du_BLE = moves.channels_last(torch.fft.irfft(spectrum_EBF, n=size, norm="forward"), L, u_BLE.dtype)
    return du_BLE, dkernel_EK


conv, gradients = registered("long_conv_fft", Moves(channels_first, channels_last))
