"""A whole model: published names and counts, the same answers as transformers, the laws end to end."""

from __future__ import annotations

import inspect

import pytest
import torch

import domains.audio  # noqa: F401 - its guard lets transformers import beside a CPU torch
from seqmodels import testing
from seqmodels.heads.classification import ClassificationHead
from seqmodels.inference.generate import Sampling, generate
from seqmodels.instantiate import build
from seqmodels.model import SequenceModel, model_spec


def test_published_names_shapes_and_count_of_mamba_130m(compose):
    spec = model_spec(compose("backbone", "mamba_130m"), compose("head", "next_token"), vocab_size=50277)
    with torch.device("meta"):
        model = build(spec)
    assert sum(p.numel() for p in model.parameters()) == 129_135_360
    layer = {
        "norm.weight": (768,),
        "mixer.A_log": (1536, 16),
        "mixer.D": (1536,),
        "mixer.conv1d.bias": (1536,),
        "mixer.conv1d.weight": (1536, 1, 4),
        "mixer.dt_proj.bias": (1536,),
        "mixer.dt_proj.weight": (1536, 48),
        "mixer.in_proj.weight": (3072, 768),
        "mixer.out_proj.weight": (768, 1536),
        "mixer.x_proj.weight": (80, 1536),
    }
    published = {f"backbone.layers.{i}.{name}": shape for i in range(24) for name, shape in layer.items()}
    published |= {"backbone.embedding.weight": (50280, 768), "backbone.norm_f.weight": (768,)}
    published |= {"lm_head.weight": (50280, 768)}
    assert testing.parameter_names(model) == published


