"""Presets have the sizes of the papers: every published parameter count, counted as the source counts.

Counts that a source gives exactly are met exactly. Rounded ones are met to their rounding; where we do not meet it, the
test says by how much and the preset's title says so too.
"""

from __future__ import annotations

import pytest
import torch

from seqmodels.instantiate import build
from seqmodels.model import model_spec


def count(compose, name: str, *overrides: str, vocab_size: int, tied: bool = True, pad_vocab_to: int = 8) -> int:
    """Parameters of a language model: backbone and head, a tied table counted once."""
    words = [*overrides, f"backbone.pad_vocab_to={pad_vocab_to}"]
    head = {**compose("head", "next_token"), "tied": tied, "pad_vocab_to": pad_vocab_to}
    with torch.device("meta"):
        model = build(model_spec(compose("backbone", name, *words), head, vocab_size=vocab_size))
    return sum(parameter.numel() for parameter in model.parameters())


# Exact: shapes of the released weights (config.json and the published layout), the tied table once.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mamba_130m", 129_135_360),
        ("mamba_370m", 371_516_416),
        ("mamba_790m", 793_204_224),
        ("mamba_1b4", 1_372_178_432),
        ("mamba_2b8", 2_768_345_600),
    ],
)
def test_released_mamba(compose, name, expected):
    assert count(compose, name, vocab_size=50277) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mamba2_130m", 128_989_632),
        ("mamba2_370m", 368_346_624),
        ("mamba2_780m", 780_161_280),
        ("mamba2_1b3", 1_343_757_312),
        ("mamba2_2b7", 2_702_599_680),
        ("mamba2attn_2b7", 2_697_590_880),
    ],
)
def test_released_mamba2(compose, name, expected):
    assert count(compose, name, vocab_size=50277, pad_vocab_to=16) == expected


# Mamba paper: table of appendix E.3.2 (printed) and figure 5 left (read from the vector graphics, to 0.3 %); 12 ids
# padded to 16, tied.
@pytest.mark.parametrize(
    ("name", "printed", "read"),
    [
        ("dna_250k", 0.25e6, 0.263e6),
        ("dna_700k", 0.70e6, 0.684e6),
        ("dna_1m", 1.4e6, 1.401e6),
        ("dna_3m", 3.5e6, 3.527e6),
        ("dna_7m", 7.0e6, 7.013e6),
        ("dna_19m", 19.3e6, 19.29e6),
        ("dna_40m", 40.7e6, 40.69e6),
    ],
)
def test_dna_sizes_of_the_mamba_paper(compose, name, printed, read):
    ours = count(compose, name, vocab_size=12, pad_vocab_to=16)
    assert ours == pytest.approx(read, rel=2e-3)
    assert ours == pytest.approx(printed, rel=0.06)  # the paper's own 0.263 M is printed as 250K


# The same figure's Transformer++ (its blocks have attention and MLP, ours are counted apart), read to 2 %.
@pytest.mark.parametrize(
    ("d_model", "blocks", "heads", "read"),
    [(64, 4, 4, 0.201e6), (128, 6, 8, 1.192e6), (256, 8, 8, 6.323e6), (512, 12, 8, 37.84e6)],
)
def test_transformer_sizes_of_the_mamba_paper(compose, d_model, blocks, heads, read):
    sizes = {"d_model": d_model, "n_layers": 2 * blocks, "layers.attention.n_heads": heads}
    words = [f"backbone.{key}={size}" for key, size in sizes.items()]
    assert count(compose, "transformer", *words, vocab_size=12, pad_vocab_to=16) == pytest.approx(read, rel=0.02)


def test_hybrid_of_8_billion(compose):
    """8.66 G by a note on the paper, which does not say how its 256K ids are padded; 0.1 % is 1,000 more of them."""
    ours = count(compose, "mamba2_hybrid", vocab_size=256_000, tied=False)
    assert ours == 8_654_517_248
    assert ours == pytest.approx(8.66e9, rel=1e-3)


def test_hybrid_has_the_published_layers(compose):
    spec = compose("backbone", "mamba2_hybrid")
    pattern = spec["pattern"]
    assert {letter: pattern.count(letter) for letter in "M*-"} == {"M": 24, "*": 4, "-": 28}
    assert [place for place, letter in enumerate(pattern) if letter == "*"] == [10, 22, 33, 45]
    small = compose("backbone", "mamba2_hybrid_small")["pattern"]
    assert {letter: 4 * small.count(letter) for letter in "M*-"} == {"M": 24, "*": 4, "-": 28}
    attention = compose("backbone", "mamba2attn_2b7")["pattern"]
    assert [place for place, letter in enumerate(attention) if letter == "*"] == [9, 18, 27, 36, 45, 56]
    assert len(attention) == 64


# Mamba paper, tables 4 and 5 and appendix E.4: 256 levels, an own head. Ours are 1.6 to 2.6 % above what is printed;
# how the paper counts is not said (without the tables and A_log all three round as printed).
@pytest.mark.parametrize(
    ("name", "ours", "printed"),
    [
        ("unet_sc09_6m", 6_254_784, 6.1e6),
        ("unet_sc09_24m", 24_850_656, 24.3e6),
        ("unet_youtubemix_3m", 3_556_928, 3.5e6),
    ],
)
def test_audio_sizes_of_the_mamba_paper(compose, name, ours, printed):
    counted = count(compose, name, vocab_size=256, tied=False)
    assert counted == ours
    assert counted == pytest.approx(printed, rel=0.026)
    with torch.device("meta"):
        backbone = build(compose("backbone", name), vocab_size=256)
    tables = 2 * backbone.embedding.weight.numel()
    a_log = sum(parameter.numel() for key, parameter in backbone.named_parameters() if key.endswith("A_log"))
    assert round((counted - tables - a_log) / 1e6, 1) == printed / 1e6


@pytest.mark.parametrize(
    ("name", "blocks", "widths"),
    [
        ("unet_sc09_6m", 40, (64, 128, 256)),
        ("unet_sc09_24m", 75, (96, 192, 384)),
        ("unet_youtubemix_3m", 15, (64, 128, 256)),
        ("unet_s4d_mamba", 4 * 16 + 8, (64, 128, 256)),
    ],
)
def test_audio_presets_have_the_published_blocks(compose, name, blocks, widths):
    with torch.device("meta"):
        backbone = build(compose("backbone", name), vocab_size=256)
    assert len(backbone.mixers) == blocks
    assert backbone.widths == widths
