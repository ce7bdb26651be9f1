"""Caduceus presets: the published parameter counts, exactly, and what composes from YAML is RC-equivariant."""

from __future__ import annotations

import pytest
import torch

from domains.dna.tokenizer import COMPLEMENT_OF_ID, complement_ids
from seqmodels.heads.masked_token import MaskedTokenHead
from seqmodels.heads.rc_equivariant import RCMaskedTokenHead
from seqmodels.instantiate import build
from seqmodels.model import SequenceModel, model_spec
from seqmodels.testing import assert_same

COUNTS = {"470k": 470_702, "1m9": 1_934_592, "7m7": 7_725_312}


@pytest.mark.parametrize("kind", ["ps", "ph"])
@pytest.mark.parametrize("size", COUNTS)
def test_published_parameter_counts(compose, kind, size):
    with torch.device("meta"):
        backbone = build(compose("backbone", f"caduceus_{kind}_{size}"), vocab_size=12)
        sizes = {"d_model": backbone.d_model, "vocab_size": 12}
        if kind == "ps":
            head = RCMaskedTokenHead(**sizes, complement_ids=complement_ids())
        else:
            head = MaskedTokenHead(**sizes)
        model = SequenceModel(backbone, head)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[size]
    assert not backbone.is_causal


def test_the_yaml_pairs_the_ids_of_dna(compose):
    torch.manual_seed(0)
    words = ["backbone.d_model=16", "backbone.n_layers=3"]
    spec = model_spec(
        compose("backbone", "caduceus_ps_470k", *words),
        compose("head", "rc_classification"),
        vocab_size=12,
        num_classes=2,
    )
    model = build(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        ids_BL = torch.randint(7, 12, (2, 31))
        other_BL = torch.from_numpy(COMPLEMENT_OF_ID)[ids_BL.flip(1)].long()
        hidden_BLC = model.backbone(ids_BL)[0]
        assert_same(model.backbone(other_BL)[0], hidden_BLC.flip(1, 2), "hidden states of the other strand")
        assert_same(model(other_BL)[0], model(ids_BL)[0], "logits of the other strand")
