"""The k-mer baseline: counts by hand, and labels that k-mers can and cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from domains.dna.baselines import ClassificationResult, LogisticRegression, kmer_baseline, kmer_counts, kmer_features
from domains.dna.datasets import SequenceTable, SpeciesWindows
from domains.dna.tokenizer import DnaTokenizer
from seqmodels.data.record import Record

ENCODE = DnaTokenizer().encode


def test_kmers_by_hand():
    counts = kmer_counts(ENCODE("AACAANAC"), 2)
    found = {divmod(int(kmer), 4): int(counts[kmer]) for kmer in np.flatnonzero(counts)}
    assert found == {(0, 0): 2, (0, 1): 2, (1, 0): 1}
    assert kmer_counts(ENCODE("A"), 2).sum() == 0
    assert kmer_counts(ENCODE("TTTTT"), 5).argmax() == 4**5 - 1
    with pytest.raises(ValueError, match="k=11"):
        kmer_counts(ENCODE("ACGT"), 11)


def test_features_do_not_depend_on_the_length_of_the_window():
    short, long = (kmer_features([Record("x", ENCODE("ACGT" * n), label=0)], 1)[0] for n in (50, 500))
    assert torch.allclose(short, long)
    with pytest.raises(ValueError, match="y has no label"):
        kmer_features([Record("y", ENCODE("ACGT"))], 1)


def test_logistic_regression_reaches_the_known_optimum():
    """One binary feature: the fitted log-odds are those of the counts."""
    features = torch.tensor([[0.0]] * 10 + [[1.0]] * 10)
    labels = torch.tensor([1] * 2 + [0] * 8 + [1] * 7 + [0] * 3)
    model = LogisticRegression(features, labels, classes=2, l2=0.0)
    assert model.predict(torch.tensor([[0.0], [1.0]])).tolist() == [0, 1]
    standardised = (torch.tensor([[0.0], [1.0]]) - model.mean) / model.scale
    logits = (model.weight @ standardised.T + model.bias).T.detach()
    odds = (logits[:, 1] - logits[:, 0]).tolist()
    assert odds == pytest.approx([np.log(2 / 8), np.log(7 / 3)], abs=1e-3)


def test_result_by_hand():
    result = ClassificationResult(("a", "b", "c"), np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), 0.1)
    assert result.accuracy == 5 / 8
    assert result.macro_recall == (3 / 4 + 2 / 4) / 2


def test_baseline_tells_what_differs_and_only_that(write_fasta, random_bases):
    same = {name: str(write_fasta({"c": random_bases(20_000, seed)}, f"{name}.fa")) for seed, name in enumerate("ab")}
    skewed = {"a": same["a"], "b": str(write_fasta({"c": random_bases(20_000, 9, "AACGT")}, "skewed.fa"))}
    results = [
        kmer_baseline(SpeciesWindows(species, window_bases=200, eval_windows_per_species=100), k=2, train_windows=400)
        for species in (same, skewed)
    ]
    assert results[0].accuracy == pytest.approx(0.5, abs=0.15)
    assert results[1].accuracy > 0.7
    assert results[1].confusion.sum() == 200
    assert results[1].class_names == ("a", "b")


def test_labelled_sequences_are_all_taken(tmp_path):
    """Two classes that 1-mers tell apart; the strength is tuned on the sequences drawn for validation."""
    rng = np.random.default_rng(0)
    lines = ["sequence,label,split"]
    for number in range(60):
        label = number % 2
        letters = "".join(rng.choice(list("AATC" if label else "GGCA"), size=30))
        lines.append(f"{letters},{label},{'test' if number >= 40 else 'train'}")
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    result = kmer_baseline(SequenceTable(str(tmp_path / "x.csv"), valid_fraction=0.2), k=1)
    assert result.confusion.tolist() == [[10, 0], [0, 10]]
