from __future__ import annotations

import errno
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from domains.audio import wav
from domains.audio.wav import AudioFileError, LevelMeter, RawFormat, read_info, read_samples, write_audio

# Name, format options, least signal-to-noise ratio in dB (inf: every sample is exact).
ENCODINGS = [
    ("a.wav", {"subtype": "PCM_U8"}, 30),
    ("a.wav", {"subtype": "PCM_16"}, np.inf),
    ("a.wav", {"subtype": "PCM_24"}, np.inf),
    ("a.wav", {"subtype": "PCM_32"}, np.inf),
    ("a.wav", {"subtype": "FLOAT"}, np.inf),
    ("a.wav", {"subtype": "DOUBLE"}, np.inf),
    ("a.wav", {"subtype": "ULAW"}, 35),
    ("a.wav", {"subtype": "GSM610"}, 8),  # cannot seek
    ("a.wav", {"subtype": "IMA_ADPCM"}, 20),
    ("a.flac", {"subtype": "PCM_16"}, np.inf),
    ("a.flac", {"subtype": "PCM_24"}, np.inf),
    ("a.aiff", {"subtype": "PCM_16"}, np.inf),
    ("a.au", {"subtype": "PCM_16"}, np.inf),
    ("a.caf", {"subtype": "PCM_16"}, np.inf),
    ("a.w64", {"subtype": "PCM_16"}, np.inf),
    ("a.rf64", {"subtype": "PCM_16", "format": "RF64"}, np.inf),
    ("a.ogg", {"subtype": "VORBIS"}, 20),
    ("a.opus", {"subtype": "OPUS", "format": "OGG"}, 8),
    ("a.mp3", {}, 20),
    ("a.gsm", {"subtype": "GSM610", "format": "RAW"}, 8),
]


def _tone(samples: int) -> np.ndarray:
    """Two sines of a telephone's band, at 16-bit values: what the lossy encodings are made for."""
    time = np.arange(samples)
    waves = 0.3 * np.sin(time / 3) + 0.1 * np.sin(time / 1.7 + 1)
    return (np.rint(waves * 32768) / 32768).astype(np.float32)


@pytest.mark.parametrize(("name", "options", "least_snr_db"), ENCODINGS, ids=lambda value: str(value))
def test_every_encoding_reads_whole_and_in_pieces(put, name: str, options: dict, least_snr_db: float):
    samples = _tone(16000)
    path = put(name, samples, 8000, **options)
    info = read_info(path)
    assert (info.sample_rate_hz, info.channels) == (8000, 1)
    assert 16000 <= info.frames < 16000 + 600  # block encodings round up
    whole = read_samples(info)
    assert whole.dtype == np.float32
    assert len(whole) == info.frames
    noise_power = float(np.square(whole[:16000] - samples).sum())
    assert noise_power <= float(np.square(samples).sum()) * 10 ** (-least_snr_db / 10)
    for rate_hz in (8000, 11025):
        at_rate = read_samples(info, sample_rate_hz=rate_hz)
        assert len(at_rate) == info.samples_at(rate_hz)
        for start in (0, 1, 4567, len(at_rate) - 900):
            piece = read_samples(info, start, 900, sample_rate_hz=rate_hz)
            assert np.abs(piece - at_rate[start : start + 900]).max() < 2e-6


def test_long_files_are_read_in_blocks_that_join_without_a_seam(noise, put, monkeypatch: pytest.MonkeyPatch):
    path = put("a.wav", noise(30000, channels=2), 44100)
    expected = {rate: read_samples(path, sample_rate_hz=rate) for rate in (44100, 16000)}
    monkeypatch.setattr(wav.read, "_AT_ONCE", 1000)
    for rate, samples in expected.items():
        assert np.abs(read_samples(path, sample_rate_hz=rate) - samples).max() < 1e-6


def test_channels_are_mixed_by_their_mean(put):
    left, right = np.full(100, 0.5, np.float32), np.full(100, -0.25, np.float32)
    assert (read_samples(put("a.wav", np.stack([left, right], 1), subtype="FLOAT")) == 0.125).all()


def test_48_channels(put):
    channels = np.arange(48, dtype=np.float32)[None, :].repeat(100, 0) / 64
    assert read_info(put("a.wav", channels, subtype="FLOAT")).channels == 48
    assert read_samples(put("a.wav", channels, subtype="FLOAT")) == pytest.approx(np.full(100, 23.5 / 64))


def test_resampled_stretches_of_a_stereo_flac_know_their_surroundings(noise, put):
    path = put("a.flac", noise(20000, channels=2), 44100)
    whole = read_samples(path, sample_rate_hz=16000)
    assert np.abs(read_samples(path, 3000, 500, sample_rate_hz=16000) - whole[3000:3500]).max() < 1e-6


