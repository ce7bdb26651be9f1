"""The CUDA sources of the decode step compile for every generation, and their cuts fit the published models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from seqkernels import nvrtc
from seqkernels.mamba_step.cuda import launch
from seqkernels.mamba_step.cuda.launch import Sizes

FOLDER = Path(launch.__file__).parent
SMALL = Sizes(768, 1536, 16, 48, 4)
PUBLISHED = {
    "130m": SMALL,
    "370m": Sizes(1024, 2048, 16, 64, 4),
    "790m": Sizes(1536, 3072, 16, 96, 4),
    "1.4b": Sizes(2048, 4096, 16, 128, 4),
    "2.8b": Sizes(2560, 5120, 16, 160, 4),
}
BLOCKS = {
    "project_in": {"BATCH": 1, "WARPS": 8, "ROWS": 3},
    "scan": {"CHANNELS": 16, "LANES": 16, "ROWS": 1, "SHARES": 64, "GATE_FLOAT": 1},
    "project_out": {"BATCH": 4, "WARPS": 8, "ROWS": 1},
    "convolve": {"CHANNELS": 128, "ROWS": 8, "TEAMS": 4, "THREADS": 384, "TENSOR_CORES": 1},
}
needs_nvrtc = pytest.mark.skipif(nvrtc.missing() is not None, reason=nvrtc.missing() or "")


def test_every_source_is_here() -> None:
    assert {path.stem for path in FOLDER.glob("*.cu")} == set(BLOCKS)


@needs_nvrtc
@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("element", [0, 1, 2], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", BLOCKS)
def test_compiles(name: str, element: int, architecture: int) -> None:
    defines = {**SMALL._asdict(), "ELEMENT": element, **BLOCKS[name]}
    if name == "convolve" and element != 1:
        defines["TENSOR_CORES"] = 0
    assert nvrtc.compile_cubin(FOLDER / f"{name}.cu", defines, architecture)[:4] == b"\x7fELF"


@needs_nvrtc
@pytest.mark.parametrize("B", [1, 5, 128])
@pytest.mark.parametrize("model", PUBLISHED)
def test_cuts_of_published_models_compile(model: str, B: int) -> None:
    size = PUBLISHED[model]
    plan = launch.plan_step(size, B, torch.bfloat16)
    assert plan is not None
    convolve, scan = plan
    assert convolve.tensor_cores == (B == 128), "where they pay: many rows, bf16"
    in_fp16 = launch.plan_step(size, B, torch.float16)
    assert in_fp16 is not None
    assert not in_fp16[0].tensor_cores, "the kernel splits fp32 into bf16"
    cuts = {
        "convolve": {
            "CHANNELS": convolve.channels, "ROWS": convolve.rows, "TEAMS": convolve.teams,
            "THREADS": convolve.threads(size), "TENSOR_CORES": int(convolve.tensor_cores),
        },
        "scan": {
            "CHANNELS": scan.channels, "LANES": scan.lanes, "ROWS": scan.rows, "GATE_FLOAT": 0,
            "SHARES": size.E // convolve.channels,
        },
    }  # fmt: skip
    for name, defines in cuts.items():
        nvrtc.compile_cubin(FOLDER / f"{name}.cu", {**size._asdict(), "ELEMENT": 1, **defines}, 90)


@needs_nvrtc
@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("model", ["130m", "370m"])
def test_cuts_of_whole_blocks_compile(model: str, B: int) -> None:
    size = PUBLISHED[model]
    plan = launch.plan_block(size, B, 2, processors=132)
    assert plan is not None
    cut_in, _, cut_out = plan
    assert cut_in.warps * cut_in.rows * 132 >= 2 * size.E, "more than one wave of blocks"
    for name, cut in (("project_in", cut_in), ("project_out", cut_out)):
        defines = {**size._asdict(), "ELEMENT": 1, "BATCH": B, "WARPS": cut.warps, "ROWS": cut.rows}
        nvrtc.compile_cubin(FOLDER / f"{name}.cu", defines, 90)


@pytest.mark.parametrize("B", [1, 2, 7, 8, 16, 128])
def test_cuts_divide_what_they_cut(B: int) -> None:
    for E in (8, 16, 24, 40, 64, 96, 512, 1000, 1536, 5120):
        for N in (1, 2, 5, 8, 16, 64, 128):
            for R in (1, 3, 16, 48, 160):
                size = Sizes(0, E, N, R, 4)
                plan = launch.plan_step(size, B, torch.bfloat16)
                if plan is None:
                    assert N != 16 or E % 64, f"{size} has no cut"
                    continue
                convolve, scan = plan
                assert E % convolve.channels == E % scan.channels == 0
                threads = convolve.threads(size)
                assert threads <= 1024
                assert threads % convolve.channels == 0
                assert threads >= convolve.teams * (R + 2 * N)
                assert convolve.channels % (8 * convolve.teams) == 0
                assert N % scan.lanes == 0
                assert scan.channels * scan.lanes % 32 == 0
                assert scan.shared_bytes(size, E // convolve.channels, 2) <= 48 * 1024
