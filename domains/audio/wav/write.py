"""Samples to 16-bit WAV or FLAC: exactly those given, the file whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float

WRITE_FORMATS = {".wav": "WAV", ".flac": "FLAC"}


def write_audio(
    path: str | os.PathLike[str],
    samples: Float[np.ndarray, " L"],
    sample_rate_hz: int,
    *,
    metadata: Mapping[str, str] | None = None,
) -> str:
    """Writes exactly `samples` as 16-bit mono WAV or FLAC; the file appears whole or not at all.

    A 16-bit file that was read with `read_samples` is written back unchanged, bit for bit.

    Args:
        path: ends in .wav or .flac; missing folders are made.
        samples: (L,) in [-1, 1]; values beyond are cut, L >= 1.
        sample_rate_hz: rate in Hz, >= 1.
        metadata: texts stored in the file, keys of libsndfile: title, comment, artist, date, software, copyright, …

    Returns:
        The path, as text.

    Raises:
        ValueError: another suffix, no samples, NaN, a rate that is not positive, an unknown metadata key.
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    target = Path(path)
    pcm = _to_pcm16(samples, what=f"{target}: the samples to write")
    if target.suffix.lower() not in WRITE_FORMATS:
        raise ValueError(f"{target}: cannot write {target.suffix or 'a name without suffix'}; use .wav or .flac")
    if sample_rate_hz < 1:
        raise ValueError(f"{target}: sample_rate_hz={sample_rate_hz} is not a rate; give samples a second, e.g. 16000")
    encoded = _encode_file(pcm, sample_rate_hz, WRITE_FORMATS[target.suffix.lower()], metadata or {})
    _write_whole(target, encoded)
    return str(target)


def _to_pcm16(samples: Float[np.ndarray, " L"], *, what: str) -> np.ndarray:
    samples = np.asarray(samples, dtype=np.float64)
    if samples.ndim != 1 or len(samples) == 0:
        raise ValueError(f"{what} have shape {samples.shape}; one row of at least one sample was expected")
    if not np.isfinite(samples).all():
        raise ValueError(f"{what} hold NaN or infinity at {int(np.flatnonzero(~np.isfinite(samples))[0])}")
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def _encode_file(pcm: np.ndarray, sample_rate_hz: int, container: str, metadata: Mapping[str, str]) -> bytes:
    """The file's bytes. Made in memory (2 bytes a sample), so that the disk sees one plain write."""
    known = ("title", "copyright", "software", "artist", "comment", "date", "album", "license", "tracknumber", "genre")
    unknown = sorted(set(metadata) - set(known))
    if unknown:
        raise ValueError(f"metadata {unknown[0]!r} has no place in a {container} file; known: {', '.join(known)}")
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", sample_rate_hz, 1, subtype="PCM_16", format=container) as file:
        for key, text in metadata.items():
            setattr(file, key, text)
        file.write(pcm)
    return buffer.getvalue()


def _write_whole(target: Path, data: bytes) -> None:
    """Writes beside the target and renames: a reader sees the old file or the whole new one."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = f"the disk is full ({len(data):,} bytes were to be written)"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            reason = error.strerror or str(error)
        raise type(error)(error.errno, f"{target}: not written: {reason}; nothing was left behind") from error
