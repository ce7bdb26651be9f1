"""The backbones that are compared, each at about 7 million parameters: plain specs, as a run's model.json holds them.

Width and depth are the published DNA ones where there are any (Mamba 16 x 256), else the depth that brings 256 channels
to 7 million. Nothing was tuned for these runs but what a family's papers say about its learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqmodels.model import SequenceModel

PARAMETERS, TOLERANCE = 7.0e6, 0.05

LAYER = "seqmodels.layers"
MAMBA = {"_target_": f"{LAYER}.mamba.Mamba", "_partial_": True}
MAMBA2 = {"_target_": f"{LAYER}.mamba2.Mamba2", "_partial_": True, "d_state": 64}
ATTENTION = {"_target_": f"{LAYER}.attention.Attention", "_partial_": True, "n_heads": 4}
NO_POSITIONS = {**ATTENTION, "rotary_dim": 0}
SWIGLU = {"_target_": f"{LAYER}.mlp.MLP", "_partial_": True, "activation": "swiglu"}
GELU = {"_target_": f"{LAYER}.mlp.MLP", "_partial_": True, "activation": "gelu", "ratio": 2.0}
S4D = {"_target_": f"{LAYER}.s4d.S4D", "_partial_": True}
LENGTH = "the length"  # stands in a spec for the longest sequence the model is to read
HYENA = {"_target_": f"{LAYER}.hyena.Hyena", "_partial_": True, "max_len": LENGTH}
PALETTE = {"h": HYENA, "M": MAMBA2, "m": MAMBA, "*": ATTENTION, "n": NO_POSITIONS, "-": SWIGLU, "g": GELU, "s": S4D}
# A, C, G, T, N of the project's DNA ids and who pairs with whom (domains/dna/tokenizer.py)
COMPLEMENT_IDS = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11]


@dataclass(frozen=True)
class Candidate:
    """One backbone of the table.

    Attributes:
        what: in words, for the table.
        backbone: its spec without vocab_size.
        lr: peak learning rate: the family's usual one at this size.
        objective: "next" base (causal), or "masked": 15 % of the bases, for those that read from both ends.
        head: spec of its head without d_model and vocab_size.
        small: keywords that replace the spec's for a smoke run.
        quadratic: whether time grows with the square of the length.
    """

    what: str
    backbone: dict[str, Any]
    lr: float
    objective: str = "next"
    head: dict[str, Any] = field(default_factory=lambda: {"_target_": "seqmodels.heads.next_token.NextTokenHead"})
    small: dict[str, Any] = field(default_factory=dict)
    quadratic: bool = False


def stack(layer: dict[str, Any], n_layers: int, d_model: int = 256) -> dict[str, Any]:
    """Equal blocks around one layer."""
    return {"_target_": "seqmodels.backbones.stack.Stack", "d_model": d_model, "n_layers": n_layers, "layer": layer}


def pattern(letters: str, d_model: int = 256, **more: dict[str, Any]) -> dict[str, Any]:
    """Blocks in the order of a pattern; the palette is cut to what it uses."""
    palette = {letter: spec for letter, spec in (PALETTE | more).items() if letter in letters}
    return {"_target_": "seqmodels.backbones.stack.Stack", "d_model": d_model, "pattern": letters, "layers": palette}


def bidirectional(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer that reads from both ends, in and out projections tied, as Caduceus has it."""
    return {"_target_": f"{LAYER}.bidirectional.Bidirectional", "_partial_": True, "layer": layer}