@pytest.mark.parametrize(("name", "vocab_size", "count"), [("dna_1m", 12, 1_401_472), ("dna_7m", 12, 7_012_608)])
def test_dna_presets_have_the_papers_sizes(compose, name, vocab_size, count):
    # figure 5 (left) of the Mamba paper puts its points at 1.401M and 7.013M, with 12 ids padded to 16
    head = {**compose("head", "next_token"), "pad_vocab_to": 16}
    backbone = {**compose("backbone", name), "pad_vocab_to": 16}
    with torch.device("meta"):
        model = build(model_spec(backbone, head, vocab_size=vocab_size))
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.fixture(scope="module")
def published():
    """transformers' Mamba with random weights, and ours with the same."""
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 56, "hidden_size": 48, "num_hidden_layers": 3, "state_size": 8, "time_step_rank": 3}
    theirs = MambaForCausalLM(MambaConfig(**sizes, pad_token_id=0, bos_token_id=0, eos_token_id=None)).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            scale = 0.5 if "embeddings" in name else 0.15  # logits that differ clearly, so that greedy is decided
            parameter.add_(scale * torch.randn_like(parameter))
    layer = {"_target_": "seqmodels.layers.mamba.Mamba", "_partial_": True, "d_state": 8, "dt_rank": 3}
    backbone = {"_target_": "seqmodels.backbones.stack.Stack", "d_model": 48, "n_layers": 3, "layer": layer}
    head = {"_target_": "seqmodels.heads.next_token.NextTokenHead"}
    ours = build(model_spec(backbone, head, vocab_size=56))
    weights = {name.replace(".embeddings.", ".embedding."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(weights, strict=True)
    return theirs, ours.eval()


def test_same_weights_same_logits_as_transformers(published):
    theirs, ours = published
    ids_BL = torch.randint(0, 56, (2, 33))
    with torch.no_grad():
        expected, actual = theirs(ids_BL, use_cache=False).logits, ours(ids_BL)[0]
    assert expected.std() > 0.5
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_same_greedy_tokens_as_transformers(published):
    theirs, ours = published
    prompt_L = torch.randint(0, 56, (9,))
    expected = theirs.generate(prompt_L[None], max_new_tokens=40, do_sample=False)[0, 9:]
    actual = generate(ours, 40, start_id=int(prompt_L[0]), prompt_ids=prompt_L[1:], sampling=Sampling(temperature=0.0))
    assert actual.ids_BL[0].tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 3


def test_laws_hold_end_to_end(small_model):
    testing.check_laws(small_model(), torch.randint(0, 7, (3, 23)))


def test_tied_head_is_the_embedding(small_model):
    model = small_model()
    assert model.head.weight is model.backbone.embedding.weight
    assert model.lm_head is model.head
    with torch.device("meta"):
        emptied = SequenceModel(model.backbone, model.head)
    emptied = emptied.to_empty(device="cpu")
    emptied.tie_weights()
    assert emptied.head.weight is emptied.backbone.embedding.weight


def test_state_dict_round_trip_is_strict(small_model):
    source, target = small_model(), small_model()
    with torch.no_grad():
        target.backbone.embedding.weight.zero_()
    target.load_state_dict(source.state_dict(), strict=True)
    ids_BL = torch.randint(0, 7, (1, 9))
    assert torch.equal(source(ids_BL)[0], target(ids_BL)[0])


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_classification_ignores_padding_end_to_end(small_model, pooling):
    torch.manual_seed(0)
    model = SequenceModel(small_model().backbone, ClassificationHead(d_model=16, num_classes=3, pooling=pooling))
    assert model.head is model.get_submodule("head")
    ids_BL, lengths_B = torch.randint(0, 7, (2, 20)), torch.tensor([13, 20])
    padded_BO, _ = model(ids_BL, lengths_B=lengths_B)
    alone_BO, _ = model(ids_BL[:1, :13])
    torch.testing.assert_close(padded_BO[:1], alone_BO, rtol=1e-5, atol=1e-6)


def test_model_spec_fills_what_each_head_takes():
    backbone = {"_target_": "seqmodels.backbones.stack.Stack", "d_model": 8}
    spec = model_spec(backbone, {"_target_": "seqmodels.heads.next_token.NextTokenHead"}, vocab_size=5, num_classes=3)
    assert spec["backbone"]["vocab_size"] == 5
    assert spec["head"] == {"_target_": "seqmodels.heads.next_token.NextTokenHead", "d_model": 8, "vocab_size": 5}
    assert "vocab_size" not in backbone
    head = {"_target_": "seqmodels.heads.classification.ClassificationHead", "pooling": "last"}
    assert model_spec(backbone, head, vocab_size=5, num_classes=3)["head"] == {**head, "d_model": 8, "num_classes": 3}
    with pytest.raises(ValueError, match="needs labeled classes"):
        model_spec(backbone, head, vocab_size=5)


def test_forward_signature_is_the_contract():
    parameters = inspect.signature(SequenceModel.forward).parameters
    assert list(parameters) == ["self", "ids_BL", "state", "cu_seqlens", "lengths_B"]


@pytest.fixture
def bidirectional(compose):
    """A bidirectional classifier with perturbed weights."""
    torch.manual_seed(0)
    spec = model_spec(
        compose("backbone", "bidirectional", "backbone.d_model=16", "backbone.n_layers=2"),
        compose("head", "classification"),
        vocab_size=12,
        num_classes=3,
    )
    model = build(spec).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def test_a_backbone_that_reads_from_both_ends_never_sees_padding(bidirectional):
    ids_BL, lengths_B = torch.randint(0, 12, (4, 20)), torch.tensor([20, 3, 11, 1])
    together_BO = bidirectional(ids_BL, lengths_B=lengths_B)[0]
    for row, length in enumerate(lengths_B.tolist()):
        alone_BO = bidirectional(ids_BL[row : row + 1, :length])[0]
        testing.assert_same(together_BO[row : row + 1], alone_BO, f"row {row} of {length}")
        ids_BL[row, length:] = 7  # whatever stands there
    assert torch.equal(bidirectional(ids_BL, lengths_B=lengths_B)[0], together_BO)


def test_gradients_pass_through_the_packing(bidirectional):
    bidirectional.requires_grad_(True)
    ids_BL, lengths_B = torch.randint(0, 12, (2, 9)), torch.tensor([9, 4])
    bidirectional(ids_BL, lengths_B=lengths_B)[0].square().sum().backward()
    packed = [parameter.grad.clone() for parameter in bidirectional.parameters()]
    bidirectional.zero_grad()
    for row, length in enumerate(lengths_B.tolist()):
        bidirectional(ids_BL[row : row + 1, :length])[0].square().sum().backward()
    for one, parameter in zip(packed, bidirectional.parameters(), strict=True):
        testing.assert_same(one, parameter.grad, "gradient", tolerance=1e-4)


def test_a_next_token_head_needs_a_causal_backbone(compose):
    with pytest.raises(ValueError, match="and so sees the symbol that NextTokenHead is to predict"):
        build(model_spec(compose("backbone", "bidirectional"), compose("head", "next_token"), vocab_size=12))
