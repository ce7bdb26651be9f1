"""The layout of Caduceus (arXiv:2403.03234) and PlantCaduceus: bidirectional masked-language models of DNA.

PlantCAD2 has Mamba-2 in place of Mamba, which its configuration does not say and its tensors do.

Ph (`rcps: false`) is a stack of bidirectional Mamba; PS (`rcps: true`) the same with both strands through shared
weights. Tensors have the prefix `caduceus.`; under PS the shared modules are called `submodule`. The two readings of
the norm under PS (`fused_add_norm`, see seqmodels/backbones/rc_equivariant.py) differ in names and in function.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from seqmodels.backbones.stack import round_up
from seqmodels.instantiate import build
from seqmodels.interop.blocks import STACK, block_specs, require_one, stack_spec, with_defaults
from seqmodels.interop.layout import Layout
from seqmodels.interop.report import ConversionError
from seqmodels.interop.state_spaces import MAMBA, MAMBA2

RCPS_STACK = "seqmodels.backbones.rc_equivariant.RCPSStack"
BIDIRECTIONAL = "seqmodels.layers.bidirectional.Bidirectional"
HEADS = {
    False: "seqmodels.heads.masked_token.MaskedTokenHead",
    True: "seqmodels.heads.rc_equivariant.RCMaskedTokenHead",
}
TIED = ["in_proj", "out_proj"]
# The tokenizer of the releases is Python code beside the weights: seven special tokens, then its letters.
SYMBOLS = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
PAIRS = {"A": "T", "C": "G", "G": "C", "T": "A", "N": "N"}
DEFAULTS: Mapping[str, Any] = {
    "d_model": 2560,
    "n_layer": 64,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "norm_epsilon": 1e-5,
    "bidirectional": True,
    "bidirectional_strategy": "add",
    "bidirectional_weight_tie": True,
    "rcps": False,
    "complement_map": {},
}


class Caduceus(Layout):
    """config.json of `CaduceusForMaskedLM`."""

    name: ClassVar[str] = "Caduceus"
    model_types: ClassVar[tuple[str, ...]] = ("caduceus",)

    def reads(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in self.model_types

    def spec(
        self, config: Mapping[str, Any], symbols: Mapping[int, str], names: Collection[str] = ()
    ) -> dict[str, Any]:
        full = {**DEFAULTS, **{name: value for name, value in config.items() if value is not None}}
        _check(full)
        rows, vocab_size = _vocabulary(full, symbols)
        mixer = MAMBA2 if any(name.endswith(".mamba_fwd.dt_bias") for name in names) else MAMBA
        layer = {
            "_target_": BIDIRECTIONAL,
            "_partial_": True,
            "layer": mixer.ours(full["ssm_cfg"], "ssm_cfg"),
            "strategy": full["bidirectional_strategy"],
            "tied": TIED if full["bidirectional_weight_tie"] else [],
        }
        sizes = {"vocab_size": vocab_size, "d_model": full["d_model"], "pad_vocab_to": full["pad_vocab_size_multiple"]}
        backbone = stack_spec(
            ["B"] * full["n_layer"],
            {"B": layer},
            norm_eps=full["norm_epsilon"],
            residual_in_fp32=full["residual_in_fp32"],
            **sizes,
        )
        head = {"_target_": HEADS[full["rcps"]], "tied": True, **sizes}
        if full["rcps"]:
            pairs = _complement_ids(full["complement_map"], rows)
            backbone |= {
                "_target_": RCPS_STACK,
                "complement_ids": pairs,
                "swap_strands": bool(full["fused_add_norm"]),
            }
            head["complement_ids"] = pairs
        return {"_target_": "seqmodels.model.SequenceModel", "backbone": backbone, "head": head}

    def config(self, spec: Mapping[str, Any], special_ids: Mapping[str, int]) -> dict[str, Any]:
        backbone, head = spec["backbone"], spec["head"]
        is_rcps = backbone["_target_"] == RCPS_STACK
        if head["_target_"] != HEADS[is_rcps] or not head.get("tied", True):
            raise ConversionError(
                f"{head['_target_']}: Caduceus' layout has {HEADS[is_rcps].rpartition('.')[2]}, tied to the embedding"
            )
        layer = with_defaults(require_one(block_specs({**backbone, "_target_": STACK}), "all layers"))
        mixer = next((known for known in (MAMBA, MAMBA2) if known.target == layer["layer"]["_target_"]), None)
        if mixer is None or layer["halve"] or list(layer["tied"]) not in (TIED, []):
            raise ConversionError(
                f"Caduceus' layout has Mamba in both directions, with {' and '.join(TIED)} tied or nothing, and no "
                f"halving; this model has {layer['layer']['_target_']}, tied={layer['tied']}, halve={layer['halve']}"
            )
        multiple = backbone.get("pad_vocab_to", 8)
        rows = round_up(backbone["vocab_size"], multiple)
        pairs = _padded(backbone["complement_ids"], rows) if is_rcps else []
        code = "modeling_caduceus.Caduceus"
        return {
            "architectures": ["CaduceusForMaskedLM"],
            "model_type": "caduceus",
            "auto_map": {
                "AutoConfig": "configuration_caduceus.CaduceusConfig",
                "AutoModel": code,
                "AutoModelForMaskedLM": f"{code}ForMaskedLM",
                "AutoModelForSequenceClassification": f"{code}ForSequenceClassification",
            },
            "d_model": backbone["d_model"],
            "n_layer": backbone["n_layers"],
            "vocab_size": rows,
            "ssm_cfg": mixer.theirs(layer["layer"], "Caduceus' layout"),
            "rms_norm": True,
            "residual_in_fp32": backbone.get("residual_in_fp32", True),
            "fused_add_norm": backbone.get("swap_strands", True),
            "pad_vocab_size_multiple": multiple,
            "norm_epsilon": backbone.get("norm_eps", 1e-5),
            "bidirectional": True,
            "bidirectional_strategy": layer["strategy"],
            "bidirectional_weight_tie": bool(layer["tied"]),
            "rcps": is_rcps,
            "complement_map": {str(token): partner for token, partner in enumerate(pairs)} or None,
            "pad_token_id": special_ids.get("pad"),
        }

    def name_of(self, ours: str, spec: Mapping[str, Any]) -> str:
        is_rcps = spec["backbone"]["_target_"] == RCPS_STACK
        table = "embeddings.word_embeddings" + (".embedding" if is_rcps else "")
        theirs = ours.replace("backbone.embedding.", f"backbone.{table}.")
        if is_rcps:
            theirs = theirs.replace(".mixer.", ".mixer.submodule.").replace("lm_head.", "lm_head.lm_head.")
            if not spec["backbone"].get("swap_strands", True):
                theirs = theirs.replace(".norm.", ".norm.submodule.").replace(".norm_f.", ".norm_f.submodule.")
        return f"caduceus.{theirs}" if theirs.startswith("backbone.") else theirs

    def symbols(self, config: Mapping[str, Any]) -> dict[int, str]:
        """The released tokenizer's table, where the complement map is that of its letters (or there is none)."""
        full = {**DEFAULTS, **config}
        if round_up(full["vocab_size"], full["pad_vocab_size_multiple"]) != round_up(len(SYMBOLS), 8):
            return {}
        pairs = list((full["complement_map"] or {}).values())
        expected = [SYMBOLS.index(PAIRS.get(symbol, symbol)) for symbol in SYMBOLS]
        return dict(enumerate(SYMBOLS)) if not pairs or pairs[: len(SYMBOLS)] == expected else {}

    def constants(self, spec: Mapping[str, Any]) -> dict[str, Tensor]:
        backbone = spec["backbone"]
        if backbone["_target_"] != RCPS_STACK:
            return {}
        rows = round_up(backbone["vocab_size"], backbone.get("pad_vocab_to", 8))
        pairs = torch.tensor(_padded(backbone["complement_ids"], rows))
        tables = ("caduceus.backbone.embeddings.word_embeddings", "lm_head")
        return {f"{table}.complement_map": pairs.clone() for table in tables}

    def notes(self, spec: Mapping[str, Any]) -> tuple[str, ...]:
        return (
            "transformers loads Caduceus with the release's own Python files (trust_remote_code): copy "
            "configuration_caduceus.py, modeling_caduceus.py, modeling_rcps.py and tokenization_caduceus.py beside it",
        )


