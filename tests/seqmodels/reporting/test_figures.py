"""Figures show the numbers they were given: positions, pixels, samples."""

from __future__ import annotations

import io
import re
import wave
import zlib

import numpy as np
import pytest

from seqmodels.reporting import (
    ConfusionMatrix,
    Curve,
    Curves,
    Histogram,
    Reference,
    Sound,
    macro_recall,
    recall_per_class,
)
from seqmodels.reporting.axes import Scale, round_ticks, tick_labels
from seqmodels.reporting.markup import duration, inline, number
from seqmodels.reporting.png import encode_png, heat_rgb
from seqmodels.reporting.sound import spectrogram_db, wav_bytes


def _polylines(html: str) -> list[np.ndarray]:
    found = re.findall(r'<polyline class="[^"]*" points="([^"]*)"', html)
    return [np.array([[float(v) for v in pair.split(",")] for pair in points.split()]) for points in found]


def test_a_curve_falls_on_the_page_where_its_values_fall() -> None:
    (line,) = _polylines(Curves([Curve("loss", [0, 1, 2], [3.0, 2.0, 2.5])], "bits").html())
    assert line[0, 1] < line[2, 1] < line[1, 1]  # SVG's y grows downwards
    np.testing.assert_allclose(np.diff(line[:, 0]), (line[2, 0] - line[0, 0]) / 2)


def test_the_first_steep_fall_does_not_squeeze_the_rest() -> None:
    values = [50.0, *np.linspace(2.0, 1.9, 99)]
    (line,) = _polylines(Curves([Curve("loss", range(100), values)], "bits").html())
    assert np.ptp(line[1:, 1]) > 150  # of 228 units of height
    assert line[0, 1] == pytest.approx(12.0)  # enters at the top edge


def test_long_and_broken_series_are_drawn_without_nan() -> None:
    values = np.sin(np.arange(10_000) / 1000)
    values[::7] = np.nan
    html = Curves([Curve("loss", range(10_000), values, smooth=True)], "bits").html()
    assert "nan" not in html
    assert max(len(line) for line in _polylines(html)) <= 400


def test_reference_levels_are_drawn_and_labelled() -> None:
    html = Curves([Curve("loss", [0, 1], [1.9, 1.8])], "bits", references=[Reference("uniform", 2.0)]).html()
    assert "uniform 2.000" in html
    assert html.count("<line class=reference") == 1


def test_nothing_to_draw_is_said() -> None:
    assert "No finite values" in Curves([Curve("loss", [0], [float("nan")])], "bits").html()


def test_round_ticks_lie_inside_and_are_round() -> None:
    assert round_ticks(0, 100) == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert round_ticks(1.87, 2.02, 4) == [1.9, 1.95, 2.0]
    assert tick_labels([1.9, 1.95, 2.0]) == ["1.90", "1.95", "2.00"]
    assert tick_labels([0, 25_000, 50_000]) == ["0", "25k", "50k"]
    assert Scale(0, 10, 100, 0)(2.5) == 75.0
    with pytest.raises(ValueError, match="low < high"):
        round_ticks(1.0, 1.0)


def test_png_bytes_hold_the_pixels() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    data = encode_png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert data[16:24] == (4).to_bytes(4, "big") + (2).to_bytes(4, "big")
    start = data.index(b"IDAT") + 4
    raw = np.frombuffer(zlib.decompress(data[start : data.index(b"IEND") - 8]), np.uint8).reshape(2, 13)
    np.testing.assert_array_equal(raw[:, 0], 0)
    np.testing.assert_array_equal(raw[:, 1:].reshape(2, 4, 3), pixels)


def test_heat_colours_get_lighter() -> None:
    lightness = heat_rgb(np.linspace(-0.5, 1.5, 50)[None])[0] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) >= -1e-9).all()


def test_the_wav_is_the_sound() -> None:
    samples = np.array([0.0, 0.5, -0.5, 1.0, -1.0, 2.0])
    with wave.open(io.BytesIO(wav_bytes(samples, 8000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 6)
        pcm = np.frombuffer(file.readframes(6), "<i2")
    np.testing.assert_array_equal(pcm, [0, 16384, -16384, 32767, -32767, 32767])


def test_the_spectrogram_peaks_at_the_tone() -> None:
    rate, tone = 8000, 1000.0
    level = spectrogram_db(np.sin(2 * np.pi * tone * np.arange(rate) / rate))
    assert level.shape == (129, 400)
    assert level.max() == pytest.approx(0.0)
    assert level[:, 200].argmax() == round(tone / (rate / 256))


@pytest.mark.parametrize("length", [1, 7, 300, 20_000])
def test_sounds_of_any_length_and_silence_are_drawn(length: int) -> None:
    html = Sound(np.zeros(length), 8000, "silence").html()
    assert "nan" not in html.split("base64")[0]
    assert f"{length:,} samples at 8,000 Hz" in html


def test_recall_leaves_out_classes_without_samples() -> None:
    counts = np.array([[8, 2, 0], [1, 3, 0], [0, 0, 0]])
    np.testing.assert_allclose(recall_per_class(counts), [0.8, 0.75, np.nan])
    assert macro_recall(counts) == pytest.approx(0.775)
    html = ConfusionMatrix(counts, ["a", "b", "c"]).html()
    assert "a taken for b: 2 (20%)" in html
    assert "<td class=recall>80%</td>" in html
    assert "<td class=recall>–</td>" in html


def test_histogram_bars_are_shares_of_their_group() -> None:
    html = Histogram({"few": [0.0, 1.0], "many": [0.0] * 30 + [1.0] * 10}, "nats", bins=2).html()
    few, many = (
        sorted({float(pair.split(",")[1]) for pair in points.split()})
        for points in re.findall(r'class="steps s\d" points="([^"]*)"', html)
    )
    floor = 200.0  # the axis: height 240 less 40
    assert [floor - y for y in few] == pytest.approx([(floor - many[0]) * 2 / 3, 0.0], abs=0.2)  # 1/2 of 3/4
    assert floor - many[1] == pytest.approx((floor - many[0]) / 3, abs=0.2)  # 1/4 of 3/4
    assert "many (40, mean +0.25)" in html


def test_text_is_escaped_and_numbers_are_readable() -> None:
    assert inline('<b> & "x" `a<b` **c**') == (
        "&lt;b&gt; &amp; &quot;x&quot; <code>a&lt;b</code> <strong>c</strong>"
    )
    assert [number(1769489), number(1.92345), number(float("nan"))] == ["1,769,489", "1.923", "n/a"]
    assert [duration(seconds) for seconds in (0.42, 17.3, 59.7, 241)] == ["0.4 s", "17 s", "1 min 00 s", "4 min 01 s"]
