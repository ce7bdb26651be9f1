from __future__ import annotations

import numpy as np
import pytest

from domains.audio import resample

RATES = [(44100, 16000), (8000, 16000), (11025, 16000), (16000, 8000), (3, 2)]


def _piece(samples: np.ndarray, start: int, stop: int, from_hz: int, to_hz: int) -> np.ndarray:
    first, last = resample.input_span(start, stop, from_hz, to_hz)
    first = max(first, 0)
    return resample.resample(samples[first : max(last, 0)], start, stop, from_hz, to_hz, first=first)


@pytest.mark.parametrize(("from_hz", "to_hz"), [*RATES, (44100, 44099), (44099, 44100)])
def test_any_piece_equals_the_same_slice_of_the_whole(noise, from_hz: int, to_hz: int):
    samples = noise(3000)
    total = resample.output_samples(len(samples), from_hz, to_hz)
    whole = resample.resample(samples, 0, total, from_hz, to_hz)
    assert len(whole) == total
    for start, stop in [(0, 1), (0, total), (1, 1000), (777, 978), (total // 2, total // 2 + 1), (total - 3, total)]:
        assert np.abs(_piece(samples, start, stop, from_hz, to_hz) - whole[start:stop]).max() < 1e-6


@pytest.mark.parametrize(("from_hz", "to_hz"), RATES)
def test_both_ways_of_computing_agree(noise, monkeypatch: pytest.MonkeyPatch, from_hz: int, to_hz: int):
    samples = noise(3000)
    total = resample.output_samples(len(samples), from_hz, to_hz)
    by_bank = resample.resample(samples, 0, total, from_hz, to_hz)
    monkeypatch.setattr(resample, "MAX_BANK_FLOATS", 0)
    assert np.abs(resample.resample(samples, 0, total, from_hz, to_hz) - by_bank).max() < 1e-5


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (8000, 16000), (44100, 44099)])
def test_a_sine_stays_the_same_sine(from_hz: int, to_hz: int):
    frequency_hz, seconds = 1234.5, 0.5
    samples = np.sin(2 * np.pi * frequency_hz * np.arange(int(from_hz * seconds)) / from_hz).astype(np.float32)
    total = resample.output_samples(len(samples), from_hz, to_hz)
    out = resample.resample(samples, 0, total, from_hz, to_hz)
    expected = np.sin(2 * np.pi * frequency_hz * np.arange(total) / to_hz)
    inner = slice(int(0.05 * to_hz), int(0.45 * to_hz))  # away from the ends, where the sine is cut off
    assert np.abs(out[inner] - expected[inner]).max() < 1e-4


def test_what_the_new_rate_cannot_hold_is_removed():
    samples = np.sin(2 * np.pi * 6000 * np.arange(16000) / 16000).astype(np.float32)  # above 4 kHz
    out = resample.resample(samples, 0, 8000, 16000, 8000)
    assert np.abs(out[400:-400]).max() < 1e-4


@pytest.mark.parametrize(
    ("samples", "from_hz", "to_hz", "expected"),
    [(16000, 16000, 8000, 8000), (16001, 16000, 8000, 8001), (1, 44100, 16000, 1), (441, 44100, 16000, 160)],
)
def test_the_length_covers_every_output_before_the_end(samples: int, from_hz: int, to_hz: int, expected: int):
    assert resample.output_samples(samples, from_hz, to_hz) == expected


def test_the_length_stays_exact_where_float32_would_round():
    # 160 n / 441 lies 1/441 above a whole number; torchaudio alone rounds that away and gives one sample too few.
    samples = np.zeros(441 * 1000 + pow(160, -1, 441), dtype=np.float32)
    total = resample.output_samples(len(samples), 44100, 16000)
    assert (total - 1) * 441 + 1 == len(samples) * 160
    assert len(resample.resample(samples, 0, total, 44100, 16000)) == total
