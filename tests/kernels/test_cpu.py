"""What is particular to the CPU implementations: threads, forked workers, the cache on disk, memory."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from seqkernels import selective_scan
from seqkernels.selective_scan.spec import ALL, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def scan_and_gradients() -> list[Tensor]:
    """A call large enough to be spread over our threads, whose tensors are too small for torch's own.

    (OpenMP's threads do not survive a fork: there torch itself would hang.)
    """
    call = sample("threads", (2, 100, 130, 16), CPU, torch.float32, options=ALL | {"state"})
    leaves = {name: tensor.requires_grad_() for name, tensor in call.tensors.items()}
    y, state = selective_scan(**leaves, **call.options, implementation="cpu")
    return [y.detach(), state.detach(), *torch.autograd.grad(y.square().sum() + state.sum(), list(leaves.values()))]


@pytest.mark.usefixtures("threads")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    torch.set_num_threads(1)
    one = scan_and_gradients()
    for count in (2, 3):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(one, scan_and_gradients()))


def _in_a_child(queue) -> None:
    torch.set_num_threads(2)
    queue.put([float(t.double().sum()) for t in scan_and_gradients()])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.usefixtures("threads")
def test_a_forked_child_computes_the_same() -> None:
    """DataLoader workers are forked after the parent has used its threads; those do not exist in the child."""
    torch.set_num_threads(2)
    expected = [float(t.double().sum()) for t in scan_and_gradients()]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_a_child, args=(queue,), daemon=True)
    child.start()
    got = queue.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert got == expected


def test_no_folder_for_the_cache_means_compiling_anew(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    code = (
        "import torch; from seqkernels import rms_norm;"
        "print(rms_norm(torch.full((1, 2), 3.0), torch.ones(2), implementation='cpu').sum().item())"
    )
    environment = {**os.environ, "SEQKERNELS_CACHE": str(blocked)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(2, abs=1e-5)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_nothing_as_large_as_all_states_is_kept() -> None:
    B, L, E, N = 1, 512, 64, 16
    call = sample("memory", (B, L, E, N), CPU, torch.float32)
    leaves = {name: tensor.requires_grad_() for name, tensor in call.tensors.items()}
    with Largest() as largest:
        y = selective_scan(**leaves, **call.options, implementation="cpu")
        torch.autograd.grad(y.sum(), list(leaves.values()))
    assert B * L * E <= largest.elements <= B * L * E * N // 8


def test_inference_keeps_no_states() -> None:
    call = sample("inference", (1, 256, 64, 16), CPU, torch.float32)
    saved = torch.ops.seqkernels.selective_scan_cpu(
        *(call.tensors[n] for n in ("x_BLE", "dt_BLE", "a_EN")),
        call.tensors["b_BLGN"][:, :, None],
        call.tensors["c_BLGN"][:, :, None],
        None,
        None,
        None,
        True,
        None,
        None,
        False,
    )[2]
    assert saved.numel() == 0


def test_packed_sequences_trace_with_a_number_of_chunks_that_only_the_data_tell() -> None:
    call = sample("packed", (1, 150, 6, 4), CPU, torch.float32, bounds=[0, 3, 70, 150])
    given = {name: t.requires_grad_(t.is_floating_point()) for name, t in call.tensors.items()}
    b, c = (given[name][:, :, None].detach().requires_grad_() for name in ("b_BLGN", "c_BLGN"))
    rest = (given[name] for name in ("d_E", "z_BLE", "dt_bias_E"))
    args = (given["x_BLE"], given["dt_BLE"], given["a_EN"], b, c, *rest, True, None, given["cu_seqlens"], True)
    torch.library.opcheck(torch.ops.seqkernels.selective_scan_cpu.default, args)
