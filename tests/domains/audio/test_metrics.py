from __future__ import annotations

import numpy as np
import pytest

from domains.audio.metrics import log_mel_spectrogram, quantiser_snr_db, spectrogram
from domains.audio.tokenizer import LinearTokenizer, MuLawTokenizer


def _sine(frequency_hz: float, rate_hz: int, samples: int, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency_hz * np.arange(samples) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize(("amplitude", "level_db"), [(1.0, 0.0), (0.1, -20.0), (0.001, -60.0)])
def test_a_sine_stands_at_its_frequency_with_its_level(amplitude: float, level_db: float):
    shown = spectrogram(_sine(1000, 8000, 8000, amplitude), 8000)
    middle = shown.level_db[:, len(shown.times_s) // 2]
    assert shown.frequencies_hz[middle.argmax()] == 1000
    assert middle.max() == pytest.approx(level_db, abs=1e-3)
    assert shown.level_db.shape == (len(shown.frequencies_hz), len(shown.times_s))
    assert shown.times_s[-1] == pytest.approx(0.992)


def test_a_click_stands_at_its_time_and_silence_at_the_floor():
    samples = np.zeros(8000, np.float32)
    samples[4000] = 1
    shown = spectrogram(samples, 8000, floor_db=-90.0)
    assert shown.times_s[shown.level_db.max(axis=0).argmax()] == pytest.approx(0.5, abs=0.008)
    assert shown.level_db[:, 0].max() == -90


@pytest.mark.parametrize("samples", [1, 5, 100])
def test_short_clips(samples: int):
    assert np.isfinite(spectrogram(np.ones(samples, np.float32), 8000).level_db).all()
    assert np.isfinite(log_mel_spectrogram(np.ones(samples, np.float32), 8000)).all()


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100])
def test_the_mel_band_of_a_sine(rate_hz: int):
    mel = log_mel_spectrogram(_sine(1000, rate_hz, rate_hz), rate_hz)
    assert mel.shape == (64, 1 + rate_hz // round(0.010 * rate_hz))
    top = 2595 * np.log10(1 + rate_hz / 2 / 700)
    expected = 2595 * np.log10(1 + 1000 / 700) / (top / 65) - 1
    assert abs(int(mel[:, 50].argmax()) - expected) <= 1


def test_twice_the_amplitude_is_6_db_more():
    quiet, loud = (log_mel_spectrogram(_sine(440, 16000, 16000, a), 16000) for a in (0.25, 0.5))
    assert loud.max() - quiet.max() == pytest.approx(6.0206, abs=1e-2)


def test_too_many_bands_are_refused_instead_of_left_empty():
    with pytest.raises(ValueError, match="finer than a frame"):
        log_mel_spectrogram(np.ones(8000, np.float32), 8000, mels=200)


def test_no_samples():
    for show in (spectrogram, log_mel_spectrogram):
        with pytest.raises(ValueError, match="at least one sample"):
            show(np.zeros(0, np.float32), 8000)


def test_a_linear_quantiser_gains_6_db_a_bit():
    samples = np.random.default_rng(0).uniform(-1, 1, 50_000).astype(np.float32)
    ratios = [quantiser_snr_db(LinearTokenizer(sample_rate_hz=8000, bits=bits), samples) for bits in (8, 10, 12)]
    assert ratios[0] == pytest.approx(20 * np.log10(255), abs=0.1)
    assert ratios[1] - ratios[0] == pytest.approx(20 * np.log10(1023 / 255), abs=0.1)
    assert ratios[2] - ratios[1] == pytest.approx(20 * np.log10(4095 / 1023), abs=0.1)


def test_mu_law_keeps_its_ratio_where_the_sound_is_quiet(noise):
    loud = np.random.default_rng(0).uniform(-0.9, 0.9, 20_000).astype(np.float32)
    mu_law, linear = MuLawTokenizer(sample_rate_hz=8000), LinearTokenizer(sample_rate_hz=8000)
    assert quantiser_snr_db(mu_law, loud * 0.05) > 30 > quantiser_snr_db(linear, loud * 0.05)
    stretched = MuLawTokenizer(sample_rate_hz=8000, convention="sashimi")
    assert quantiser_snr_db(stretched, loud * 0.05) == pytest.approx(quantiser_snr_db(stretched, loud), abs=0.2)


def test_silence_has_no_ratio():
    with pytest.raises(ValueError, match="silent"):
        quantiser_snr_db(MuLawTokenizer(sample_rate_hz=8000), np.zeros(100, np.float32))
