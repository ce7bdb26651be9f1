"""Registers functions as ops of PyTorch's dispatcher.

`torch.library.custom_op` does the same and checks more at each call, which costs 0.7 ms of a forward and backward pass
on the host, as long as a small scan takes on the GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("seqkernels", "FRAGMENT")


def register(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Make `function` the CUDA implementation of the op `seqkernels::name` and return the op.

    Args:
        name: of the op.
        function: annotated with tensors, numbers and tuples of tensors; writes to no input and returns fresh tensors.
        fake: shapes, dtypes and strides of the results, on fake tensors.
        setup_context, backward: as for `torch.library.register_autograd`; without them there is no gradient.
    """
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, function, "CUDA")
    qualified = f"seqkernels::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
    return getattr(torch.ops.seqkernels, name).default
