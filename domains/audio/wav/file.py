"""A sound file's header, opened and checked: is it sound, is it whole, has it changed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import soundfile

from domains.audio import resample

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ".gsm", ".nist", ".sph", ".voc",
)  # fmt: skip
_STREAMED_BYTES = 0x7FFF0000  # writers to a pipe cannot know the length and put one at least this large


class AudioFileError(ValueError):
    """A sound file that cannot be used; the message names the file, the place and what to do."""


@dataclass(frozen=True, slots=True)
class RawFormat:
    """What a headerless file does not say about itself.

    Attributes:
        sample_rate_hz: sampling rate in Hz, > 0.
        channels: interleaved channels, >= 1.
        subtype: libsndfile's name of the encoding: PCM_16, PCM_S8, PCM_U8, PCM_24, PCM_32, FLOAT, DOUBLE, ULAW, ALAW,
            GSM610 (a bare .gsm file).
        endian: "LITTLE" or "BIG".
    """

    sample_rate_hz: int
    channels: int = 1
    subtype: str = "PCM_16"
    endian: Literal["LITTLE", "BIG"] = "LITTLE"


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """A sound file's header, and the size and time of change that it had when the header was read.

    Attributes:
        path: the file.
        sample_rate_hz: its own rate in Hz.
        channels: its channels C, >= 1.
        frames: samples of each channel, >= 1.
        encoding: container and sample format, e.g. "WAV PCM_16".
        seekable: whether a stretch can be read, exactly, without decoding what lies before it.
        size_bytes: size of the file.
        modified_ns: time of last change in ns.
        raw: given for headerless files.
    """

    path: str
    sample_rate_hz: int
    channels: int
    frames: int
    encoding: str
    seekable: bool
    size_bytes: int
    modified_ns: int
    raw: RawFormat | None = None

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.frames / self.sample_rate_hz

    def samples_at(self, sample_rate_hz: int) -> int:
        """How many samples the file has at `sample_rate_hz`."""
        return resample.output_samples(self.frames, self.sample_rate_hz, sample_rate_hz)


def read_info(path: str | os.PathLike[str], *, raw: RawFormat | None = None) -> AudioInfo:
    """Reads the header and checks that the file holds what the header promises (an MP3 shows only when decoded).

    Args:
        path: a sound file.
        raw: rate, channels and encoding, for a file without a header (its suffix does not matter then).

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: not a sound file, no samples, no rate, or cut off.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file; give the path of a sound file ({_suffix_list()})")
    if os.path.isdir(path):
        raise AudioFileError(f"{path}: is a folder; one sound file was expected")
    status = os.stat(path)
    if status.st_size == 0:
        raise AudioFileError(f"{path}: the file is empty (0 bytes); remove it or export it again")
    with open_file(path, raw) as file:
        info = AudioInfo(
            path=path,
            sample_rate_hz=file.samplerate,
            channels=file.channels,
            frames=file.frames,
            encoding=f"{file.format} {file.subtype}",
            seekable=file.seekable(),
            size_bytes=status.st_size,
            modified_ns=status.st_mtime_ns,
            raw=raw,
        )
        _check_whole(info, file.extra_info)
        if file.format == "FLAC":
            _check_last_sample(info, file)
    return info


class _SoundFile(soundfile.SoundFile):
    """Never seeks in an MP3, whose frames borrow bits from those before: after a seek the first ones decode wrong.

    soundfile itself seeks to where it already is after every read, so reading an MP3 in two halves gives other samples
    than reading it whole, unless it is told that the file cannot seek.
    """

    def seekable(self) -> bool:
        return self.format != "MP3" and super().seekable()


def open_file(path: str, raw: RawFormat | None) -> _SoundFile:
    options: dict[str, Any] = {}
    if raw is not None:
        options = {"format": "RAW", "samplerate": raw.sample_rate_hz, "channels": raw.channels}
        options |= {"subtype": raw.subtype, "endian": raw.endian}
        if raw.sample_rate_hz < 1 or raw.channels < 1:
            raise ValueError(f"{path}: raw format {raw} needs a rate and a number of channels of at least 1")
    try:
        file = _SoundFile(path, **options)
    except (soundfile.LibsndfileError, TypeError, ValueError) as error:
        raise AudioFileError(f"{path}: {_why_unreadable(path, error, raw)}") from None
    if file.samplerate <= 1:  # libsndfile makes an AIFF rate of 0 into 1
        file.close()
        raise AudioFileError(f"{path}: the header gives no sample rate; export the file again")
    return file


