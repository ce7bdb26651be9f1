"""How the long convolution is cut: how long its transforms are, how many channels are worked off at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from seqkernels.dispatch import constant

BLOCK_ELEMENTS = 2**26  # of a block's padded input: 256 MiB in fp32; transforms and products: about six times as much


def channel_blocks(u_BLE: Tensor) -> list[slice]:
    """Blocks of channels whose transient memory is bounded: about 1.5 GiB, or one channel.

    On a GPU it may be a sixteenth of its memory: a small block is over before the next has been launched.
    """
    B, L, E = u_BLE.shape
    elements = BLOCK_ELEMENTS
    if u_BLE.is_cuda:
        sixteenth = _memory_bytes(u_BLE.device.index) // 16
        elements = max(elements, 1 << (sixteenth // 24).bit_length() - 1)  # 4 bytes, six times
    block = min(E, max(1, elements // (B * fft_size(2 * L - 1))))
    return [slice(first, first + block) for first in range(0, E, block)]


@constant
def _memory_bytes(index: int) -> int:
    return torch.cuda.get_device_properties(index).total_memory if torch.cuda.is_available() else 0


def fft_size(length: int) -> int:
    """The smallest even number of at least `length` whose prime factors are 2, 3 and 5, with few of the latter."""
    power = max(2, 1 << (length - 1).bit_length())
    for odd, full in ((9, 16), (5, 8), (3, 4), (15, 16)):
        if power >= 2 * full and power * odd // full >= length:
            return power * odd // full
    return power
