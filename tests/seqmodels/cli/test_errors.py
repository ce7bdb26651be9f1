"""What is wrong is said in one message, without a traceback, with the nearest right thing, and an exit code."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqmodels.cli import COMMANDS, main
from seqmodels.cli.compose import OverrideError, absolute_paths, compose, set_keys


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train experiment=quikstart_dna", "there is no such option; did you mean quickstart_dna"),
        ("train domain.dataset.window_base=5", "did you mean domain.dataset.window_bases"),
        ("train fasta=my.fa", "there is no option 'fasta'; did you mean domain.dataset.fasta?"),
        ("train trainer.max_step=4", "did you mean trainer.max_steps"),
        ("train optimzer=adamw", "did you mean optimizer"),
        ("train optimizer=adam", "did you mean adamw? Options: adamw, sgd"),
        ("train layer=mambo", "there is no such option; did you mean mamba"),
        ("train --multirun optimizer.lrr=1,2", "did you mean optimizer.lr"),
        ("train foo", "'foo' is not of the form key=value"),
        ("train optimizer.lr=fast", "optimizer.lr='fast' must be a number"),
        ("train trainer.compile=3", "trainer.compile='3' must be true or false"),
        ("train trainer.max_steps=0", "trainer.max_steps=0 must be a whole number from 1 on"),
        ("train data.on_bad_record=ignore", "data.on_bad_record='ignore' must be raise or skip"),
        ("train seed=1.5", "seed=1.5 must be a whole number"),
        ("train domain.dataset.fasta=a(b).fa", """put quotes around the value, 'domain.dataset.fasta="a(b).fa"'"""),
        ("train domain.dataset.fasta=nowhere.fa", "no FASTA file nowhere.fa"),
        ("train resume=runs/nowhere", "there is no run folder 'runs/nowhere'"),
        ("train model_from=runs/nowhere", "there is no run folder"),
        ("evaluate", "run must be given: add run=<value>  (run folder, or one of its checkpoints)"),
        ("evaluate run=runs/nowhere", "there is no run folder 'runs/nowhere'"),
        ("evaluate run=x splt=test", "there is no option 'splt'; did you mean split?"),
        ("score run=x", "fasta must be given"),
        ("bench op=selective_scam", "op='selective_scam': there is none; did you mean selective_scan?"),
        ("bench study=cpu_l", "study='cpu_l': there is none; did you mean cpu_lm?"),
        ("bench op=rms_norm dtype=float8", "dtype='float8' must be one of float32"),
        ("doctor now", "doctor takes no options"),
    ],
)
def test_one_message_and_exit_code_1(run, words, message):
    code, out, err = run(*words.split())
    assert code == 1
    assert message in err
    assert "Traceback" not in out + err
    assert err.startswith(f"seqmodels {words.split()[0]}: ")
    assert not Path("runs").exists(), "nothing half-made is left"


def test_an_unknown_command(run):
    code, _, err = run("trian")
    assert code == 2
    assert "did you mean train?" in err


def test_errors_about_a_run(trained, run, tiny):
    data = "domain.dataset.fasta=my.fa"
    for words, message in (
        (["train", *tiny, data, "name=first"], "To continue that run: seqmodels train resume=runs/first"),
        (["train", f"resume={trained}"], "has finished: step 4 of 4"),
        (["train", f"resume={trained}", "optimizer.lr=3"], "optimizer.lr cannot be changed in a run that is resumed"),
        (["train", "resume=runs/frist"], "there are runs/first"),
        (["train", *tiny, data, "paths.runs=my.fa"], "cannot be written: Not a directory"),
        (["train", *tiny, data, "backbone.d_model=16", f"model_from={trained}"], "16x8 in the checkpoint, 16x16 in"),
        (["evaluate", f"run={trained}", "split=tset"], "tset"),
        (["evaluate", f"run={trained}", "domain.dataset.fsta=x"], "did you mean domain.dataset.fasta"),
        (["generate", f"run={trained}", "seconds=2"], "this model makes bases, say length="),
        (["generate", f"run={trained}", "seconds=2", "length=3"], "give one of them"),
        (["generate", f"run={trained}", "temperature=-1"], "temperature=-1"),
        (["generate", f"run={trained}", "prompt=HELLO"], "prompt 'HELLO'"),
        (["generate", f"run={trained}", "checkpoint=newest"], "must be last or best"),
    ):
        code, _, err = run(*words)
        assert code == 1, words
        assert message in err, (words, err)
        assert "Traceback" not in err


def test_a_bug_shows_itself(monkeypatch, run):
    monkeypatch.setattr("seqmodels.cli.doctor._machine", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["doctor"])


def test_the_traceback_of_a_user_error_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("SEQMODELS_TRACEBACK", "1")
    with pytest.raises(OverrideError):
        main(["evaluate"])


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_and_needs_nothing_heavy(command):
    """In a fresh process, with what is heavy made impossible to import."""
    code = (
        "import sys\n"
        "for name in ('torch', 'lightning', 'hydra', 'omegaconf', 'numpy', 'matplotlib'): sys.modules[name] = None\n"
        "from seqmodels.cli import main\n"
        f"sys.exit(main({[command, '--help'] if command else ['--help']}))"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 2 + 1  # a second for a busy machine
    assert f"seqmodels {command}".strip() in done.stdout


def test_train_help_shows_the_real_options(run):
    _, out, _ = run("train", "--help")
    lines = {line.strip().split("  ")[0]: line for line in out.splitlines()}
    assert "peak learning rate" in lines["optimizer.lr=0.002"]
    assert "optimizer steps to train for" in lines["trainer.max_steps=2000"]
    assert "backbone.layer.d_state=16" in lines
    assert "domain.dataset.window_bases=1024" in lines
    assert "experiment=quickstart_dna" in lines
    assert "experiment=quickstart_audio" in lines
    assert "optimizer=sgd" in lines


def test_layer_is_short_for_where_the_group_stands():
    assert compose("train", ["layer=mamba"])["backbone"]["layer"]["_target_"] == "seqmodels.layers.mamba.Mamba"


def test_existing_paths_become_absolute_and_nothing_else(tmp_path):
    Path("wavs").mkdir()
    Path("train").mkdir()
    config = {"folder": "wavs", "name": "train", "species": {"fasta": ["wavs", "gone"]}, "cache_folder": "new"}
    here = str(tmp_path / "wavs")
    assert absolute_paths(config) == {
        "folder": here, "name": "train", "species": {"fasta": [here, "gone"]}, "cache_folder": "new",
    }  # fmt: skip


def test_set_keys_sets_what_exists():
    assert set_keys({"a": {"b": 1}}, ["a.b=[1, x]"]) == {"a": {"b": [1, "x"]}}
    with pytest.raises(OverrideError, match=r"has no a.c; did you mean a.b"):
        set_keys({"a": {"b": 1}}, ["a.c=2"])


def test_the_command_runs_as_a_module():
    words = [sys.executable, "-m", "seqmodels", "trian"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "trian" in done.stderr
    assert "train" in done.stderr
