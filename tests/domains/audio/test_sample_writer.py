"""Generated sound on its way to files: whole or not at all, tagged, and what a stop leaves behind."""

from __future__ import annotations

import errno
import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from domains.audio.sample_writer import AudioWriter, bit_depth
from domains.audio.tokenizer import LinearTokenizer, MuLawTokenizer, SampleTokenizer
from domains.audio.wav import AudioFileError, draft, read_info, read_samples

MU_LAW = MuLawTokenizer(sample_rate_hz=8000)


def noise_ids(tokenizer: SampleTokenizer, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, tokenizer.vocab_size, count)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
@pytest.mark.parametrize("tokenizer", [MU_LAW, MuLawTokenizer(sample_rate_hz=16000, bits=12)], ids=["8 bit", "12 bit"])
def test_pieces_make_the_file_that_the_whole_makes(tmp_path, monkeypatch, suffix, tokenizer):
    monkeypatch.setattr(draft, "_BLOCK", 1000)  # the copy is made in several blocks too
    ids = noise_ids(tokenizer, 5003)
    with AudioWriter(tokenizer, str(tmp_path / f"a{suffix}"), [5003]) as writer:
        for first in range(0, 5003, 700):
            writer.append(0, ids[first : first + 700])
        writer.finish(0, name="title here", facts={"seed": "3", "log_likelihood_nats": "-12.5"})
    assert writer.paths == [str(tmp_path / f"a{suffix}")]
    assert names(tmp_path) == [f"a{suffix}"]
    info = read_info(writer.paths[0])
    assert (info.frames, info.sample_rate_hz) == (5003, tokenizer.sample_rate_hz)
    assert (tokenizer.encode(read_samples(info)) == ids).all(), "the file holds every level of the tokenizer"
    with soundfile.SoundFile(writer.paths[0]) as file:
        assert file.title == "title here"
        assert file.comment == f"seed=3 log_likelihood_nats=-12.5 {tokenizer.describe()}"
        assert file.software.startswith("seqmodels ")


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (MU_LAW, 16),
        (MuLawTokenizer(sample_rate_hz=8000, bits=9), 16),
        (MuLawTokenizer(sample_rate_hz=8000, bits=10), 24),
        (MuLawTokenizer(sample_rate_hz=8000, bits=12, convention="sashimi"), 24),
        (LinearTokenizer(sample_rate_hz=8000, bits=12), 16),
        (LinearTokenizer(sample_rate_hz=8000, bits=16, convention="pcm"), 16),
        (LinearTokenizer(sample_rate_hz=8000, bits=16), 24),  # its two loudest levels are one in 16 bits
    ],
)
def test_the_bit_depth_tells_all_levels_apart(tmp_path, tokenizer, expected):
    assert bit_depth(tokenizer) == expected
    tokenizer.write(str(tmp_path / "a.wav"), [np.arange(5)], names=["a"])
    assert read_info(str(tmp_path / "a.wav")).encoding == f"WAV PCM_{expected}"


def test_files_are_numbered_as_they_are_finished(tmp_path):
    with AudioWriter(MU_LAW, str(tmp_path / "a.wav"), [3, 3, 3]) as writer:
        for row in range(3):
            writer.append(row, np.full(3, 100 + row))
        assert names(tmp_path) == ["a_0.partial.wav", "a_1.partial.wav", "a_2.partial.wav"]
        for row in (2, 0, 1):
            writer.finish(row, name=f"row {row}", facts={})
    assert names(tmp_path) == ["a_0.wav", "a_1.wav", "a_2.wav"]
    assert [MU_LAW.read_prompt(path).tolist() for path in writer.paths] == [[102] * 3, [100] * 3, [101] * 3]