def _check(full: Mapping[str, Any]) -> None:
    """Refuses what there is no counterpart for."""
    if not full["rms_norm"]:
        raise ConversionError("rms_norm=false: this model was trained with LayerNorm; the norms here are RMSNorm")
    if not full["bidirectional"]:
        raise ConversionError("bidirectional=false: only bidirectional Caduceus models are read")


def _vocabulary(full: Mapping[str, Any], symbols: Mapping[int, str]) -> tuple[int, int]:
    """Rows of the table, and how many of them stand for symbols: saved configurations give the padded number."""
    multiple = full["pad_vocab_size_multiple"]
    rows = round_up(full["vocab_size"], multiple)
    known = len(symbols)
    return rows, known if known and round_up(known, multiple) == rows else full["vocab_size"]


def _complement_ids(complement_map: Mapping[str, int], rows: int) -> list[int]:
    if not complement_map:
        raise ConversionError("rcps=true, but config.json has no complement_map to say which ids pair")
    pairs = [int(partner) for partner in complement_map.values()]
    if len(pairs) > rows:
        raise ConversionError(f"complement_map pairs {len(pairs)} ids, and the table has {rows} rows")
    return _padded(pairs, rows)


def _padded(complement_ids: Any, rows: int) -> list[int]:
    """The partner of every row's id, from a list or from the spec of one; ids beyond its end pair with themselves."""
    pairs = build(complement_ids) if isinstance(complement_ids, Mapping) else complement_ids
    return [*pairs, *range(len(pairs), rows)]
