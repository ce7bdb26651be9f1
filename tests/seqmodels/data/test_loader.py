"""Reading batches: with and without workers the same, bad records named or skipped and counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
import torch

from seqmodels.data.collate import collate_for
from seqmodels.data.loader import BatchReader, DataSettings, evaluation_batches, training_batches
from seqmodels.data.record import Batch, SampleKey
from seqmodels.training.tiny import TinyCorpus, TinySplit, TinyTokenizer

COLLATE = collate_for("next_token", TinyTokenizer())


def same(a: Batch, b: Batch) -> bool:
    return a.record_ids == b.record_ids and torch.equal(a.input_ids_BL, b.input_ids_BL)


def test_workers_do_not_change_the_batches():
    dataset = TinyCorpus(ragged=True).split("train")
    alone = list(islice(training_batches(dataset, COLLATE, DataSettings(4, num_workers=0), seed=3), 12))
    many = list(islice(training_batches(dataset, COLLATE, DataSettings(4, num_workers=2), seed=3, start=2), 10))
    assert all(same(a, b) for a, b in zip(alone[2:], many, strict=True))


def test_reading_does_not_touch_the_global_dice():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(islice(training_batches(TinyCorpus().split("train"), COLLATE, DataSettings(4, num_workers=0)), 3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_record_stops_the_run_with_its_own_message(num_workers):
    stream = training_batches(TinySplit(6, seed=0, bad=[4]), COLLATE, DataSettings(2, num_workers=num_workers))
    with pytest.raises(ValueError, match=r"^tiny.txt:4: cannot be read\n.*on_bad_record=skip"):
        list(islice(stream, 3))


def test_skipping_keeps_the_batch_full_and_counts():
    settings = DataSettings(3, num_workers=0, on_bad_record="skip")
    stream = training_batches(TinySplit(6, seed=0, bad=[4, 5]), COLLATE, settings)
    batches = list(islice(stream, 4))  # two epochs
    assert [len(batch.record_ids) for batch in batches] == [3, 3, 3, 3]
    assert "tiny.txt:4" not in {name for batch in batches for name in batch.record_ids}
    # 4 is replaced by the next good one in file order: 5 is bad too, so 0. 5 by 0.
    assert sorted(message[:10] for _, message in stream.skipped) == ["tiny.txt:4"] * 2 + ["tiny.txt:5"] * 4


def test_evaluation_leaves_bad_records_out():
    settings = DataSettings(2, num_workers=0, on_bad_record="skip")
    stream = evaluation_batches(TinySplit(5, seed=0, bad=[2, 3]), COLLATE, settings)
    assert [batch.record_ids for batch in stream] == [("tiny.txt:0", "tiny.txt:1"), ("tiny.txt:4",)]
    assert len(stream.skipped) == 2


def test_nothing_but_bad_records_is_an_error():
    stream = training_batches(TinySplit(3, seed=0, bad=[0, 1, 2]), COLLATE, DataSettings(1, on_bad_record="skip"))
    with pytest.raises(ValueError, match="3 records in a row cannot be read"):
        next(iter(stream))


def test_a_bug_keeps_its_traceback():
    class Broken(TinySplit):
        def __getitem__(self, key):
            raise KeyError("a bug")

    with pytest.raises(KeyError):
        BatchReader(Broken(3, seed=0), COLLATE, on_bad_record="skip")[[SampleKey(0, 0)]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size=0"),
        ({"eval_batch_size": 1.5}, "data.eval_batch_size=1.5"),
        ({"num_workers": "many"}, "data.num_workers='many'"),
        ({"num_workers": -1}, "data.num_workers=-1"),
        ({"on_bad_record": "ignore"}, "data.on_bad_record='ignore' must be raise or skip"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(**settings)


READ_FOR_EVER = """
import multiprocessing, time
from seqmodels.data.collate import collate_for
from seqmodels.data.loader import DataSettings, training_batches
from seqmodels.training.tiny import TinyCorpus

if __name__ == "__main__":
    corpus = TinyCorpus()
    collate = collate_for("next_token", corpus.tokenizer)
    batches = iter(training_batches(corpus.split("train"), collate, DataSettings(batch_size=2, num_workers=2)))
    next(batches)
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    time.sleep(600)
"""


def test_workers_end_when_the_trainer_is_killed(tmp_path):
    """A job killed for its memory must not leave processes behind that keep theirs."""
    script = tmp_path / "read.py"
    script.write_text(READ_FOR_EVER)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        workers = [int(word) for word in trainer.stdout.readline().split()]
        trainer.send_signal(signal.SIGKILL)
    assert len(workers) == 2
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
