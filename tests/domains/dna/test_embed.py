"""Embeddings in pieces against one pass; resuming; models that read from both ends; what is refused."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from domains.dna.embed import Embedder, spans_of
from domains.dna.intervals import Interval
from domains.dna.resume import ResumeFolder
from domains.dna.tokenizer import DnaTokenizer
from seqmodels.backbones.stack import Stack
from seqmodels.heads.classification import ClassificationHead
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.layers.bidirectional import Bidirectional
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel

RNG = np.random.default_rng(0)
LENGTHS = {"chr1": 131, "chr2": 1, "chr3": 64}
LETTERS = {name: "".join(RNG.choice(list("ACGTN"), length)) for name, length in LENGTHS.items()}
BED = "chr3\t10\t20\tb\nchr1\t100\t131\ta\nchr1\t3\t4\tone\nchr1\t2\t90\twide\n"


def loaded(layer=None, classifier: bool = False) -> SimpleNamespace:
    torch.manual_seed(0)
    tokenizer = DnaTokenizer()
    backbone = Stack(vocab_size=tokenizer.vocab_size, d_model=16, n_layers=2, layer=layer or partial(Mamba, d_state=4))
    language = NextTokenHead(d_model=16, vocab_size=tokenizer.vocab_size)
    head = ClassificationHead(d_model=16, num_classes=3) if classifier else language
    return SimpleNamespace(model=SequenceModel(backbone, head).eval(), tokenizer=tokenizer, folder=Path("runs/some"))


@pytest.fixture
def fasta(write_fasta) -> str:
    return str(write_fasta(LETTERS))


@torch.no_grad()
def one_pass(of: SimpleNamespace, letters: str) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(of.tokenizer.encode(letters).astype(np.int64))
    read = torch.cat([torch.tensor([of.tokenizer.start_id]), ids])
    hidden = of.model.backbone(read[None])[0][0]
    logits = of.model.head(hidden[None])[0]
    return hidden[1:], logits[:-1].log_softmax(-1).gather(1, ids[:, None])[:, 0]


def parts_of(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, list[dict[str, torch.Tensor]]] = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        with safe_open(path, "pt") as file:
            about = file.metadata()
        pieces = found.setdefault(about["contig"], [])
        assert int(about["start"]) == sum(len(p["hidden"]) for p in pieces)
        pieces.append(load_file(path))
    return {name: {key: torch.cat([p[key] for p in pieces]) for key in pieces[0]} for name, pieces in found.items()}


@pytest.mark.parametrize(("piece", "part"), [(7, 21), (64, 64), (1000, 1000)])
def test_every_position_equals_one_pass(tmp_path, fasta, piece, part):
    of = loaded()
    counts = Embedder(piece_bases=piece, part_bases=part, half=False)(of, fasta, str(tmp_path / "out"))
    assert counts["bases"] == 196
    found = parts_of(tmp_path / "out")
    assert found.keys() == LETTERS.keys()
    for name, letters in LETTERS.items():
        hidden, log_likelihood = one_pass(of, letters)
        torch.testing.assert_close(found[name]["hidden"], hidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name]["log_likelihood"], log_likelihood, rtol=1e-4, atol=1e-5)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["contigs"] == {name: len(letters) for name, letters in LETTERS.items()}
    assert not (tmp_path / "out/.resume").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".safetensors"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_regions_equal_one_pass(tmp_path, fasta, pool, suffix):
    (tmp_path / "r.bed").write_text(BED)
    of, out = loaded(), tmp_path / f"out{suffix}"
    Embedder(piece_bases=9, part_bases=9, pool=pool)(of, fasta, str(out), regions=str(tmp_path / "r.bed"))
    if suffix == ".parquet":
        table = pq.read_table(out).to_pydict()
        embeddings, names = torch.tensor(table["embedding"]), table["name"]
    else:
        embeddings = load_file(out)["embeddings"]
        with safe_open(out, "pt") as file:
            names = [region[3] for region in json.loads(file.metadata()["regions"])]
    assert names == ["b", "a", "one", "wide"]
    for embedding, line in zip(embeddings, BED.splitlines(), strict=True):
        contig, start, end, _ = line.split("\t")
        hidden = one_pass(of, LETTERS[contig])[0][int(start) : int(end)]
        expected = hidden.mean(0) if pool == "mean" else hidden[-1]
        torch.testing.assert_close(embedding, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("stopped_after", [1, 3, 5])
def test_a_run_that_was_killed_goes_on(tmp_path, fasta, monkeypatch, stopped_after, regions):
    monkeypatch.setattr("domains.dna.embed.SAVE_SECONDS", 0.0)
    (tmp_path / "r.bed").write_text(BED)
    bed = str(tmp_path / "r.bed") if regions else None
    of, embedder = loaded(), Embedder(piece_bases=13, part_bases=26)
    whole, cut = (str(tmp_path / name) + (".safetensors" if regions else "") for name in ("whole", "cut"))
    embedder(of, fasta, whole, regions=bed)
    calls = []

    def kill(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == stopped_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedder(of, fasta, cut, regions=bed, progress=kill)
    assert not Path(cut).is_file()
    assert not (Path(cut) / "manifest.json").exists()
    counts = embedder(of, fasta, cut, regions=bed)
    assert counts["bases done before"] == calls[-1] > 0
    if regions:
        assert torch.equal(load_file(cut)["embeddings"], load_file(whole)["embeddings"])
    else:
        expected = parts_of(Path(whole))
        for name, tensors in parts_of(Path(cut)).items():
            assert all(torch.equal(tensors[key], expected[name][key]) for key in tensors)


def test_going_on_with_other_settings_is_refused(tmp_path, fasta):
    with pytest.raises(KeyboardInterrupt):
        Embedder(piece_bases=13, part_bases=13)(loaded(), fasta, str(tmp_path / "out"), progress=kill)
    with pytest.raises(ValueError, match="other settings or inputs \\(changed: part_bases, piece_bases\\)"):
        Embedder(piece_bases=14, part_bases=14)(loaded(), fasta, str(tmp_path / "out"))


def test_regions_go_on_from_the_last_note_and_add_nothing_twice(tmp_path, fasta, monkeypatch):
    """Notes are seconds apart: what was read after the last one is read again."""
    (tmp_path / "r.bed").write_text(BED)
    of, embedder, bed = loaded(), Embedder(piece_bases=13, part_bases=13), str(tmp_path / "r.bed")
    whole, cut = str(tmp_path / "whole.safetensors"), str(tmp_path / "cut.safetensors")
    embedder(of, fasta, whole, regions=bed)
    seen = []

    def kill_behind_a_note(done: int, total: int) -> None:
        seen.append(done)
        monkeypatch.setattr("domains.dna.embed.SAVE_SECONDS", 0.0 if len(seen) < 4 else 1e9)
        if len(seen) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedder(of, fasta, cut, regions=bed, progress=kill_behind_a_note)
    assert embedder(of, fasta, cut, regions=bed)["bases done before"] == seen[3]
    assert torch.equal(load_file(cut)["embeddings"], load_file(whole)["embeddings"])


def kill(done: int, total: int) -> None:
    raise KeyboardInterrupt


def test_going_on_with_changed_inputs_is_refused(tmp_path, fasta, write_fasta, monkeypatch):
    """Same paths, same number of regions, other contents: the mean of something else would have come out."""
    monkeypatch.setattr("domains.dna.embed.SAVE_SECONDS", 0.0)
    bed, out = tmp_path / "r.bed", str(tmp_path / "o.parquet")
    bed.write_text("chr1\t10\t20\nchr1\t30\t131\n")
    embedder = Embedder(piece_bases=13, part_bases=13)
    with pytest.raises(KeyboardInterrupt):
        embedder(loaded(), fasta, out, regions=str(bed), progress=kill)
    bed.write_text("chr1\t10\t25\nchr1\t30\t131\n")
    with pytest.raises(ValueError, match=r"changed: regions\)"):
        embedder(loaded(), fasta, out, regions=str(bed))
    bed.write_text("chr1\t10\t20\nchr1\t30\t131\n")
    other = loaded()
    other.model.backbone.embedding.weight.data[7, 0] += 1
    with pytest.raises(ValueError, match=r"changed: model\)"):
        embedder(other, fasta, out, regions=str(bed))
    write_fasta(LETTERS | {"chr3": LETTERS["chr3"][::-1]})
    with pytest.raises(ValueError, match=r"changed: fasta\)"):
        embedder(loaded(), fasta, out, regions=str(bed))


def test_parts_that_are_not_of_this_run_are_not_mixed_with_its_own(tmp_path, fasta):
    """Whoever reads part-* would take them for the same sequence."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-000099.safetensors").write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"parts of another run \(part-000099"):
        Embedder()(loaded(), fasta, str(out))
    (out / "part-000099.safetensors").unlink()
    (out / ".part-000000.safetensors.99.part").write_bytes(b"half")  # what kill -9 leaves
    Embedder()(loaded(), fasta, str(out))
    parts = [f"part-00000{number}.safetensors" for number in range(3)]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", *parts]
    with pytest.raises(FileExistsError, match="is complete"):
        Embedder()(loaded(), fasta, str(out))


