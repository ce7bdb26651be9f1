"""Classes by likelihood: Bayes' rule over a language model that is told classes, padded or not, either strand."""

from __future__ import annotations

import json

import pytest
import torch

from domains.dna.tokenizer import BASE_IDS, COMPLEMENT_OF_ID, DnaTokenizer, complement_ids
from seqmodels.backbones.class_conditioned import ClassConditioned
from seqmodels.backbones.stack import Stack
from seqmodels.cli import main
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference import token_log_likelihood
from seqmodels.inference.by_likelihood import ByLikelihood
from seqmodels.layers.mamba import Mamba
from seqmodels.layers.rc_equivariant import reverse_complement_ids
from seqmodels.model import SequenceModel
from seqmodels.testing import assert_same

START = DnaTokenizer.start_id
LENGTHS_B = torch.tensor([18, 7, 1])


def language_model():
    torch.manual_seed(0)
    stack = Stack(vocab_size=12, d_model=16, n_layers=2, layer=lambda width: Mamba(width, d_state=4))
    model = SequenceModel(ClassConditioned(stack, num_classes=3), NextTokenHead(d_model=16, vocab_size=12))
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def test_logits_are_log_likelihoods_of_the_real_bases():
    model = language_model()
    ids_BL = torch.randint(7, 12, (3, 18))
    logits_BO, state = ByLikelihood(model, start_id=START, counted_ids=BASE_IDS)(ids_BL, lengths_B=LENGTHS_B)
    assert state == ()
    for label in range(3):
        begun = model.begin(torch.full((3,), label))
        log_p_BL, _ = token_log_likelihood(model, ids_BL, start_id=START, lengths_B=LENGTHS_B, state=begun)
        assert_same(logits_BO[:, label], (log_p_BL * (ids_BL < 11)).sum(dim=1), f"class {label}")
    assert logits_BO.std(dim=1).min() > 0.01  # classes differ


def test_both_strands_are_their_mean_and_padding_counts_for_nothing():
    model, table = language_model(), torch.from_numpy(COMPLEMENT_OF_ID).long()
    one = ByLikelihood(model, start_id=START, counted_ids=BASE_IDS)
    both = ByLikelihood(model, start_id=START, counted_ids=BASE_IDS, complement_ids=complement_ids())
    ids_BL = torch.randint(7, 12, (3, 18))
    other_BL = reverse_complement_ids(ids_BL, table, lengths_B=LENGTHS_B)
    logits_BO = both(ids_BL, lengths_B=LENGTHS_B)[0]
    assert_same(both(other_BL, lengths_B=LENGTHS_B)[0], logits_BO, "the other strand")
    assert_same(
        logits_BO, (one(ids_BL, lengths_B=LENGTHS_B)[0] + one(other_BL, lengths_B=LENGTHS_B)[0]) / 2, "the mean"
    )
    for row, length in enumerate(LENGTHS_B.tolist()):
        assert_same(both(ids_BL[row : row + 1, :length])[0], logits_BO[row : row + 1], f"row {row} alone")


def test_models_that_are_told_no_class_are_refused():
    stack = Stack(vocab_size=12, d_model=16, n_layers=1, layer=Mamba)
    with pytest.raises(ValueError, match="condition=class"):
        ByLikelihood(SequenceModel(stack, NextTokenHead(d_model=16, vocab_size=12)), start_id=START)


def test_evaluate_names_classes_of_a_language_model(tmp_path, capsys):
    """Two species that differ in their bases: a few steps tell them apart, and N tell nothing."""
    torch.manual_seed(0)
    for name, letters in (("at", "AT"), ("gc", "GC")):
        bases = "".join(letters[bit] for bit in torch.randint(0, 2, (4000,)).tolist())
        (tmp_path / f"{name}.fa").write_text(f">1\n{bases}\n")
    words = [
        "domain=dna_species", "condition=class", f"domain.dataset.species={tmp_path}/*.fa", "backbone=mamba_tiny",
        "domain.dataset.window_bases=64", "domain.dataset.eval_windows_per_species=6", "backbone.n_layers=1",
        "backbone.d_model=16", "trainer.max_steps=20", "trainer.val_every_steps=10", "optimizer.lr=0.02",
        "data.num_workers=0", f"paths.runs={tmp_path}", "name=lm", "trainer.accelerator=cpu",
    ]  # fmt: skip
    assert main(["train", *words]) == 0
    call = ["evaluate", f"run={tmp_path}/lm", "by_likelihood=true", "device=cpu", "data.num_workers=0"]
    for more in ([], ["conjoin=true"]):
        assert main([*call, *more]) == 0
        report = json.loads((tmp_path / "lm" / "results" / "evaluate-test.json").read_text())
        assert report["metrics"]["accuracy"] == 1.0
        assert report["confusion"] == [[6, 0], [0, 6]]
        assert report["by_likelihood"] is True
        assert report["conjoined"] is bool(more)
    assert main([*call, f"per_sequence={tmp_path}/rows.tsv"]) == 0
    columns = (tmp_path / "rows.tsv").read_text().splitlines()[0].split("\t")
    assert set(columns) == {"sequence", "targets", "loss", "accuracy", "bits_per_sequence"}, "of classes, not of bases"
    capsys.readouterr()
    assert main(["evaluate", f"run={tmp_path}/lm", "device=cpu", "data.num_workers=0", "conjoin=true"]) == 1
    assert "next symbols cannot be conjoined" in capsys.readouterr().err
