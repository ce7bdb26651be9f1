"""Registers functions as ops of PyTorch's dispatcher, and calls them without it where nobody watches.

`torch.library.custom_op` does the same and checks more at each call. Compilers, tracers and recorders need the
registered op; an eager call does not, and the way through the dispatcher and its autograd costs the host more than the
launch of a kernel: with it, training a model of small layers waits for Python.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seqkernels.dispatch import watched

_LIBRARY = torch.library.Library("seqkernels", "FRAGMENT")


class Op:
    """A registered op that takes the short way when it may.

    Args:
        registered: the op of the dispatcher: one node for whoever traces, fake shapes, a registered backward.
        function: what it computes.
        gradient: the same with its backward as an autograd function; None without gradients.
    """

    def __init__(
        self,
        registered: Callable[..., Any],
        function: Callable[..., Any],
        gradient: type[torch.autograd.Function] | None,
    ):
        self.registered, self._function, self._gradient = registered, function, gradient

    def __call__(self, *args: Any) -> Any:
        if watched():
            return self.registered(*args)
        if self._gradient is not None and torch.is_grad_enabled() and _any_requires_grad(args):
            return self._gradient.apply(*args)
        return self._function(*args)


def _any_requires_grad(args: Sequence[Any]) -> bool:
    return any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


def register(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    *,
    devices: Sequence[str] = ("CUDA",),
) -> Op:
    """Make `function` the implementation of the op `seqkernels::name` and return the op.

    Args:
        name: of the op.
        function: annotated with tensors, numbers and tuples of tensors; writes to no input and returns fresh tensors.
        fake: shapes, dtypes and strides of the results, on fake tensors.
        setup_context, backward: as for `torch.library.register_autograd`; without them there is no gradient.
        devices: the dispatcher's names of the devices that it runs on.
    """
    function.__annotations__ = typing.get_type_hints(function)  # as types, not as strings: the schema is read there
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))
    for device in devices:
        _LIBRARY.impl(name, function, device)
    qualified = f"seqkernels::{name}"
    torch.library.register_fake(qualified, fake, lib=_LIBRARY)
    gradient = None
    if backward is not None:
        assert setup_context is not None, "a backward needs what it saves"
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=_LIBRARY)
        gradient = _autograd_function(name, function, setup_context, backward)
    return Op(getattr(torch.ops.seqkernels, name).default, function, gradient)


def _autograd_function(
    name: str, function: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    def run_forward(ctx: Any, *args: Any) -> Any:
        outputs = function(*args)
        setup_context(ctx, args, outputs)
        return outputs

    members = {"forward": staticmethod(run_forward), "backward": staticmethod(once_differentiable(backward))}
    return type(name, (torch.autograd.Function,), members)
