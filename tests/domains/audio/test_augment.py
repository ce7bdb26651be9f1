from __future__ import annotations

import numpy as np
import pytest

from domains.audio.augment import WaveformAugment


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_asked_nothing_changed(noise):
    samples = noise(100)
    assert (WaveformAugment()(samples, _rng()) == samples).all()


def test_gain_stays_in_its_range_and_below_full_scale(noise):
    samples = noise(1000)
    gains = []
    for seed in range(200):
        changed = WaveformAugment(gain_db=6.0)(samples, _rng(seed))
        gain = float(np.median(changed[samples != 0] / samples[samples != 0]))
        assert np.abs(changed - samples * gain).max() < 1e-5
        assert np.abs(changed).max() <= 1
        gains.append(20 * np.log10(gain))
    assert -6.001 <= min(gains) < -5
    assert max(gains) <= 20 * np.log10(1 / np.abs(samples).max()) + 1e-3


def test_a_clip_at_full_scale_is_never_made_louder():
    samples = np.array([1.0, -1.0, 0.5], np.float32)
    assert all(np.abs(WaveformAugment(gain_db=20.0)(samples, _rng(seed))).max() <= 1 for seed in range(50))
    assert any(np.abs(WaveformAugment(gain_db=20.0)(samples, _rng(seed))).max() == 1 for seed in range(50))


def test_polarity_turns_about_half_of_the_clips(noise):
    samples = noise(10)
    turned = [(WaveformAugment(flip_polarity=True)(samples, _rng(seed)) == -samples).all() for seed in range(400)]
    assert 160 < sum(turned) < 240


def test_noise_has_the_level_that_was_asked():
    changed = WaveformAugment(noise_dbfs=-40.0)(np.zeros(100_000, np.float32), _rng())
    assert np.sqrt(np.mean(changed**2)) == pytest.approx(0.01, rel=0.02)


def test_the_same_dice_give_the_same_sound(noise):
    augment = WaveformAugment(gain_db=3.0, flip_polarity=True, noise_dbfs=-50.0)
    assert (augment(noise(50), _rng(7)) == augment(noise(50), _rng(7))).all()
    assert (augment(noise(50), _rng(7)) != augment(noise(50), _rng(8))).any()


@pytest.mark.parametrize(("arguments", "message"), [({"gain_db": -1}, "0 or more"), ({"noise_dbfs": 3}, "full scale")])
def test_arguments_out_of_range(arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        WaveformAugment(**arguments)
