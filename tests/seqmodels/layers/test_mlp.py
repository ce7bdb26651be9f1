"""MLP: its formula against float64, sizes, published shapes, refusals. The laws are in test_laws.py."""

from __future__ import annotations

import pytest
import torch

from seqmodels import testing
from seqmodels.layers.mlp import ACTIVATIONS, MLP


def by_hand(layer: MLP, x: torch.Tensor) -> torch.Tensor:
    """The formula, written with erf, exp and max alone."""
    hidden = x @ layer.fc1.weight.T + layer.fc1.bias
    functions = {
        "gelu": lambda v: v * 0.5 * (1 + torch.erf(v / 2**0.5)),
        "silu": lambda v: v / (1 + torch.exp(-v)),
        "relu2": lambda v: torch.clamp(v, min=0) ** 2,
    }
    f = functions[{"swiglu": "silu", "geglu": "gelu"}.get(layer.activation, layer.activation)]
    if layer.is_gated:
        hidden = hidden[..., : layer.hidden] * f(hidden[..., layer.hidden :])
    else:
        hidden = f(hidden)
    return hidden @ layer.fc2.weight.T + layer.fc2.bias


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_formula(activation):
    torch.manual_seed(0)
    layer = MLP(8, hidden=24, activation=activation, bias=True).double()
    x_BLD = torch.randn(2, 5, 8, dtype=torch.float64)
    y_BLD, state = layer(x_BLD)
    assert state == ()
    torch.testing.assert_close(y_BLD, by_hand(layer, x_BLD), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_laws(activation):
    torch.manual_seed(0)
    testing.check_laws(MLP(16, activation=activation), torch.randn(2, 20, 16))


def test_published_gated_shapes_round_up_to_128():
    """d_model 768 of the published block: int(8 * 768 / 3) = 2048; d_model 1000: 2666 -> 2688."""
    names = testing.parameter_names(MLP(768, activation="swiglu", multiple_of=128))
    assert names == {"fc1.weight": (4096, 768), "fc2.weight": (768, 2048)}
    assert MLP(1000, activation="swiglu", multiple_of=128).hidden == 2688


def test_default_widths():
    assert MLP(96).hidden == 384
    assert MLP(96, activation="swiglu").hidden == 256
    assert MLP(96, ratio=1.5).hidden == 144


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activation": "gel"}, "activation='gel': must be one of gelu"),
        ({"hidden": 8, "ratio": 2.0}, "give one of them"),
        ({"hidden": 0}, "hidden=0"),
        ({"ratio": -1.0}, "ratio=-1.0: must be above 0"),
        ({"multiple_of": 0}, "multiple_of=0"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(8, **arguments)


def test_bad_packing_is_refused():
    with pytest.raises(ValueError, match="must start at 0 and end at L=4"):
        MLP(8)(torch.randn(1, 4, 8), cu_seqlens=torch.tensor([0, 3]))
