"""Named jobs in worker processes that outlive a crash: one bad cell must not cost the others their GPU time.

A script is both sides. Started as usual it calls `run_jobs`; started with WORKER_WORD it calls `serve`.

    worker reads on stdin    the name of a job, one a line
    worker writes on stdout  ROW {json}   as often as it likes, then  END  or  FAILED why; everything else is passed
                             on to the user

A job that raises is reported as failed, and the next one begins; so is one whose worker dies, hangs or can no longer
use its GPU (an illegal access spoils the process): that worker is replaced.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

WORKER_WORD = "--serve-jobs"
Row = dict[str, Any]


def serve(run: Callable[[str], Iterable[Row]]) -> None:
    """The worker's side: runs every job named on stdin."""
    for line in sys.stdin:
        try:
            for row in run(line.strip()):
                send(row)
        except Exception as error:
            traceback.print_exc()
            if "CUDA error" in str(error):
                raise SystemExit(1) from None
            print(f"FAILED {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        else:
            print("END", flush=True)


def send(row: Row) -> None:
    """The worker's side: a row at once, from code inside a job that cannot yield it (a callback of training)."""
    print("ROW " + json.dumps(row), flush=True)


def run_jobs(
    command: Sequence[str | Path],
    jobs: Sequence[str],
    *,
    on_row: Callable[[str, Row], None],
    on_failure: Callable[[str, str], None],
    workers: int = 1,
    silence_s: float = 180.0,
) -> None:
    """Runs every job once, `workers` at a time, first come first served.

    Args:
        command: starts a worker; WORKER_WORD is added.
        jobs: their names, longest first where several workers share them.
        on_row: called with (job, row) as rows come, never by two threads at once.
        on_failure: called with (job, why) for each job that raised, or whose worker died or fell silent.
        workers: processes.
        silence_s: seconds without a line after which a worker counts as hung and is killed.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    one_at_a_time = threading.Lock()

    def work() -> None:
        worker = None
        while True:
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                break
            worker = worker or _Worker([*map(str, command), WORKER_WORD])
            try:
                for row in worker.run(job, silence_s):
                    with one_at_a_time:
                        on_row(job, row)
            except _JobError as error:
                with one_at_a_time:
                    on_failure(job, str(error))
            except _WorkerError as error:
                with one_at_a_time:
                    on_failure(job, str(error))
                worker.stop(patience_s=0.0)
                worker = None
        if worker is not None:
            worker.stop()

    threads = [threading.Thread(target=work) for _ in range(min(workers, len(jobs)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class _JobError(Exception):
    """The job raised; its worker is well."""


class _WorkerError(Exception):
    """The worker is gone, or silent."""


class _Worker:
    def __init__(self, command: Sequence[str]):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def run(self, job: str, silence_s: float) -> Iterator[Row]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{job}\n")
            self.process.stdin.flush()
        except OSError as error:
            raise _WorkerError(f"the worker is gone: {error}") from None
        last_words = ""
        while True:
            try:
                line = self.lines.get(timeout=silence_s)
            except queue.Empty:
                raise _WorkerError(f"nothing heard for {silence_s:.0f} s; the last: {last_words}") from None
            if line is None:
                raise _WorkerError(f"the worker died (exit {self.process.wait()}): {last_words}")
            if line == "END":
                return
            if line.startswith("FAILED "):
                raise _JobError(line[7:])
            if line.startswith("ROW "):
                yield json.loads(line[4:])
            else:
                last_words = line or last_words
                print(f"[{job}] {line}", flush=True)

    def stop(self, patience_s: float = 10.0) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.close()  # the end of its jobs: a healthy worker leaves
            self.process.wait(timeout=patience_s)
        except (OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        self.reader.join(timeout=10)
        self.process.stdout.close()
