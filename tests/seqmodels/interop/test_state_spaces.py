"""state-spaces' own layout: published names and shapes in, the same file out, and a hybrid against its definition."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from seqmodels.inference import load
from seqmodels.instantiate import build
from seqmodels.interop.convert import convert
from seqmodels.interop.mapping import Expected, take
from seqmodels.interop.report import ConversionError
from seqmodels.interop.state_spaces import StateSpaces

# config.json of the releases, and what is in their pytorch_model.bin.
MAMBA_130M = {
    "d_model": 768,
    "n_layer": 24,
    "vocab_size": 50277,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
MAMBA2_130M = {
    **MAMBA_130M,
    "d_intermediate": 0,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}
# The attention of mamba2attn-2.7b, as its config.json has it.
MAMBA2ATTN_2_7B = {
    **MAMBA2_130M,
    "d_model": 2560,
    "n_layer": 64,
    "attn_layer_idx": [9, 18, 27, 36, 45, 56],
    "attn_cfg": {
        "causal": True,
        "d_conv": 4,
        "head_dim": 128,
        "num_heads": 30,
        "out_proj_bias": False,
        "qkv_proj_bias": False,
        "rotary_emb_dim": 64,
    },
}


def mamba_shapes(config, E=None, N=16, W=4):
    D = config["d_model"]
    E, R = E or 2 * D, -(-D // 16)
    return {
        "in_proj.weight": (2 * E, D),
        "conv1d.weight": (E, 1, W),
        "conv1d.bias": (E,),
        "x_proj.weight": (R + 2 * N, E),
        "dt_proj.weight": (E, R),
        "dt_proj.bias": (E,),
        "A_log": (E, N),
        "D": (E,),
        "out_proj.weight": (D, E),
    }


def mamba2_shapes(config, N=128, P=64, G=1, W=4):
    D = config["d_model"]
    E = 2 * D
    H, C = E // P, E + 2 * G * N
    return {
        "in_proj.weight": (2 * E + 2 * G * N + H, D),
        "conv1d.weight": (C, 1, W),
        "conv1d.bias": (C,),
        "dt_bias": (H,),
        "A_log": (H,),
        "D": (H,),
        "norm.weight": (E,),
        "out_proj.weight": (D, E),
    }


def attention_shapes(config):
    D, attn = config["d_model"], config["attn_cfg"]
    inner = attn["num_heads"] * attn["head_dim"]
    width = inner + 2 * attn.get("num_heads_kv", attn["num_heads"]) * attn["head_dim"]
    return {
        "in_proj.weight": (width, D),
        "conv1d.weight": (width, 1, attn["d_conv"]),
        "conv1d.bias": (width,),
        "out_proj.weight": (D, inner),
    }


def model_shapes(config, mixer_shapes, **sizes):
    """Name -> shape of a whole published state dict."""
    D, rows = config["d_model"], -(-config["vocab_size"] // config["pad_vocab_size_multiple"])
    rows *= config["pad_vocab_size_multiple"]
    shapes = {"backbone.embedding.weight": (rows, D), "backbone.norm_f.weight": (D,), "lm_head.weight": (rows, D)}
    for i in range(config["n_layer"]):
        mixer = attention_shapes(config) if i in config.get("attn_layer_idx", []) else mixer_shapes(config, **sizes)
        shapes |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in mixer.items()}
        shapes[f"backbone.layers.{i}.norm.weight"] = (D,)
        if hidden := config.get("d_intermediate", 0):
            hidden = -(-hidden // 128) * 128
            shapes |= {
                f"backbone.layers.{i}.norm2.weight": (D,),
                f"backbone.layers.{i}.mlp.fc1.weight": (2 * hidden, D),
                f"backbone.layers.{i}.mlp.fc2.weight": (D, hidden),
            }
    return shapes


@pytest.mark.parametrize(
    ("config", "shapes", "parameters"),
    [
        (MAMBA_130M, mamba_shapes, 129_135_360),
        ({**MAMBA_130M, "d_model": 2560, "n_layer": 64}, mamba_shapes, 2_768_345_600),
        (MAMBA2_130M, mamba2_shapes, 128_989_632),
        ({**MAMBA2_130M, "d_model": 2560, "n_layer": 64}, mamba2_shapes, 2_702_599_680),
        (MAMBA2ATTN_2_7B, mamba2_shapes, 2_697_590_880),
        ({**MAMBA2ATTN_2_7B, "d_intermediate": 4096, "n_layer": 32, "attn_layer_idx": [7]}, mamba2_shapes, None),
    ],
    ids=["mamba-130m", "mamba-2.8b", "mamba2-130m", "mamba2-2.7b", "mamba2attn-2.7b", "with MLPs"],
)
def test_released_sizes_map_name_by_name(config, shapes, parameters):
    layout = StateSpaces()
    spec = layout.spec(config, {})
    expected = Expected.of(spec)
    ours = {layout.name_of(name, spec): shape for name, shape in expected.shapes.items()}
    assert ours == model_shapes(config, shapes)
    with torch.device("meta"):
        model = build(spec)
    if parameters is not None:
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    again = layout.spec(layout.config(spec, {}), {})
    assert Expected.of(again) == expected


TINY = {**MAMBA_130M, "d_model": 32, "n_layer": 3, "vocab_size": 37}
TINY2 = {**TINY, "ssm_cfg": {"layer": "Mamba2", "d_state": 16, "headdim": 16}, "pad_vocab_size_multiple": 16}
HYBRID = {
    **TINY2,
    "d_intermediate": 100,
    "attn_layer_idx": [1],
    "attn_cfg": {**MAMBA2ATTN_2_7B["attn_cfg"], "num_heads": 4, "num_heads_kv": 2, "head_dim": 16, "rotary_emb_dim": 8},
}
SHAPES = {
    "mamba": (TINY, model_shapes(TINY, mamba_shapes)),
    "mamba2": (TINY2, model_shapes(TINY2, mamba2_shapes, N=16, P=16)),
    "hybrid": (HYBRID, model_shapes(HYBRID, mamba2_shapes, N=16, P=16)),
}


def published(kind, random_tensors):
    config, shapes = SHAPES[kind]
    weights = random_tensors(shapes)
    return config, {**weights, "lm_head.weight": weights["backbone.embedding.weight"]}


@pytest.mark.parametrize("kind", SHAPES)
def test_round_trip_is_exact(write_published, random_tensors, tmp_path, kind):
    config, weights = published(kind, random_tensors)
    report = convert(write_published("source", config, weights), tmp_path / "run")
    assert report.copies == {"lm_head.weight": "backbone.embedding.weight"}
    assert len(report.mapped) == len(weights) - 1
    convert(tmp_path / "run", tmp_path / "again", to="state-spaces")
    again = torch.load(tmp_path / "again" / "pytorch_model.bin", weights_only=True)
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor), name
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    for name, value in config.items():
        if name == "d_intermediate":
            value = -(-value // 128) * 128
        if isinstance(value, dict):
            assert value.items() <= written[name].items()
        else:
            assert written[name] == value, name


def test_a_hybrid_computes_what_its_definition_says(write_published, random_tensors, tmp_path):
    """Norm and mixer, then norm2 and MLP, on one residual stream; the MLP is fc2(value * silu(gate))."""
    config, weights = published("hybrid", random_tensors)
    convert(write_published("source", config, weights), tmp_path / "run")
    model = load(tmp_path / "run", "cpu").model
    mixers = [block.mixer for block in model.backbone.layers][::2]
    assert [type(mixer).__name__ for mixer in mixers] == ["Mamba2", "Attention", "Mamba2"]
    assert (mixers[1].rotary_dim, mixers[1].n_kv_heads) == (8, 2)
    ids_BL = torch.randint(0, 37, (2, 13))

    def norm(x_BLD, name):
        return F.rms_norm(x_BLD, (32,), weights[f"backbone.{name}.weight"], eps=1e-5)

    with torch.no_grad():
        stream_BLD = weights["backbone.embedding.weight"][ids_BL]
        for i, mixer in enumerate(mixers):
            stream_BLD = stream_BLD + mixer(norm(stream_BLD, f"layers.{i}.norm"))[0]
            hidden = norm(stream_BLD, f"layers.{i}.norm2") @ weights[f"backbone.layers.{i}.mlp.fc1.weight"].T
            value, gate = hidden.chunk(2, dim=-1)
            stream_BLD = stream_BLD + (value * F.silu(gate)) @ weights[f"backbone.layers.{i}.mlp.fc2.weight"].T
        expected_BLV = norm(stream_BLD, "norm_f") @ weights["lm_head.weight"].T
        actual_BLV = model(ids_BL)[0]
    assert actual_BLV.shape[-1] == 37
    torch.testing.assert_close(actual_BLV, expected_BLV[..., :37], atol=1e-3, rtol=1e-4)


def test_names_behind_model_and_half_precision(write_published, random_tensors, tmp_path):
    config, weights = published("mamba", random_tensors)
    halves = {f"model.{name}": tensor.half() for name, tensor in weights.items()}
    report = convert(write_published("source", config, {"state_dict": halves}), tmp_path / "run")
    assert report.dtypes == ("float16", "float32")
    state = load(tmp_path / "run", "cpu").model.state_dict()
    assert torch.equal(state["backbone.layers.0.mixer.A_log"], weights["backbone.layers.0.mixer.A_log"].half().float())


def test_untied_head(write_published, random_tensors, tmp_path):
    config, shapes = SHAPES["mamba"]
    weights = random_tensors(shapes)
    convert(write_published("source", {**config, "tie_embeddings": False}, weights), tmp_path / "run")
    state = load(tmp_path / "run", "cpu").model.state_dict()
    assert torch.equal(state["lm_head.weight"], weights["lm_head.weight"])
    assert not torch.equal(state["lm_head.weight"], state["backbone.embedding.weight"])
    with pytest.raises(ConversionError, match=r"copy: lm_head\.weight differs from backbone\.embedding\.weight"):
        take(StateSpaces(), StateSpaces().spec(config, {}), weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm": False}, "trained with LayerNorm"),
        ({"ssm_cfg": {"layer": "Mamba3"}}, "ssm_cfg.layer='Mamba3': must be one of Mamba1, Mamba2"),
        ({"ssm_cfg": {"d_stat": 16}}, "the option d_stat=16 is not known here; the nearest is 'd_state'"),
        ({"ssm_cfg": {"layer": "Mamba2", "D_has_hdim": True}}, "D_has_hdim=True is not what Mamba2 here is: False"),
        ({"ssm_cfg": {"d_state": 8}}, r"shape: backbone\.layers\.0\.mixer\.A_log is 64x16, .* says 64x8"),
        ({"attn_layer_idx": [5]}, r"attn_layer_idx=\[5\] goes beyond the 3 layers"),
        ({"attn_layer_idx": [1], "attn_cfg": {"num_heads": 2, "mlp_dim": 64}}, "mlp_dim=64 is not what Attention here"),
        ({"n_layers": 3}, "config.json has n_layers, which state-spaces' MambaConfig has not"),
    ],
)
def test_what_cannot_be_said_is_refused(write_published, random_tensors, tmp_path, change, message):
    config, weights = published("mamba", random_tensors)
    source = write_published("source", {**config, **change}, weights)
    with pytest.raises(ConversionError, match=message):
        convert(source, tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


MIXED = {"m": {"_target_": "seqmodels.layers.mamba.Mamba"}, "-": {"_target_": "seqmodels.layers.mlp.MLP"}}


@pytest.mark.parametrize(
    ("backbone", "to", "message"),
    [
        ({"norm_eps": 1e-6, "n_layers": 1}, "state-spaces", "norm_eps=1e-06: state-spaces' layout always has 1e-05"),
        ({"pattern": "m--"}, "state-spaces", "block 2 is an MLP: .* behind every mixer"),
        ({"pattern": "m-"}, "state-spaces", "activation='gelu'.* state-spaces' layout has swiglu"),
        ({"pattern": "m-"}, "hf", "stacks of Mamba or of Mamba-2 layers, not of MLP, Mamba"),
    ],
)
def test_what_a_layout_has_no_place_for(write_run, tmp_path, backbone, to, message):
    layers = {name: {**spec, "_partial_": True} for name, spec in MIXED.items()}
    own = {"layers": layers} if "pattern" in backbone else {"layer": layers["m"]}
    spec = {"_target_": "seqmodels.backbones.stack.Stack", "d_model": 16, **own, **backbone}
    with pytest.raises(ConversionError, match=message):
        convert(write_run("run", backbone=spec), tmp_path / "out", to=to)
    assert not (tmp_path / "out").exists()


def test_a_classifier_has_no_place_there(write_run, tmp_path):
    head = {"_target_": "seqmodels.heads.classification.ClassificationHead"}
    run = write_run("run", head=head, num_classes=3)
    for to in ("hf", "state-spaces"):
        with pytest.raises(ConversionError, match=r"ClassificationHead: .* next-token head"):
            convert(run, tmp_path / "out", to=to)


def test_a_configuration_that_transformers_saved_again(write_published, random_tensors, tmp_path):
    config, weights = published("mamba2", random_tensors)
    added = {"model_type": "mamba", "use_cache": True, "transformers_version": "4.50.0", "torch_dtype": "float32"}
    report = convert(write_published("source", {**config, **added}, weights), tmp_path / "run")
    assert "state-spaces layout, 3 x 32 Mamba2" in report.source
