"""Steps without launch cost: a CUDA graph of one step, and a copy of a model in the dtype it is decoded with.

A decoding step is a hundred small kernels; launched one by one they wait for the CPU. A graph launches them at once.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from seqmodels.heads.next_token import NextTokenHead
from seqmodels.model import SequenceModel

WARM_UP_STEPS = 3  # compile, allocate and cache before capture; what torch's documentation asks for
MOST_GRAPHS = 64  # of one cycle; beyond, capturing takes longer than most generations


def warm_up_steps(cycle: int) -> int:
    """Steps that run before capture: whole cycles, so that the first graph is of the step that comes first."""
    return -(-WARM_UP_STEPS // cycle) * cycle


def cuda_graph(step: Callable[[], None], changed: Sequence[Tensor], cycle: int = 1) -> Callable[[], None]:
    """A function that repeats `step` as one graph launch.

    Args:
        step: reads and writes the same tensors on every call, without host synchronisation. What it does on the host
            (which layers it launches) may depend on its number modulo `cycle`, and on tensors on the CPU that change
            with it.
        changed: every tensor that `step` changes and whose present value matters; they are put back after warm-up.
        cycle: graphs to make, one for each of so many successive steps, replayed in turn.

    Returns:
        `replay()`. It runs on the current stream and does not wait.

    Raises:
        RuntimeError: `step` does something that cannot be captured; `changed` is as it was.
    """
    kept = [tensor.clone() for tensor in changed]
    graphs: list[torch.cuda.CUDAGraph] = []
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(warm_up_steps(cycle)):
                step()
        torch.cuda.current_stream().wait_stream(side)
        for _ in range(cycle):
            graph = torch.cuda.CUDAGraph()
            # One pool of memory: the graphs run one after the other, and what outlasts a step lies outside it.
            with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
                step()
            graphs.append(graph)
    finally:
        for tensor, value in zip(changed, kept):
            tensor.copy_(value)
    if cycle == 1:
        return graphs[0].replay
    turn = itertools.cycle(graphs)
    return lambda: next(turn).replay()


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
