"""The layout of state-spaces' own releases: mamba-*, mamba2-*, mamba2attn-* (config.json, pytorch_model.bin).

Our names are theirs, but that a block there may hold a second norm and an MLP (`norm2`, `mlp`), which are a block of
their own here. Keys that config.json leaves out take the defaults of the authors' `MambaConfig`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch

from seqmodels.backbones.stack import round_up
from seqmodels.instantiate import build
from seqmodels.interop.blocks import LayerOptions, block_specs, require_one, stack_spec
from seqmodels.interop.layout import NEXT_TOKEN, Layout, next_token_head
from seqmodels.interop.report import ConversionError

NORM_EPS = 1e-5  # of every norm; the configuration has no place for another
MLP_MULTIPLE = 128  # the authors' GatedMLP rounds its width up to a multiple of this
MLP = "seqmodels.layers.mlp.MLP"
DEFAULTS: Mapping[str, Any] = {
    "d_model": 2560,
    "d_intermediate": 0,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
# What saving with transformers adds to it.
_GENERIC = frozenset(
    {"model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "use_cache", "auto_map"}
    | {f"{kind}_token_id" for kind in ("bos", "eos", "pad")}
)
_STARTING = {"dt_min": "dt_min", "dt_max": "dt_max", "dt_init_floor": "dt_init_floor"}
MAMBA = LayerOptions(
    target="seqmodels.layers.mamba.Mamba",
    letter="m",
    names={name: name for name in ("d_state", "d_conv", "expand", "dt_rank", "conv_bias", "bias")},
    starting=_STARTING,
    own=frozenset({"recompute", "implementation"}),
    ignored=frozenset({"dt_init", "dt_scale", "use_fast_path"}),
)
MAMBA2 = LayerOptions(
    target="seqmodels.layers.mamba2.Mamba2",
    letter="M",
    names={name: name for name in ("d_state", "d_conv", "expand", "headdim", "ngroups", "conv_bias", "bias")},
    starting={**_STARTING, "A_init_range": "A_init_range"},
    own=frozenset({"implementation"}),
    ignored=frozenset({"conv_init", "chunk_size", "use_mem_eff_path", "process_group", "sequence_parallel"}),
    only={
        "d_ssm": None,
        "D_has_hdim": False,
        "rmsnorm": True,
        "norm_before_gate": False,
        "dt_limit": [0.0, float("inf")],
    },
)
ATTENTION = LayerOptions(
    target="seqmodels.layers.attention.Attention",
    letter="*",
    names={
        "n_heads": "num_heads",
        "n_kv_heads": "num_heads_kv",
        "head_dim": "head_dim",
        "rotary_dim": "rotary_emb_dim",
        "rotary_base": "rotary_emb_base",
        "causal": "causal",
        "d_conv": "d_conv",
        "qkv_bias": "qkv_proj_bias",
        "out_bias": "out_proj_bias",
    },
    only={"mlp_dim": 0, "softmax_scale": None, "rotary_emb_interleaved": False},
)
SSM_LAYERS = {"Mamba1": MAMBA, "Mamba2": MAMBA2}
# Where the authors' MHA differs from our defaults.
_ATTENTION_DEFAULTS = {"rotary_emb_dim": 0, "causal": False, "qkv_proj_bias": True, "out_proj_bias": True}


class StateSpaces(Layout):
    """config.json of `MambaLMHeadModel`."""

    name: ClassVar[str] = "state-spaces"
    as_pickle: ClassVar[bool] = True

    def reads(self, config: Mapping[str, Any]) -> bool:
        is_own = {"d_model", "n_layer"} <= config.keys() and "hidden_size" not in config
        return is_own and config.get("model_type", "mamba") in ("mamba", "mamba2")

    def spec(
        self, config: Mapping[str, Any], symbols: Mapping[int, str], names: Collection[str] = ()
    ) -> dict[str, Any]:
        unknown = sorted(config.keys() - DEFAULTS.keys() - _GENERIC)
        if unknown:
            raise ConversionError(
                f"config.json has {', '.join(unknown)}, which state-spaces' MambaConfig has not; it has "
                f"{', '.join(DEFAULTS)}"
            )
        full = {**DEFAULTS, **{name: config[name] for name in DEFAULTS if config.get(name) is not None}}
        if not full["rms_norm"]:
            raise ConversionError("rms_norm=false: this model was trained with LayerNorm; the norms here are RMSNorm")
        letters, layers = self._blocks(full)
        vocab_size, multiple, d_model = full["vocab_size"], full["pad_vocab_size_multiple"], full["d_model"]
        backbone = stack_spec(
            letters,
            layers,
            vocab_size=vocab_size,
            d_model=d_model,
            norm_eps=NORM_EPS,
            residual_in_fp32=full["residual_in_fp32"],
            pad_vocab_to=multiple,
        )
        head = next_token_head(vocab_size, d_model, tied=full["tie_embeddings"], pad_vocab_to=multiple)
        return {"_target_": "seqmodels.model.SequenceModel", "backbone": backbone, "head": head}

    def _blocks(self, full: Mapping[str, Any]) -> tuple[list[str], dict[str, dict[str, Any]]]:
        """The letter of every block of ours, and the layers' specs by letter."""
        ssm = dict(full["ssm_cfg"])
        kind = ssm.pop("layer", "Mamba1")
        if kind not in SSM_LAYERS:
            raise ConversionError(f"ssm_cfg.layer={kind!r}: must be one of {', '.join(SSM_LAYERS)}")
        mixer, attending = SSM_LAYERS[kind], set(full["attn_layer_idx"])
        if attending - set(range(full["n_layer"])):
            raise ConversionError(f"attn_layer_idx={full['attn_layer_idx']} goes beyond the {full['n_layer']} layers")
        layers = {mixer.letter: mixer.ours(ssm, "ssm_cfg")}
        if attending:
            layers["*"] = _attention(full["attn_cfg"])
        if full["d_intermediate"]:
            hidden = round_up(full["d_intermediate"], MLP_MULTIPLE)
            layers["-"] = {"_target_": MLP, "_partial_": True, "hidden": hidden, "activation": "swiglu"}
        letters: list[str] = []
        for index in range(full["n_layer"]):
            letters += ["*" if index in attending else mixer.letter, *(["-"] if full["d_intermediate"] else [])]
        return letters, layers

    def config(self, spec: Mapping[str, Any], special_ids: Mapping[str, int]) -> dict[str, Any]:
        backbone, head = spec["backbone"], spec["head"]
        blocks = block_specs(backbone)
        if head["_target_"] != NEXT_TOKEN:
            raise ConversionError(f"{head['_target_']}: state-spaces' layout has a next-token head and no other")
        if backbone.get("norm_eps", NORM_EPS) != NORM_EPS:
            raise ConversionError(f"norm_eps={backbone['norm_eps']}: state-spaces' layout always has {NORM_EPS}")
        mixers, mlps = _pairs([block["_target_"] for block in blocks])
        attending = [i for i, j in enumerate(mixers) if blocks[j]["_target_"] == ATTENTION.target]
        scanning = [blocks[j] for i, j in enumerate(mixers) if i not in attending]
        ssm_cfg: dict[str, Any] = {}
        if scanning:
            layer = require_one(scanning, "all state-space layers")
            kind = next((name for name, known in SSM_LAYERS.items() if known.target == layer["_target_"]), None)
            if kind is None:
                raise ConversionError(
                    f"{layer['_target_']}: state-spaces' layout has {', '.join(SSM_LAYERS)} and attention"
                )
            ssm_cfg = {"layer": kind, **SSM_LAYERS[kind].theirs(layer, "state-spaces' layout")}
        attention = require_one([blocks[mixers[i]] for i in attending], "all attention layers") if attending else None
        return {
            "d_model": backbone["d_model"],
            "d_intermediate": _mlp_width([blocks[j] for j in mlps], backbone["d_model"]),
            "n_layer": len(mixers),
            "vocab_size": backbone["vocab_size"],
            "ssm_cfg": ssm_cfg,
            "attn_layer_idx": attending,
            "attn_cfg": {} if attention is None else _attention_config(attention, backbone["d_model"]),
            "rms_norm": True,
            "residual_in_fp32": backbone.get("residual_in_fp32", True),
            "fused_add_norm": True,
            "pad_vocab_size_multiple": backbone.get("pad_vocab_to", 8),
            "tie_embeddings": head.get("tied", True),
        }

    def name_of(self, ours: str, spec: Mapping[str, Any]) -> str:
        if not any(block["_target_"] == MLP for block in block_specs(spec["backbone"])):
            return ours
        return _BLOCK.sub(_in_pairs, ours)


