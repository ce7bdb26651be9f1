"""Every YAML in conf/head/: composes, fits its class, builds, gives logits and a loss."""

from __future__ import annotations

import pathlib

import pytest
import torch

from seqmodels.data.record import Batch
from seqmodels.instantiate import build, locate
from seqmodels.model import model_spec

BACKBONES = {1: ("mamba_tiny", []), 2: ("caduceus_ps_470k", ["backbone.n_layers=2", "backbone.d_model=16"])}
HEADS = sorted(path.stem for path in (pathlib.Path(__file__).parents[3] / "conf/head").glob("*.yaml"))


def spec_for(compose, name):
    """A model with this head on a small backbone that has as many strands as it reads."""
    head = compose("head", name)
    backbone, words = BACKBONES[locate(head["_target_"]).strands]
    return model_spec(compose("backbone", backbone, *words), head, vocab_size=12, num_classes=3)


@pytest.mark.parametrize("name", HEADS)
def test_builds_on_a_backbone_and_trains(compose, name):
    torch.manual_seed(0)
    model = build(spec_for(compose, name))
    ids_BL, lengths_B = torch.randint(0, 12, (2, 12)), torch.tensor([12, 7])
    batch = Batch(ids_BL, lengths_B, ("a", "b"), target_ids_BL=ids_BL, labels_B=torch.tensor([0, 2]))
    logits, _ = model(ids_BL, lengths_B=lengths_B)
    sums = model.head.loss(logits, batch)
    sums.mean_loss().backward()
    assert sums.loss_sum.dtype is torch.float32
    hit = "level_error" if name == "mixture_of_logistics" else "accuracy"
    assert {"loss", "bits", hit} <= sums.metrics().keys()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_builds_on_the_meta_device(compose, name):
    with torch.device("meta"):
        head = build(spec_for(compose, name)["head"])
    assert {parameter.device.type for parameter in head.parameters()} == {"meta"}
