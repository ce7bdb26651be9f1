"""An 8-bit RGB array to PNG bytes (zlib only), and the colour scale of spectrograms."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

# Dark to light through violet, red and amber, evenly spaced stops (0..1); lightness rises all the way, so that the
# picture still reads in grey and for colour-blind readers.
_STOPS_RGB = np.array(
    [
        [10, 12, 30],
        [44, 27, 92],
        [104, 32, 118],
        [165, 46, 104],
        [216, 76, 70],
        [243, 128, 43],
        [250, 189, 64],
        [254, 246, 190],
    ],
    dtype=np.float64,
)


def heat_rgb(values_HW: np.ndarray) -> np.ndarray:
    """Values in [0, 1] (clipped) to (H, W, 3) uint8 colours."""
    position = np.clip(values_HW, 0.0, 1.0) * (len(_STOPS_RGB) - 1)
    low = np.minimum(position.astype(int), len(_STOPS_RGB) - 2)
    share = (position - low)[..., None]
    return np.rint(_STOPS_RGB[low] * (1 - share) + _STOPS_RGB[low + 1] * share).astype(np.uint8)


def encode_png(rgb_HWC: np.ndarray) -> bytes:
    """(H, W, 3) uint8 to the bytes of a PNG file (PNG specification: colour type 2, no filter)."""
    if rgb_HWC.dtype != np.uint8 or rgb_HWC.ndim != 3 or rgb_HWC.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8 colours, got {rgb_HWC.shape} {rgb_HWC.dtype}")
    height, width = rgb_HWC.shape[:2]
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rgb_HWC.reshape(height, width * 3)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(np.ascontiguousarray(rows).tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def data_uri(payload: bytes, media_type: str) -> str:
    """`payload` as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(payload).decode('ascii')}"


def _chunk(name: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))
