"""Numbers and pictures of sound for reports: spectrogram, log-mel spectrogram, what a quantiser loses."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from domains.audio.tokenizer import SampleTokenizer


class Spectrogram(NamedTuple):
    """Levels over frequency and time, ready for `matplotlib.pcolormesh(times_s, frequencies_hz, level_db)`.

    Attributes:
        level_db: (frequencies, frames) dB; 0 is a sine of amplitude 1, the floor is `floor_db`.
        frequencies_hz: centre of each row.
        times_s: centre of each frame.
    """

    level_db: Float[np.ndarray, "frequencies frames"]
    frequencies_hz: Float[np.ndarray, " frequencies"]
    times_s: Float[np.ndarray, " frames"]


def spectrogram(
    samples: Float[np.ndarray, " L"],
    sample_rate_hz: int,
    *,
    window_seconds: float = 0.032,
    hop_seconds: float = 0.008,
    floor_db: float = -100.0,
) -> Spectrogram:
    """Short-time Fourier magnitudes in dB under a Hann window.

    Args:
        samples: (L,) in [-1, 1], L >= 1; frames reach over both ends, where the signal counts as zero.
        sample_rate_hz: rate in Hz.
        window_seconds: length of a frame; rounded to an even number of samples, at least 4.
        hop_seconds: from one frame to the next; at least one sample.
        floor_db: lowest level given.

    Raises:
        ValueError: no samples.
    """
    if len(samples) == 0:
        raise ValueError("a spectrogram needs at least one sample")
    window_samples = max(4, 2 * round(window_seconds * sample_rate_hz / 2))
    hop_samples = max(1, round(hop_seconds * sample_rate_hz))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
    centres = np.arange(0, len(samples), hop_samples)
    padded = np.pad(np.asarray(samples, np.float64), window_samples // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window_samples)[centres]
    amplitude = np.abs(np.fft.rfft(frames * window, axis=1)) * (2 / window.sum())
    frequencies_hz = np.fft.rfftfreq(window_samples, 1 / sample_rate_hz)
    return Spectrogram(_decibels(amplitude.T**2, floor_db), frequencies_hz, centres / sample_rate_hz)


def log_mel_spectrogram(
    samples: Float[np.ndarray, " L"],
    sample_rate_hz: int,
    *,
    mels: int = 64,
    window_seconds: float = 0.064,
    hop_seconds: float = 0.010,
    floor_db: float = -100.0,
) -> Float[np.ndarray, "mels frames"]:
    """Power in `mels` triangular bands of the mel scale (HTK's), in dB; the frame at the first sample comes first.

    The usual input of small sound classifiers, computed by torchaudio with its normalisation (power of a Hann-windowed
    frame, not divided by the window's sum).

    Raises:
        ValueError: no samples, or so many bands that some would hold no frequency of the frame.
    """
    if len(samples) == 0:
        raise ValueError("a spectrogram needs at least one sample")
    from domains.audio.torchaudio_guard import load_torchaudio

    load_torchaudio()
    import torch
    from torchaudio.transforms import MelSpectrogram

    window_samples = 1 << max(2, math.ceil(math.log2(window_seconds * sample_rate_hz)))
    widest_step_mel = 2595 * math.log10(1 + sample_rate_hz / 2 / 700) / (mels + 1)
    if 2 * 700 * (10 ** (widest_step_mel / 2595) - 1) < sample_rate_hz / window_samples:
        raise ValueError(
            f"mels={mels} bands are finer than a frame of {window_samples} samples at {sample_rate_hz} Hz can tell "
            "apart; take fewer bands or a longer window_seconds"
        )
    hop_samples = max(1, round(hop_seconds * sample_rate_hz))
    transform = MelSpectrogram(
        sample_rate_hz, n_fft=window_samples, hop_length=hop_samples, n_mels=mels, center=True, pad_mode="constant"
    )
    with torch.no_grad():
        power = transform(torch.from_numpy(np.array(samples, np.float32))).numpy()
    return _decibels(power, floor_db).astype(np.float32)


def quantiser_snr_db(tokenizer: SampleTokenizer, samples: Float[np.ndarray, " L"]) -> float:
    """Signal-to-noise ratio in dB of encoding and decoding a clip; inf where nothing is lost.

    Gain and offset are fitted first: "sashimi" stretches every clip, which changes its loudness but is no noise.

    Raises:
        ValueError: a silent clip, which has no ratio.
    """
    signal = np.asarray(samples, np.float64)
    centred = signal - signal.mean()
    if not (centred**2).sum() > 0:
        raise ValueError("the clip is silent (or constant): a ratio of signal to noise has no meaning")
    decoded = tokenizer.decode(tokenizer.encode(samples)).astype(np.float64)
    design = np.stack([decoded, np.ones_like(decoded)], axis=1)
    fitted = design @ np.linalg.lstsq(design, signal, rcond=None)[0]
    noise = float(((signal - fitted) ** 2).sum())
    return 10 * math.log10(float((centred**2).sum()) / noise) if noise > 0 else math.inf


def _decibels(power: np.ndarray, floor_db: float) -> np.ndarray:
    return 10 * np.log10(np.maximum(power, 10 ** (floor_db / 10)))
