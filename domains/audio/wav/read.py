"""Samples of a stretch of a file: decoded, mixed to mono, brought to a rate; full scale counted on the way."""

from __future__ import annotations

import os

import numpy as np
import soundfile
from jaxtyping import Float

from domains.audio import resample
from domains.audio.wav.file import AudioFileError, AudioInfo, open_file, read_info, refuse_changed

_AT_ONCE = 1 << 19  # samples decoded or resampled in one piece: bounds memory on hour-long files
_FULL_SCALE = 32767 / 32768


class LevelMeter:
    """Counts full-scale samples while a file is read.

    Attributes:
        clipped_samples: samples of any channel in runs of at least 3 at full scale (|x| >= 32767/32768): one alone may
            be a peak, a run is a waveform that was cut off. A run over the border of two reads counts as two.
        peak: the largest |x|.
    """

    def __init__(self) -> None:
        self.clipped_samples = 0
        self.peak = 0.0
        self._seen = 0

    def add(self, block_SC: Float[np.ndarray, "S C"], start: int) -> None:
        """Counts frames from `start` on as they are in the file, before mixing and resampling.

        Blocks come in order and overlap where the rate is changed; a frame counts once.
        """
        stop = start + len(block_SC)
        block_SC = block_SC[max(self._seen - start, 0) :]
        self._seen = max(self._seen, stop)
        peak = float(np.abs(block_SC).max(initial=0.0))
        self.peak = max(self.peak, peak)
        if peak < _FULL_SCALE:
            return
        for channel in block_SC.T:
            for sign in (1, -1):
                full = np.concatenate([[0], (sign * channel >= _FULL_SCALE).astype(np.int8), [0]])
                edges = np.flatnonzero(np.diff(full))
                runs = edges[1::2] - edges[::2]
                self.clipped_samples += int(runs[runs >= 3].sum())


def read_samples(
    source: AudioInfo | str | os.PathLike[str],
    start: int = 0,
    samples: int | None = None,
    *,
    sample_rate_hz: int | None = None,
    meter: LevelMeter | None = None,
) -> Float[np.ndarray, " L"]:
    """One stretch of a file as mono float32 in [-1, 1].

    Args:
        source: a path, or `read_info`'s answer (then a file that has changed since is refused).
        start: first sample wanted, 0 .. length-1, at `sample_rate_hz`.
        samples: how many, at `sample_rate_hz`; None reads to the end.
        sample_rate_hz: rate of the result in Hz; None keeps the file's own.
        meter: counts clipped samples of what is decoded.

    Returns:
        (samples,) float32. Values past ±1 (float files, overshoot of a filter) are cut to ±1.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: broken, changed while in use, or with NaN or infinite samples.
        ValueError: the stretch is not inside the file, or the rate is not positive.
    """
    info = source if isinstance(source, AudioInfo) else read_info(source)
    rate_hz = info.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
    if rate_hz <= 0:
        raise ValueError(f"sample_rate_hz={rate_hz} is not a rate; give samples a second, e.g. 16000")
    total = info.samples_at(rate_hz)
    stop = total if samples is None else start + samples
    if not 0 <= start <= stop <= total:
        raise ValueError(f"{info.path}: samples {start}..{stop} were asked for, but at {rate_hz} Hz it has {total}")
    refuse_changed(info)
    out = np.empty(stop - start, dtype=np.float32)
    with _Reader(info, meter) as reader:
        for begin in range(start, stop, _AT_ONCE):
            end = min(begin + _AT_ONCE, stop)
            if rate_hz == info.sample_rate_hz:
                out[begin - start : end - start] = reader.mono(begin, end)
            else:
                out[begin - start : end - start] = reader.resampled(begin, end, rate_hz)
    return np.clip(out, -1.0, 1.0, out=out)


class _Reader:
    """Frames of one open file as mono, by stretch; the same errors whatever the decoder says."""

    def __init__(self, info: AudioInfo, meter: LevelMeter | None = None) -> None:
        self._info, self._meter = info, meter
        self._file = open_file(info.path, info.raw)
        self._position = 0  # kept here: a file that cannot seek cannot tell either

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def mono(self, start: int, stop: int) -> Float[np.ndarray, " S"]:
        """Frames [start, stop), the mean of their channels, at the file's own rate."""
        block_SC = self._decode(start, stop)
        self._refuse_not_finite(block_SC, start)
        if self._meter is not None:
            self._meter.add(block_SC, start)
        return block_SC[:, 0] if self._info.channels == 1 else block_SC.mean(axis=1)

    def resampled(self, start: int, stop: int, rate_hz: int) -> Float[np.ndarray, " L"]:
        """Samples [start, stop) of the file at `rate_hz`."""
        first, last = resample.input_span(start, stop, self._info.sample_rate_hz, rate_hz)
        first, last = max(first, 0), min(last, self._info.frames)
        native = self.mono(first, last)
        return resample.resample(native, start, stop, self._info.sample_rate_hz, rate_hz, first=first)

    def _decode(self, start: int, stop: int) -> Float[np.ndarray, "S C"]:
        info = self._info
        try:
            self._go_to(start)
            block_SC = self._take(stop - start)
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(". ") or "the decoder gave up"
            raise AudioFileError(
                f"{info.path}: cannot be decoded at frames {start}..{stop} ({start / info.sample_rate_hz:.3f} s): "
                f"{reason}; the file is damaged there, export it again"
            ) from None
        if len(block_SC) < stop - start:
            found = start + len(block_SC)
            raise AudioFileError(
                f"{info.path}: truncated: ends at frame {found} ({found / info.sample_rate_hz:.3f} s) of "
                f"{info.frames}; copy or export it again"
            )
        return block_SC

    def _go_to(self, frame: int) -> None:
        """Seeks; where the encoding cannot, decodes and drops what lies before, from the beginning if need be."""
        if frame == self._position:
            return
        if self._info.seekable:
            self._position = self._file.seek(frame)
            return
        if frame < self._position:
            self._file.close()
            self._file, self._position = open_file(self._info.path, self._info.raw), 0
        while self._position < frame and len(self._take(min(frame - self._position, _AT_ONCE))):
            pass

    def _take(self, frames: int) -> Float[np.ndarray, "S C"]:
        block_SC = self._file.read(frames, dtype="float32", always_2d=True)
        self._position += len(block_SC)
        return block_SC

    def _refuse_not_finite(self, block_SC: Float[np.ndarray, "S C"], start: int) -> None:
        if np.isfinite(block_SC).all():
            return
        frame, channel = np.argwhere(~np.isfinite(block_SC))[0]
        raise AudioFileError(
            f"{self._info.path}: sample {start + frame} of channel {channel} "
            f"({(start + frame) / self._info.sample_rate_hz:.3f} s) is {block_SC[frame, channel]}; "
            "export it again without NaN or infinity"
        )
