"""Sound files to float32 samples in [-1, 1] at a stated rate, and back to WAV or FLAC.

    info = read_info("a.flac")                                        header only, and a check that the file is whole
    samples = read_samples(info, 8000, 16000, sample_rate_hz=16000)   samples 8000..23999 of the file at 16 kHz
    write_audio("out.wav", samples, 16000)                            exactly those samples, 16 bit, all or nothing

soundfile (libsndfile) decodes: WAV 8/16/24/32 bit and float, FLAC, OGG Vorbis and Opus, MP3, AIFF, AU, GSM, CAF, W64,
RF64; headerless raw when its format is given. A stretch is read by seeking, never by decoding the whole file. MP3, GSM
6.10 and G.721 cannot seek to an exact sample: those are decoded from their start and are best cached. Channels are
mixed to mono by their mean, and other rates resampled (resample.py) with enough context that a stretch equals the same
slice of the whole file at that rate.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import soundfile
from jaxtyping import Float

from domains.audio import resample

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf", ".w64", ".rf64",
    ".gsm", ".nist", ".sph", ".voc",
)  # fmt: skip
WRITE_FORMATS = {".wav": "WAV", ".flac": "FLAC"}
_AT_ONCE = 1 << 19  # samples decoded or resampled in one piece: bounds memory on hour-long files
_STREAMED_BYTES = 0x7FFF0000  # writers to a pipe cannot know the length and put one at least this large
_FULL_SCALE = 32767 / 32768


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


class LevelMeter:
    """Counts full-scale samples while a file is read.

    Attributes:
        clipped_samples: samples of any channel in runs of at least 3 at full scale (|x| >= 32767/32768): one alone may
            be a peak, a run is a waveform that was cut off. A run over the border of two reads counts as two.
        peak: the largest |x|.
    """

    def __init__(self) -> None:
        self.clipped_samples = 0
        self.peak = 0.0
        self._seen = 0

    def add(self, block_SC: Float[np.ndarray, "S C"], start: int) -> None:
        """Counts frames from `start` on as they are in the file, before mixing and resampling.

        Blocks come in order and overlap where the rate is changed; a frame counts once.
        """
        stop = start + len(block_SC)
        block_SC = block_SC[max(self._seen - start, 0) :]
        self._seen = max(self._seen, stop)
        peak = float(np.abs(block_SC).max(initial=0.0))
        self.peak = max(self.peak, peak)
        if peak < _FULL_SCALE:
            return
        for channel in block_SC.T:
            for sign in (1, -1):
                full = np.concatenate([[0], (sign * channel >= _FULL_SCALE).astype(np.int8), [0]])
                edges = np.flatnonzero(np.diff(full))
                runs = edges[1::2] - edges[::2]
                self.clipped_samples += int(runs[runs >= 3].sum())


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
    with _open(path, raw) as file:
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


def read_samples(
    source: AudioInfo | str | os.PathLike[str],
    start: int = 0,
    samples: int | None = None,
    *,
    sample_rate_hz: int | None = None,
    meter: LevelMeter | None = None,
) -> Float[np.ndarray, " L"]:
    """One stretch of a file as mono float32 in [-1, 1].

    Args:
        source: a path, or `read_info`'s answer (then a file that has changed since is refused).
        start: first sample wanted, 0 .. length-1, at `sample_rate_hz`.
        samples: how many, at `sample_rate_hz`; None reads to the end.
        sample_rate_hz: rate of the result in Hz; None keeps the file's own.
        meter: counts clipped samples of what is decoded.

    Returns:
        (samples,) float32. Values past ±1 (float files, overshoot of a filter) are cut to ±1.

    Raises:
        FileNotFoundError: no such file.
        AudioFileError: broken, changed while in use, or with NaN or infinite samples.
        ValueError: the stretch is not inside the file, or the rate is not positive.
    """
    info = source if isinstance(source, AudioInfo) else read_info(source)
    rate_hz = info.sample_rate_hz if sample_rate_hz is None else sample_rate_hz
    if rate_hz <= 0:
        raise ValueError(f"sample_rate_hz={rate_hz} is not a rate; give samples a second, e.g. 16000")
    total = info.samples_at(rate_hz)
    stop = total if samples is None else start + samples
    if not 0 <= start <= stop <= total:
        raise ValueError(f"{info.path}: samples {start}..{stop} were asked for, but at {rate_hz} Hz it has {total}")
    _refuse_changed(info)
    out = np.empty(stop - start, dtype=np.float32)
    with _Reader(info, meter) as reader:
        for begin in range(start, stop, _AT_ONCE):
            end = min(begin + _AT_ONCE, stop)
            if rate_hz == info.sample_rate_hz:
                out[begin - start : end - start] = reader.mono(begin, end)
            else:
                out[begin - start : end - start] = reader.resampled(begin, end, rate_hz)
    return np.clip(out, -1.0, 1.0, out=out)


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


class _SoundFile(soundfile.SoundFile):
    """Never seeks in an MP3, whose frames borrow bits from those before: after a seek the first ones decode wrong.

    soundfile itself seeks to where it already is after every read, so reading an MP3 in two halves gives other samples
    than reading it whole, unless it is told that the file cannot seek.
    """

    def seekable(self) -> bool:
        return self.format != "MP3" and super().seekable()


def _open(path: str, raw: RawFormat | None) -> _SoundFile:
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


def _refuse_changed(info: AudioInfo) -> None:
    try:
        status = os.stat(info.path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{info.path}: was there when the run began and is gone now") from None
    if (status.st_size, status.st_mtime_ns) != (info.size_bytes, info.modified_ns):
        raise AudioFileError(
            f"{info.path}: changed since the run began ({info.size_bytes} bytes then, {status.st_size} now); "
            "start again when it is finished, so that every epoch reads the same sound"
        )


class _Reader:
    """Frames of one open file as mono, by stretch; the same errors whatever the decoder says."""

    def __init__(self, info: AudioInfo, meter: LevelMeter | None = None) -> None:
        self._info, self._meter = info, meter
        self._file = _open(info.path, info.raw)
        self._position = 0  # kept here: a file that cannot seek cannot tell either

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def mono(self, start: int, stop: int) -> Float[np.ndarray, " S"]:
        """Frames [start, stop), the mean of their channels, at the file's own rate."""
        block_SC = self._decode(start, stop)
        self._refuse_not_finite(block_SC, start)
        if self._meter is not None:
            self._meter.add(block_SC, start)
        return block_SC[:, 0] if self._info.channels == 1 else block_SC.mean(axis=1)

    def resampled(self, start: int, stop: int, rate_hz: int) -> Float[np.ndarray, " L"]:
        """Samples [start, stop) of the file at `rate_hz`."""
        first, last = resample.input_span(start, stop, self._info.sample_rate_hz, rate_hz)
        first, last = max(first, 0), min(last, self._info.frames)
        native = self.mono(first, last)
        return resample.resample(native, start, stop, self._info.sample_rate_hz, rate_hz, first=first)

    def _decode(self, start: int, stop: int) -> Float[np.ndarray, "S C"]:
        info = self._info
        try:
            self._go_to(start)
            block_SC = self._take(stop - start)
        except soundfile.LibsndfileError as error:
            reason = error.error_string.rstrip(". ") or "the decoder gave up"
            raise AudioFileError(
                f"{info.path}: cannot be decoded at frames {start}..{stop} ({start / info.sample_rate_hz:.3f} s): "
                f"{reason}; the file is damaged there, export it again"
            ) from None
        if len(block_SC) < stop - start:
            found = start + len(block_SC)
            raise AudioFileError(
                f"{info.path}: truncated: ends at frame {found} ({found / info.sample_rate_hz:.3f} s) of "
                f"{info.frames}; copy or export it again"
            )
        return block_SC

    def _go_to(self, frame: int) -> None:
        """Seeks; where the encoding cannot, decodes and drops what lies before, from the beginning if need be."""
        if frame == self._position:
            return
        if self._info.seekable:
            self._position = self._file.seek(frame)
            return
        if frame < self._position:
            self._file.close()
            self._file, self._position = _open(self._info.path, self._info.raw), 0
        while self._position < frame and len(self._take(min(frame - self._position, _AT_ONCE))):
            pass

    def _take(self, frames: int) -> Float[np.ndarray, "S C"]:
        block_SC = self._file.read(frames, dtype="float32", always_2d=True)
        self._position += len(block_SC)
        return block_SC

    def _refuse_not_finite(self, block_SC: Float[np.ndarray, "S C"], start: int) -> None:
        if np.isfinite(block_SC).all():
            return
        frame, channel = np.argwhere(~np.isfinite(block_SC))[0]
        raise AudioFileError(
            f"{self._info.path}: sample {start + frame} of channel {channel} "
            f"({(start + frame) / self._info.sample_rate_hz:.3f} s) is {block_SC[frame, channel]}; "
            "export it again without NaN or infinity"
        )


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

