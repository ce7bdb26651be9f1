"""`mamba_inner` on the GPU as one autograd node: the kernels of its ops, the gradients between them placed by hand.

What one node saves over the composition: gradients of x and z are written into the halves of one tensor, those of B and
C beside that of dt's low rank, the two gradients of the convolution's output meet inside a matrix product, and weight
gradients leave the products in fp32. And a tenth of the Python: a layer's launches take the host longer than its
kernels take the GPU when a layer is small.

In: xz (B, L, 2*E) with E a multiple of 64 and N of 16, real A. Out: what `mamba_inner` returns, as a flat tuple.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqkernels.causal_conv1d import gpu as conv_gpu
from seqkernels.causal_conv1d.op import REGISTRY as CONV
from seqkernels.dispatch import watched
from seqkernels.selective_scan import cuda
from seqkernels.selective_scan.cuda import launch, plan
from seqkernels.selective_scan.op import REGISTRY as SCAN


def fits(xz_BLE2: Tensor, conv_weight_EW: Tensor, a_EN: Tensor, packed: bool, implementation: str) -> bool:
    """Whether this path computes what the composition would, with the implementations that it would take."""
    E, N = a_EN.shape
    if not xz_BLE2.is_cuda or watched() or a_EN.is_complex() or E % plan.CHANNEL_UNIT or N % plan.STATES:
        return False
    if implementation not in ("auto", "cuda"):
        return False
    x_BLE = xz_BLE2[..., :E]
    scan = SCAN.choose(implementation, x_BLE, a_EN, groups=1, packed=packed)
    return scan is cuda.scan and CONV.choose("auto", x_BLE, conv_weight_EW, packed=packed) is conv_gpu.conv


class Weights(NamedTuple):
    """Of the block, in the order in which autograd sees them; see `InnerWeights`."""

    conv: Tensor
    conv_bias: Tensor | None
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor | None
    a: Tensor
    d: Tensor | None
    out_proj: Tensor
    out_bias: Tensor | None

    def for_products(self, dtype: torch.dtype) -> Weights:
        """With the matrices in the dtype to multiply in, the rest in fp32."""
        cast = {name: getattr(self, name).to(dtype) for name in ("x_proj", "dt_proj", "out_proj")}
        vectors = ("conv", "conv_bias", "dt_bias", "d")
        cast |= {name: None if getattr(self, name) is None else getattr(self, name).float() for name in vectors}
        return self._replace(**cast, out_bias=None if self.out_bias is None else self.out_bias.to(dtype))


class Kept(NamedTuple):
    """What backward finds; None is made again.

    Attributes:
        u: (B, L, E) output of the convolution.
        dt: (B, L, E) step sizes before bias and softplus.
        dt_b_c: (B, L, R + 2*N) output of x_proj.
        y: (B, L, E) output of the scan before the gate.
        states: the scan's, at every few positions.
        out: (B, L, E) gated output.
    """

    u: Tensor | None = None
    dt: Tensor | None = None
    dt_b_c: Tensor | None = None
    y: Tensor | None = None
    states: Tensor | None = None
    out: Tensor | None = None


class MambaInner(torch.autograd.Function):
    """See `mamba_inner`; `recompute` is one of its levels."""

    @staticmethod
    def forward(
        ctx: Any,
        recompute: str,
        xz: Tensor,
        conv_state: Tensor | None,
        ssm_state: Tensor | None,
        cu_seqlens: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = Weights(*weights).for_products(xz.dtype)  # type: ignore[arg-type]
        x, _ = xz.chunk(2, dim=-1)
        u, conv_final = conv_gpu.run_forward(x, w.conv, w.conv_bias, True, conv_state, cu_seqlens)
        dt_b_c = F.linear(u, w.x_proj)
        dt = F.linear(dt_b_c[..., : w.dt_proj.shape[1]], w.dt_proj)
        every = 0 if recompute == "all" else _save_every(xz, w.a)
        scanned = launch.run_forward(_problem(xz, u, dt, dt_b_c, w, ssm_state, cu_seqlens), every)
        kept = {
            "nothing": Kept(u, dt, dt_b_c, scanned.y, scanned.states, scanned.out),
            "inputs": Kept(dt_b_c=dt_b_c, y=scanned.y, states=scanned.states),
            "all": Kept(),
        }[recompute]
        ctx.save_for_backward(xz, conv_state, ssm_state, cu_seqlens, *w, *kept)
        ctx.dtypes = [None if weight is None else weight.dtype for weight in weights]
        ctx.set_materialize_grads(False)
        return F.linear(scanned.out, w.out_proj, w.out_bias), conv_final, scanned.final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_conv: Tensor | None, grad_ssm: Tensor | None) -> Any:
        xz, conv_state, ssm_state, cu_seqlens, *tensors = ctx.saved_tensors
        w, kept = Weights(*tensors[: len(Weights._fields)]), Kept(*tensors[len(Weights._fields) :])
        x, _ = xz.chunk(2, dim=-1)
        (B, L, E), (R, N) = x.shape, (w.dt_proj.shape[1], w.a.shape[1])
        grad_BLD = xz.new_zeros(B, L, w.out_proj.shape[0]) if grad is None else grad
        kept = _made_again(kept, xz, w, conv_state, ssm_state, cu_seqlens)
        u, dt, dt_b_c, y, states, out = (_there(part) for part in kept)
        del kept
        grads: dict[str, Tensor | None] = {"out_bias": None if w.out_bias is None else grad_BLD.sum((0, 1))}
        grads["out_proj"] = _weight_gradient(grad_BLD, out)
        del out
        dxz, d_dt_b_c = torch.empty_like(xz), torch.empty_like(dt_b_c)
        places = [part.unsqueeze(2) for part in d_dt_b_c[..., R:].split(N, dim=-1)]
        db, dc = places if _on_16_bytes(*places) else [torch.empty_like(place) for place in places]
        scan = launch.run_backward(
            _problem(xz, u, dt, dt_b_c, w, ssm_state, cu_seqlens),
            grad_BLD @ w.out_proj,
            grad_ssm,
            y,
            states,
            into=launch.RowGradients(db, dc, dxz[..., E:]),
        )
        for place, gradient in zip(places, (db, dc), strict=True):
            if place is not gradient:
                place.copy_(gradient)
        grads |= {"a": scan.a, "d": scan.d, "dt_bias": scan.dt_bias}
        grads["dt_proj"] = _weight_gradient(scan.dt, dt_b_c[..., :R])
        torch.mm(_rows(scan.dt), w.dt_proj, out=_rows(d_dt_b_c)[:, :R])
        grads["x_proj"] = _weight_gradient(d_dt_b_c, u)
        du = _rows(scan.x).addmm_(_rows(d_dt_b_c), w.x_proj).view(B, L, E)
        grads["conv"], grads["conv_bias"], d_conv_state = conv_gpu.run_backward(
            du, grad_conv, x, w.conv, w.conv_bias, True, conv_state, cu_seqlens, dxz[..., :E]
        )
        return (
            None, dxz, None if conv_state is None else d_conv_state, scan.initial, None,
            *[
                None if dtype is None else grads[name].to(dtype)  # type: ignore[union-attr]
                for name, dtype in zip(Weights._fields, ctx.dtypes)
            ],
        )  # fmt: skip


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _on_16_bytes(*parts: Tensor) -> bool:
    """Whether every row of these parts of a wider tensor starts where a kernel can write 16 bytes at once."""
    return all(p.data_ptr() % 16 == 0 and p.stride(1) * p.element_size() % 16 == 0 for p in parts)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.view(-1, tensor.shape[-1])


def _save_every(xz: Tensor, a: Tensor) -> int:
    return plan.save_every(xz.shape[0] * xz.shape[1], a.shape[0], a.shape[1], cuda.memory_bytes(xz.device.index))


def _problem(
    xz: Tensor, u: Tensor, dt: Tensor, dt_b_c: Tensor, w: Weights, ssm_state: Tensor | None, cu_seqlens: Tensor | None
) -> launch.Problem:
    N = w.a.shape[1]
    b, c = (part.unsqueeze(2) for part in dt_b_c[..., -2 * N :].split(N, dim=-1))
    z = xz[..., xz.shape[-1] // 2 :]
    tensors = (u, dt, w.a, b, c, w.d, z, w.dt_bias, True, ssm_state, cu_seqlens)
    laid_out = _on_16_bytes(xz, b, c) and xz.is_contiguous() and cu_seqlens is None
    if laid_out and ssm_state is None and w.d is not None and w.dt_bias is not None:
        return launch.Problem(*tensors)  # type: ignore[arg-type] - the common case, known to lie as kernels read it
    return launch.Problem.of(*tensors)


def _made_again(
    kept: Kept,
    xz: Tensor,
    w: Weights,
    conv_state: Tensor | None,
    ssm_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Kept:
    """Everything that backward reads, the missing parts computed as forward did."""
    x, z = xz.chunk(2, dim=-1)
    u, dt, dt_b_c, y, states, out = kept
    if u is None:
        u, _ = conv_gpu.run_forward(x, w.conv, w.conv_bias, True, conv_state, cu_seqlens)
    if dt_b_c is None:
        dt_b_c = F.linear(u, w.x_proj)
    if dt is None:
        dt = F.linear(dt_b_c[..., : w.dt_proj.shape[1]], w.dt_proj)
    if states is None:
        every = _save_every(xz, w.a) or 8  # they live for one layer only
        scanned = launch.run_forward(_problem(xz, u, dt, dt_b_c, w, ssm_state, cu_seqlens), every)
        y, states, out = scanned.y, scanned.states, scanned.out
    if out is None:
        assert y is not None
        out = F.silu(z).mul_(y)
    return Kept(u, dt, dt_b_c, y, states, out)


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad^T x over all rows, summed and left in fp32."""
    grad_M, x_M = grad.reshape(-1, grad.shape[-1]).t(), x.reshape(-1, x.shape[-1])
    return torch.mm(grad_M, x_M) if x.dtype == torch.float32 else torch.mm(grad_M, x_M, out_dtype=torch.float32)