_BLOCK = re.compile(r"^backbone\.layers\.(?P<index>\d+)\.(?P<part>norm|mixer)\.")


def _in_pairs(match: re.Match[str]) -> str:
    """Block 2i is the mixer of their layer i, block 2i + 1 its MLP."""
    layer, is_mlp = divmod(int(match["index"]), 2)
    part = {"norm": "norm2", "mixer": "mlp"}[match["part"]] if is_mlp else match["part"]
    return f"backbone.layers.{layer}.{part}."


def _attention(config: Mapping[str, Any]) -> dict[str, Any]:
    return ATTENTION.ours({**_ATTENTION_DEFAULTS, **config}, "attn_cfg")


def _attention_config(spec: Mapping[str, Any], d_model: int) -> dict[str, Any]:
    theirs = ATTENTION.theirs(spec, "state-spaces' layout")
    head_dim = theirs["head_dim"] or d_model // theirs["num_heads"]
    rotary_dim = head_dim if theirs["rotary_emb_dim"] is None else theirs["rotary_emb_dim"]
    return {
        **theirs,
        "head_dim": head_dim,
        "rotary_emb_dim": rotary_dim,
        "num_heads_kv": theirs["num_heads_kv"] or theirs["num_heads"],
    }


def _pairs(targets: Sequence[str]) -> tuple[list[int], list[int]]:
    """Indices of the mixers and of the MLPs: no MLPs at all, or one behind every mixer.

    Raises:
        ConversionError: MLPs stand otherwise.
    """
    is_mlp = [target == MLP for target in targets]
    if not any(is_mlp):
        return list(range(len(targets))), []
    for index, found in enumerate([*is_mlp, *([False] if len(targets) % 2 else [])]):
        if found != bool(index % 2):
            kind = "missing" if index == len(targets) else "an MLP" if found else "a mixer"
            raise ConversionError(
                f"block {index} is {kind}: state-spaces' layout has an MLP behind every mixer, or none at all"
            )
    return list(range(0, len(targets), 2)), list(range(1, len(targets), 2))


def _mlp_width(specs: Sequence[Mapping[str, Any]], d_model: int) -> int:
    """d_intermediate of the MLPs; 0 without any."""
    if not specs:
        return 0
    with torch.device("meta"):
        layer = build(require_one(specs, "all MLPs"))(d_model)
    has_bias = layer.fc1.bias is not None
    if layer.activation != "swiglu" or has_bias or layer.hidden % MLP_MULTIPLE:
        raise ConversionError(
            f"an MLP with activation={layer.activation!r}, bias={has_bias} and width {layer.hidden}: state-spaces' "
            f"layout has swiglu without biases, and widths that are multiples of {MLP_MULTIPLE}"
        )
    return layer.hidden
