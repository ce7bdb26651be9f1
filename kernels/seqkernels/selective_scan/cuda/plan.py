"""How a scan is cut into blocks: lanes per channel, channels per block, chunks per sequence. Numbers only, no GPU.

A block walks its chunk position by position, so the card is filled by channels (batch x E). With too few of them the
sequence itself is cut into chunks, at the price of one more pass (`ends.cu`, `carry.cu`). Thresholds are in channels
per multiprocessor and come from the sweep in experiments/selective_scan.
"""

from __future__ import annotations

from typing import NamedTuple

TILE = 16  # positions per tile, as in common.cuh
STATES = 16  # states per launch
CHANNEL_UNIT = 64  # every layout's channels per block divide this or twice this
MIN_CHUNK = 256  # positions; a shorter chunk spends its time on starting up

WIDE_SHARED_BYTES = 220 * 1024  # of a multiprocessor that holds two of the widest backward blocks


class Cut(NamedTuple):
    """Chunks of all sequences.

    Attributes:
        chunk_length: positions, a multiple of TILE; sequences end with a shorter one.
        chunks: per sequence of a batch; 1 means that nothing is cut. Packed sequences count their own.
        slots: room for chunks over all sequences.
    """

    chunk_length: int
    chunks: int
    slots: int


class Forward(NamedTuple):
    """Layout of `forward.cu`: `lanes` lanes per channel, `threads` per block."""

    lanes: int
    threads: int
    min_blocks: int
    cut: Cut

    @property
    def channels(self) -> int:
        return self.threads // self.lanes


class Backward(NamedTuple):
    """Layout of `backward.cu`: a lane holds `lane_channels` channels, a block has `warps` warps."""

    lane_channels: int
    warps: int
    min_blocks: int
    cut: Cut

    @property
    def channels(self) -> int:
        return 8 * self.lane_channels * self.warps


class Size(NamedTuple):
    """What a plan depends on.

    Attributes:
        sequences: batch size, or the number of packed sequences.
        length: positions of one sequence of a batch, or of all packed ones together.
        channels: E, a multiple of `groups` * CHANNEL_UNIT.
        groups: groups of B and C.
        packed: whether sequences are packed.
        element_bytes: of x.
        multiprocessors: of the GPU.
        shared_bytes: shared memory of one multiprocessor.
    """

    sequences: int
    length: int
    channels: int
    groups: int
    packed: bool
    element_bytes: int
    multiprocessors: int
    shared_bytes: int = 228 * 1024

    @property
    def rows(self) -> int:
        return self.length if self.packed else self.sequences * self.length

    @property
    def tiles(self) -> int:
        """Room for the tiles of all sequences; see `packed_base` in common.cuh."""
        return self.length // TILE + self.sequences if self.packed else self.sequences * -(-self.length // TILE)

    @property
    def wide(self) -> bool:
        """Whether blocks of 128 channels stay within a group."""
        return self.channels // self.groups % (2 * CHANNEL_UNIT) == 0


