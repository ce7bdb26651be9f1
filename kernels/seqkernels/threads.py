"""Run a compiled kernel over a range of tasks on torch's number of threads.

The kernels release the GIL, so plain Python threads do: no OpenMP or TBB layer that breaks when a DataLoader forks,
and no work stealing that could change results. The pool is thrown away in a forked child.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

SMALL = 1 << 16  # elementary steps below which handing work to threads costs more than it saves
PIECES_PER_THREAD = 4  # so that threads that start late or run slower take fewer

_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)


def run_tasks(function: Callable[..., object], n_tasks: int, work: int, *args: object) -> None:
    """Call `function(first, last, *args)` on consecutive ranges of tasks that cover 0 to n_tasks.

    The calling thread takes ranges like the others, so that on a busy machine nothing waits for a thread to start.
    Tasks write to places of their own, so results do not depend on who runs them.

    Args:
        function: a compiled kernel that releases the GIL.
        n_tasks: how many tasks there are.
        work: roughly how many elementary steps all of them take; little work stays on the calling thread.
        args: passed on.
    """
    threads = torch.get_num_threads()
    if threads == 1 or n_tasks == 1 or work < SMALL:
        function(0, n_tasks, *args)
        return
    pieces = min(n_tasks, PIECES_PER_THREAD * threads)
    bounds = [n_tasks * piece // pieces for piece in range(pieces + 1)]
    ranges = iter(list(pairwise(bounds)))  # next() on a list's iterator is atomic

    def take_ranges() -> None:
        for first, last in ranges:
            function(first, last, *args)

    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="seqkernels")
    helpers = [_pools[threads].submit(take_ranges) for _ in range(threads - 1)]
    take_ranges()
    for helper in helpers:
        if not helper.cancel():  # it has started
            helper.result()
