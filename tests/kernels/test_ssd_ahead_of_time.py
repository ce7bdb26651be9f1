"""SSD's and the gated norm's Triton kernels compile without a GPU and keep to registers and shared memory."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

F32, I64 = torch.float32, torch.int64
SHARED_OF_A_PROGRAM = {80: 163 * 1024, 90: 227 * 1024}

#: Tensors in the inputs' dtype, in fp32, of 64-bit integers; integers that are multiples of 16; any others.
NARROW = "xbc x dy b c states dnext own other projection y dx dt ddt out z dz"
WIDE = """a d dt_bias steps high low local reads initial final dfinal dinitial passing direct pair_reads pair_writes
writes dskip sums partial weight inverse_rms conv_before conv_after conv_weight conv_bias a_log before after"""
ROUND = """stride_b stride_l stride_xb stride_xl stride_xh stride_yb stride_yl stride_yh stride_bb stride_bl stride_bg
stride_cb stride_cl stride_cg stride_ob stride_ol stride_oh stride_tb stride_tl stride_th stride_pb stride_pl stride_pg
stride_xbc stride_dt stride_slice size L P N PN stride_x stride_z stride_dy width"""
ANY = "stride_h M H R G HEADS slices chunks n_rows n_positions groups tiles"


def arguments(dtype: torch.dtype, N: int) -> dict[str, Any]:
    """What a launch for heads of 64 passes, with every option on."""
    from seqkernels.ssd import gpu

    cut = gpu.plan(4096, 64, N, dtype)
    sizes = {"Q": cut.q, "BLOCK_Q": cut.block_q, "BLOCK_P": cut.block_p, "BLOCK_N": cut.block_n}
    blocks = {"N_BLOCKS": -(-N // cut.block_n), "P_BLOCKS": -(-64 // cut.block_p), "PASS_BLOCKS": 32, "PASS_TILE": 32}
    options = dict.fromkeys(("HAS_D", "HAS_BIAS", "SOFTPLUS", "HAS_INITIAL", "HAS_DFINAL"), True)
    return {
        **dict.fromkeys(NARROW.split(), dtype),
        **dict.fromkeys(WIDE.split(), F32),
        **dict.fromkeys(("table", "first_chunk"), I64),
        **dict.fromkeys([*ROUND.split(), *ANY.split()], "i32"),
        **sizes, **blocks, **options, "PACKED": False, "PRECISE": dtype == F32, "OF_B": False, "GRADIENT": False,
        "eps": "fp32", "BLOCK_H": 8, "BLOCK": 1024, "ROWS": 1,
    }  # fmt: skip


#: name: (op, kernel, what differs, warps (0: the plan's for tiles of pairs), bytes of stack that are put up with)
KERNELS = {
    "step_sizes": ("ssd", "step_sizes", {}, 4, 0),
    "chunk_states": ("ssd", "chunk_states", {}, 4, 0),
    "chunk_states-gradient": ("ssd", "chunk_states", {"GRADIENT": True}, 4, 0),
    "pass_states": ("ssd", "pass_states", {"BLOCK": 256, "UNROLL": 16}, 1, 0),
    "pass_gradients": ("ssd", "pass_gradients", {"BLOCK": 256, "UNROLL": 8}, 1, 0),
    "chunk_output": ("ssd", "chunk_output", {}, 0, 0),
    "input_gradients": ("ssd", "input_gradients", {}, 0, 64),
    "projection_gradients": ("ssd", "projection_gradients", {}, 0, 0),
    "projection_gradients-b": ("ssd", "projection_gradients", {"OF_B": True}, 0, 0),
    "step_gradients": ("ssd", "step_gradients", {}, 4, 0),
    "decode_step": ("ssd", "decode_step", {"W": 4, "BLOCK_P": 16}, 4, 0),
    "add_slices": ("ssd", "add_slices", {}, 4, 0),
    "norm-forward": ("gated_rms_norm", "forward", {"BLOCK": 2048}, 8, 0),
    "norm-backward": ("gated_rms_norm", "backward", {"BLOCK": 2048}, 8, 0),
}
CASES = [
    *(pytest.param(name, torch.bfloat16, 128, 90, id=f"{name}-bf16-sm90") for name in KERNELS),
    pytest.param("input_gradients", torch.bfloat16, 128, 80, id="input_gradients-bf16-sm80"),
    pytest.param("chunk_output", F32, 128, 90, id="chunk_output-fp32-sm90"),
    pytest.param("input_gradients", F32, 128, 90, id="input_gradients-fp32-sm90", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "dtype", "N", "capability"), CASES)
def test_compiles_within_registers_and_shared_memory(
    name: str, dtype: torch.dtype, N: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import triton
    from seqkernels.ssd import gpu
    from seqkernels.triton_runtime import compile_for

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    op, kernel_name, differing, warps, allowed = KERNELS[name]
    kernel = getattr(importlib.import_module(f"seqkernels.{op}.triton_kernels"), kernel_name)
    warps = warps or gpu.plan(4096, 64, N, dtype).warps
    compiled = compile_for(kernel, {**arguments(dtype, N), **differing}, capability, warps, num_stages=2)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    stack = int(re.findall(r"STACK:(\d+)", text)[0])
    if capability == 90:
        assert stack <= allowed, "registers spill to local memory"
    assert compiled.metadata.shared <= SHARED_OF_A_PROGRAM[capability]
