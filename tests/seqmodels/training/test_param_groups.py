"""Weight decay acts on matrices and on nothing else."""

from __future__ import annotations

import torch

from seqmodels.instantiate import build
from seqmodels.model import model_spec
from seqmodels.training.param_groups import param_groups
from seqmodels.training.tiny import tiny_model


def test_the_published_split():
    spec = tiny_model(n_layers=1)
    model = build(model_spec(spec.backbone, spec.head, vocab_size=6))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decay, no_decay = param_groups(model)
    mixer = "backbone.layers.0.mixer"
    assert {names[id(p)] for p in decay["params"]} == {
        "backbone.embedding.weight",  # tied: once
        *(f"{mixer}.{name}.weight" for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")),
    }
    assert {names[id(p)] for p in no_decay["params"]} == {
        "backbone.norm_f.weight",
        "backbone.layers.0.norm.weight",
        *(f"{mixer}.{name}" for name in ("A_log", "D", "conv1d.bias", "dt_proj.bias")),
    }
    assert "weight_decay" not in decay
    assert no_decay["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out():
    linear = torch.nn.Linear(2, 2)
    linear.weight.requires_grad_(False)
    assert [group["weight_decay"] for group in param_groups(linear)] == [0.0]