def cut_into(size: Size, chunks: int) -> Cut:
    """Cut the length into about this many chunks, never shorter than MIN_CHUNK."""
    chunk_length = max(-(-size.length // chunks), MIN_CHUNK if chunks > 1 else 1)
    chunk_length = -(-chunk_length // TILE) * TILE
    per_sequence = -(-size.length // chunk_length)
    if not size.packed:
        return Cut(chunk_length, per_sequence, size.sequences * per_sequence)
    if chunk_length >= size.length:
        return Cut(chunk_length, 1, size.sequences)
    return Cut(chunk_length, per_sequence, size.length // chunk_length + size.sequences)


def _chunks_for_full_waves(blocks: int, wave: int, most_waves: int) -> int:
    """Chunks per sequence so that `blocks` * chunks fills whole waves of `wave` blocks best; many waves if in doubt."""
    best, best_filled = 1, 0.0
    for waves in range(1, most_waves + 1):
        chunks = max(1, waves * wave // blocks)
        needed = -(-blocks * chunks // wave)
        filled = blocks * chunks / (needed * wave)
        if filled > best_filled - 0.01:
            best, best_filled = chunks, filled
    return best


def _parallel_channels(size: Size) -> int:
    """Channels that are surely at work at once. Of packed sequences one may be longer than all others together."""
    return size.channels if size.packed else size.sequences * size.channels


def forward(size: Size, save_every: int = 0) -> Forward:
    """Choose the forward layout: the fewest lanes per channel that fill the card, else cut the sequences.

    Writing states out for the backward pass favours wide blocks: more neighbouring channels, longer writes.
    """
    channels = _parallel_channels(size)
    per_multiprocessor = channels / size.multiprocessors
    whole = cut_into(size, 1)
    one_lane = (1, 128, 4) if save_every == 4 and size.wide else (1, 64, 8)
    if per_multiprocessor >= (200 if save_every == 4 else 350):
        return Forward(*one_lane, whole)
    if per_multiprocessor >= 100 or (per_multiprocessor >= 45 and save_every == 4):
        return Forward(2, 64, 8, whole)
    if per_multiprocessor >= 80:
        return Forward(4, 128, 4, whole)
    if per_multiprocessor >= 45:
        return Forward(2, 64, 8, whole)
    if size.length < 2 * MIN_CHUNK:
        return Forward(4, 64, 8, whole)
    blocks, wave = channels // one_lane[1], one_lane[2] * size.multiprocessors
    return Forward(*one_lane, cut_into(size, _chunks_for_full_waves(blocks, wave, 2)))


def backward(size: Size) -> Backward:
    """Choose the backward layout: four channels per lane, unless fp32 tiles or few channels ask for two."""
    channels = _parallel_channels(size)
    whole = cut_into(size, 1)
    if size.element_bytes == 4:
        layout = (2, 4, 2)
    elif size.wide and size.shared_bytes >= WIDE_SHARED_BYTES:
        layout = (4, 4, 2)
    else:
        layout = (4, 2, 4)
    blocks = channels // (8 * layout[0] * layout[1])
    wave = layout[2] * size.multiprocessors
    if blocks >= 0.8 * wave or size.length < 2 * MIN_CHUNK:
        return Backward(*layout, whole)
    if blocks >= 0.45 * wave and size.element_bytes == 2:
        return Backward(2, 4, 3, whole)
    return Backward(*layout, cut_into(size, _chunks_for_full_waves(blocks, wave, 4)))


def save_every(rows: int, channels: int, states: int, memory_bytes: int) -> int:
    """How often the forward pass leaves the state for the backward pass: every 4 or 8 positions, or never (0).

    Every 4 costs 16 bytes per (row, channel) and 16 states and is the fastest; every 8 half of that, and the backward
    pass runs half of the forward recurrence again. What exceeds 1/32 of the card's memory is not saved: then the
    backward pass starts with a forward pass of its own, whose states live only that long.
    """
    for every in (4, 8):
        if rows * channels * states * 4 // every <= memory_bytes // 32:
            return every
    return 0


def saves_per_tile(every: int) -> int:
    return TILE // every


# ----------------------------------------------------------------------------------------------------------- complex

COMPLEX_STATES = 32  # up to here complex_forward.cu and complex_backward.cu, beyond it complex.cu
_COMPLEX_WARPS = 4  # of the narrowest block


class Complex(NamedTuple):
    """Layout of the kernels for complex states: `lanes` lanes per channel with `per_lane` states each."""

    lanes: int
    per_lane: int
    warps: int
    min_blocks: int
    cut: Cut

    @property
    def channels(self) -> int:
        return 32 * self.warps // self.lanes


def _complex_lanes(states: int) -> tuple[int, int]:
    """Lanes per channel and states per lane: four states each, fewer only where four lanes hold them all."""
    per_lane = next(k for k in (1, 2, 4) if 4 * k >= states or k == 4)
    return max(4, 1 << (-(-states // per_lane) - 1).bit_length()), per_lane


def complex_units(states: int) -> tuple[int, int]:
    """What the fast kernels want: channels of a group a multiple of the first number, exactly the second as N.

    (1, states) where they do not go: complex.cu takes every size.
    """
    if states > COMPLEX_STATES:
        return 1, states
    lanes, per_lane = _complex_lanes(states)
    return 32 * _COMPLEX_WARPS // lanes, lanes * per_lane


def complex_is_fast(channels: int, groups: int, states: int) -> bool:
    """Whether the fast kernels take this size as it is."""
    unit, padded = complex_units(states)
    return states <= COMPLEX_STATES and padded == states and channels // groups % unit == 0


def _complex(size: Size, states: int, warps: int, min_blocks: int) -> Complex:
    """Cut the sequences where blocks fill less than half of the card: the cut costs a third to a half more work."""
    lanes, per_lane = _complex_lanes(states)
    layout = Complex(lanes, per_lane, warps, min_blocks, cut_into(size, 1))
    blocks, wave = max(1, _parallel_channels(size) // layout.channels), min_blocks * size.multiprocessors
    if blocks >= 0.4 * wave or size.length < 2 * MIN_CHUNK:
        return layout
    return layout._replace(cut=cut_into(size, _chunks_for_full_waves(blocks, wave, 4)))


def complex_forward(size: Size, states: int) -> Complex:
    """Choose the layout of complex_forward.cu, and of complex_ends.cu before it where the sequences are cut."""
    return _complex(size, states, _COMPLEX_WARPS, 4)


def complex_backward(size: Size, states: int) -> Complex:
    """Choose the layout of complex_backward.cu.

    Wide blocks share B and C and leave fewer partial sums behind; where they would not fill the card once, narrow ones
    are faster (by 6 % at 8,192 channels).
    """
    lanes, _ = _complex_lanes(states)
    roomy = size.shared_bytes >= WIDE_SHARED_BYTES
    if lanes == 4 and roomy and size.element_bytes == 2:
        wide = _complex(size, states, 2 * _COMPLEX_WARPS, 2)
        blocks = wide.cut.chunks * _parallel_channels(size) // wide.channels
        if size.channels // size.groups % wide.channels == 0 and blocks >= wide.min_blocks * size.multiprocessors * 0.9:
            return wide
    return _complex(size, states, _COMPLEX_WARPS, 3 if lanes == 4 and roomy else 1)