def _why_unreadable(path: str, error: Exception, raw: RawFormat | None) -> str:
    if not isinstance(error, soundfile.LibsndfileError):
        if Path(path).suffix.lower() == ".raw" and raw is None:
            return "a headerless file; say its rate and encoding (raw_format: {sample_rate_hz: 8000, subtype: PCM_16})"
        return f"cannot be read as {raw}: {error}"
    reason = error.error_string.rstrip(". ")
    if error.code == 24:  # SFE_BAD_SF_INFO
        return "the header gives a sample rate or a number of channels of 0; export the file again"
    if "not recognised" in reason:
        return f"not a sound file that can be read (known: {_suffix_list()}); a video or m4a must be converted first"
    return f"cannot be read as sound: {reason}; the file is damaged or of an unsupported kind, export it again"


def _suffix_list() -> str:
    return " ".join(suffix[1:] for suffix in AUDIO_SUFFIXES)


def _check_whole(info: AudioInfo, parser_log: str) -> None:
    """Compares what the header promises with what is there.

    libsndfile quietly shortens such a file, and says so only in its log: "data : 640000 (should be 383968)".
    """
    if info.encoding.startswith("OGG"):
        _check_last_page(info)
    promised = held = 0
    for line in parser_log.splitlines():
        sizes = re.match(r"\s*(?:data|SSND|Data Size)\s*:\s*(\d+)(?: \(should be (\d+)\))?", line)
        if sizes:
            promised = int(sizes[1])
            held = int(sizes[2] or (info.size_bytes if promised > info.size_bytes else promised))
        frames = re.search(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)", line)
        if frames:
            raise _cut_off(info, f"the header promises {frames[2]} frames, the file holds {frames[1]}")
    if held < promised < _STREAMED_BYTES:
        holds = f"{held:,} ({info.seconds:.2f} s)"
        raise _cut_off(info, f"the header promises {promised:,} bytes of sound, the file holds {holds}")
    if info.frames < 1:
        raise AudioFileError(f"{info.path}: holds no samples (length 0 by its header); remove it or export it again")


def _check_last_sample(info: AudioInfo, file: soundfile.SoundFile) -> None:
    try:
        file.seek(info.frames - 1)
        read = len(file.read(1, dtype="float32"))
    except soundfile.LibsndfileError:
        read = 0
    if read == 0:
        raise _cut_off(info, f"the header promises {info.frames} frames, the last cannot be decoded")


def _check_last_page(info: AudioInfo) -> None:
    """An OGG stream ends with a whole page that bears the end-of-stream flag (RFC 3533, section 6)."""
    with open(info.path, "rb") as file:
        file.seek(max(0, info.size_bytes - 2 * 65307))  # two of the largest pages
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        raise _cut_off(info, "it ends inside the header of a page")
    body = sum(page[27 : 27 + page[26]])
    if not page[5] & 4 or len(page) < 27 + page[26] + body:
        raise _cut_off(info, f"its last page is not a whole end of stream ({info.seconds:.2f} s can be read)")


def _cut_off(info: AudioInfo, evidence: str) -> AudioFileError:
    return AudioFileError(
        f"{info.path}: truncated: {evidence}; copy or export it again, or cut it to what is whole"
    )


def refuse_changed(info: AudioInfo) -> None:
    try:
        status = os.stat(info.path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{info.path}: was there when the run began and is gone now") from None
    if (status.st_size, status.st_mtime_ns) != (info.size_bytes, info.modified_ns):
        raise AudioFileError(
            f"{info.path}: changed since the run began ({info.size_bytes} bytes then, {status.st_size} now); "
            "start again when it is finished, so that every epoch reads the same sound"
        )
