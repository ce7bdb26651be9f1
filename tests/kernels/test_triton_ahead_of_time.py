"""Every Triton kernel compiles for Ampere, Hopper and Blackwell on a machine without a GPU, and keeps to registers."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32

CONVOLUTION = {
    **dict.fromkeys(("x", "y", "dx", "dy"), BF16),
    **dict.fromkeys(("weight", "bias", "initial", "final", "dfinal", "dinitial", "partial", "dweight", "dbias"), F32),
    **dict.fromkeys(("cu_seqlens", "first_seq"), I32),
    **dict.fromkeys(("stride_xb", "stride_dyb"), "i64"),
    **dict.fromkeys(("stride_xl", "stride_dyl", "stride_dxl", "L", "E", "n_chunks", "n_shares"), "i32"),
    **dict.fromkeys(("SILU", "HAS_BIAS", "HAS_INITIAL", "HAS_DFINAL"), True),
    **dict(W=4, PACKED=False, ROWS=128, UNROLL=4, BLOCK_E=128, BLOCK_SHARES=256),
}
NORM = {
    **dict.fromkeys(("x", "y", "dx", "dy"), BF16),
    **dict.fromkeys(("residual", "weight", "total", "inverse_rms", "dtotal", "dresidual", "partial"), F32),
    **dict.fromkeys(("stride_x", "stride_residual", "stride_dy", "stride_dtotal", "M", "D", "tiles"), "i32"),
    **dict.fromkeys(("HAS_RESIDUAL", "HAS_DTOTAL", "HAS_DRESIDUAL"), True),
    **dict(eps="fp32", ROWS=1, BLOCK_D=1024),
}
STEP = {
    **dict.fromkeys(("xz", "y", "x_proj", "dt_proj"), BF16),
    **dict.fromkeys(("conv_state", "conv_weight", "conv_bias", "new_conv_state", "x_out", "x", "partial"), F32),
    **dict.fromkeys(("state", "new_state", "dt_bias", "a", "d"), F32),
    **dict.fromkeys(("stride_xz", "stride_x_proj", "stride_dt_proj", "B", "E", "J", "N", "R", "n_shares"), "i32"),
    **dict(W=4, HAS_BIAS=True, BLOCK_B=1, BLOCK_E=32, BLOCK_J=64),
    **dict(BLOCK_SHARES=64, BLOCK_N=16, BLOCK_R=64),
}

CASES = {
    "conv-forward": ("causal_conv1d", "forward", CONVOLUTION, 1),
    "conv-forward-packed": ("causal_conv1d", "forward", {**CONVOLUTION, "PACKED": True}, 1),
    "conv-final-state": ("causal_conv1d", "packed_final_state", CONVOLUTION, 1),
    "conv-backward": ("causal_conv1d", "backward", CONVOLUTION, 1),
    "conv-backward-packed": ("causal_conv1d", "backward", {**CONVOLUTION, "PACKED": True}, 1),
    "conv-backward-state": ("causal_conv1d", "initial_state_gradient", CONVOLUTION, 1),
    "conv-backward-sum": ("causal_conv1d", "add_shares", {**CONVOLUTION, "BLOCK_E": 32}, 8),
    "norm-forward": ("rms_norm", "forward", NORM, 4),
    "norm-backward": ("rms_norm", "backward", NORM, 4),
    "step-project": ("mamba_step", "convolve_and_project", STEP, 4),
    "step-project-16-rows": (
        "mamba_step", "convolve_and_project", {**STEP, "BLOCK_B": 16, "BLOCK_E": 64, "BLOCK_J": 128}, 4,
    ),
    "step-scan": ("mamba_step", "scan_and_gate", STEP, 4),
    "step-scan-rows": ("mamba_step", "scan_and_gate", {**STEP, "BLOCK_B": 2, "BLOCK_E": 128}, 4),
}
# All of them for Hopper; the heaviest of each op for the others, to keep this short.
CHOSEN = [*((name, 90) for name in CASES), *((name, c) for name in list(CASES)[3::3] for c in (80, 100))]


@pytest.mark.parametrize(("name", "capability"), CHOSEN)
def test_compiles_without_spills(name: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from seqkernels.triton_runtime import compile_for

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    op, kernel_name, arguments, num_warps = CASES[name]
    kernel = getattr(importlib.import_module(f"seqkernels.{op}.triton_kernels"), kernel_name)
    compiled = compile_for(kernel, arguments, capability, num_warps)
    assert registers(triton, compiled, tmp_path)["STACK"] == 0, "registers spill to local memory"


def registers(triton: Any, compiled: Any, folder: Path) -> dict[str, int]:
    """What ptxas gave the kernel: REG, STACK (spills), SHARED, ..."""
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", text)}
