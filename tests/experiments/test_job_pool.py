"""Workers that raise, die or hang cost their own job alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

WORKER = """
import os, sys, time
sys.path.insert(0, {root!r})
from experiments.gpu import job_pool

def run(job):
    yield {{"job": job, "process": os.getpid()}}
    print("a line of", job, flush=True)
    if job == "raises":
        raise ValueError("no such layer")
    if job == "dies":
        os._exit(3)
    if job == "spoils":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if job == "hangs":
        time.sleep(60)
    yield {{"job": job, "process": os.getpid()}}

assert sys.argv[-1] == job_pool.WORKER_WORD
job_pool.serve(run)
"""


@pytest.fixture
def pool(experiment, tmp_path):
    """Runs jobs; returns the rows by job, and what failed and why."""
    job_pool = experiment("gpu.job_pool")
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(root=str(Path(__file__).resolve().parents[2])))

    def run(jobs, **options):
        rows: dict[str, list[dict]] = {job: [] for job in jobs}
        failures: dict[str, str] = {}
        job_pool.run_jobs(
            [sys.executable, script], jobs, on_row=lambda job, row: rows[job].append(row),
            on_failure=failures.__setitem__, **options,
        )  # fmt: skip
        return rows, failures

    return run


def test_every_job_runs_once_and_one_worker_serves_them(pool, capsys):
    rows, failures = pool(["a", "b", "c"])
    assert failures == {}
    assert {job: len(found) for job, found in rows.items()} == {"a": 2, "b": 2, "c": 2}
    assert len({row["process"] for found in rows.values() for row in found}) == 1
    assert "[b] a line of b" in capsys.readouterr().out


def test_a_job_that_fails_leaves_its_rows_and_the_others(pool):
    rows, failures = pool(["a", "raises", "b", "dies", "c", "spoils", "d"])
    assert failures["raises"] == "ValueError: no such layer"
    assert "exit 3" in failures["dies"]
    assert "exit 1" in failures["spoils"]
    assert failures.keys() == {"raises", "dies", "spoils"}
    assert {job: len(found) for job, found in rows.items()} == {
        "a": 2, "raises": 1, "b": 2, "dies": 1, "c": 2, "spoils": 1, "d": 2
    }  # fmt: skip
    process = {job: found[0]["process"] for job, found in rows.items()}
    assert process["a"] == process["raises"] == process["b"] == process["dies"], "an exception does not cost the worker"
    assert process["dies"] != process["c"]
    assert process["spoils"] != process["d"]


def test_a_worker_that_hangs_is_replaced(pool):
    rows, failures = pool(["hangs", "a"], silence_s=2.0)
    assert "nothing heard for 2 s" in failures["hangs"]
    assert len(rows["a"]) == 2


def test_several_workers_share_the_jobs(pool):
    jobs = [f"job{number}" for number in range(6)]
    rows, failures = pool(jobs, workers=2)
    assert failures == {}
    assert all(len(rows[job]) == 2 for job in jobs)
