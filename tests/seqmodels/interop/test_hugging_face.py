"""transformers' Mamba and Mamba-2: the same random weights give the same logits and the same greedy continuation."""

from __future__ import annotations

import json

import pytest
import torch

import domains.audio  # noqa: F401 - transformers imports torchaudio, which this makes importable beside any torch
from seqmodels.inference import Sampling, generate, load
from seqmodels.interop.convert import convert
from seqmodels.interop.report import ConversionError

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 37, "layer_norm_epsilon": 1e-5}
CONFIGS = {
    "mamba": lambda **own: transformers.MambaConfig(**{**SIZES, "state_size": 8, **own}),
    "mamba2": lambda **own: transformers.Mamba2Config(
        **{**SIZES, "state_size": 16, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8, **own}
    ),
}
DNA = "domains.dna.tokenizer.DnaTokenizer"
CLASSES = {"mamba": "MambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}


@pytest.fixture
def published(tmp_path):
    """published("mamba", ...) -> a random model of transformers', and the folder that it was saved to."""

    def make(kind: str, max_shard_size: str = "50GB", **own):
        torch.manual_seed(0)
        model = getattr(transformers, CLASSES[kind])(CONFIGS[kind](**own)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.02 if "A_log" in name else 0.1
                parameter.add_(scale * torch.randn_like(parameter))
        folder = tmp_path / "published"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        return model, folder

    return make


@pytest.fixture
def ids_BL():
    return torch.randint(0, 37, (2, 45), generator=torch.Generator().manual_seed(1))


VARIANTS = [
    ("mamba", {}),
    ("mamba", {"use_bias": True, "use_conv_bias": False, "expand": 3, "time_step_rank": 5, "conv_kernel": 3}),
    ("mamba", {"tie_word_embeddings": False}),
    ("mamba2", {}),
    ("mamba2", {"n_groups": 1, "use_bias": True, "tie_word_embeddings": True, "layer_norm_epsilon": 1e-3}),
]


@pytest.mark.parametrize(("kind", "own"), VARIANTS)
def test_same_logits_and_same_greedy_continuation(published, ids_BL, tmp_path, kind, own):
    theirs, folder = published(kind, **own)
    report = convert(folder, tmp_path / "run")
    ours = load(tmp_path / "run", "cpu").model
    with torch.no_grad():
        expected_BLV, actual_BLV = theirs(ids_BL).logits, ours(ids_BL)[0]
    assert expected_BLV.std() > 0.1
    torch.testing.assert_close(actual_BLV, expected_BLV, atol=1e-4, rtol=1e-4)

    prompt_B = ids_BL[:, :9]
    wanted = theirs.generate(prompt_B, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)[:, 9:]
    for row in range(2):  # `generate` reads a start id in front of the prompt: here the prompt's own first id
        first, *rest = prompt_B[row].tolist()
        greedy = Sampling(temperature=0.0)
        made = generate(ours, 12, start_id=first, prompt_ids=torch.tensor(rest), sampling=greedy)
        assert torch.equal(made.ids_BL[0], wanted[row])

    count = sum(parameter.numel() for parameter in theirs.parameters())
    assert report.parameters == count == sum(parameter.numel() for parameter in ours.parameters())
    assert report.missing == report.unused == ()


@pytest.mark.parametrize(("kind", "own"), VARIANTS)
def test_round_trip_is_exact(published, tmp_path, kind, own):
    theirs, folder = published(kind, **own)
    convert(folder, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "again", to="hf")
    reloaded = getattr(transformers, CLASSES[kind]).from_pretrained(tmp_path / "again")
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], tensor), name
    saved = json.loads((folder / "config.json").read_text())
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    names = saved.keys() & written.keys() - {"transformers_version", "architectures", "eos_token_id", "pad_token_id"}
    names -= {"dtype", "torch_dtype", "bos_token_id"}
    assert {name: written[name] for name in names} == {name: saved[name] for name in names}
    assert len(names) > 12
    convert(tmp_path / "again", tmp_path / "run-again")
    first, second = (load(tmp_path / name, "cpu") for name in ("run", "run-again"))
    assert first.meta["model"] == second.meta["model"]
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], tensor), name


