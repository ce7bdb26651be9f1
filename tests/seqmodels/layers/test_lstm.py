"""LSTM: its equations in float64, initialisation, state. The laws are in test_laws.py."""

from __future__ import annotations

import pytest
import torch

from seqmodels import testing
from seqmodels.layers import lstm
from seqmodels.layers.lstm import LSTM, LSTMState


def by_hand(layer: LSTM, x_BLD: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    cell, outputs = layer.lstm, []
    for t in range(x_BLD.shape[1]):
        gates = x_BLD[:, t] @ cell.weight_ih_l0.T + h @ cell.weight_hh_l0.T
        if cell.bias:
            gates = gates + cell.bias_ih_l0 + cell.bias_hh_l0
        i, f, g, o = gates.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h)
    y = torch.stack(outputs, dim=1) @ layer.out_proj.weight.T
    return y if layer.out_proj.bias is None else y + layer.out_proj.bias


@pytest.mark.parametrize("bias", [True, False])
def test_equations(bias):
    torch.manual_seed(0)
    layer = LSTM(6, expand=2, bias=bias).double()
    x_BLD, h, c = torch.randn(2, 7, 6), torch.randn(2, 12), torch.randn(2, 12)
    x_BLD, h, c = x_BLD.double(), h.double(), c.double()
    y_BLD, _ = layer(x_BLD, LSTMState(h, c))
    torch.testing.assert_close(y_BLD, by_hand(layer, x_BLD, h, c), rtol=1e-12, atol=1e-12)


def test_is_torchs_own_with_its_names():
    torch.manual_seed(0)
    layer, twin = LSTM(8, expand=3), torch.nn.LSTM(8, 24, batch_first=True)
    twin.load_state_dict(layer.lstm.state_dict())
    x_BLD = torch.randn(2, 5, 8)
    with torch.no_grad():
        expected, (h, c) = twin(x_BLD)
        y_BLD, state = layer(x_BLD)
        testing.assert_same(y_BLD, layer.out_proj(expected), "output")
    assert torch.equal(state.h, h[0])
    assert torch.equal(state.c, c[0])


def test_forget_gates_start_open():
    cell = LSTM(8).lstm
    bias = (cell.bias_ih_l0 + cell.bias_hh_l0).detach()
    assert bias.chunk(4)[1].tolist() == [1.0] * 8
    assert bias.sum() == 8


@pytest.mark.parametrize("arguments", [{"bias": False}, {"expand": 2}])
def test_laws(arguments):
    torch.manual_seed(0)
    testing.check_laws(LSTM(8, **arguments), torch.randn(3, 20, 8))


def test_state_is_fp32_and_unrounded_under_autocast():
    torch.manual_seed(0)
    layer, x_BLD = LSTM(8), torch.randn(2, 5, 8)
    with torch.no_grad():
        expected = layer(x_BLD)[1]
        with torch.autocast("cpu", torch.bfloat16):
            y_BLD, state = layer(x_BLD)
    assert y_BLD.dtype == torch.bfloat16
    testing.assert_same_state(state, expected, "state under autocast")


def test_laws_hold_for_sequences_longer_than_a_call(monkeypatch):
    torch.manual_seed(0)
    layer, x_BLD = LSTM(8), torch.randn(3, 20, 8)
    whole, _ = layer(x_BLD)
    monkeypatch.setattr(lstm, "MOST_POSITIONS", 6)
    testing.assert_same(layer(x_BLD)[0], whole, "output in pieces")
    testing.check_laws(layer, x_BLD)


def test_refusals():
    with pytest.raises(ValueError, match="expand=0"):
        LSTM(8, expand=0)
    with pytest.raises(ValueError, match="cu_seqlens runs from 0 to 3"):
        LSTM(8)(torch.randn(1, 4, 8), cu_seqlens=torch.tensor([0, 3]))
