"""Spectrograms of several sounds side by side, as one SVG file that opens in any browser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seqmodels.reporting.axes import Scale, round_ticks, tick_labels
from seqmodels.reporting.markup import escape
from seqmodels.reporting.png import data_uri, encode_png
from seqmodels.reporting.sound import heat_picture

COLUMNS = 4
WIDTH, HEIGHT = 240, 120  # of a panel's picture
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 22, 26  # around it


def spectrogram_grid(sounds: Sequence[np.ndarray], captions: Sequence[str], sample_rate_hz: int) -> str:
    """The SVG's text.

    Args:
        sounds: mono samples, each (S,) with S >= 1. Every panel's colours reach 70 dB below its loudest point.
        captions: what stands above each.
        sample_rate_hz: of all of them.

    Raises:
        ValueError: no sounds, one without samples, or not one caption a sound.
    """
    if not sounds or len(captions) != len(sounds) or any(sound.ndim != 1 or not len(sound) for sound in sounds):
        raise ValueError(f"expected mono sounds and a caption for each, got {len(sounds)} and {len(captions)}")
    columns = min(COLUMNS, len(sounds))
    wide, high = LEFT + WIDTH + RIGHT, TOP + HEIGHT + BOTTOM
    panels = [
        f'<g transform="translate({index % columns * wide},{index // columns * high})">'
        f"{_panel(np.asarray(sound), caption, sample_rate_hz)}</g>"
        for index, (sound, caption) in enumerate(zip(sounds, captions))
    ]
    rows = -(-len(sounds) // columns)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * wide} {rows * high}" '
        f'width="{columns * wide}" height="{rows * high}" font-family="sans-serif" font-size="10" fill="#5d6b78">'
        f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(panels)}</svg>\n'
    )


def _panel(samples_S: np.ndarray, caption: str, sample_rate_hz: int) -> str:
    picture = data_uri(encode_png(heat_picture(samples_S)), "image/png")
    seconds = len(samples_S) / sample_rate_hz
    x, y = Scale(0.0, seconds, LEFT, LEFT + WIDTH), Scale(0.0, sample_rate_hz / 2, TOP + HEIGHT, TOP)
    times, levels = round_ticks(0.0, seconds, 4), round_ticks(0.0, sample_rate_hz / 2, 3)
    below = "".join(
        f'<text x="{x(tick):.1f}" y="{TOP + HEIGHT + 14}" text-anchor="middle">{escape(label)} s</text>'
        for tick, label in zip(times, tick_labels(times))
    )
    beside = "".join(
        f'<text x="{LEFT - 5}" y="{y(tick) + 3:.1f}" text-anchor="end">{tick / 1000:g} kHz</text>' for tick in levels
    )
    return (
        f'<text x="{LEFT}" y="14" fill="#15202b">{escape(caption)}</text>'
        f'<image href="{picture}" x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" preserveAspectRatio="none"/>'
        f"{below}{beside}"
    )