def test_what_a_kill_leaves_before_its_first_note_is_ours(tmp_path, fasta, monkeypatch):
    """The first part is there, its note is not."""
    of, out = loaded(), tmp_path / "out"
    embedder = Embedder(piece_bases=13, part_bases=26)
    noted = ResumeFolder.save

    def note_nothing_done(self, position, tensors=None):
        if position["step"]:
            os.kill(os.getpid(), signal.SIGKILL)
        noted(self, position, tensors)

    if (child := os.fork()) == 0:
        ResumeFolder.save = note_nothing_done  # in the child alone
        embedder(of, fasta, str(out))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == [".resume", "part-000000.safetensors"]
    assert embedder(of, fasta, str(out))["bases done before"] == 0
    assert len(parts_of(out)["chr1"]["hidden"]) == LENGTHS["chr1"]


def test_a_model_that_reads_from_both_ends_sees_its_context_and_says_so(tmp_path, fasta, caplog):
    of = loaded(partial(Bidirectional, layer=partial(Mamba, d_state=4)), classifier=True)
    caplog.set_level("INFO", "domains.dna.embed")
    Embedder(piece_bases=20, part_bases=20, context_bases=200, half=False)(of, fasta, str(tmp_path / "all"))
    assert "reads from both ends" in caplog.text
    ids = torch.from_numpy(of.tokenizer.encode(LETTERS["chr1"]).astype(np.int64))
    with torch.no_grad():
        whole = of.model.backbone(ids[None])[0][0]
        near = of.model.backbone(ids[None, 15:45])[0][0]
    found = parts_of(tmp_path / "all")["chr1"]
    torch.testing.assert_close(found["hidden"], whole, rtol=1e-4, atol=1e-5)
    assert "log_likelihood" not in found
    Embedder(piece_bases=20, part_bases=20, context_bases=5, half=False)(of, fasta, str(tmp_path / "near"))
    torch.testing.assert_close(parts_of(tmp_path / "near")["chr1"]["hidden"][20:40], near[5:25], rtol=1e-4, atol=1e-5)