SMALL_STACK = {"d_model": 16, "n_layers": 2}
ZOO: dict[str, Candidate] = {
    "mamba": Candidate("Mamba, 16 blocks", stack(MAMBA, 16), 4e-3, small=SMALL_STACK),
    "mamba2": Candidate("Mamba-2, 16 blocks", stack(MAMBA2, 16), 4e-3, small={"d_model": 64, "n_layers": 2}),
    "transformer": Candidate(
        "Transformer++: rotary attention and SwiGLU, 9 of each", pattern("*-" * 9), 2e-3, quadratic=True,
        small={"d_model": 16, "pattern": "*-"},
    ),
    "hybrid": Candidate(
        "Mamba-2 hybrid scaled down: 7 Mamba-2, 1 attention without positions, 7 SwiGLU",
        pattern("M-M-M-Mn-M-M-M-"), 3e-3, quadratic=True, small={"d_model": 64, "pattern": "M-n-"},
    ),
    "s4d": Candidate("S4D and GELU MLP, 16 of each", pattern("sg" * 16), 2e-3, small={"d_model": 16, "pattern": "sg"}),
    "mamba_s4": Candidate(
        "Mamba block with a time-invariant core, 15 blocks",
        stack({"_target_": f"{LAYER}.mamba_s4.MambaS4", "_partial_": True}, 15), 2e-3, small=SMALL_STACK,
    ),
    "mamba_complex": Candidate(
        "Mamba with complex states, 15 blocks", stack({**MAMBA, "complex": True}, 15), 4e-3, small=SMALL_STACK,
    ),
    "hyena": Candidate(
        "Hyena (filters as long as the sequence) and GELU MLP, 13 of each", pattern("hg" * 13), 1e-3,
        small={"d_model": 16, "pattern": "hg"},
    ),
    "dilated_conv": Candidate(
        "dilated causal convolutions (WaveNet type), 4 cycles of 10: sees 4093 positions",
        stack({"_target_": f"{LAYER}.dilated_conv.DilatedConv", "_partial_": True}, 4, 184), 2e-3, small=SMALL_STACK,
    ),
    "lstm": Candidate(
        "LSTM, 3 layers of 512", stack({"_target_": f"{LAYER}.lstm.LSTM", "_partial_": True}, 3, 512), 2e-3,
        small=SMALL_STACK,
    ),
    "unet": Candidate(
        "U-Net, pooling 4 x 4: S4D outside, Mamba in the centre",
        {
            "_target_": "seqmodels.backbones.unet.UNet", "d_model": 112, "pool": [4, 4], "n_layers": 2, "expand": 2,
            "outer": "sg", "centre": "mg", "layers": {"s": S4D, "m": MAMBA, "g": GELU},
        },
        2e-3, small={"d_model": 8, "n_layers": 1, "pool": [2, 2]},
    ),
    "caduceus_ph": Candidate(
        "bidirectional Mamba, projections tied (Caduceus-Ph), 15 blocks", stack(bidirectional(MAMBA), 15), 4e-3,
        "masked", {"_target_": "seqmodels.heads.masked_token.MaskedTokenHead"}, small=SMALL_STACK,
    ),
    "caduceus_ps": Candidate(
        "the same on both strands with shared weights (Caduceus-PS), 15 blocks",
        {
            "_target_": "seqmodels.backbones.rc_equivariant.RCPSStack", "d_model": 256, "n_layers": 15,
            "layer": bidirectional(MAMBA), "complement_ids": COMPLEMENT_IDS,
        },
        4e-3, "masked",
        {"_target_": "seqmodels.heads.rc_equivariant.RCMaskedTokenHead", "complement_ids": COMPLEMENT_IDS},
        small=SMALL_STACK,
    ),
}  # fmt: skip


def build_model(
    name: str, vocab_size: int, length: int = 1024, *, small: bool = False, checkpoint_blocks: bool = False
) -> SequenceModel:
    """The model of a candidate, on the default device.

    Args:
        name: key of `ZOO`.
        vocab_size: of the tokenizer.
        length: of the longest sequence: what a layer with a filter of fixed length needs to know.
        small: the smoke run's sizes.
        checkpoint_blocks: recompute blocks in backward.

    Raises:
        ValueError: a layer that this installation lacks.
    """
    from seqmodels.instantiate import build
    from seqmodels.model import SequenceModel

    candidate = ZOO[name]
    spec = _with_length({**candidate.backbone, **(candidate.small if small else {})}, length)
    backbone = build(spec, vocab_size=vocab_size, checkpoint_blocks=checkpoint_blocks)
    return SequenceModel(backbone, build(candidate.head, d_model=spec["d_model"], vocab_size=vocab_size))


def _with_length(spec: Any, length: int) -> Any:
    if isinstance(spec, dict):
        return {key: _with_length(value, length) for key, value in spec.items()}
    return length if spec == LENGTH else spec


def parameters(model: SequenceModel) -> int:
    """Trainable numbers of the model."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
