"""How a kernel reaches the memory of a tensor in well under a microsecond: by its address.

A numpy view of a tensor costs about a microsecond to make and to hand over, an address a tenth of that; in a decode
step of a small model that is most of the time. The caller sees to it that the memory is contiguous, of the dtype that
the kernel takes it for, and alive during the call.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from seqkernels.dispatch import watched
from seqkernels.vector_math import part

#: What tells a kernel, by its type, which numbers stand at the addresses it is given.
ONE = {torch.float32: np.float32(1), torch.float64: np.float64(1)}


@intrinsic
def _pointer(context, address, like):
    """A pointer to numbers of the type of `like`."""

    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.intp, like), code


@part
def array_at(address, size, like):
    """The `size` numbers of the type of `like` that begin at an address, as a flat array. Only inside kernels."""
    return numba.carray(_pointer(address, like), size)  # pyright: ignore[reportCallIssue, reportPrivateImportUsage]


def may_bypass_dispatcher(x: Tensor) -> bool:
    """Whether a kernel may be called directly, without the op that torch knows it by: 10 to 30 µs less a call.

    Not where torch compiles or watches calls (a dispatch mode), nor on anything but plain memory (subclasses of
    tensors, tensors with a pending negation). Gradients are the caller's concern.
    """
    return type(x) is Tensor and not watched() and not x.is_neg()


def contiguous(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor itself where it is contiguous and of this dtype, else such a copy."""
    return tensor if tensor.dtype == dtype and tensor.is_contiguous() else tensor.to(dtype).contiguous()
