"""Hugging Face's layout of the same models (`-hf`): MambaForCausalLM and Mamba2ForCausalLM in transformers.

The tensors have state-spaces' names, but that the embedding is `backbone.embeddings`; the configuration has its own
words. One kind of layer in every block, no MLPs, no attention.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from seqmodels.backbones.stack import round_up
from seqmodels.interop.blocks import LayerOptions, block_specs, require_one, stack_spec
from seqmodels.interop.layout import NEXT_TOKEN, Layout, next_token_head
from seqmodels.interop.report import ConversionError

# Two keys of our own (transformers keeps what it does not know): how many rows of the table stand for symbols, and
# the multiple to which their number was rounded up.
UNPADDED, MULTIPLE = "unpadded_vocab_size", "pad_vocab_size_multiple"
_OURS, _THEIRS, _OLD = "backbone.embedding.", "backbone.embeddings.", "backbone.embedding."
_STARTING = {"dt_min": "time_step_min", "dt_max": "time_step_max", "dt_init_floor": "time_step_floor"}
MAMBA = LayerOptions(
    target="seqmodels.layers.mamba.Mamba",
    letter="m",
    names={
        "d_state": "state_size",
        "d_conv": "conv_kernel",
        "expand": "expand",
        "dt_rank": "time_step_rank",
        "conv_bias": "use_conv_bias",
        "bias": "use_bias",
    },
    starting=_STARTING,
    own=frozenset({"recompute", "implementation"}),
    only={"hidden_act": "silu"},
)
MAMBA2 = LayerOptions(
    target="seqmodels.layers.mamba2.Mamba2",
    letter="M",
    names={
        "d_state": "state_size",
        "d_conv": "conv_kernel",
        "expand": "expand",
        "headdim": "head_dim",
        "ngroups": "n_groups",
        "conv_bias": "use_conv_bias",
        "bias": "use_bias",
        "norm_eps": "layer_norm_epsilon",  # one epsilon for the norms of the stack and of the layers
    },
    starting=_STARTING,
    own=frozenset({"implementation", "A_init_range"}),
    only={"hidden_act": "silu", "time_step_limit": [0.0, math.inf]},
)
LAYERS = {"mamba": MAMBA, "mamba2": MAMBA2}  # model_type -> layer
LAYER_WORDS = ("Mamba", "Mamba-2")
CLASSES = {"mamba": "MambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}
# What transformers takes where config.json leaves a key out.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mamba": {
        "vocab_size": 50280,
        "hidden_size": 768,
        "state_size": 16,
        "num_hidden_layers": 32,
        "layer_norm_epsilon": 1e-5,
        "expand": 2,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "time_step_rank": "auto",
        "time_step_min": 1e-3,
        "time_step_max": 0.1,
        "time_step_floor": 1e-4,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
    "mamba2": {
        "vocab_size": 32768,
        "hidden_size": 4096,
        "state_size": 128,
        "num_hidden_layers": 64,
        "layer_norm_epsilon": 1e-5,
        "expand": 2,
        "conv_kernel": 4,
        "num_heads": 128,
        "head_dim": 64,
        "n_groups": 8,
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "time_step_min": 1e-3,
        "time_step_max": 0.1,
        "time_step_floor": 1e-4,
        "time_step_limit": [0.0, math.inf],
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    },
}


class HuggingFace(Layout):
    """config.json and safetensors of transformers' Mamba models."""

    name: ClassVar[str] = "Hugging Face"
    model_types: ClassVar[tuple[str, ...]] = tuple(LAYERS)
    writes_copies: ClassVar[bool] = False  # transformers ties again what the configuration says is tied

    def reads(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in LAYERS

    def spec(
        self, config: Mapping[str, Any], symbols: Mapping[int, str], names: Collection[str] = ()
    ) -> dict[str, Any]:
        kind = config["model_type"]
        given = {name: _number(value) for name, value in config.items() if value is not None}
        full = {**DEFAULTS[kind], **given}
        _check_width(full)
        options = LAYERS[kind]
        theirs = {name: full[name] for name in (*options.names.values(), *options.starting.values(), *options.only)}
        rows, d_model = full["vocab_size"], full["hidden_size"]
        vocab_size, multiple = _unpadded(full, rows)
        backbone = stack_spec(
            [options.letter] * full["num_hidden_layers"],
            {options.letter: options.ours(theirs, "config.json")},
            vocab_size=vocab_size,
            d_model=d_model,
            norm_eps=full["layer_norm_epsilon"],
            residual_in_fp32=full["residual_in_fp32"],
            pad_vocab_to=multiple,
        )
        head = next_token_head(vocab_size, d_model, tied=full["tie_word_embeddings"], pad_vocab_to=multiple)
        return {"_target_": "seqmodels.model.SequenceModel", "backbone": backbone, "head": head}

    def config(self, spec: Mapping[str, Any], special_ids: Mapping[str, int]) -> dict[str, Any]:
        backbone, head = spec["backbone"], spec["head"]
        if head["_target_"] != NEXT_TOKEN:
            raise ConversionError(f"{head['_target_']}: transformers' Mamba models have a next-token head")
        blocks = block_specs(backbone)
        layer = require_one(blocks, "all layers") if len({block["_target_"] for block in blocks}) == 1 else {}
        kind = next((name for name, known in LAYERS.items() if known.target == layer.get("_target_")), None)
        if kind is None:
            kinds = ", ".join(sorted({block["_target_"].rpartition(".")[2] for block in blocks}))
            raise ConversionError(f"transformers has stacks of {' or of '.join(LAYER_WORDS)} layers, not of {kinds}")
        multiple, eps = backbone.get("pad_vocab_to", 8), backbone.get("norm_eps", 1e-5)
        options = _options(kind, layer, backbone["d_model"])
        if options.get("layer_norm_epsilon", eps) != eps:
            raise ConversionError(
                f"norm_eps={eps} of the stack and {options['layer_norm_epsilon']} of the layers: transformers has "
                "one for both"
            )
        return {
            "architectures": [CLASSES[kind]],
            "model_type": kind,
            "hidden_size": backbone["d_model"],
            "num_hidden_layers": len(blocks),
            "vocab_size": round_up(backbone["vocab_size"], multiple),
            UNPADDED: backbone["vocab_size"],
            MULTIPLE: multiple,
            "layer_norm_epsilon": eps,
            "residual_in_fp32": backbone.get("residual_in_fp32", True),
            "tie_word_embeddings": head.get("tied", True),
            "hidden_act": "silu",
            **options,
            "bos_token_id": special_ids.get("start"),
            "eos_token_id": None,
            "pad_token_id": special_ids.get("pad"),
        }

    def name_of(self, ours: str, spec: Mapping[str, Any]) -> str:
        return ours.replace(_OURS, _THEIRS)

    def spellings(self, names: Iterable[str]) -> dict[str, str]:
        return {name: name.replace(_OLD, _THEIRS) for name in names}

    def notes(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        backbone = spec["backbone"]
        rows = round_up(backbone["vocab_size"], backbone.get("pad_vocab_to", 8))
        if rows == backbone["vocab_size"]:
            return ()
        return (
            f"transformers knows no padding of the vocabulary: logits {backbone['vocab_size']} to {rows - 1} belong to "
            "rows that stand for nothing",
        )


def _number(value: Any) -> Any:
    """A JSON value with transformers' spelling of infinity read, in lists too."""
    if isinstance(value, list):
        return [_number(part) for part in value]
    return float(value["__float__"]) if isinstance(value, dict) and value.keys() == {"__float__"} else value


def _check_width(full: Mapping[str, Any]) -> None:
    """Inner width is expand * hidden_size here, and transformers says it a second time."""
    inner = full["expand"] * full["hidden_size"]
    for words, width in (
        ("intermediate_size", full.get("intermediate_size", inner)),
        ("num_heads * head_dim", full["num_heads"] * full["head_dim"] if "num_heads" in full else inner),
    ):
        if width != inner:
            raise ConversionError(f"config.json: {words} is {width}, and expand * hidden_size {inner}; they must agree")


def _unpadded(full: Mapping[str, Any], rows: int) -> tuple[int, int]:
    """Symbols, and the multiple to which their number was rounded up: as our own export wrote them, or no padding."""
    size, multiple = full.get(UNPADDED), full.get(MULTIPLE)
    if isinstance(size, int) and isinstance(multiple, int) and size > 0 < multiple and round_up(size, multiple) == rows:
        return size, multiple
    return rows, 1


def _options(kind: str, layer: Mapping[str, Any], d_model: int) -> dict[str, Any]:
    """Their options of a layer, and what transformers wants to have computed."""
    theirs = LAYERS[kind].theirs(layer, "transformers' layout")
    if kind == "mamba2":
        return {**theirs, "num_heads": theirs["expand"] * d_model // theirs["head_dim"]}
    return {**theirs, "intermediate_size": theirs["expand"] * d_model}
