"""Every YAML in conf/head/: composes, fits its class, builds, gives logits and a loss."""

from __future__ import annotations

import pathlib

import pytest
import torch

from seqmodels.data.record import Batch
from seqmodels.instantiate import build
from seqmodels.model import model_spec

HEADS = sorted(path.stem for path in (pathlib.Path(__file__).parents[3] / "conf/head").glob("*.yaml"))


@pytest.mark.parametrize("name", HEADS)
def test_builds_on_a_backbone_and_trains(compose, name):
    torch.manual_seed(0)
    spec = model_spec(compose("backbone", "mamba_tiny"), compose("head", name), vocab_size=6, num_classes=3)
    model = build(spec)
    ids_BL, lengths_B = torch.randint(0, 6, (2, 12)), torch.tensor([12, 7])
    batch = Batch(ids_BL, lengths_B, ("a", "b"), target_ids_BL=ids_BL, labels_B=torch.tensor([0, 2]))
    logits, _ = model(ids_BL, lengths_B=lengths_B)
    sums = model.head.loss(logits, batch)
    sums.mean_loss().backward()
    assert sums.loss_sum.dtype is torch.float32
    assert {"loss", "bits", "accuracy"} <= sums.metrics().keys()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_builds_on_the_meta_device(compose, name):
    spec = model_spec(compose("backbone", "mamba_tiny"), compose("head", name), vocab_size=6, num_classes=3)
    with torch.device("meta"):
        head = build(spec["head"])
    assert {parameter.device.type for parameter in head.parameters()} == {"meta"}
