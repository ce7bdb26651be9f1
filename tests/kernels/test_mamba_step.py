"""Decoding step by step equals the same block run over the whole sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from seqkernels import causal_conv1d, mamba_step, selective_scan
from seqkernels.mamba_step.spec import sample


def test_steps_equal_convolution_and_scan_over_the_sequence() -> None:
    sizes = {"B": 2, "E": 8, "N": 4, "R": 3, "W": 4}
    block = sample("block", sizes, torch.device("cpu"), torch.float64).tensors
    xz_BLF = torch.randn(2, 11, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    conv_state, state = block.pop("conv_state"), block.pop("state_BEN")
    del block["xz_B2E"]

    x, z = xz_BLF.chunk(2, dim=-1)
    x, whole_conv_state = causal_conv1d(
        x, block["conv_weight_EW"], block["conv_bias_E"], activation="silu", initial_state=conv_state,
        return_final_state=True,
    )  # fmt: skip
    dt, b, c = F.linear(x, block["x_proj_weight"]).split([3, 4, 4], dim=-1)
    whole, whole_state = selective_scan(
        x, F.linear(dt, block["dt_proj_weight_ER"]), block["a_EN"], b, c, d_E=block["d_E"], z_BLE=z,
        dt_bias_E=block["dt_bias_E"], dt_softplus=True, initial_state_BEN=state, return_final_state=True,
    )  # fmt: skip

    steps = []
    for t in range(11):
        y, conv_state, state = mamba_step(xz_BLF[:, t], conv_state, state, **block)
        steps.append(y)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole)
    torch.testing.assert_close(conv_state, whole_conv_state)
    torch.testing.assert_close(state, whole_state)


def test_inplace_writes_into_the_given_states() -> None:
    tensors = sample("inplace", {"B": 2, "E": 8, "N": 4, "R": 3, "W": 4}, torch.device("cpu"), torch.float32).tensors
    y, conv_state, state = mamba_step(**tensors)
    given = {name: tensors[name].clone() for name in ("conv_state", "state_BEN")}
    y_inplace, *states = mamba_step(**{**tensors, **given}, inplace=True)
    assert states[0] is given["conv_state"]
    assert states[1] is given["state_BEN"]
    assert torch.equal(y, y_inplace)
    assert torch.equal(given["conv_state"], conv_state)
    assert torch.equal(given["state_BEN"], state)
