"""Checks of arguments that several ops share: every refusal names the argument, its value and what is accepted."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# cu_seqlens tensors already found good, with the length they were checked against. Every layer of a model gets the
# same tensor: reading its values (a wait for the GPU) happens once, not once a layer.
_checked_cu_seqlens = WeakIdKeyDictionary()


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of arithmetic, parameters and states for inputs of `dtype`: at least fp32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def complex_of(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype whose parts are `dtype` (fp32 or float64)."""
    return torch.complex128 if dtype == torch.float64 else torch.complex64


def check_float(op: str, name: str, tensor: Tensor) -> None:
    """Raise unless the tensor has a floating-point dtype that ops accept."""
    if tensor.dtype not in FLOATS:
        raise ValueError(
            f"{op}: {name} has dtype {tensor.dtype}; accepted are float32, bfloat16, float16 and float64"
        )


def check_shape(op: str, name: str, tensor: Tensor, letters: str, shape: tuple[int, ...]) -> None:
    """Raise unless the tensor has this shape; `letters` names its dimensions as the legend does."""
    if tensor.shape != shape:
        expected = " x ".join(letters.split())
        raise ValueError(
            f"{op}: {name} has shape {tuple(tensor.shape)}; the other arguments ask for {tuple(shape)} ({expected})"
        )


def check_like(op: str, name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Raise unless the tensor has the same dtype and device as the reference tensor."""
    if tensor.dtype != reference.dtype:
        raise ValueError(
            f"{op}: {name} is {tensor.dtype} but {reference_name} is {reference.dtype}; they must share one dtype: "
            f"convert one with .to({reference.dtype})"
        )
    check_device(op, name, tensor, reference_name, reference)


def check_device(op: str, name: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    """Raise unless both tensors are on one device."""
    if tensor.device != reference.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device} but {reference_name} is on {reference.device}; "
            "move them to one device"
        )


def check_all(
    op: str,
    reference_name: str,
    reference: Tensor,
    tensors: Iterable[tuple[str, Tensor | None, str, tuple[int, ...]]],
) -> None:
    """Check dtype, shape and device of each (name, tensor, letters, shape); None passes.

    One comparison each where all is well: a decode step checks ten tensors in the time of one small kernel.
    """
    device = reference.device
    for name, tensor, letters, shape in tensors:
        if tensor is None:
            continue
        if tensor.shape != shape or tensor.dtype not in FLOATS or tensor.device != device:
            check_float(op, name, tensor)
            check_shape(op, name, tensor, letters, shape)
            check_device(op, name, tensor, reference_name, reference)


def check_cu_seqlens(op: str, cu_seqlens: Tensor, batch: int, length: int) -> int:
    """Check the boundaries of packed sequences and return how many there are.

    The values are read once per tensor and skipped inside `torch.compile` and CUDA-graph capture, where they cannot
    be read: check them once outside by calling the op eagerly.

    Raises:
        ValueError: not a 1-d int32/int64 tensor, a batch other than 1, values that do not rise strictly from 0 to L.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"{op}: cu_seqlens has shape {tuple(cu_seqlens.shape)} and dtype {cu_seqlens.dtype}; accepted is a 1-d "
            "int32 or int64 tensor with one more entry than there are sequences: 0, end of the first, ..., L"
        )
    if batch != 1:
        raise ValueError(
            f"{op}: cu_seqlens needs a batch of 1 (all sequences laid end to end), got B={batch}; "
            "reshape (B, L, ...) to (1, B*L, ...) and count the boundaries over B*L"
        )
    if not torch.compiler.is_compiling():
        _check_cu_seqlens_values(op, cu_seqlens, length)
    return cu_seqlens.shape[0] - 1


def _check_cu_seqlens_values(op: str, cu_seqlens: Tensor, length: int) -> None:
    key = (length, cu_seqlens._version)
    if _checked_cu_seqlens.get(cu_seqlens) == key:
        return
    if cu_seqlens.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    ends = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] != length:
        raise ValueError(
            f"{op}: cu_seqlens runs from {ends[0]} to {ends[-1]}; it must start at 0 and end at L={length}"
        )
    for index, (start, end) in enumerate(pairwise(ends)):
        if end <= start:
            raise ValueError(
                f"{op}: cu_seqlens[{index + 1}]={end} is not above cu_seqlens[{index}]={start}; sequences must not be "
                "empty: drop the empty ones"
            )
    _checked_cu_seqlens[cu_seqlens] = key
