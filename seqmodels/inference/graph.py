"""Steps without launch cost: a CUDA graph of one step, and a copy of a model in the dtype it is decoded with.

A decoding step is a hundred small kernels; launched one by one they wait for the CPU. A graph launches them at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from seqmodels.heads.next_token import NextTokenHead
from seqmodels.model import SequenceModel

WARM_UP_STEPS = 3  # compile, allocate and cache before capture; what torch's documentation asks for


def cuda_graph(step: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
    """A function that repeats `step` as one graph launch.

    Args:
        step: reads and writes the same tensors on every call, without host synchronisation.
        changed: every tensor that `step` changes and whose present value matters; they are put back after warm-up.

    Returns:
        `replay()`. It runs on the current stream and does not wait.

    Raises:
        RuntimeError: `step` does something that cannot be captured; `changed` is as it was.
    """
    kept = [tensor.clone() for tensor in changed]
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
    finally:
        for tensor, value in zip(changed, kept):
            tensor.copy_(value)
    return graph.replay


def decoding_copy(model: SequenceModel, dtype: torch.dtype) -> SequenceModel:
    """A copy for inference with its matrices in `dtype`; norms, states and what the scan reads stay fp32.

    Args:
        model: stays as it is.
        dtype: of embeddings, projections and the head, and so of activations; bf16 halves what a step reads.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for original, module in zip(model.modules(), copied.modules(), strict=True):
        if not isinstance(original, nn.Linear | nn.Embedding | NextTokenHead):
            continue
        for name, parameter in original.named_parameters(recurse=False):
            if not getattr(parameter, "_keep_fp32", False):  # a mark that copying does not carry over
                getattr(module, name).data = parameter.data.to(dtype)
    copied.tie_weights()
    return copied