def test_spans_read_no_more_than_the_context_asks_for():
    regions = [Interval("c", 100, 110), Interval("c", 500, 510), Interval("c", 108, 120), Interval("d", 5, 6)]
    assert [(s.contig, s.start, s.end, [row for row, _ in s.regions]) for s in spans_of(regions, 50)] == [
        ("c", 50, 120, [0, 2]), ("c", 450, 510, [1]), ("d", 0, 6, [3]),
    ]  # fmt: skip
    assert [(s.start, s.end) for s in spans_of(regions, None)] == [(0, 510), (0, 6)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "max"}, "pool='max'"),
        ({"part_bases": 7, "piece_bases": 5}, "multiple of piece_bases=5"),
        ({"context_bases": -1}, "context_bases=-1"),
        ({"keep": "logits"}, "keep='logits'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Embedder(**settings)


def test_bad_outputs_are_named(tmp_path, fasta):
    (tmp_path / "r.bed").write_text(BED)
    with pytest.raises(ValueError, match="folder of parts"):
        Embedder()(loaded(), fasta, str(tmp_path / "out.parquet"))
    with pytest.raises(ValueError, match=r"\.parquet or \.safetensors"):
        Embedder()(loaded(), fasta, str(tmp_path / "out.tsv"), regions=str(tmp_path / "r.bed"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; without regions"):
        Embedder()(loaded(), fasta, str(tmp_path / "file"))
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(ValueError, match="is a folder; name a file"):
        Embedder()(loaded(), fasta, str(tmp_path / "folder.parquet"), regions=str(tmp_path / "r.bed"))
    with pytest.raises(ValueError, match="context_bases=5 is for regions"):
        Embedder(context_bases=5)(loaded(), fasta, str(tmp_path / "out"))
    with pytest.raises(ValueError, match="keep='log_likelihood': this model predicts no next bases"):
        Embedder(keep="log_likelihood")(loaded(classifier=True), fasta, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty.bed").write_text("")
    with pytest.raises(ValueError, match="no interval"):
        Embedder()(loaded(), fasta, str(tmp_path / "out.parquet"), regions=str(tmp_path / "empty.bed"))
