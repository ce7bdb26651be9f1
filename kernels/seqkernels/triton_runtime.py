"""What the Triton implementations share: can Triton run here, and how to compile a kernel where it cannot.

Nothing here imports triton at the top: `import seqkernels` works without it. `TRITON_INTERPRET=1`, set before the
first use of a kernel, runs the kernels on CPU tensors (slowly; for tests).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seqkernels.dispatch import constant

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: The oldest GPU generation that the kernels are written for (bf16, 64-bit addressing, ex2.approx): Ampere.
OLDEST_CAPABILITY = (8, 0)

#: How Triton's signatures write a dtype.
_TYPE_NAMES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@constant
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@constant
def _cannot_run_on(device_type: str, index: int) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'seqmodels-mamba[gpu]' (a CUDA build of torch brings it)"
    if interpreting():
        return None
    if device_type != "cuda":
        return f"the tensors are on {device_type}, Triton kernels need a CUDA GPU"
    if torch.version.hip is not None:
        return "only NVIDIA GPUs are tested"
    capability = torch.cuda.get_device_capability(index)
    if capability < OLDEST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, needed is 8.0 (Ampere) or newer"
    return None


def rows(x: Tensor) -> Tensor:
    """(..., D) as (M, D), dense in D; in place where the strides allow it."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def unavailable(x: Tensor) -> str | None:
    """Why Triton kernels cannot run on a tensor like x, in words; None when they can. Traceable by torch.compile."""
    index = x.device.index
    reason = _cannot_run_on(x.device.type, -1 if index is None else index)
    if reason is not None:
        return reason
    if x.dtype not in DTYPES:
        return f"dtype {x.dtype} is not supported, only float32, bfloat16 and float16"
    return None


def kernels(op: str) -> Any:
    """The module of an op's Triton kernels; brings triton."""
    return importlib.import_module(f"seqkernels.{op}.triton_kernels")


def compile_for(
    kernel: Any, arguments: Mapping[str, Any], capability: int, num_warps: int, num_stages: int | None = None
) -> Any:
    """Compile a kernel ahead of time for a GPU that need not be there, as a launch with these arguments would.

    Args:
        kernel: the `triton.jit` function.
        arguments: parameter name to a torch dtype (a 16-byte-aligned pointer to it), to the string of a scalar's
            Triton type ("i32", "i64", "fp32"; integers are taken as divisible by 16), or to a compile-time value.
        capability: 80, 90, 100, ...
        num_warps: warps in a program.
        num_stages: iterations of a loop whose loads are in flight; None for Triton's default.

    Returns:
        Triton's compiled kernel; `.asm["ptx"]` and `.asm["cubin"]` hold the code.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for position, name in enumerate(kernel.arg_names):
        value = arguments[name]
        if isinstance(value, torch.dtype):
            signature[name] = "*" + _TYPE_NAMES[value]
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif isinstance(value, str):
            signature[name] = value
            if value.startswith("i"):
                attributes[(position,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "constexpr"
            constants[name] = value
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": num_warps} | ({} if num_stages is None else {"num_stages": num_stages})
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