def test_rows_that_are_whole_are_closed_files(tmp_path):
    """A thousand samples that wait to be ranked are no thousand open files."""
    with AudioWriter(MU_LAW, str(tmp_path / "a.wav"), [3] * 2000) as writer:
        before = len(os.listdir("/proc/self/fd"))
        for row in range(50):
            writer.append(row, np.full(3, 9))
        assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_kill_leaves_nothing_under_the_final_name_and_a_draft_that_plays(tmp_path):
    writer = AudioWriter(MU_LAW, str(tmp_path / "a.wav"), [1000])
    ids = noise_ids(MU_LAW, 400)
    writer.append(0, ids)  # and here the process is gone: nothing is closed, nothing is unwound
    assert names(tmp_path) == ["a.partial.wav"]
    with soundfile.SoundFile(tmp_path / "a.partial.wav") as file:
        assert (file.samplerate, file.frames) == (8000, 400)
        assert (MU_LAW.encode(file.read(dtype="float32")) == ids).all()
    with pytest.raises(AudioFileError, match=r"promises 2,000 bytes of sound, the file holds 800"):
        read_info(tmp_path / "a.partial.wav")
    with AudioWriter(MU_LAW, str(tmp_path / "a.wav"), [1000]) as again:  # the next run takes its place
        again.append(0, np.full(1000, 7))
        again.finish(0, name="a", facts={})
    assert names(tmp_path) == ["a.wav"]
    writer.__exit__(None, None, None)  # the test's own handle


def test_after_ctrl_c_what_was_made_is_kept_as_a_whole_file(tmp_path, caplog):
    caplog.set_level(logging.WARNING)

    def stopped() -> None:
        with AudioWriter(MU_LAW, str(tmp_path / "a.flac"), [1000, 1000, 1000]) as writer:
            for row in (0, 1, 2):
                writer.append(row, np.full(400 if row else 1000, 7))
            writer.finish(0, name="first", facts={})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert names(tmp_path) == ["a_0.flac", "a_1.partial.wav", "a_2.partial.wav"]
    assert [read_info(str(tmp_path / name)).frames for name in names(tmp_path)] == [1000, 400, 400]
    assert "2 unfinished of up to 0.05 s kept in" in caplog.text


class _FullDisk(io.FileIO):
    """Takes `room` bytes, then says what a full disk says."""

    room = 1000

    def write(self, data) -> int:
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("when", ["while it is made", "while it is finished"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_full_disk_leaves_nothing_half_written_and_one_error(tmp_path, monkeypatch, when, suffix):
    target = tmp_path / f"a{suffix}"
    target.write_bytes(b"what was there before")

    def opened(path, mode):
        is_draft = path.name.endswith(".partial.wav")
        full = is_draft if when == "while it is made" else not is_draft
        return _FullDisk(path, mode.replace("b", "")) if full else open(path, mode)

    def write() -> None:
        with AudioWriter(MU_LAW, str(target), [5000]) as writer:
            for _ in range(10):
                writer.append(0, noise_ids(MU_LAW, 500))
            writer.finish(0, name="a", facts={})

    monkeypatch.setattr(draft, "open", opened, raising=False)
    with pytest.raises(OSError, match=r"not written: the disk is full$") as caught:
        write()
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == [target.name]
    assert target.read_bytes() == b"what was there before"


def test_a_sound_that_no_wav_holds_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"3,000,000,000 samples are more than a WAV can hold \(2,147,483,615\)"):
        AudioWriter(MU_LAW, str(tmp_path / "a.flac"), [3_000_000_000]).append(0, np.zeros(1, int))
    with pytest.raises(ValueError, match="at least one sample"):
        AudioWriter(MU_LAW, str(tmp_path / "a.wav"), [3, 0])
    assert names(tmp_path) == []


def test_the_picture_has_a_panel_for_each_of_the_first_sixteen(tmp_path):
    with AudioWriter(MU_LAW, str(tmp_path / "a.wav"), [300] * 18) as writer:
        for row in range(18):
            writer.append(row, noise_ids(MU_LAW, 300))
            writer.finish(row, name="a", facts={})
    path = writer.picture([f"{number} & so on" for number in range(18)])
    text = Path(path).read_text()
    assert path == str(tmp_path / "a.spectrograms.svg")
    assert text.count("<image ") == 16
    assert "15 &amp; so on" in text
    assert "16 &amp; so on" not in text


def test_a_prompt_is_resampled_and_says_so(noise, put, caplog):
    caplog.set_level(logging.INFO)
    path = put("prompt.wav", noise(4000, channels=2), 16000)
    assert len(MU_LAW.read_prompt(path)) == 2000
    assert "2,000 samples at 8,000 Hz (0.25 s), resampled from 16,000 Hz, 2 channels mixed to one" in caplog.text
