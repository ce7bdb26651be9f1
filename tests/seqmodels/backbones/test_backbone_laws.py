"""The same laws for every YAML in conf/backbone/, made small: causality, cuts, packing, padding, state."""

from __future__ import annotations

import pathlib

import pytest
import torch

from seqmodels import testing
from seqmodels.instantiate import build

BACKBONES = sorted(path.stem for path in (pathlib.Path(__file__).parents[3] / "conf/backbone").glob("*.yaml"))


@pytest.mark.parametrize("name", BACKBONES)
def test_builds_on_the_meta_device_at_full_size(compose, name):
    with torch.device("meta"):
        backbone = build(compose("backbone", name), vocab_size=5)
    assert backbone.embedding.weight.shape == (8, backbone.d_model)
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}


@pytest.mark.parametrize("name", BACKBONES)
def test_laws(compose, name):
    torch.manual_seed(0)
    spec = compose("backbone", name)
    backbone = build({**spec, "d_model": 32, "n_layers": min(spec["n_layers"], 2)}, vocab_size=11)
    testing.check_laws(backbone, torch.randint(0, 11, (2, 19)))
