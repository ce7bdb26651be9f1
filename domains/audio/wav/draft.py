"""A sound that is still being made: a WAV that grows, and becomes the finished WAV or FLAC in one step.

    draft = Draft("out.partial.wav", 16000, samples=160_000)
    draft.append(samples)                                     as often as one likes: memory holds one block
    draft.become("out.flac", {"comment": "seed=0"})           all 160,000 are there: tagged, whole, under its own name

The draft's header promises all samples from the beginning, so a player can follow it, and plays what is there if the
process was killed. `close` makes the header true.
"""

from __future__ import annotations

import contextlib
import errno
import os
import wave
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile
from jaxtyping import Float

from domains.audio.wav.write import WRITE_FORMATS

BitDepth = Literal[16, 24]
_BLOCK = 1 << 18  # samples copied at once
_MOST_BYTES = 0xFFFFFFFF - 64  # a RIFF file counts its bytes in 32 bits


class Draft:
    """One mono sound on its way.

    Args:
        path: of the draft, a WAV; an old one is replaced. Missing folders are made.
        sample_rate_hz: rate in Hz, >= 1.
        samples: how many there will be, >= 1.
        bit_depth: of the draft and of what becomes of it.

    Attributes:
        written: samples that are there.

    Raises:
        ValueError: more samples than a WAV can hold.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path, sample_rate_hz: int, *, samples: int, bit_depth: BitDepth = 16) -> None:
        if samples * bit_depth // 8 > _MOST_BYTES:
            raise ValueError(
                f"{path}: {samples:,} samples are more than a WAV can hold ({_MOST_BYTES * 8 // bit_depth:,}); "
                "make several shorter ones"
            )
        self.path, self.sample_rate_hz, self.samples, self.bit_depth = path, sample_rate_hz, samples, bit_depth
        self.written = 0
        with said_plainly(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._wave = wave.Wave_write(self._file)
        self._wave.setparams((1, bit_depth // 8, sample_rate_hz, samples, "NONE", ""))

    def append(self, samples: Float[np.ndarray, " Q"]) -> None:
        """The next samples, in [-1, 1]; what is beyond is cut. The file is closed when all are there.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        assert self.written + len(samples) <= self.samples, "more samples than the header promises"
        with said_plainly(self.path):
            self._wave.writeframesraw(_pcm_bytes(samples, self.bit_depth))
            self._file.flush()
        self.written += len(samples)
        if self.written == self.samples:
            self.close()

    def close(self) -> None:
        """Lets the header say what is there. What was appended stays."""
        if not self._file.closed:
            with said_plainly(self.path):
                self._wave.close()
                self._file.close()

    def discard(self) -> None:
        """Removes it, whatever state it is in."""
        with contextlib.suppress(OSError):
            self._wave.close()
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def become(self, target: Path, tags: Mapping[str, str]) -> None:
        """Copies it block by block into a file that appears whole or not at all, and removes it.

        Args:
            target: ends in .wav or .flac.
            tags: texts stored in the file: title, comment, software, ….

        Raises:
            OSError: the disk is full, or cannot be written; the target is as it was, and the draft is kept.
        """
        assert self.written == self.samples, f"{self.written} of {self.samples} samples are there"
        self.close()
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with said_plainly(target), soundfile.SoundFile(self.path) as source, open(partial, "wb") as file:
                _encode(source, _Watched(file), WRITE_FORMATS[target.suffix.lower()], self.bit_depth, tags)
                file.flush()
                os.fsync(file.fileno())
                os.replace(partial, target)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


class _Watched:
    """A file as libsndfile sees it. It swallows exceptions of `write`, so the first one is kept for `check`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell, self.flush = file.seek, file.tell, file.flush
        self._error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        raise OSError("this file is written only")

    def write(self, data: bytes) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return len(data)  # libsndfile goes on as if all were well; `check` is what the caller hears

    def check(self) -> None:
        if self._error is not None:
            raise self._error


def _encode(
    source: soundfile.SoundFile, sink: _Watched, container: str, bit_depth: int, tags: Mapping[str, str]
) -> None:
    kind: dict[str, Any] = {"file": sink, "subtype": f"PCM_{bit_depth}", "format": container}
    with soundfile.SoundFile(mode="w", samplerate=source.samplerate, channels=1, **kind) as file:
        for key, text in tags.items():
            setattr(file, key, text)
        for block in source.blocks(_BLOCK, dtype="int32"):  # PCM of either depth in its upper bits: nothing is rounded
            file.write(block)
            sink.check()
    sink.check()


def _pcm_bytes(samples: Float[np.ndarray, " Q"], bit_depth: int) -> bytes:
    full = 1 << (bit_depth - 1)
    pcm = np.clip(np.rint(np.asarray(samples, np.float64) * full), -full, full - 1).astype("<i4")
    return np.ascontiguousarray(pcm.view(np.uint8).reshape(-1, 4)[:, : bit_depth // 8]).tobytes()


@contextlib.contextmanager
def said_plainly(target: Path) -> Iterator[None]:
    """System errors with the file that was to be written, and why it was not."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if is_full else error.strerror or str(error)
        raise type(error)(error.errno, f"{target}: not written: {reason}") from error
