"""Changes the sample rate, piece by piece: any stretch of the result equals the same stretch of the whole file's.

    span = input_span(start, stop, from_hz, to_hz)             which input samples outputs [start, stop) look at
    resample(samples, start, stop, from_hz, to_hz, first=…)     those outputs

Band-limited interpolation (J. O. Smith, "Digital Audio Resampling"; torchaudio's `Resample`): output j lies at input
time t = j · from/to, and is the sum of the inputs within `WIDTH` zero crossings of t, weighted by a Kaiser-windowed
sinc. Outside the file the signal is zero. torchaudio does the arithmetic; its filter bank has to / gcd(from, to)
filters, so two rates with a small common divisor (44,100 and 44,099 Hz) would take gigabytes, and those pairs are
evaluated filter by filter from the same formula.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import numpy as np
from jaxtyping import Float

# torchaudio's "kaiser_best": the published settings of resampy/librosa, whose aliases are below 16-bit noise.
WIDTH = 64
ROLLOFF = 0.9475937167399596
BETA = 14.769656459379492
MAX_BANK_FLOATS = 1 << 23  # 32 MiB
_TABLE_POINTS = 1 << 17
_OUTPUTS_AT_ONCE = 1 << 12
_forked = False


def _note_the_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_the_fork)


def output_samples(samples: int, from_hz: int, to_hz: int) -> int:
    """How many samples `samples` at `from_hz` become at `to_hz`: the times j/to_hz before the end, rounded up."""
    return -(-samples * to_hz // from_hz)


def input_span(start: int, stop: int, from_hz: int, to_hz: int) -> tuple[int, int]:
    """The half-open range of inputs that outputs [start, stop) depend on; may begin before 0 and end past the file."""
    source, target, reach = _ratio(from_hz, to_hz)
    if _bank_is_too_large(source, target, reach):
        return start * source // target - reach, -(-stop * source // target) + reach + 1
    margin_blocks = -(-reach // source)  # whole blocks, so that a piece's filters keep their phase
    return (start // target - margin_blocks) * source, -(-stop // target) * source + reach


def resample(
    samples: Float[np.ndarray, " S"], start: int, stop: int, from_hz: int, to_hz: int, *, first: int = 0
) -> Float[np.ndarray, " L"]:
    """Outputs [start, stop) of a signal at `from_hz`, of which `samples` is the piece beginning at input `first`.

    Args:
        samples: float32. Must cover `input_span(start, stop, …)` as far as the file does; beyond it counts as zero.
        start: first output wanted, counted from the file's beginning.
        stop: one past the last output wanted.
        from_hz: rate of `samples`.
        to_hz: rate of the outputs.
        first: which input sample of the file `samples[0]` is: `input_span`'s beginning, or 0 where that is negative.

    Returns:
        float32, stop - start samples.
    """
    if from_hz == to_hz:
        return samples[start - first : stop - first]
    source, target, reach = _ratio(from_hz, to_hz)
    if _bank_is_too_large(source, target, reach):
        return _resample_directly(samples, start, stop, source, target, first=first)
    assert first % source == 0, "a piece must begin at a whole block, or the filters would be out of phase"
    transform = _transform(source, target)
    import torch

    # torchaudio rounds the output's length in float32: whole blocks keep it exact, and zeros are what follows anyway.
    blocks = max(-(-len(samples) // source), -(-stop // target) - first // source)
    padded = np.zeros(blocks * source, dtype=np.float32)
    padded[: len(samples)] = samples
    if _forked:  # the parent's OpenMP threads do not exist here, and waiting for them would never end
        torch.set_num_threads(1)
    with torch.no_grad():
        out = transform(torch.from_numpy(padded)).numpy()
    skipped = first // source * target
    piece = out[start - skipped : stop - skipped]
    assert len(piece) == stop - start, (len(piece), start, stop)
    return piece


def _ratio(from_hz: int, to_hz: int) -> tuple[int, int, int]:
    """Reduced rates, and how far (in inputs) a filter reaches to each side."""
    divisor = math.gcd(from_hz, to_hz)
    source, target = from_hz // divisor, to_hz // divisor
    return source, target, math.ceil(WIDTH * source / (min(source, target) * ROLLOFF))


def _bank_is_too_large(source: int, target: int, reach: int) -> bool:
    return target * (source + 2 * reach) > MAX_BANK_FLOATS


@functools.lru_cache(maxsize=16)
def _transform(source: int, target: int) -> Any:
    """torchaudio's resampler with its filter bank; made once a pair of rates."""
    from domains.audio.torchaudio_guard import load_torchaudio

    load_torchaudio()
    from torchaudio.transforms import Resample

    return Resample(
        source,
        target,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=WIDTH,
        rolloff=ROLLOFF,
        beta=BETA,
    )


@functools.lru_cache(maxsize=1)
def _kernel_table() -> np.ndarray:
    """The windowed sinc at distances 0..WIDTH zero crossings, finely sampled."""
    distance = np.linspace(0.0, WIDTH, _TABLE_POINTS)
    window = np.i0(BETA * np.sqrt(np.maximum(0.0, 1.0 - (distance / WIDTH) ** 2))) / np.i0(BETA)
    return np.sinc(distance) * window


def _resample_directly(
    samples: np.ndarray, start: int, stop: int, source: int, target: int, *, first: int
) -> np.ndarray:
    """Each output from its own filter, for pairs of rates whose filter bank would not fit in memory."""
    per_input = min(source, target) * ROLLOFF / source  # zero crossings per input sample
    reach = math.ceil(WIDTH / per_input)
    table, steps_per_crossing = _kernel_table(), (_TABLE_POINTS - 1) / WIDTH
    padded = np.pad(samples.astype(np.float64), (reach, reach + 1))
    taps = np.arange(-reach, reach + 2)
    out = np.empty(stop - start, dtype=np.float32)
    for begin in range(start, stop, _OUTPUTS_AT_ONCE):
        output = np.arange(begin, min(begin + _OUTPUTS_AT_ONCE, stop))
        whole, part = np.divmod(output * source, target)
        distance = np.abs(taps[None, :] - part[:, None] / target) * per_input
        weights = np.interp(distance * steps_per_crossing, np.arange(_TABLE_POINTS), table, right=0.0)
        position = whole[:, None] + taps[None, :] - first + reach
        inside = (position >= 0) & (position < len(padded))
        values = padded[np.clip(position, 0, len(padded) - 1)] * inside
        out[begin - start : begin - start + len(output)] = per_input * (values * weights).sum(axis=1)
    return out
