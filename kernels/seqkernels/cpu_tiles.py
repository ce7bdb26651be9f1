"""What the CPU kernels share: how tensors reach numba, how work is cut into tasks, where a tile stands.

One task is one sequence and one block of `LANES` channels of one group. It walks the sequence in chunks of `CHUNK`
steps, on tiles small enough for the L1 and L2 caches, and every inner loop runs over the channels of the block:
contiguous and of fixed length, so LLVM makes vector code of it.

Tensors arrive flat with their strides beside them (`Steps`), so that a kernel is compiled once per dtype and not once
per memory layout.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seqkernels.vector_math import part

LANES = 64
CHUNK = 64


class Steps(NamedTuple):
    """A (B, L, E) or (B, L, G, N) tensor whose last dimension is contiguous: flat values and the other strides."""

    values: Any
    batch_stride: int
    step_stride: int
    group_stride: int


class Layout(NamedTuple):
    """Sizes, and per sequence: batch entry, first position, length, number of chunks before it."""

    rows: Any
    batches: int
    length: int
    channels: int
    states: int
    groups: int
    blocks: int  # blocks of LANES channels in a group


class Place(NamedTuple):
    """The part of the tensors that the tiles hold now."""

    batch: int
    first: int
    steps: int
    channel: int
    width: int


def layout_of(x_BLE: Tensor, states: int, groups: int, cu_seqlens: Tensor | None) -> Layout:
    """Cut (B, L, E) into sequences: batch entries, or the packed ones."""
    B, L, E = x_BLE.shape
    if cu_seqlens is None:
        batches, starts, lengths = np.arange(B), np.zeros(B, np.int64), np.full(B, L, np.int64)
    else:
        bounds = cu_seqlens.numpy().astype(np.int64)
        batches, starts, lengths = np.zeros(len(bounds) - 1, np.int64), bounds[:-1], np.diff(bounds)
    chunks = -(-lengths // CHUNK)
    rows = np.stack([batches, starts, lengths, np.cumsum(chunks) - chunks], axis=1)
    return Layout(rows, B, L, E, states, groups, -(-(E // groups) // LANES))


def n_tasks(layout: Layout) -> int:
    """How many tasks there are."""
    return len(layout.rows) * layout.groups * layout.blocks


def n_chunks(layout: Layout) -> int:
    """How many chunks all sequences have together."""
    return int((-(-layout.rows[:, 2] // CHUNK)).sum())


def flat(tensor: Tensor) -> np.ndarray:
    """All values in order; shares memory with a contiguous tensor."""
    return tensor.detach().contiguous().view(-1).numpy()


def steps_of(tensor: Tensor, dtype: torch.dtype) -> Steps:
    """Flat values and strides; copies only where the dtype differs or the last dimension is not contiguous."""
    tensor = tensor.detach().to(dtype)
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    group_stride = tensor.stride(2) if tensor.dim() == 4 else 0
    return Steps(tensor.as_strided((span,), (1,)).numpy(), tensor.stride(0), tensor.stride(1), group_stride)


@part
def task_parts(task, layout):
    """Sequence, group, block, first channel and number of channels of a task."""
    sequence, rest = divmod(task, layout.groups * layout.blocks)
    group, block = divmod(rest, layout.blocks)
    per_group = layout.channels // layout.groups
    within = block * LANES
    return sequence, group, block, group * per_group + within, min(LANES, per_group - within)


@part
def row_of(source, place, q):
    """The channels of step q of the chunk. A slice, because LLVM cannot see that `base + e` is not negative."""
    base = place.batch * source.batch_stride + (place.first + q) * source.step_stride + place.channel
    return source.values[base : base + place.width]


@part
def out_row(target, place, layout, q):
    """The same of a flat contiguous (B, L, E) array."""
    base = (place.batch * layout.length + place.first + q) * layout.channels + place.channel
    return target[base : base + place.width]
