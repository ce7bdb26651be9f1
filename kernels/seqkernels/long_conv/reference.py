"""The definition of the long causal convolution, in plain PyTorch.

y_t = sum over k from 0 to min(t, K-1) of kernel_k u_{t-k}          one kernel a channel
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from seqkernels.checks import accumulation_dtype


def unavailable(u_BLE: Tensor, parameter: Tensor, **details: object) -> str | None:
    """Return None: the reference runs everywhere."""
    return None


def conv(u_BLE: Float[Tensor, "B L E"], kernel_EK: Float[Tensor, "E K"]) -> Float[Tensor, "B L E"]:
    """PyTorch's direct convolution; see `seqkernels.long_conv.op` for the arguments."""
    kernel_EK = kernel_EK[:, : u_BLE.shape[1]]
    u_BEL = F.pad(u_BLE.to(accumulation_dtype(u_BLE.dtype)).mT, (kernel_EK.shape[1] - 1, 0))
    filters = kernel_EK.flip(1)[:, None]  # conv1d correlates
    with torch.autocast(u_BLE.device.type, enabled=False):
        return F.conv1d(u_BEL, filters, groups=u_BLE.shape[2]).mT


def gradients(
    dy_BLE: Tensor, u_BLE: Tensor, kernel_EK: Tensor, needs_u: bool, needs_kernel: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `conv`; empty where not needed."""
    leaves = [u_BLE.detach().requires_grad_(needs_u), kernel_EK.detach().requires_grad_(needs_kernel)]
    with torch.enable_grad():
        grads = iter(torch.autograd.grad(conv(*leaves), [leaf for leaf in leaves if leaf.requires_grad], dy_BLE))
    du, dkernel = (next(grads) if leaf.requires_grad else leaf.new_empty([0] * leaf.dim()) for leaf in leaves)
    return du, dkernel
