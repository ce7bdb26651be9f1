"""A sound on the page: waveform, spectrogram and a player, all inside the file."""

from __future__ import annotations

import io
import os
import wave
from dataclasses import dataclass

import numpy as np

from seqmodels.reporting.axes import Scale, round_ticks, tick_labels
from seqmodels.reporting.markup import escape, inline
from seqmodels.reporting.png import data_uri, encode_png, heat_rgb

WIDTH, WAVE_HEIGHT, SPECTRUM_HEIGHT = 520, 84, 160
LEFT, RIGHT, GAP, BOTTOM = 52, 20, 10, 26
DYNAMIC_RANGE_DB = 70.0  # from the loudest point down to black


def wav_bytes(samples_S: np.ndarray, sample_rate_hz: int) -> bytes:
    """Float samples in [-1, 1] as a 16-bit mono WAV file."""
    pcm = np.rint(np.clip(samples_S, -1.0, 1.0) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate_hz)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def read_wav(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """(S,) float64 samples in [-1, 1) and the rate of a mono WAV of 16 or 24 bits, as generation writes them.

    Raises:
        ValueError: more than one channel, or another width.
    """
    with wave.open(os.fspath(path), "rb") as file:
        if file.getnchannels() != 1 or file.getsampwidth() not in (2, 3):
            raise ValueError(f"{path}: {file.getnchannels()} channels of {file.getsampwidth()} bytes; mono of 2 or 3")
        width, rate_hz, data = file.getsampwidth(), file.getframerate(), file.readframes(file.getnframes())
    bytes_S4 = np.zeros((len(data) // width, 4), np.uint8)  # the low bytes stay zero: little-endian int32
    bytes_S4[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    return bytes_S4.view("<i4")[:, 0] / 2.0**31, rate_hz


def spectrogram_db(samples_S: np.ndarray, window_samples: int = 256, columns: int = 400) -> np.ndarray:
    """(window_samples // 2 + 1, columns) power in dB below the loudest point, low frequencies first.

    Hann windows, centred and evenly spread over the sound, so that the picture has the same width for any duration.
    """
    padded = np.pad(np.asarray(samples_S, dtype=np.float64), window_samples // 2)
    starts = np.linspace(0, len(padded) - window_samples, columns).astype(int)
    frames = padded[starts[:, None] + np.arange(window_samples)] * np.hanning(window_samples)
    power = np.abs(np.fft.rfft(frames, axis=1)).T ** 2
    return 10 * np.log10(np.maximum(power, 1e-12) / max(power.max(), 1e-12))


def heat_picture(samples_S: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: the spectrogram, high frequencies on top."""
    return heat_rgb(spectrogram_db(samples_S)[::-1] / DYNAMIC_RANGE_DB + 1.0)


@dataclass(frozen=True)
class Sound:
    """A mono sound with its pictures.

    Args:
        samples_S: float samples in [-1, 1].
        sample_rate_hz: samples a second.
        title: what is heard.
        file_bytes: the sound file to play, as it lies on disk; without it, a 16-bit WAV is made of the samples.
        media_type: of `file_bytes`.
    """

    samples_S: np.ndarray
    sample_rate_hz: int
    title: str
    file_bytes: bytes | None = None
    media_type: str = "audio/wav"

    def __post_init__(self) -> None:
        if self.samples_S.ndim != 1 or not len(self.samples_S):
            raise ValueError(f"expected mono samples of shape (S,), S >= 1, got {self.samples_S.shape}")

    def html(self) -> str:
        seconds = len(self.samples_S) / self.sample_rate_hz
        payload = self.file_bytes or wav_bytes(self.samples_S, self.sample_rate_hz)
        facts = f"{len(self.samples_S):,} samples at {self.sample_rate_hz:,} Hz, {seconds:.2f} s"
        total = WAVE_HEIGHT + GAP + SPECTRUM_HEIGHT + BOTTOM
        return (
            f'<figure class="sound"><figcaption><strong>{inline(self.title)}</strong> '
            f'<span class="muted">{facts}</span></figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {total}" role="img" '
            f'aria-label="waveform and spectrogram of {escape(self.title)}">'
            f"{self._waveform()}{self._spectrum()}{self._time_axis(seconds, total)}</svg>"
            f'<audio controls preload="metadata" src="{data_uri(payload, self.media_type)}"></audio></figure>'
        )

    def _waveform(self) -> str:
        """The envelope: lowest and highest sample of every column of pixels."""
        columns = min(WIDTH - LEFT - RIGHT, len(self.samples_S))
        edges = np.linspace(0, len(self.samples_S), columns + 1).astype(int)[:-1]
        highest, lowest = np.maximum.reduceat(self.samples_S, edges), np.minimum.reduceat(self.samples_S, edges)
        y = Scale(-1.0, 1.0, WAVE_HEIGHT, 0)
        x = Scale(0, columns, LEFT, WIDTH - RIGHT)
        top = " ".join(f"{x(i + 0.5):.1f},{y(min(float(v), 1.0)) - 0.4:.1f}" for i, v in enumerate(highest))
        bottom = " ".join(
            f"{x(i + 0.5):.1f},{y(max(float(v), -1.0)) + 0.4:.1f}" for i, v in reversed(list(enumerate(lowest)))
        )
        labels = "".join(
            f"<text class=axis x={LEFT - 8} y={y(v) + d} text-anchor=end>{t}</text>"
            for v, d, t in ((1, 9, "+1"), (0, 4, "0"), (-1, 0, "−1"))
        )
        zero = f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y(0)} y2={y(0)} />"
        return f'{zero}{labels}<polygon class="wave" points="{top} {bottom}" />'

    def _spectrum(self) -> str:
        picture = data_uri(encode_png(heat_picture(self.samples_S)), "image/png")
        top = WAVE_HEIGHT + GAP
        y = Scale(0.0, self.sample_rate_hz / 2, top + SPECTRUM_HEIGHT, top)
        ticks = round_ticks(0.0, self.sample_rate_hz / 2, 5)
        labels = "".join(
            f"<text class=axis x={LEFT - 8} y={min(y(t) + 4, y(0)):.1f} text-anchor=end>{t / 1000:g} kHz</text>"
            for t in ticks
        )
        return (
            f'<image href="{picture}" x={LEFT} y={top} width={WIDTH - LEFT - RIGHT} height={SPECTRUM_HEIGHT} '
            f'preserveAspectRatio="none" />{labels}'
        )

    def _time_axis(self, seconds: float, total: int) -> str:
        ticks = round_ticks(0.0, seconds, 6)
        x = Scale(0.0, seconds, LEFT, WIDTH - RIGHT)
        return "".join(
            f"<text class=axis x={x(tick):.1f} y={total - 8} text-anchor=middle>{label} s</text>"
            for tick, label in zip(ticks, tick_labels(ticks))
        )
