"""Which implementation runs: a named one or an error, "auto" the first that can, said once."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from seqkernels import causal_conv1d, selective_scan
from seqkernels.causal_conv1d.op import REGISTRY
from seqkernels.dispatch import Registry, ops, preferring, table
from seqkernels.spec import get

X = torch.ones(1, 3, 4)
WEIGHT = torch.ones(4, 2)


def registry(**modules: str) -> Registry:
    return Registry("causal_conv1d", "conv", modules)


REFERENCE = "seqkernels.causal_conv1d.reference"
ABSENT = "seqkernels.causal_conv1d.absent"


def test_auto_takes_the_first_that_can_run() -> None:
    from seqkernels.causal_conv1d.reference import conv

    assert registry(absent=ABSENT, reference=REFERENCE).choose("auto", X, WEIGHT) is conv


def test_auto_with_nothing_to_take_gives_all_reasons() -> None:
    with pytest.raises(ValueError, match=r"no implementation can run.*not absent: cannot be imported: No module"):
        registry(absent=ABSENT).choose("auto", X, WEIGHT)


def test_a_named_implementation_that_cannot_run_raises_and_never_falls_back() -> None:
    with pytest.raises(ValueError, match=r"implementation='absent' cannot run here: cannot be imported: No module"):
        registry(absent=ABSENT, reference=REFERENCE).choose("absent", X, WEIGHT)
    with pytest.raises(ValueError, match=r"implementation='triton' cannot run here: .*cpu"):
        causal_conv1d(X, WEIGHT, implementation="triton")


def test_an_unknown_name_lists_the_accepted_ones() -> None:
    with pytest.raises(ValueError, match="accepted: auto, cuda, cpu, reference"):
        selective_scan(X, X, -WEIGHT, X[..., :2], X[..., :2], implementation="fastest")


def test_auto_says_once_what_it_took_and_why(caplog: pytest.LogCaptureFixture) -> None:
    once = registry(missing="seqkernels.causal_conv1d.missing", reference=REFERENCE)
    with caplog.at_level(logging.INFO, logger="seqkernels"):
        for _ in range(3):
            once.choose("auto", X, WEIGHT)
    messages = [record.message for record in caplog.records if "missing" in record.message]
    assert len(messages) == 1
    assert "causal_conv1d: taking implementation 'reference' (not missing: cannot be imported" in messages[0]


def test_table_has_a_row_for_every_implementation() -> None:
    rows = table("cpu")
    assert [(row.op, row.implementation) for row in rows] == [(op, n) for op, r in ops().items() for n in r.modules]
    for row in rows:
        assert row.available == (row.reason == "")
    found = {(row.op, row.implementation): row for row in rows}
    assert found["selective_scan", "cpu"].available
    assert found["selective_scan", "reference"].available
    assert not found["selective_scan", "cuda"].available


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(ValueError, match="op='scan' is unknown; accepted: causal_conv1d"):
        get("scan")


def test_importing_the_package_brings_torch_and_no_kernel_compiler() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import seqkernels;"
        "heavy = {'numba', 'triton', 'torch._dynamo', 'torch._inductor', 'cuda'};"
        "sys.exit(', '.join(sorted(heavy & (set(sys.modules) - before))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_planning_for_a_gpu_takes_its_implementations_on_any_machine():
    from seqkernels.dispatch import planned_for_gpu, planned_memory
    from seqkernels.selective_scan.op import REGISTRY as SCAN
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x_BLE, a_EN = torch.zeros(1, 32, 64), torch.zeros(64, 16)
        with planned_for_gpu(2**30) as gpu:
            planned = SCAN.choose("auto", x_BLE, a_EN, packed=False, groups=1)
            assert not gpu.asked
            assert planned_memory() == 2**30
            assert gpu.asked
        assert planned_memory() is None
        usual = SCAN.choose("auto", x_BLE, a_EN, packed=False, groups=1)
    assert planned.__module__ == "seqkernels.selective_scan.cuda"
    assert usual.__module__ == "seqkernels.selective_scan.cpu"


def test_a_preference_reaches_the_decode_step_of_mamba2(monkeypatch):
    from seqkernels import triton_runtime
    from seqkernels.ssd.step import can_run

    x = torch.randn(2, 8)
    monkeypatch.setattr(triton_runtime, "unavailable", lambda x: None)
    for name, expected in {"auto": True, "cuda": True, "triton": True, "reference": False, "torch": False}.items():
        with preferring(name):
            assert can_run(x, "auto") == expected, name
            assert can_run(x, "triton"), "a name is a name"
            assert not can_run(x, "reference")


def test_a_preference_is_what_auto_means_while_it_lasts():
    x, weight = torch.randn(2, 5, 8), torch.randn(8, 4)
    before = REGISTRY.choose("auto", x, weight, packed=False)
    with preferring("reference"):
        preferred = REGISTRY.choose("auto", x, weight, packed=False)
        assert REGISTRY.choose("cpu", x, weight, packed=False) is before, "a name is a name"
    with preferring("cuda"):  # an implementation of other ops
        assert REGISTRY.choose("auto", x, weight, packed=False) is before
    with preferring("triton"), pytest.raises(ValueError, match="cannot run here"):
        REGISTRY.choose("auto", x, weight, packed=False)
    assert preferred is not before
    assert REGISTRY.choose("auto", x, weight, packed=False) is before
