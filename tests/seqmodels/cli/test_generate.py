"""`seqmodels generate`: what it says, what it writes, and what a stop leaves, on a model of sound and one of DNA."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from domains.audio.wav import read_info, write_audio
from seqmodels.cli import main
from seqmodels.inference import load, token_log_likelihood

SOUND = [
    "experiment=quickstart_audio",
    "backbone.d_model=8",
    "backbone.n_layers=1",
    "backbone.layer.d_state=4",
    "kernels=reference",
    "domain.dataset.segment_seconds=0.05",
    "data.batch_size=4",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.val_every_steps=0",
    "trainer.checkpoint_every_steps=2",
]


@pytest.fixture(scope="session")
def sound_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["train", *SOUND, "name=sound"]) == 0, out.getvalue()
    return folder / "runs" / "sound"


@pytest.fixture
def sound(sound_once, tmp_path) -> str:
    """`runs/sound`, a model of 8 kHz mu-law samples that was shown 400 at a time."""
    shutil.copytree(sound_once, tmp_path / "runs" / "sound")
    return "run=runs/sound"


def table(folder: str | Path) -> list[dict[str, str]]:
    with open(Path(folder) / "samples.tsv", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def names(folder: str | Path) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


# --------------------------------------------------------------------------------------------------------------- sound


def test_ranked_sounds_with_their_metadata(sound, run):
    words = ["num_samples=5", "batch_size=2", "seconds=0.04", "sort_by=likelihood", "seed=7", "top_p=0.9", "top_k=99"]
    code, out, err = run("generate", sound, *words, "output=made/x.flac")
    assert (code, err) == (0, "")
    assert "made        5 x 320 samples" in out
    files = [f"x_{number}.flac" for number in range(5)]
    assert names("made") == ["samples.tsv", "x.spectrograms.svg", *files]
    rows = table("made")
    assert [row["file"] for row in rows] == files
    nats = [float(row["log_likelihood_nats"]) for row in rows]
    assert nats == sorted(nats, reverse=True)
    loaded = load("runs/sound", "cpu")
    for row in rows:
        info = read_info(f"made/{row['file']}")
        assert (info.frames, info.sample_rate_hz, info.encoding) == (320, 8000, "FLAC PCM_16")
        with soundfile.SoundFile(f"made/{row['file']}") as file:
            assert file.title == f"generated_{row['sample']}"
            for part in ("seed=7", f"log_likelihood_nats={row['log_likelihood_nats']}", "model=runs/sound", "step=2",
                         f"bits_per_sample={row['bits_per_symbol']}", "top_p=0.9", "MuLawTokenizer 8 bit"):  # fmt: skip
                assert part in file.comment
        ids = loaded.tokenizer.read_prompt(f"made/{row['file']}")
        heard_BL, _ = token_log_likelihood(loaded.model, np_ids(ids), start_id=loaded.tokenizer.start_id)
        assert float(heard_BL.double().sum()) == pytest.approx(float(row["log_likelihood_nats"]), rel=1e-5)


def np_ids(ids: np.ndarray):
    import torch

    return torch.from_numpy(ids.astype(np.int64))[None]


def test_one_sample_of_many_can_be_made_again(sound, run):
    assert run("generate", sound, "num_samples=3", "length=50", "output=a/x.wav", "figure=false")[0] == 0
    assert run("generate", sound, "first_sample=2", "length=50", "output=b/x.wav", "figure=false")[0] == 0
    assert names("b") == ["samples.tsv", "x.wav"]
    assert (soundfile.read("a/x_2.wav")[0] == soundfile.read("b/x.wav")[0]).all()
    assert table("b")[0]["sample"] == "2"


def test_seconds_are_rounded_to_whole_samples_and_said(sound, run):
    code, out, _ = run("generate", sound, "seconds=0.01234", "output=x.wav")
    assert code == 0
    assert "seconds=0.01234 is 98.720 samples at 8000 Hz: 99 are made" in out
    assert read_info("x.wav").frames == 99
    _, out, _ = run("generate", sound, "seconds=0.0125", "output=x.wav")
    assert "seconds=" not in out, "exactly 100 samples: nothing to say"
    assert len(table(".")) == 1, "the same file: its row is replaced"


def test_a_prompt_is_resampled_continued_and_said_to_be_long(sound, run):
    clip = np.sin(np.arange(16_000) / 20) / 2
    write_audio("prompt.wav", clip, 16_000)
    code, out, err = run("generate", sound, "prompt=prompt.wav", "length=60", "include_prompt=true", "output=x.wav")
    assert code == 0
    assert "prompt.wav: 8,000 samples at 8,000 Hz (1.00 s), resampled from 16,000 Hz" in out
    assert "the prompt has 8,000 samples, and training showed the model at most 400 at a time" in err
    samples, rate_hz = soundfile.read("x.wav")
    assert (len(samples), rate_hz) == (8060, 8000)
    quantised = np.abs(samples[100:7900] - clip[::2][100:7900])
    assert quantised.max() < 0.02, "the prompt stands in front as the model heard it"
    assert table(".")[0]["prompt"] == "prompt.wav"
    write_audio("short.wav", clip[:800], 16_000)
    assert run("generate", sound, "prompt=short.wav", "length=5", "output=x.wav")[2] == "", "400 samples are not long"


def test_greedy_and_bf16(sound, run):
    words = ["length=30", "temperature=0", "figure=false"]
    assert run("generate", sound, *words, "output=a.wav")[0] == 0
    assert run("generate", sound, *words, "precision=bf16", "output=b.wav")[0] == 0
    assert [row["precision"] for row in table(".")] == ["fp32", "bf16"]
    first, second = (float(row["log_likelihood_nats"]) for row in table("."))
    assert first != second
    assert first == pytest.approx(second, rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seconds=0"], "seconds=0: less than one sample"),
        (["seconds=-1"], "seconds=-1"),
        (["seconds=nan"], "seconds=nan: less than one sample"),
        (["seconds=long"], "seconds=long: must be a number"),
        (["seconds=1", "length=3"], "give one of them"),
        (["length=2.5"], "length=2.5: must be a whole number"),
        (["num_samples=0"], "num_samples=0"),
        (["sort_by=loudness"], "sort_by='loudness': likelihood puts the likeliest first"),
        (["precision=fp8"], "precision=fp8: must be fp32 or bf16"),
        (["top_p=2"], "top_p=2"),
        (["top_k=some"], "top_k=some: must be a number"),
        (["output=x.mp3", "length=3"], "cannot write .mp3; use .wav or .flac"),
        (["prompt=absent.wav"], "prompt='absent.wav': no such file"),
    ],
)
def test_refuses_in_one_line(sound, run, words, message):
    code, _, err = run("generate", sound, *words)
    assert code == 1
    assert message in err
    assert err.count("\n") <= 2
    assert not list(Path().rglob("*.wav"))


def test_a_full_disk_is_one_error_and_leaves_nothing(sound, run, monkeypatch):
    from domains.audio.wav import draft

    class Full(io.FileIO):
        def write(self, data) -> int:
            if self.tell() > 500:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(draft, "open", lambda path, mode: Full(path, mode.replace("b", "")), raising=False)
    code, _, err = run("generate", sound, "num_samples=2", "length=5000", "output=made/x.wav")
    assert code == 1
    assert "x_0.partial.wav: not written: the disk is full" in err
    assert names("made") == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_while_it_is_made(sound, how):
    """Nothing under the final name; what was made stays: closed after SIGTERM and Ctrl-C, as it was after a kill."""
    words = ["generate", sound, "num_samples=2", "batch_size=1", "length=3000", "output=made/x.wav", "figure=false"]
    code = (  # slow while the second is made, so that it is surely not finished
        # Ctrl-C reaches it even where the tests run as a shell's background job, which ignores it
        "import signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import seqmodels.inference.samples as samples\nsamples.CHUNK_LEN = 50\n"
        "from domains.audio.sample_writer import AudioWriter\nappend = AudioWriter.append\n"
        "def slow(self, row, ids):\n    time.sleep(0.1 * row)\n    append(self, row, ids)\n"
        "AudioWriter.append = slow\n"
        f"from seqmodels.cli import main\nsys.exit(main({words!r}))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    draft = Path("made/x_1.partial.wav")
    while not (draft.exists() and draft.stat().st_size > 44 + 400):
        assert process.poll() is None, process.stderr
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    assert "Traceback" not in err
    assert read_info("made/x_0.wav").frames == 3000, "the first was finished"
    with soundfile.SoundFile(draft) as file:
        assert 200 <= file.frames < 3000
    if how == signal.SIGKILL:
        assert names("made") == ["x_0.wav", "x_1.partial.wav"]
    else:
        assert names("made") == ["samples.tsv", "x_0.wav", "x_1.partial.wav"]
        assert [row["file"] for row in table("made")] == ["x_0.wav"]
        assert "1 unfinished of up to" in err
        read_info(draft)  # its header is true


# ----------------------------------------------------------------------------------------------------------------- DNA


def test_ranked_dna_with_the_same_in_the_header_line(trained, run):
    words = ["num_samples=4", "length=130", "prompt=acgtNacgt", "sort_by=likelihood", "temperature=0.8", "seed=3"]
    code, _, err = run("generate", f"run={trained}", *words, "output=made/x.fa")
    assert (code, err) == (0, "")
    assert names("made") == ["samples.tsv", "x.fa"]
    rows = table("made")
    headers = [line[1:].split() for line in Path("made/x.fa").read_text().splitlines() if line.startswith(">")]
    assert [header[0] for header in headers] == [f"generated_{row['sample']}" for row in rows]
    for header, row in zip(headers, rows, strict=True):
        said = dict(part.split("=", 1) for part in header[1:])
        assert said["log_likelihood_nats"] == row["log_likelihood_nats"]
        assert said["bits_per_base"] == row["bits_per_symbol"]
        assert (said["seed"], said["temperature"], said["prompt"], said["step"]) == ("3", "0.8", "acgtNacgt", "4")
        bits = -float(said["log_likelihood_nats"]) / 130 / np.log(2)
        assert float(said["bits_per_base"]) == pytest.approx(bits, rel=1e-5)
    nats = [float(row["log_likelihood_nats"]) for row in rows]
    assert nats == sorted(nats, reverse=True)
    letters = "".join(line for line in Path("made/x.fa").read_text().splitlines() if not line.startswith(">"))
    assert set(letters) == set("ACGT")
    assert len(letters) == 4 * 130


def test_dna_from_a_fasta_prompt(trained, run):
    code, out, err = run("generate", f"run={trained}", "prompt=my.fa", "length=10", "output=x.fa")
    assert code == 0
    assert "my.fa: chr1, 3,000 bases; 1 other records are not read" in out
    assert "the prompt has 3,000 bases, and training showed the model at most 64 at a time" in err
    code, _, err = run("generate", f"run={trained}", "seconds=2")
    assert code == 1
    assert "this model makes bases, say length=<number of them>" in err


def test_a_long_prompt_is_cut_in_the_header(trained, run):
    assert run("generate", f"run={trained}", f"prompt={'ACGT' * 100}", "length=5", "output=x.fa")[0] == 0
    assert f"prompt={'ACGT' * 15}...(400_letters) " in Path("x.fa").read_text()


def test_resuming_keeps_the_longest_sample(trained, run):
    assert run("train", f"resume={trained}", "trainer.max_steps=6")[0] == 0
    assert load(trained, "cpu", which="last").meta["longest_sample"] == 64