def test_a_padded_vocabulary_survives(write_run, tmp_path):
    run = write_run("dna", vocab_size=12)
    report = convert(run, tmp_path / "hf", to="hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["vocab_size"], config["unpadded_vocab_size"], config["bos_token_id"]) == (16, 12, 2)
    assert (config["eos_token_id"], config["pad_token_id"]) == (None, 4)
    assert "logits 12 to 15 belong to rows that stand for nothing" in str(report)
    theirs = transformers.MambaForCausalLM.from_pretrained(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "back", dataset={"tokenizer": {"_target_": DNA}})
    ours, back = load(run, "cpu"), load(tmp_path / "back", "cpu")
    assert back.tokenizer.spec() == ours.tokenizer.spec()
    ids_BL = torch.randint(7, 12, (1, 20))
    with torch.no_grad():
        expected_BLV = ours.model(ids_BL)[0]
        assert expected_BLV.shape == (1, 20, 12)
        assert torch.equal(back.model(ids_BL)[0], expected_BLV)
        torch.testing.assert_close(theirs(ids_BL).logits[..., :12], expected_BLV, atol=1e-4, rtol=1e-4)


def test_shards_are_joined(published, ids_BL, tmp_path):
    theirs, folder = published("mamba", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    convert(folder, tmp_path / "run")
    with torch.no_grad():
        torch.testing.assert_close(
            load(tmp_path / "run", "cpu").model(ids_BL)[0], theirs(ids_BL).logits, atol=1e-4, rtol=1e-4
        )
    next(folder.glob("*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"index\.json names \d+ shards, of which .* is missing"):
        convert(folder, tmp_path / "other")


def test_exported_in_bf16_and_back(published, tmp_path):
    _, folder = published("mamba2")
    convert(folder, tmp_path / "run")
    report = convert(tmp_path / "run", tmp_path / "bf16", to="hf", dtype="bfloat16")
    assert report.dtypes == ("float32", "bfloat16")
    again = convert(tmp_path / "bf16", tmp_path / "rounded")
    assert again.dtypes == ("bfloat16", "float32")
    convert(tmp_path / "rounded", tmp_path / "bf16-again", to="hf", dtype="bfloat16")
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("bf16", "bf16-again"))
    assert first == second
    assert load(tmp_path / "rounded", "cpu").model.backbone.embedding.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("mamba", {"hidden_act": "gelu"}, r"hidden_act='gelu' is not what Mamba here is: 'silu'"),
        ("mamba", {"intermediate_size": 80}, r"intermediate_size is 80, and expand \* hidden_size 64"),
        ("mamba", {"expand": 3, "intermediate_size": 96}, r"shape: .*in_proj.weight is 128x32, .* says 192x32"),
        ("mamba", {"num_hidden_layers": 4}, r"missing: backbone\.layers\.3\.norm\.weight \(32\)"),
        ("mamba", {"num_hidden_layers": 2}, r"unused: backbone\.layers\.2\.mixer\.A_log \(64x8\)"),
        ("mamba", {"tie_word_embeddings": False}, r"missing: lm_head\.weight \(37x32\)"),
        ("mamba2", {"time_step_limit": [0.001, 0.1]}, r"time_step_limit=\[0\.001, 0\.1\] is not what Mamba2 here is"),
        ("mamba", {"model_type": "falcon_mamba"}, r"'falcon_mamba', which is not known here; the nearest is 'mamba'"),
        ("mamba", {"model_type": "llama"}, r"'llama', which is not known here.* Known: mamba, mamba2"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(published, tmp_path, kind, change, message):
    _, folder = published(kind)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConversionError, match=message):
        convert(folder, tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["published"]


def test_a_copy_that_differs_is_refused(published, tmp_path):
    from safetensors.torch import load_file, save_file

    _, folder = published("mamba")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, "lm_head.weight": weights["backbone.embeddings.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(ConversionError, match=r"copy: lm_head\.weight differs from backbone\.embeddings\.weight"):
        convert(folder, tmp_path / "run")
    copied = {**weights, "lm_head.weight": weights["backbone.embeddings.weight"].clone()}
    save_file(copied, folder / "model.safetensors")
    assert convert(folder, tmp_path / "run").copies == {"lm_head.weight": "backbone.embeddings.weight"}
