"""Every substitution against scoring each mutated window by itself; the table, the figure, one-hot input."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from domains.dna.mutagenesis import Mutagenesis
from domains.dna.one_hot import OneHotModel
from domains.dna.tokenizer import BASE_IDS, DnaTokenizer, reverse_complement_ids
from seqmodels.backbones.rc_equivariant import RCPSStack
from seqmodels.backbones.stack import Stack
from seqmodels.heads.classification import ClassificationHead
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.heads.rc_equivariant import RCClassificationHead
from seqmodels.inference import token_log_likelihood
from seqmodels.layers.bidirectional import Bidirectional
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel

LETTERS = "ACGTTGCAACGGTTNACCTGACGTACGATTAGCCATGA"


def loaded(classes: int = 0) -> SimpleNamespace:
    torch.manual_seed(0)
    tokenizer = DnaTokenizer()
    backbone = Stack(vocab_size=tokenizer.vocab_size, d_model=16, n_layers=2, layer=partial(Mamba, d_state=4))
    language = NextTokenHead(d_model=16, vocab_size=tokenizer.vocab_size)
    head = ClassificationHead(d_model=16, num_classes=classes) if classes else language
    return SimpleNamespace(model=SequenceModel(backbone, head).eval(), tokenizer=tokenizer, folder=Path("run"))


def log_likelihood(of: SimpleNamespace, ids: np.ndarray) -> float:
    ids_BL = torch.from_numpy(ids.astype(np.int64))[None]
    nats = token_log_likelihood(of.model, ids_BL, start_id=of.tokenizer.start_id)[0].double()
    return float(nats[torch.isin(ids_BL, torch.tensor(BASE_IDS))].sum())


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize(("first", "last", "block", "batch"), [(0, 38, 7, 5), (11, 17, 16, 48), (37, 38, 1, 1)])
def test_scores_equal_those_of_each_mutated_window(first, last, block, batch, both_strands):
    of = loaded()
    ids = of.tokenizer.encode(LETTERS)
    strands = [lambda ids: ids, reverse_complement_ids][: 1 + both_strands]
    moves: list[int] = []
    scorer = Mutagenesis(both_strands=both_strands, block_bases=block, batch_size=batch)
    scores = scorer.scores(of.model, ids, first, last, progress=lambda done, total: moves.append(done))
    reference = np.mean([log_likelihood(of, strand(ids)) for strand in strands])
    for position in range(first, last):
        for column, base in enumerate(BASE_IDS):
            got = scores[position - first, column]
            if ids[position] not in BASE_IDS:
                assert np.isnan(got)
                continue
            mutated = ids.copy()
            mutated[position] = base
            expected = np.mean([log_likelihood(of, strand(mutated)) for strand in strands]) - reference
            assert got == pytest.approx(expected, abs=2e-5), (position, base)
    assert moves[-1] == last - first
    assert moves == sorted(moves)


def test_a_region_becomes_a_table_and_a_figure(tmp_path, write_fasta):
    fasta = str(write_fasta({"chr1": LETTERS * 3}))
    of, out = loaded(), tmp_path / "sub/scores.tsv"
    scorer = Mutagenesis(window_bases=60, block_bases=5)
    counts = scorer(of, fasta, "1:41-60", str(out), figure=str(tmp_path / "sub/scores.png"))
    assert (counts["positions"], counts["not A, C, G, T"]) == (20, 1)
    with out.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["pos"] for row in rows] == [str(pos) for pos in range(41, 61)]
    assert "".join(row["ref"] for row in rows) == (LETTERS * 3)[40:60]
    window = of.tokenizer.encode((LETTERS * 3)[20:80])
    expected = scorer.scores(of.model, window, 20, 40)
    for row, scores in zip(rows, expected, strict=True):
        cells = [float(row[base]) if row[base] else np.nan for base in "ACGT"]
        np.testing.assert_allclose(cells, scores, rtol=1e-4, atol=1e-6)
    assert (tmp_path / "sub/scores.png").read_bytes()[:4] == b"\x89PNG"
    pos, change = counts["most harmful"].split(":")[1].split()[:2]
    worst = min(float(row[base]) for row in rows for base in "ACGT" if row[base])
    assert float(rows[int(pos) - 41][change[-1]]) == worst


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ("chr1", "must look like chr1:1000-1200"),
        ("chr9:1-5", "no record 'chr9'"),
        ("chr1:0-5", "positions 1-38"),
        ("chr1:30-39", "positions 1-38"),
        ("chr1:9-5", "positions 1-38"),
    ],
)
def test_bad_regions_are_named(tmp_path, write_fasta, region, message):
    fasta = str(write_fasta({"chr1": LETTERS}))
    with pytest.raises(ValueError, match=message):
        Mutagenesis()(loaded(), fasta, region, str(tmp_path / "o.tsv"))
    assert not (tmp_path / "o.tsv").exists()


def test_targets_that_cannot_be_written_are_found_before_the_work(tmp_path, write_fasta, monkeypatch):
    fasta = str(write_fasta({"chr1": LETTERS}))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Mutagenesis, "scores", lambda *args, **settings: pytest.fail("scored"))
    for output, figure, named in (("file/o.tsv", None, "output"), ("o.tsv", "file/o.png", "figure")):
        figure = figure and str(tmp_path / figure)
        with pytest.raises(ValueError, match=f"{named}=.* cannot be written"):
            Mutagenesis()(loaded(), fasta, "chr1:1-5", str(tmp_path / output), figure=figure)


def one_hot(letters: str) -> torch.Tensor:
    return torch.tensor([[float(letter == base) for letter in letters] for base in "ACGT"])


def test_one_hot_input_gives_the_likelihood_and_a_true_gradient():
    of = loaded()
    model = OneHotModel(of)
    X_N4L = torch.stack([one_hot(LETTERS), one_hot(LETTERS[::-1])])
    with torch.no_grad():
        got = model(X_N4L)
    expected = [[log_likelihood(of, of.tokenizer.encode(letters))] for letters in (LETTERS, LETTERS[::-1])]
    torch.testing.assert_close(got.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-4)
    X_N4L.requires_grad_()
    (gradient,) = torch.autograd.grad(model(X_N4L).sum(), X_N4L)
    direction = torch.randn(X_N4L.shape, generator=torch.Generator().manual_seed(1))
    # Not in columns of N: a step away from zeros turns N into a mixture.
    step, masked = 1e-2, direction * (X_N4L.detach().sum(dim=1, keepdim=True) > 0)
    with torch.no_grad():
        difference = (model(X_N4L + step * masked) - model(X_N4L - step * masked)).sum() / (2 * step)
    assert float((gradient * masked).sum()) == pytest.approx(float(difference), rel=2e-2)


def test_one_hot_reaches_both_strands_of_an_equivariant_model():
    """Its table is read along both strands; a mixture must reach either, or attributions are silently those of none."""
    torch.manual_seed(0)
    tokenizer = DnaTokenizer()
    backbone = RCPSStack(
        vocab_size=12, d_model=16, n_layers=1, layer=partial(Bidirectional, layer=partial(Mamba, d_state=4)),
        complement_ids=tokenizer.complement_ids,
    )  # fmt: skip
    model = SequenceModel(backbone, RCClassificationHead(d_model=backbone.d_model, num_classes=3)).eval()
    of = OneHotModel(SimpleNamespace(model=model, tokenizer=tokenizer), output="logits")
    X_N4L = one_hot(LETTERS)[None]
    with torch.no_grad():
        ids_BL = torch.from_numpy(tokenizer.encode(LETTERS).astype(np.int64))[None]
        torch.testing.assert_close(of(X_N4L), model(ids_BL)[0])
    X_N4L.requires_grad_()
    (gradient,) = torch.autograd.grad(of(X_N4L)[:, 0].sum(), X_N4L)
    direction = torch.randn(X_N4L.shape, generator=torch.Generator().manual_seed(1))
    step, masked = 1e-2, direction * (X_N4L.detach().sum(dim=1, keepdim=True) > 0)
    with torch.no_grad():
        difference = (of(X_N4L + step * masked) - of(X_N4L - step * masked))[:, 0].sum() / (2 * step)
        torch.testing.assert_close(of(X_N4L.flip(1, 2)), of(X_N4L), msg="the other strand is the same answer")
        mixed = torch.softmax(torch.randn(1, 4, 20, generator=torch.Generator().manual_seed(2)), dim=1)
        torch.testing.assert_close(of(mixed.flip(1, 2)), of(mixed), msg="of mixtures too")
    assert abs(float(difference)) > 1e-3
    assert float((gradient * masked).sum()) == pytest.approx(float(difference), rel=2e-2)
    assert "strands" not in vars(backbone.embedding), "nothing of it lasts"


def test_one_hot_outputs_of_a_classifier_and_embeddings():
    of = loaded(classes=3)
    X_N4L = one_hot(LETTERS)[None]
    ids_BL = torch.from_numpy(of.tokenizer.encode(LETTERS).astype(np.int64))[None]
    with torch.no_grad():
        hidden = of.model.backbone(ids_BL)[0]
        torch.testing.assert_close(OneHotModel(of, output="logits")(X_N4L), of.model(ids_BL)[0])
        torch.testing.assert_close(OneHotModel(of, output="embedding")(X_N4L), hidden.mean(dim=1))
    with pytest.raises(ValueError, match="trained for 'next_token'"):
        OneHotModel(of)
    with pytest.raises(ValueError, match=r"\(N, 4, L\)"):
        OneHotModel(of, output="logits")(X_N4L.transpose(1, 2))
