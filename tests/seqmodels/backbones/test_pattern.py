"""Patterns of layers: what a letter stands for, and what is said when it stands for nothing."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from seqmodels import testing
from seqmodels.backbones.pattern import LETTERS, factories
from seqmodels.backbones.stack import Stack
from seqmodels.layers.base import SequenceLayer
from seqmodels.layers.mamba import Mamba


class Linear(SequenceLayer):
    """A layer without memory."""

    def __init__(self, d_model: int, gain: float = 1.0):
        super().__init__()
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.gain = gain

    def forward(self, x_BLD, state=None, *, cu_seqlens=None):
        return self.gain * self.out_proj(x_BLD), ()


PALETTE = {"m": functools.partial(Mamba, d_state=4), "-": Linear}


def stack(**kwargs) -> Stack:
    torch.manual_seed(0)
    return Stack(**{"vocab_size": 6, "d_model": 16, "layers": PALETTE, **kwargs})


def kinds(model: Stack) -> str:
    return "".join({Mamba: "m", Linear: "-"}[type(mixer)] for mixer in model.mixers)


def test_one_block_a_letter_in_order():
    assert kinds(stack(pattern="m--m-")) == "m--m-"


def test_a_pattern_is_repeated_to_n_layers():
    assert kinds(stack(pattern="m-", n_layers=6)) == "m-m-m-"
    with pytest.raises(ValueError, match=r"n_layers=5 is no multiple of the 2 blocks of pattern 'm-'.* 4 or 6"):
        stack(pattern="m-", n_layers=5)
    with pytest.raises(ValueError, match=r"or take 3$"):
        stack(pattern="m-m", n_layers=2)


def test_words_and_letters_name_the_same_layer():
    assert kinds(stack(pattern="m-", layers={"mamba": Mamba, "mlp": Linear})) == "m-"
    assert factories("xm", {"x": Linear, "mamba": Mamba}) == [Linear, Mamba]
    with pytest.raises(ValueError, match=r"two entries for 'm' \(mamba\)"):
        factories("m", {"m": Mamba, "mamba": Mamba})


def test_published_letters():
    assert {letter: LETTERS[letter] for letter in "Mm*-s"} == {
        "M": "mamba2", "m": "mamba", "*": "attention", "-": "mlp", "s": "s4d",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "layers", "message"),
    [
        ("m*m", PALETTE, r"pattern 'm\*m': letter '\*' \(attention\) at position 1 .*has '-' \(mlp\), 'm' \(mamba"),
        ("mQ", PALETTE, r"letter 'Q' at position 1 .*Add layers\.Q"),
        ("m ", PALETTE, r"letter ' ' at position 1"),
        ("", PALETTE, r"pattern='': must be a string with a letter for each block"),
        ("m", {"mambo": Mamba}, r"layers has an entry 'mambo': must be one letter.*did you mean 'mamba'"),
    ],
)
def test_patterns_that_cannot_be_built(pattern, layers, message):
    with pytest.raises(ValueError, match=message):
        stack(pattern=pattern, layers=layers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": None}, "needs layer and n_layers, or pattern and layers"),
        ({"pattern": None, "layer": Mamba, "layers": None}, "needs layer and n_layers"),
        ({"pattern": "m", "layer": Mamba}, r"pattern='m' takes its layers from `layers`"),
        ({"pattern": "m", "layers": None}, r"pattern='m' takes its layers from `layers`"),
        ({"pattern": "m", "n_layers": 0}, "n_layers=0"),
    ],
)
def test_either_layer_or_pattern(arguments, message):
    with pytest.raises(ValueError, match=message):
        stack(**arguments)


def test_residual_projections_are_scaled_by_all_blocks():
    alone = Linear(16).out_proj.weight.abs().max().item()
    scaled = stack(pattern="m-m-").layers[1].mixer.out_proj.weight.abs().max().item()
    assert scaled == pytest.approx(alone / 2, rel=0.1)  # sqrt(4 additions)


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
def test_laws_hold_for_mixed_stacks(checkpoint_blocks):
    testing.check_laws(stack(pattern="-m-m", checkpoint_blocks=checkpoint_blocks), torch.randint(0, 6, (3, 21)))


def test_one_layer_that_is_not_causal_makes_the_stack_so():
    class Both(Linear):
        is_causal = False

    assert stack(pattern="m-").is_causal
    assert not stack(pattern="mb", layers={"m": Mamba, "b": Both}).is_causal
