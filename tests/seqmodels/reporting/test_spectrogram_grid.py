"""Spectrograms side by side."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np
import pytest

from seqmodels.reporting.page import external_references
from seqmodels.reporting.spectrogram_grid import spectrogram_grid


def pixels(svg: str) -> list[np.ndarray]:
    """The pictures of an SVG as (height, width, 3)."""
    found = []
    for data in re.findall(r"data:image/png;base64,([^\"]+)", svg):
        png = base64.b64decode(data)
        width, height = (int.from_bytes(png[i : i + 4], "big") for i in (16, 20))
        start = png.index(b"IDAT") + 4
        rows = np.frombuffer(zlib.decompress(png[start:-16]), np.uint8).reshape(height, 1 + 3 * width)
        found.append(rows[:, 1:].reshape(height, width, 3))
    return found


def test_each_panel_shows_its_sound():
    time_s = np.arange(8000) / 8000
    sounds = [np.sin(2 * np.pi * hertz * time_s) for hertz in (1000, 3000)]
    svg = spectrogram_grid(sounds, ["a tone", "a <higher> tone"], 8000)
    root = ElementTree.fromstring(svg)
    assert root.get("viewBox") == "0 0 592 168"
    for picture, hertz in zip(pixels(svg), (1000, 3000), strict=True):
        brightest_row = picture.sum(axis=(1, 2), dtype=int).argmax()
        assert (1 - (brightest_row + 0.5) / len(picture)) * 4000 == pytest.approx(hertz, abs=40)
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a tone", "a <higher> tone", "4 kHz"} <= set(texts)
    assert not external_references(svg)


def test_five_sounds_take_two_rows():
    svg = spectrogram_grid([np.zeros(5)] * 5, list("abcde"), 8000)
    assert ElementTree.fromstring(svg).get("viewBox") == f"0 0 {4 * 296} {2 * 168}"


@pytest.mark.parametrize("sounds", [[], [np.zeros(0)], [np.zeros((2, 2))], [np.zeros(3), np.zeros(3)]])
def test_refuses(sounds):
    with pytest.raises(ValueError, match="mono sounds and a caption for each"):
        spectrogram_grid(sounds, ["one"] * min(len(sounds), 1), 8000)
