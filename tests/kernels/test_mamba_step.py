"""Decoding step by step equals the same block run over the whole sequence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from seqkernels import causal_conv1d, mamba_step, selective_scan, threads
from seqkernels.mamba_step import cpu
from seqkernels.mamba_step.spec import sample
from torch import Tensor


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


def medium(B: int = 3, E: int = 40, W: int = 4) -> dict[str, Tensor]:
    return sample("medium", {"B": B, "E": E, "N": 16, "R": 3, "W": W}, torch.device("cpu"), torch.float32).tensors


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
@pytest.mark.parametrize("W", [1, 2, 4, 5])
def test_inplace_writes_into_the_given_states(implementation: str, W: int) -> None:
    tensors = medium(W=W)
    before = {name: tensors[name].clone() for name in tensors}
    y, conv_state, state = mamba_step(**tensors, implementation=implementation)
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)
    given = {name: tensors[name].clone() for name in ("conv_state", "state_BEN")}
    y_inplace, *states = mamba_step(**{**tensors, **given}, inplace=True, implementation=implementation)
    assert states[0] is given["conv_state"]
    assert states[1] is given["state_BEN"]
    assert torch.equal(y, y_inplace)
    assert torch.equal(given["conv_state"], conv_state)
    assert torch.equal(given["state_BEN"], state)


def test_inplace_writes_into_strided_states() -> None:
    tensors = medium()
    _, conv_state, state = mamba_step(**tensors, implementation="cpu")
    tensors["state_BEN"] = tensors["state_BEN"].transpose(1, 2).contiguous().transpose(1, 2)
    tensors["conv_state"] = torch.stack([tensors["conv_state"]] * 2, dim=1)[:, 1]
    mamba_step(**tensors, inplace=True, implementation="cpu")
    assert torch.equal(tensors["conv_state"], conv_state)
    assert torch.equal(tensors["state_BEN"], state)


def test_autograd_sees_that_states_were_written_over() -> None:
    tensors = medium()
    leaf = torch.ones(3, 40, 16, requires_grad=True)
    saved = leaf * tensors["state_BEN"]
    with torch.no_grad():
        mamba_step(**tensors, inplace=True, implementation="cpu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def test_large_sizes_take_torchs_products_and_threads_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = medium()
    expected = mamba_step(**tensors, implementation="cpu")
    monkeypatch.setattr(cpu, "TORCH_PROJECTS_FROM", 0)
    monkeypatch.setattr(threads, "SMALL", 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        got = mamba_step(**tensors, implementation="cpu")
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(mamba_step(**tensors, implementation="cpu")[0], got[0])
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(got[0], expected[0]), "another order of sums: else the other path was not taken"


@pytest.mark.parametrize("name", ["conv_state", "conv_bias_E", "d_E", "xz_B2E"])
def test_where_gradients_are_wanted_the_reference_gives_them(name: str) -> None:
    tensors = medium()
    tensors[name].requires_grad_()
    with pytest.raises(ValueError, match="has no gradients"):
        mamba_step(**tensors, implementation="cpu")
    y, *_ = mamba_step(**tensors)
    assert torch.autograd.grad(y.sum(), tensors[name])[0].abs().sum() > 0


def test_a_pending_negation_is_seen() -> None:
    tensors = medium()
    negated = torch.complex(torch.zeros_like(tensors["xz_B2E"]), -tensors["xz_B2E"]).conj().imag
    assert negated.is_neg()
    assert torch.equal(negated, tensors["xz_B2E"])
    expected = mamba_step(**tensors, implementation="cpu")[0]
    assert torch.equal(mamba_step(**{**tensors, "xz_B2E": negated}, implementation="cpu")[0], expected)


def test_the_registered_op_in_place_passes_opcheck_and_equals_the_direct_call() -> None:
    tensors = medium()
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    torch.library.opcheck(torch.ops.seqkernels.mamba_step_cpu_, tuple(given.values()))
    given = {name: tensor.clone() for name, tensor in tensors.items()}
    y = torch.ops.seqkernels.mamba_step_cpu_(*given.values())
    direct = mamba_step(**tensors, implementation="cpu")
    for got, expected in zip((y, given["conv_state"], given["state_BEN"]), direct):
        assert torch.equal(got, expected)
