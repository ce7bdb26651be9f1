"""Both directions: against two separate layers, with padding and packing, shared weights that stay shared."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.heads.classification import ClassificationHead
from seqmodels.layers.attention import Attention
from seqmodels.layers.bidirectional import Bidirectional
from seqmodels.layers.lstm import LSTM
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.mamba_s4 import MambaS4
from seqmodels.layers.s4d import S4D
from seqmodels.model import SequenceModel
from seqmodels.testing import parameter_names

LAYERS = {
    "mamba": (Mamba, ["in_proj", "out_proj"]),
    "mamba_s4": (MambaS4, ["in_proj", "out_proj"]),
    "s4d": (S4D, ["output_linear"]),
    "lstm": (LSTM, []),
}


def build(name: str, **options) -> Bidirectional:
    torch.manual_seed(0)
    kind, tied = LAYERS[name]
    layer = Bidirectional(16, layer=kind, **{"tied": tied, **options})
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("halve", [False, True])
@pytest.mark.parametrize("strategy", ["add", "ew_multiply"])
@pytest.mark.parametrize("name", LAYERS)
def test_is_two_layers_one_of_them_against_the_sequence(name, strategy, halve):
    layer, x_BLD = build(name, strategy=strategy, halve=halve), torch.randn(2, 11, 16)
    fwd_BLD, rev_BLD = layer.mamba_fwd(x_BLD)[0], layer.mamba_rev(x_BLD.flip(1))[0].flip(1)
    expected = fwd_BLD + rev_BLD if strategy == "add" else fwd_BLD * rev_BLD
    torch.testing.assert_close(layer(x_BLD)[0], expected / 2 if halve else expected)
    assert not torch.allclose(fwd_BLD, rev_BLD, atol=1e-3)


def test_every_position_sees_every_other():
    layer, x_BLD = build("mamba"), torch.randn(1, 9, 16, requires_grad=True)
    for t in (0, 4, 8):
        reach = torch.autograd.grad(layer(x_BLD)[0][0, t].sum(), x_BLD)[0].abs().sum(dim=-1)[0]
        assert (reach > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_each_packed_sequence_is_reversed_in_its_own_place(name):
    layer, x_BLD = build(name), torch.randn(1, 20, 16)
    bounds = [0, 1, 8, 12, 20]
    packed, state = layer(x_BLD, cu_seqlens=torch.tensor(bounds, dtype=torch.int32))
    alone = [layer(x_BLD[:, first:last])[0] for first, last in pairwise(bounds)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), rtol=1e-4, atol=1e-5)
    assert state == ()


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_padded_batch_gives_each_row_what_it_gives_alone(pooling):
    torch.manual_seed(0)
    stack = Stack(vocab_size=6, d_model=16, n_layers=2, layer=partial(Bidirectional, layer=Mamba))
    model = SequenceModel(stack, ClassificationHead(d_model=16, num_classes=3, pooling=pooling))
    ids_BL, lengths_B = torch.randint(0, 6, (4, 15)), torch.tensor([15, 1, 9, 14])
    logits_BO, _ = model(ids_BL, lengths_B=lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        alone, _ = model(ids_BL[row : row + 1, :length])
        torch.testing.assert_close(logits_BO[row : row + 1], alone, rtol=1e-4, atol=1e-6)
    ignorant, _ = model(ids_BL)
    assert not torch.allclose(ignorant[1], logits_BO[1], atol=1e-3), "padding would have mattered"
    together = torch.autograd.grad(logits_BO[1:].sum(), stack.embedding.weight)[0]
    singly = [model(ids_BL[row : row + 1, : lengths_B[row]])[0].sum() for row in (1, 2, 3)]
    expected = torch.autograd.grad(torch.stack(singly).sum(), stack.embedding.weight)[0]
    torch.testing.assert_close(together, expected, rtol=1e-3, atol=1e-5)


def test_shared_modules_stay_shared():
    with torch.device("meta"):
        layer = Bidirectional(16, layer=Mamba)
    for moved in (layer.to_empty(device="cpu"), copy.deepcopy(layer), layer.double()):
        weights = dict(moved.named_parameters(remove_duplicate=False))
        for name in ("in_proj.weight", "out_proj.weight"):
            assert weights[f"mamba_fwd.{name}"] is weights[f"mamba_rev.{name}"]
        assert weights["mamba_fwd.x_proj.weight"] is not weights["mamba_rev.x_proj.weight"]


def test_published_names_and_counts():
    one, tied, untied = Mamba(16), Bidirectional(16, layer=Mamba), Bidirectional(16, layer=Mamba, tied=[])
    inner = parameter_names(one)
    names = {f"mamba_{side}.{name}": inner[name] for side in ("fwd", "rev") for name in inner}
    assert parameter_names(tied) == names
    assert parameter_names(untied) == names
    count = {layer: sum(p.numel() for p in layer.parameters()) for layer in (one, tied, untied)}
    assert count[untied] == 2 * count[one]
    assert count[tied] == 2 * count[one] - 16 * 64 - 32 * 16


def test_caduceus_has_its_published_size():
    with torch.device("meta"):
        stack = Stack(vocab_size=16, d_model=118, n_layers=4, layer=partial(Bidirectional, layer=Mamba))
    assert sum(p.numel() for p in stack.parameters()) == 470_702


def test_a_stack_scales_each_residual_projection_once():
    def scale(tied: list[str]) -> list[float]:
        norms = []
        layer = partial(Bidirectional, layer=Mamba, tied=tied)
        for n_layers in (1, 4):
            torch.manual_seed(0)
            first = Stack(vocab_size=6, d_model=16, n_layers=n_layers, layer=layer).mixers[0].state_dict()
            norms.append([first[f"mamba_{side}.out_proj.weight"].norm().item() for side in ("fwd", "rev")])
        return [one / four for one, four in zip(*norms, strict=True)]

    assert scale(["in_proj", "out_proj"]) == pytest.approx([2, 2])
    assert scale([]) == pytest.approx([2, 2])


def test_refuses_what_cannot_be():
    layer, x_BLD = build("mamba"), torch.randn(1, 5, 16)
    _, carried = layer.mamba_fwd(x_BLD)
    for state in (carried, layer(x_BLD)[1]):
        with pytest.raises(ValueError, match="no state to continue from: give it whole sequences"):
            layer(x_BLD, state)
    with pytest.raises(ValueError, match="strategy='mean': must be one of add, ew_multiply"):
        Bidirectional(16, layer=Mamba, strategy="mean")
    with pytest.raises(ValueError, match=r"S4D has no sub-module 'in_proj' .* it has kernel, output_linear"):
        Bidirectional(16, layer=S4D)
    with pytest.raises(ValueError, match="Attention sees both directions already"):
        Bidirectional(16, layer=partial(Attention, n_heads=2, causal=False))
