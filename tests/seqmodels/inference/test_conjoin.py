"""Conjoining: the mean over both strands does not depend on the strand, padded or not, for labels and symbols."""

from __future__ import annotations

import json

import pytest
import torch

from domains.dna.tokenizer import COMPLEMENT_OF_ID, DnaTokenizer, complement_ids
from seqmodels.backbones.stack import Stack
from seqmodels.cli import main
from seqmodels.heads.classification import ClassificationHead
from seqmodels.heads.masked_token import MaskedTokenHead
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference.conjoin import Conjoined
from seqmodels.layers.bidirectional import Bidirectional
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.rc_equivariant import reverse_complement_ids, reverse_rows
from seqmodels.model import SequenceModel
from seqmodels.testing import assert_same

TABLE = torch.from_numpy(COMPLEMENT_OF_ID).long()


def both_ways(d_model):
    return Bidirectional(d_model, layer=lambda width: Mamba(width, d_state=4))


def conjoined(head, layer=both_ways):
    torch.manual_seed(0)
    model = SequenceModel(Stack(vocab_size=12, d_model=16, n_layers=2, layer=layer), head).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return Conjoined(model.eval(), complement_ids()), model


@pytest.mark.parametrize("layer", [both_ways, Mamba], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_labels_do_not_depend_on_the_strand(layer, pooling):
    both, model = conjoined(ClassificationHead(d_model=16, num_classes=3, pooling=pooling), layer)
    ids_BL, lengths_B = torch.randint(7, 12, (3, 18)), torch.tensor([18, 7, 1])
    other_BL = reverse_complement_ids(ids_BL, TABLE, lengths_B=lengths_B)
    logits_BO = both(ids_BL, lengths_B=lengths_B)[0]
    assert_same(both(other_BL, lengths_B=lengths_B)[0], logits_BO, "logits of the other strand")
    for row, length in enumerate(lengths_B.tolist()):
        assert_same(both(ids_BL[row : row + 1, :length])[0], logits_BO[row : row + 1], f"row {row} alone")
    alone_BO, other_BO = (model(ids, lengths_B=lengths_B)[0] for ids in (ids_BL, other_BL))
    assert_same(logits_BO, (alone_BO + other_BO) / 2, "the mean")
    assert (alone_BO - other_BO).abs().max() > 1e-2  # the model itself does depend on it
    assert not both.training


def test_symbols_of_the_other_strand_are_the_complements_back_to_front():
    both, _ = conjoined(MaskedTokenHead(d_model=16, vocab_size=12))
    ids_BL, lengths_B = torch.randint(7, 12, (2, 18)), torch.tensor([18, 7])
    other_BL = reverse_complement_ids(ids_BL, TABLE, lengths_B=lengths_B)
    logits_BLV, other_BLV = (both(ids, lengths_B=lengths_B)[0] for ids in (ids_BL, other_BL))
    expected_BLV = reverse_rows(logits_BLV[..., TABLE], lengths_B)
    assert_same(other_BLV, expected_BLV, "logits of the other strand")
    assert_same(both(other_BL[:1])[0], logits_BLV[:1].flip(1)[..., TABLE], "without lengths")


def test_weights_are_shared_under_the_same_names():
    both, model = conjoined(ClassificationHead(d_model=16, num_classes=3))
    assert both.state_dict().keys() == model.state_dict().keys()
    assert both.head.classifier.weight is model.head.classifier.weight


def test_reversed_rows():
    rows_BL = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert reverse_rows(rows_BL, torch.tensor([4, 2])).tolist() == [[4, 3, 2, 1], [6, 5, 7, 8]]


def test_what_cannot_be_conjoined():
    with pytest.raises(ValueError, match="a model of next symbols cannot be conjoined"):
        conjoined(NextTokenHead(d_model=16, vocab_size=12), Mamba)
    both, _ = conjoined(ClassificationHead(d_model=16, num_classes=3))
    with pytest.raises(ValueError, match="no state"):
        both(torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1))


def test_evaluate_conjoined(tmp_path, capsys):
    words = ["backbone.d_model=8", "backbone.n_layers=1", "data.batch_size=2", "domain.dataset.window_bases=32"]
    words += ["trainer.max_steps=1", f"paths.runs={tmp_path}", "name=run", "domain.dataset.eval_windows_per_species=1"]
    assert main(["train", "experiment=species_vertebrates", *words]) == 0
    metrics = []
    for word in ("conjoin=false", "conjoin=true"):
        assert main(["evaluate", f"run={tmp_path / 'run'}", word, f"output={tmp_path / 'out.json'}"]) == 0
        report = json.loads((tmp_path / "out.json").read_text())
        assert report["conjoined"] == (word == "conjoin=true")
        metrics.append(report["metrics"]["bits_per_sequence"])
    assert metrics[0] != metrics[1]
    assert DnaTokenizer.complement_ids[7] == 10