def test_only_the_asked_stretch_is_decoded(noise, put, monkeypatch: pytest.MonkeyPatch):
    info = read_info(put("a.wav", noise(200_000)))
    decoded = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, n, **how: decoded.append(n) or original(self, n, **how)
    )
    read_samples(info, 150_000, 100)
    read_samples(info, 60_000, 100, sample_rate_hz=4000)
    assert sum(decoded) < 1000


def test_values_beyond_full_scale_are_cut(put):
    samples = np.array([0.5, 1.5, -2.0], np.float32)
    assert list(read_samples(put("a.wav", samples, subtype="FLOAT"))) == [0.5, 1.0, -1.0]


def test_headerless_files_need_their_format(noise, tmp_path: Path):
    samples = noise(1000)
    path = tmp_path / "a.raw"
    path.write_bytes((samples * 32768).astype("<i2").tobytes())
    with pytest.raises(AudioFileError, match="headerless file; say its rate"):
        read_info(path)
    info = read_info(path, raw=RawFormat(8000))
    assert (info.frames, info.sample_rate_hz) == (1000, 8000)
    assert (read_samples(info) == samples).all()
    with pytest.raises(AudioFileError, match="cannot be read as"):
        read_info(path, raw=RawFormat(8000, subtype="PCM_17"))
    with pytest.raises(ValueError, match="at least 1"):
        read_info(path, raw=RawFormat(0))


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, options, _ in ENCODINGS if name != "a.gsm"],
    ids=lambda value: str(value),
)
def test_a_file_that_was_cut_off_is_refused(noise, put, name: str, options: dict):
    path = Path(put(name, noise(16000), 8000, **options))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(AudioFileError, match=r"truncated|malformed") as caught:
        read_samples(path)
    assert str(path) in str(caught.value)


def test_a_flac_that_is_damaged_inside_names_the_place(noise, put):
    path = Path(put("a.flac", noise(64000)))
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 6000] = bytes(6000)
    path.write_bytes(data)
    with pytest.raises(AudioFileError, match=r"a\.flac: (cannot be decoded at frames|truncated: ends at frame)"):
        read_samples(read_info(path))


def test_a_stream_header_without_a_length_is_read(noise, put):
    path = Path(put("a.wav", noise(1000)))
    data = bytearray(path.read_bytes())
    place = data.find(b"data") + 4
    data[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    assert len(read_samples(path)) == 1000


def test_a_trailing_chunk_that_was_cut_off_does_no_harm(noise, put):
    path = Path(put("a.wav", noise(1000)))
    path.write_bytes(path.read_bytes() + b"LIST" + struct.pack("<I", 500) + b"INFO")
    assert len(read_samples(path)) == 1000


def _with_rate_0(path: Path) -> None:
    data = bytearray(path.read_bytes())
    if path.suffix == ".wav":
        data[24:28] = bytes(4)
    elif path.suffix == ".au":
        data[16:20] = bytes(4)
    else:
        place = data.find(b"COMM") + 16
        data[place : place + 10] = bytes(10)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["a.wav", "a.au", "a.aiff"])
