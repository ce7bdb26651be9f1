"""Caduceus Ph and PS and PlantCaduceus: published keys and counts, the function of the fused norm, round trips."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

from seqmodels.cli import main
from seqmodels.inference import load
from seqmodels.interop.caduceus import HEADS, Caduceus
from seqmodels.interop.convert import convert
from seqmodels.interop.mapping import Expected
from seqmodels.interop.report import ConversionError

SSM = {
    "d_state": 16,
    "d_conv": 4,
    "expand": 2,
    "dt_rank": "auto",
    "dt_min": 0.001,
    "dt_max": 0.1,
    "dt_init": "random",
    "dt_scale": 1.0,
    "dt_init_floor": 1e-4,
    "conv_bias": True,
    "bias": False,
    "use_fast_path": True,
}
PAIRS = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, 11, 12, 13, 14, 15]
CONFIG = {
    "architectures": ["CaduceusForMaskedLM"],
    "model_type": "caduceus",
    "torch_dtype": "float32",
    "transformers_version": "4.38.1",
    "d_model": 118,
    "n_layer": 4,
    "vocab_size": 16,
    "ssm_cfg": SSM,
    "rms_norm": True,
    "residual_in_fp32": False,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "norm_epsilon": 1e-5,
    "bidirectional": True,
    "bidirectional_strategy": "add",
    "bidirectional_weight_tie": True,
    "rcps": True,
    "complement_map": {str(token): partner for token, partner in enumerate(PAIRS)},
}
TINY = {**CONFIG, "d_model": 8, "n_layer": 3}
PLANT = {
    **TINY,
    "vocab_size": 8,
    "complement_map": {str(token): partner for token, partner in enumerate([0, 1, 2, 6, 5, 4, 3, 7])},
}
VOCABULARY = {"[PAD]": 0, "[MASK]": 1, "[UNK]": 2, "a": 3, "c": 4, "g": 5, "t": 6}


def shapes(config):
    """Name -> shape of what the authors' model holds, buffers aside."""
    d, rows, is_rcps = config["d_model"], config["vocab_size"], config["rcps"]
    r = -(-d // 16)
    direction = {
        "A_log": (2 * d, 16),
        "D": (2 * d,),
        "in_proj.weight": (4 * d, d),
        "conv1d.weight": (2 * d, 1, 4),
        "conv1d.bias": (2 * d,),
        "x_proj.weight": (r + 32, 2 * d),
        "dt_proj.weight": (2 * d, r),
        "dt_proj.bias": (2 * d,),
        "out_proj.weight": (d, 2 * d),
    }
    stem, sub = "caduceus.backbone", ".submodule" if is_rcps else ""
    norm = ".submodule" if is_rcps and not config["fused_add_norm"] else ""
    found = {
        f"{stem}.embeddings.word_embeddings{'.embedding' if is_rcps else ''}.weight": (rows, d),
        f"{stem}.norm_f{norm}.weight": (d,),
        f"lm_head{'.lm_head' if is_rcps else ''}.weight": (rows, d),
    }
    for i in range(config["n_layer"]):
        found[f"{stem}.layers.{i}.norm{norm}.weight"] = (d,)
        for way in ("mamba_fwd", "mamba_rev"):
            found |= {f"{stem}.layers.{i}.mixer{sub}.{way}.{name}": shape for name, shape in direction.items()}
    return found


def published(config, random_tensors):
    """A state dict as the authors' model saves it, copies and buffers included."""
    weights = random_tensors(shapes(config))
    for name in list(weights):
        if ".mamba_rev." in name and ("in_proj" in name or "out_proj" in name) and config["bidirectional_weight_tie"]:
            weights[name] = weights[name.replace("mamba_rev", "mamba_fwd")].clone()
        if name.startswith("lm_head"):
            weights[name] = next(tensor for key, tensor in weights.items() if "word_embeddings" in key).clone()
    if config["rcps"]:
        pairs = torch.tensor(list(config["complement_map"].values()))
        for table in ("caduceus.backbone.embeddings.word_embeddings", "lm_head"):
            weights[f"{table}.complement_map"] = pairs.clone()
    return weights


@pytest.mark.parametrize("rcps", [True, False], ids=["PS", "Ph"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    ("d_model", "n_layer", "parameters"),
    [(118, 4, 470_702), (256, 4, 1_934_592), (256, 8, 3_864_832), (256, 16, 7_725_312)],
)
def test_released_sizes_map_name_by_name(rcps, fused, d_model, n_layer, parameters):
    config = {**CONFIG, "d_model": d_model, "n_layer": n_layer, "rcps": rcps, "fused_add_norm": fused}
    layout = Caduceus()
    spec = layout.spec(config, layout.symbols(config))
    expected = Expected.of(spec)
    assert {layout.name_of(name, spec): shape for name, shape in expected.shapes.items()} == shapes(config)
    first = {name: shape for name, shape in expected.shapes.items() if expected.first[name] == name}
    assert sum(torch.Size(shape).numel() for shape in first.values()) == parameters


VARIANTS = {
    "PS": TINY,
    "PS, norm not fused": {**TINY, "fused_add_norm": False},
    "Ph": {**TINY, "rcps": False},
    "Ph, not tied, multiplied": {
        **TINY,
        "rcps": False,
        "bidirectional_weight_tie": False,
        "bidirectional_strategy": "ew_multiply",
    },
    "PlantCaduceus": PLANT,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_is_exact(write_published, random_tensors, tmp_path, variant):
    config = VARIANTS[variant]
    weights = published(config, random_tensors)
    report = convert(write_published("source", config, weights), tmp_path / "run")
    assert len(report.mapped) + len(report.copies) + len(report.constants) == len(weights)
    back = convert(tmp_path / "run", tmp_path / "again", to="hf")
    assert "modeling_caduceus.py" in str(back)
    from safetensors.torch import load_file

    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(again[name], tensor), name
        assert again[name].dtype == tensor.dtype
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    for name, value in config.items():
        if name == "ssm_cfg":
            assert written[name].items() <= value.items()
        elif name == "fused_add_norm" and not config["rcps"]:
            continue  # without strands it is a matter of speed
        elif name == "complement_map" and not config["rcps"]:
            assert written[name] is None
        elif name != "transformers_version":
            assert written[name] == value, name


@pytest.mark.parametrize("drop", ["mamba_rev.in_proj", "mamba_fwd.out_proj", "lm_head.lm_head.weight"])
def test_copies_may_be_left_out(write_published, random_tensors, tmp_path, drop):
    weights = published(TINY, random_tensors)
    convert(write_published("source", TINY, weights), tmp_path / "run")
    fewer = {name: tensor for name, tensor in weights.items() if drop not in name}
    assert len(fewer) < len(weights)
    convert(write_published("fewer", TINY, fewer), tmp_path / "run-of-fewer")
    whole, rest = (load(tmp_path / name, "cpu").model.state_dict() for name in ("run", "run-of-fewer"))
    for name, tensor in whole.items():
        assert torch.equal(rest[name], tensor), name


def selective(u_BLE, weights, stem):
    """One direction of one layer, position by position, from the published tensors alone."""

    def of(name):
        return weights[f"{stem}.{name}"]

    u, z = (u_BLE @ of("in_proj.weight").T).chunk(2, dim=-1)
    padded = F.pad(u.transpose(1, 2), (3, 0))
    u = F.silu(F.conv1d(padded, of("conv1d.weight"), of("conv1d.bias"), groups=u.shape[-1])).transpose(1, 2)
    r = of("dt_proj.weight").shape[1]
    dt, b, c = (u @ of("x_proj.weight").T).split([r, 16, 16], dim=-1)
    dt = F.softplus(dt @ of("dt_proj.weight").T + of("dt_proj.bias"))
    a, state, outputs = -torch.exp(of("A_log")), torch.zeros(u.shape[0], u.shape[-1], 16), []
    for t in range(u.shape[1]):
        state = torch.exp(dt[:, t, :, None] * a) * state + (dt[:, t] * u[:, t])[..., None] * b[:, t, None]
        outputs.append((state * c[:, t, None]).sum(-1) + of("D") * u[:, t])
    return (torch.stack(outputs, dim=1) * F.silu(z)) @ of("out_proj.weight").T


def mixer(x_BLD, weights, stem, strategy):
    forth = selective(x_BLD, weights, f"{stem}.mamba_fwd")
    back = selective(x_BLD.flip(1), weights, f"{stem}.mamba_rev").flip(1)
    return forth + back if strategy == "add" else forth * back


def expected_logits(config, weights, ids_BL):
    """What the authors' code computes, from its tensors by their names (fused norm, PS; or Ph)."""
    d, stem = config["d_model"], "caduceus.backbone"

    def norm(x_BLD, name):
        return F.rms_norm(x_BLD, (d,), weights[f"{stem}.{name}.weight"], eps=1e-5)

    def flip(x_BLD):
        return x_BLD.flip(1, 2)

    if not config["rcps"]:
        table, stream = weights[f"{stem}.embeddings.word_embeddings.weight"], 0.0
        x = table[ids_BL]
        for i in range(config["n_layer"]):
            stream = stream + x
            normed = norm(stream, f"layers.{i}.norm")
            x = mixer(normed, weights, f"{stem}.layers.{i}.mixer", config["bidirectional_strategy"])
        return norm(stream + x, "norm_f") @ table.T
    table = weights[f"{stem}.embeddings.word_embeddings.embedding.weight"]
    pairs = torch.tensor(list(config["complement_map"].values()))
    one, two, stream_one, stream_two = table[ids_BL], flip(table[pairs[ids_BL.flip(1)]]), 0.0, 0.0
    for i in range(config["n_layer"]):
        # The fused path normalises the second half as it lies and calls it the first; streams change places too.
        stream_one, stream_two = two + stream_two, one + stream_one
        normed_one = norm(stream_one, f"layers.{i}.norm")
        normed_two = flip(norm(flip(stream_two), f"layers.{i}.norm"))
        name = f"{stem}.layers.{i}.mixer.submodule"
        one = mixer(normed_one, weights, name, config["bidirectional_strategy"])
        two = flip(mixer(flip(normed_two), weights, name, config["bidirectional_strategy"]))
    last_one, last_two = norm(one + stream_one, "norm_f"), flip(norm(flip(two + stream_two), "norm_f"))
    return last_one @ table.T + last_two.flip(-1) @ table[pairs].T


@pytest.mark.parametrize("variant", ["PS", "Ph", "Ph, not tied, multiplied", "PlantCaduceus"])
def test_logits_are_those_of_the_published_definition(write_published, random_tensors, tmp_path, variant):
    config = VARIANTS[variant]
    weights = published(config, random_tensors)
    convert(write_published("source", config, weights), tmp_path / "run")
    model = load(tmp_path / "run", "cpu").model
    bases = torch.randint(3, 7, (2, 21)) if variant == "PlantCaduceus" else torch.randint(7, 12, (2, 21))
    with torch.no_grad():
        actual_BLV = model(bases)[0]
    expected_BLV = expected_logits(config, weights, bases)[..., : actual_BLV.shape[-1]]
    assert actual_BLV.shape[-1] == (12 if config["vocab_size"] == 16 else 8)
    torch.testing.assert_close(actual_BLV, expected_BLV, atol=2e-4, rtol=1e-4)
    if config["rcps"]:
        pairs = torch.tensor(list(config["complement_map"].values()))[: actual_BLV.shape[-1]]
        with torch.no_grad():
            other_BLV = model(pairs[bases.flip(1)])[0]
        torch.testing.assert_close(other_BLV, actual_BLV.flip(1)[..., pairs], atol=1e-4, rtol=1e-4)


def test_ids_are_reported_and_the_tokenizer_is_ours_where_they_agree(write_published, random_tensors, tmp_path, capsys):
    source = write_published("source", TINY, published(TINY, random_tensors))
    assert main(["convert", f"source={source}", f"target={tmp_path / 'run'}"]) == 0
    printed = capsys.readouterr().out
    assert "7 A, 8 C, 9 G, 10 T, 11 N" in printed
    assert "its ids are those of the DNA tokenizer, which it gets" in printed
    assert load(tmp_path / "run", "cpu").tokenizer.spec()["_target_"] == "domains.dna.tokenizer.DnaTokenizer"

    plant = write_published("plant", PLANT, published(PLANT, random_tensors))
    (plant / "tokenizer.json").write_text(json.dumps({"model": {"vocab": VOCABULARY}}))
    assert main(["convert", f"source={plant}", f"target={tmp_path / 'plant-run'}"]) == 0
    printed = capsys.readouterr().out
    assert "3 a, 4 c, 5 g, 6 t" in printed
    assert "its letters have ids of their own" in printed
    loaded = load(tmp_path / "plant-run", "cpu")
    assert loaded.tokenizer.encode("gat").tolist() == [5, 3, 6]
    assert loaded.model.backbone.vocab_size == 7  # of 8 rows

    assert main(["generate", f"run={tmp_path / 'run'}"]) == 1
    assert "trained to fill in hidden symbols; this needs one that was trained to predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bidirectional": False}, "only bidirectional Caduceus models are read"),
        ({"rms_norm": False}, "trained with LayerNorm"),
        ({"complement_map": None}, "rcps=true, but config.json has no complement_map"),
        ({"fused_add_norm": False}, r"missing: caduceus\.backbone\.layers\.0\.norm\.submodule\.weight"),
        ({"rcps": False}, r"missing: caduceus\.backbone\.embeddings\.word_embeddings\.weight"),
        ({"complement_map": {str(i): i for i in range(16)}}, r"constant: lm_head\.complement_map is not what"),
        ({"complement_map": {str(i): (i + 1) % 16 for i in range(16)}}, "complement of a complement must be the id"),
    ],
)
def test_what_does_not_fit_is_named(write_published, random_tensors, tmp_path, change, message):
    source = write_published("source", {**TINY, **change}, published(TINY, random_tensors))
    with pytest.raises(ValueError, match=message):
        convert(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_directions_that_should_share_weights_and_do_not(write_published, random_tensors, tmp_path):
    weights = published(TINY, random_tensors)
    weights["caduceus.backbone.layers.1.mixer.submodule.mamba_rev.in_proj.weight"] += 1
    with pytest.raises(ConversionError, match=r"copy: .*layers\.1.*rev\.in_proj\.weight differs from .*mamba_fwd"):
        convert(write_published("source", TINY, weights), tmp_path / "run")


def test_mamba2_in_both_directions_is_told_by_its_tensors(write_published, random_tensors, tmp_path):
    """PlantCAD2: the configuration of Caduceus, and Mamba-2's tensors."""
    ssm = {"bias": False, "conv_bias": True, "d_conv": 4, "d_state": 16, "dt_init_floor": 1e-4, "dt_max": 0.1}
    config = {**PLANT, "d_model": 64, "d_intermediate": 0, "pad_token_id": -100, "ssm_cfg": {**ssm, "expand": 2}}
    d, channels, heads = 64, 128 + 2 * 16, 2
    direction = {
        "in_proj.weight": (128 + channels + heads, d),
        "conv1d.weight": (channels, 1, 4),
        "conv1d.bias": (channels,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (128,),
        "out_proj.weight": (d, 128),
    }
    wanted = {name: shape for name, shape in shapes(config).items() if ".mixer." not in name}
    for i in range(config["n_layer"]):
        for way in ("fwd", "rev"):
            stem = f"caduceus.backbone.layers.{i}.mixer.submodule.mamba_{way}"
            wanted |= {f"{stem}.{name}": shape for name, shape in direction.items()}
    weights = random_tensors({name: s for name, s in wanted.items() if not name.startswith("lm_head")})
    weights = {name: tensor for name, tensor in weights.items() if not ("mamba_rev" in name and "_proj" in name)}
    convert(write_published("source", config, weights), tmp_path / "run")
    model = load(tmp_path / "run", "cpu").model
    layer = model.backbone.layers[0].mixer
    assert type(layer.mamba_rev).__name__ == "Mamba2"
    assert layer.mamba_rev.in_proj is layer.mamba_fwd.in_proj
    convert(tmp_path / "run", tmp_path / "again", to="hf")
    convert(tmp_path / "again", tmp_path / "back")
    for name, tensor in load(tmp_path / "back", "cpu").model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize("kind", ["ps", "ph"])
def test_a_model_of_ours_from_yaml_is_exported(write_run, compose, tmp_path, kind):
    from domains.dna.tokenizer import complement_ids

    backbone = compose("backbone", f"caduceus_{kind}_470k", "backbone.d_model=16", "backbone.n_layers=2")
    table = {"complement_ids": complement_ids()} if kind == "ps" else {}
    run = write_run("run", backbone=backbone, head={"_target_": HEADS[kind == "ps"], **table})
    convert(run, tmp_path / "published", to="hf")
    convert(tmp_path / "published", tmp_path / "again")
    ours, again = load(run, "cpu").model, load(tmp_path / "again", "cpu").model
    ids_BL = torch.randint(7, 12, (2, 15))
    with torch.no_grad():
        assert torch.equal(again(ids_BL)[0], ours(ids_BL)[0])
    with pytest.raises(ConversionError, match=r"RCPSStack has no counterpart|has a next-token head and no other"):
        convert(run, tmp_path / "other", to="state-spaces")


def test_other_bidirectional_layers_have_no_place_there(write_run, compose, tmp_path):
    backbone = compose("backbone", "bidirectional", "backbone.d_model=16", "backbone.layer.halve=true")
    run = write_run("run", backbone=backbone, head={"_target_": HEADS[False]})
    with pytest.raises(ConversionError, match=r"has Mamba in both directions.*halve=True"):
        convert(run, tmp_path / "out", to="hf")
    head = {"_target_": "seqmodels.heads.classification.ClassificationHead"}
    run = write_run("labels", backbone={**backbone, "n_layers": 1}, head=head, num_classes=2)
    with pytest.raises(ConversionError, match=r"ClassificationHead: Caduceus' layout has MaskedTokenHead"):
        convert(run, tmp_path / "out", to="hf")


def test_fine_tuning_starts_from_converted_weights(write_published, random_tensors, tmp_path, capsys):
    source, run = write_published("source", TINY, published(TINY, random_tensors)), tmp_path / "run"
    assert main(["convert", f"source={source}", f"target={run}"]) == 0
    words = ["experiment=species_vertebrates", "head=rc_classification", f"paths.runs={tmp_path}", "name=tuned"]
    words += ["trainer.max_steps=1", "data.batch_size=2", "domain.dataset.window_bases=32", "optimizer.lr=0.0"]
    words += ["domain.dataset.eval_windows_per_species=1", f"model_from={run}"]
    assert main(["train", *words]) == 0
    assert "left behind: lm_head.weight" in capsys.readouterr().out
    before, after = (load(folder, "cpu").model.state_dict() for folder in (run, tmp_path / "tuned"))
    assert type(load(tmp_path / "tuned", "cpu").model.head).__name__ == "RCClassificationHead"
    backbone = [name for name in before if name.startswith("backbone.")]
    assert len(backbone) > 30
    for name in backbone:
        assert torch.equal(after[name], before[name]), name

    assert main(["train", f"resume={run}"]) == 1
    assert "was converted, not trained here" in capsys.readouterr().err