def test_a_rate_of_0_is_refused(noise, put, name: str):
    path = Path(put(name, noise(1000)))
    _with_rate_0(path)
    with pytest.raises(AudioFileError, match=r"header gives (a|no) sample rate"):
        read_info(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"hello, this is text\n" * 20, "not a sound file"), (b"\0" * 5000, "not a sound file")],
)
def test_what_is_not_sound_is_refused(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(AudioFileError, match=message) as caught:
        read_info(path)
    assert str(path) in str(caught.value)


def test_no_samples(put):
    with pytest.raises(AudioFileError, match="holds no samples"):
        read_info(put("a.wav", np.zeros(0, np.float32)))


def test_missing_files_and_folders(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_info(tmp_path / "no.wav")
    with pytest.raises(AudioFileError, match="is a folder"):
        read_info(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_named_with_their_place(put, bad: float):
    samples = np.zeros((4000, 2), np.float32)
    samples[3000, 1] = bad
    path = put("a.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(AudioFileError, match=r"sample 3000 of channel 1 \(0\.375 s\) is -?(nan|inf)"):
        read_samples(path)
    with pytest.raises(AudioFileError, match=r"sample 3000 of channel 1 \(0\.375 s\)"):
        read_samples(path, 2999, 10)
    assert len(read_samples(path, 0, 2000)) == 2000


def test_a_file_that_changes_while_in_use_is_refused(noise, put):
    path = put("a.wav", noise(1000))
    info = read_info(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(AudioFileError, match="changed since the run began"):
        read_samples(info)
    os.remove(path)
    with pytest.raises(FileNotFoundError, match="is gone now"):
        read_samples(info)


@pytest.mark.parametrize(("start", "samples"), [(-1, 10), (0, 1001), (1001, 0), (990, 11), (5, -1)])
def test_stretches_outside_the_file(noise, put, start: int, samples: int):
    with pytest.raises(ValueError, match="it has 1000"):
        read_samples(put("a.wav", noise(1000)), start, samples)


def test_a_wanted_rate_of_0(noise, put):
    with pytest.raises(ValueError, match="sample_rate_hz=0"):
        read_samples(put("a.wav", noise(10)), sample_rate_hz=0)


# ---------------------------------------------------------------------------------------------------------- levels


def test_runs_at_full_scale_are_counted_and_single_peaks_are_not(put):
    samples = np.zeros((1000, 2), np.float32)
    samples[100, 0] = 1.0  # a peak
    samples[200:203, 0] = 1.0  # three
    samples[300:305, 1] = -1.0  # five
    samples[400:402, 1] = 1.0  # two
    meter = LevelMeter()
    read_samples(put("a.wav", samples), meter=meter)
    assert meter.clipped_samples == 8
    assert meter.peak == 1.0


def test_overlapping_blocks_count_once(put, monkeypatch: pytest.MonkeyPatch):
    samples = np.zeros(20000, np.float32)
    samples[1000:1010] = samples[15500:15505] = 1.0
    monkeypatch.setattr(wav.read, "_AT_ONCE", 700)
    meter = LevelMeter()
    read_samples(put("a.wav", samples, 16000), sample_rate_hz=8000, meter=meter)
    assert meter.clipped_samples == 15


# --------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("samples", [1, 7, 16000])
def test_writing_gives_exactly_the_samples_bit_for_bit(noise, tmp_path: Path, suffix: str, samples: int):
    written = noise(samples)
    path = write_audio(tmp_path / f"out{suffix}", written, 11025)
    info = read_info(path)
    assert (info.frames, info.sample_rate_hz, info.channels) == (samples, 11025, 1)
    assert info.encoding.endswith("PCM_16")
    assert (read_samples(path) == written).all()


def test_every_16_bit_value_survives(tmp_path: Path):
    values = np.arange(-32768, 32768) / 32768
    assert (read_samples(write_audio(tmp_path / "a.wav", values, 8000)) == values).all()


def test_values_beyond_full_scale_are_cut_when_written(tmp_path: Path):
    path = write_audio(tmp_path / "a.wav", np.array([2.0, -2.0]), 8000)
    assert list(read_samples(path)) == [32767 / 32768, -1.0]


def test_missing_folders_are_made_and_metadata_is_kept(tmp_path: Path):
    path = write_audio(tmp_path / "new/folder/a.flac", np.zeros(5), 8000, metadata={"title": "t", "comment": "seed=0"})
    with soundfile.SoundFile(path) as file:
        assert (file.title, file.comment) == ("t", "seed=0")


@pytest.mark.parametrize(
    ("name", "samples", "rate_hz", "metadata", "message"),
    [
        ("a.mp3", np.zeros(5), 8000, {}, "cannot write .mp3; use .wav or .flac"),
        ("a", np.zeros(5), 8000, {}, "without suffix"),
        ("a.wav", np.zeros(0), 8000, {}, "at least one sample"),
        ("a.wav", np.zeros((5, 2)), 8000, {}, "one row"),
        ("a.wav", np.array([0, np.nan]), 8000, {}, "NaN or infinity at 1"),
        ("a.wav", np.zeros(5), 0, {}, "sample_rate_hz=0"),
        ("a.wav", np.zeros(5), 8000, {"mood": "sad"}, "'mood' has no place"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, name: str, samples, rate_hz: int, metadata: dict, message: str):
    with pytest.raises(ValueError, match=message):
        write_audio(tmp_path / name, samples, rate_hz, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


class _FullDisk(io.FileIO):
    """Takes 100 bytes, then says what a full disk says."""

    def write(self, data) -> int:
        super().write(bytes(data[:100]))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.wav"
    write_audio(path, np.full(10, 0.5), 8000)
    before = path.read_bytes()
    monkeypatch.setattr(wav.write, "open", lambda name, mode: _FullDisk(name, mode.replace("b", "")), raising=False)
    with pytest.raises(OSError, match=r"a\.wav: not written: the disk is full \(2,044 bytes") as caught:
        write_audio(path, np.zeros(1000), 8000)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="not written"):
        write_audio(tmp_path / "file" / "a.wav", np.zeros(5), 8000)
