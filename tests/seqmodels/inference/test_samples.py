"""Samples to files: likelihoods that are the model's own, groups that change nothing, ranks, the table."""

from __future__ import annotations

import csv
import errno
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from seqmodels.backbones.stack import Stack
from seqmodels.backbones.unet import UNet
from seqmodels.data.sequence_writer import GatheringWriter, SequenceWriter, writer_of
from seqmodels.heads.next_token import NextTokenHead
from seqmodels.inference import Sampling, generate, token_log_likelihood
from seqmodels.inference import samples as module
from seqmodels.inference.generate import Prefix, generate_pieces, read_prefix, rows_that_fit
from seqmodels.inference.samples import SamplesJob, SampleTable, make_samples
from seqmodels.layers.mamba import Mamba
from seqmodels.model import SequenceModel
from seqmodels.training.tiny import TinyTokenizer


@pytest.fixture
def model(small_model) -> SequenceModel:
    return small_model(vocab_size=6)


def job(tmp_path: Path, num_samples: int = 5, num_tokens: int = 30, **more) -> SamplesJob:
    more = {"sampling": Sampling(allowed_ids=(0, 1, 2, 3, 4)), **more}
    return SamplesJob(str(tmp_path / "out.txt"), num_samples, num_tokens, **more)


def made(model: SequenceModel, the_job: SamplesJob, prompt: str = "", **more):
    tokenizer = TinyTokenizer()
    prefix = read_prefix(model, start_id=tokenizer.start_id, prompt_ids=tokenizer.read_prompt(prompt))
    return make_samples(model, tokenizer, prefix, the_job, **more)


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def lines(path: Path) -> dict[str, str]:
    """Name of each sequence of a TinyTokenizer's file -> its letters."""
    return {line.split()[0]: line.split()[-1] for line in path.read_text().splitlines()}


# ------------------------------------------------------------------------------------------------ likelihoods are exact


def tiny_backbone(kind: str):
    layer = partial(Mamba, d_state=4)
    if kind == "stack":
        return Stack(vocab_size=16, d_model=8, n_layers=1, layer=layer)
    return UNet(vocab_size=16, d_model=8, pool=[4], n_layers=1, outer="m", centre="m", layers={"m": layer}, expand=1)


@pytest.mark.usefixtures("unchecked_shapes")  # which cost three times what the steps do; shorter tests have them
@pytest.mark.parametrize("kind", ["stack", pytest.param("unet", marks=pytest.mark.slow)])
def test_stepped_and_whole_sequence_likelihood_agree_over_16000_steps(kind):
    torch.manual_seed(1)
    model = SequenceModel(tiny_backbone(kind), NextTokenHead(d_model=8, vocab_size=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    prefix = read_prefix(model, start_id=0)
    pieces = list(generate_pieces(model, 16_000, prefix=prefix, rows=[0], chunk_len=4000))
    stepped = sum(float(piece.log_likelihood_B) for piece in pieces)
    ids_BL = torch.cat([piece.ids_BL for piece in pieces], dim=1)
    whole_BL, _ = token_log_likelihood(model, ids_BL, start_id=0)
    assert ids_BL.shape == (1, 16_000)
    assert len(ids_BL.unique()) > 8
    assert stepped == pytest.approx(float(whole_BL.double().sum()), rel=1e-4)
    assert -stepped / 16_000 > 0.5, "a model that is certain of everything would prove nothing"


def test_prompt_and_continuation_are_one_pass(model, tmp_path, monkeypatch):
    monkeypatch.setitem(generate.__globals__, "PREFILL_CHUNK", 5)
    monkeypatch.setattr(module, "CHUNK_LEN", 7)
    prompt = "abcdeabcdabcab"
    (sample,), _ = made(model, job(tmp_path, 1, 40), prompt)
    ids = TinyTokenizer().encode(prompt + lines(tmp_path / "out.txt")["generated_0"])
    one_pass_BL, _ = token_log_likelihood(model, torch.from_numpy(ids.astype(np.int64))[None], start_id=5)
    assert sample.log_likelihood == pytest.approx(float(one_pass_BL[0, len(prompt) :].double().sum()), rel=1e-5)
    assert sample.bits == pytest.approx(-sample.log_likelihood / 40 / np.log(2))


def test_one_prompt_is_read_once_for_all_rows_and_groups(model, tmp_path, monkeypatch):
    read: list[tuple[int, int]] = []
    forward = model.backbone.forward

    def noted(ids_BL, *rest, **more):
        read.append(tuple(ids_BL.shape))
        return forward(ids_BL, *rest, **more)

    monkeypatch.setattr(model.backbone, "forward", noted)
    made(model, job(tmp_path, num_samples=5, rows_at_a_time=2), "abcabc")
    assert [shape for shape in read if shape[1] > 1] == [(1, 7)], "start and prompt, one row, once"
    assert sorted({shape[0] for shape in read}) == [1, 2]


# -------------------------------------------------------------------------------------------------- groups and numbers


def test_groups_and_first_sample_change_no_sample(model, tmp_path):
    made(model, job(tmp_path), "ab")
    together = lines(tmp_path / "out.txt")
    made(model, job(tmp_path, rows_at_a_time=2), "ab")
    assert lines(tmp_path / "out.txt") == together
    made(model, job(tmp_path, num_samples=2, first_sample=3), "ab")
    assert lines(tmp_path / "out.txt") == {name: together[name] for name in ("generated_3", "generated_4")}
    assert len(set(together.values())) == 5


def test_samples_are_those_of_generate(model, tmp_path):
    made(model, job(tmp_path, num_samples=3))
    out = generate(model, 30, start_id=5, batch_size=3, sampling=Sampling(allowed_ids=(0, 1, 2, 3, 4)))
    expected = [TinyTokenizer().decode(row) for row in out.ids_BL.numpy()]
    assert list(lines(tmp_path / "out.txt").values()) == expected


def test_sorted_by_likelihood(model, tmp_path):
    samples, _ = made(model, job(tmp_path, num_samples=7, rows_at_a_time=3, sort_by="likelihood"))
    values = [sample.log_likelihood for sample in samples]
    assert values == sorted(values, reverse=True)
    assert [sample.number for sample in samples] != list(range(7))
    assert list(lines(tmp_path / "out.txt")) == [f"generated_{sample.number}" for sample in samples]
    by_number, _ = made(model, job(tmp_path, num_samples=7))
    for one, other in zip(sorted(samples, key=lambda sample: sample.number), by_number, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5), "groups round differently"


class Watched(GatheringWriter):
    """Notes what it is told, and when."""

    events: list[tuple[str, int, int]]

    def append(self, row: int, ids: np.ndarray) -> None:
        self.events.append(("append", row, len(ids)))
        super().append(row, ids)

    def finish(self, row: int, **more) -> str:
        self.events.append(("finish", row, 0))
        return super().finish(row, **more)


def watched(monkeypatch) -> list[tuple[str, int, int]]:
    events: list[tuple[str, int, int]] = []

    def writer(tokenizer, path, lengths):
        made = Watched(tokenizer, path, len(lengths))
        made.events = events
        return made

    monkeypatch.setattr(module, "writer_of", writer)
    return events


def test_each_piece_is_written_before_the_next_is_made(model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_LEN", 8)
    events = watched(monkeypatch)
    made(model, job(tmp_path, 3, 20, rows_at_a_time=2), on_symbols=lambda count: events.append(("made", -1, count)))
    appended = [("append", 0), ("append", 1)]
    pieces = [[(*place, length) for place in appended] + [("made", -1, 2 * length)] for length in (8, 8, 4)]
    first_group = [event for piece in pieces for event in piece] + [("finish", 0, 0), ("finish", 1, 0)]
    assert events[: len(first_group)] == first_group, "a group is finished before the next begins"
    assert events[len(first_group)] == ("append", 2, 8)
    assert sum(count for what, _, count in events if what == "made") == 60


def test_the_prompt_in_front(model, tmp_path):
    ahead = TinyTokenizer().encode("abc")
    made(model, job(tmp_path, 2, 10, written_prompt=ahead), "abc")
    assert all(text.startswith("abc") and len(text) == 13 for text in lines(tmp_path / "out.txt").values())


def test_rows_that_fit_into_half_of_the_memory(model):
    prefix = read_prefix(model, start_id=0)
    # 2 layers of 32 channels: 16 states and 3 convolution inputs each, 4 bytes, three times; 80 bytes a logit
    logits = prefix.logits_BV.shape[1]
    row_bytes = 3 * 2 * 32 * (16 + 3) * 4 + 80 * logits
    fit = partial(rows_that_fit, model, prefix, 1000)
    assert fit(most=256, free_bytes=2 * 10 * row_bytes) == 10
    assert fit(most=256, free_bytes=2 * 10 * row_bytes - 1) == 9
    assert fit(most=4, free_bytes=2 * 10 * row_bytes) == 4
    assert fit(most=4, free_bytes=0) == 1, "one is always tried"


def test_a_prefix_is_continued_by_copies_and_left_as_it_was(model):
    prefix = read_prefix(model, start_id=5, prompt_ids=np.array([1, 2]))
    twice = [generate_pieces(model, 20, prefix=prefix, rows=[4, 9]) for _ in range(2)]
    first, second = (torch.cat([piece.ids_BL for piece in pieces]) for pieces in twice)
    assert torch.equal(first, second)
    with pytest.raises(AssertionError, match="2 prefixes"):
        Prefix(prefix.logits_BV.expand(2, -1), prefix.state).rows(3)


# ------------------------------------------------------------------------------------------------------------ the table


def test_the_table_says_how_each_sample_was_made(model, tmp_path):
    facts = {"prompt": "ab", "model": "runs/x", "step": "7"}
    sampling = Sampling(temperature=0.5, top_k=3, seed=11, allowed_ids=(0, 1, 2))
    samples, written = made(model, job(tmp_path, 2, sampling=sampling, facts=facts), "ab")
    assert written == [str(tmp_path / "out.txt"), str(tmp_path / "samples.tsv")]
    rows = table(tmp_path / "samples.tsv")
    assert [row.pop("log_likelihood_nats") for row in rows] == [f"{s.log_likelihood:.6f}" for s in samples]
    assert [row.pop("bits_per_symbol") for row in rows] == [f"{s.bits:.6f}" for s in samples]
    common = {"file": "out.txt", "seed": "11", "temperature": "0.5", "top_k": "3", "top_p": "none", **facts}
    assert rows == [{"sample": "0", **common}, {"sample": "1", **common}]


def test_the_table_grows_and_replaces_rows_of_the_same_file(tmp_path):
    columns = [*module.OWN_COLUMNS, "prompt"]
    first = SampleTable(tmp_path / "samples.tsv", columns)
    row = dict.fromkeys(columns, "1")
    first.write([{**row, "file": "a", "prompt": "tab\there"}, {**row, "file": "b"}])
    other = SampleTable(tmp_path / "samples.tsv", [*columns, "step"])
    other.write([{**row, "file": "b", "seed": "2", "step": "5"}])
    rows = table(tmp_path / "samples.tsv")
    assert [(r["file"], r["seed"], r["prompt"], r["step"]) for r in rows] == [
        ("a", "1", "tab\there", ""), ("b", "2", "1", "5"),
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["samples.tsv"]


def test_another_table_of_that_name_is_left_alone(model, tmp_path):
    (tmp_path / "samples.tsv").write_text("patient\tage\nx\t3\n")
    with pytest.raises(ValueError, match=r"samples\.tsv is there and is no table of samples \(its.*patient, age\)"):
        made(model, job(tmp_path))
    assert (tmp_path / "samples.tsv").read_text() == "patient\tage\nx\t3\n"
    assert not (tmp_path / "out.txt").exists()


# --------------------------------------------------------------------------------------------------- when it goes wrong


class Breaks:
    """A writer of one file a row that breaks at the second `finish`."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.paths, self.left_by = error, [], None

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.left_by = kind

    def append(self, row: int, ids: np.ndarray) -> None:
        pass

    def finish(self, row: int, *, name: str, facts) -> str:
        if self.paths:
            raise self.error
        self.paths.append(f"{name}.wav")
        return self.paths[0]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x.wav: not written: the disk is full"), KeyboardInterrupt()])
def test_what_was_finished_before_is_in_the_table(model, tmp_path, monkeypatch, error):
    writer = Breaks(error)
    assert isinstance(writer, SequenceWriter)
    monkeypatch.setattr(module, "writer_of", lambda *_: writer)
    with pytest.raises(type(error)):
        made(model, job(tmp_path, 3))
    assert writer.left_by is type(error)
    assert [row["file"] for row in table(tmp_path / "samples.tsv")] == ["generated_0.wav"]


def test_nothing_is_in_the_table_when_nothing_was_finished(model, tmp_path, monkeypatch):
    writer = Breaks(OSError(errno.ENOSPC, "full"))
    writer.paths = []
    monkeypatch.setattr(writer, "append", lambda *_: (_ for _ in ()).throw(writer.error))
    monkeypatch.setattr(module, "writer_of", lambda *_: writer)
    with pytest.raises(OSError, match="full"):
        made(model, job(tmp_path, 3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": 2.5}, "num_samples=2.5: must be a whole number"),
        ({"num_tokens": 1.5}, "length=1.5: must be a whole number"),
        ({"num_tokens": 0}, "length=0"),
        ({"first_sample": -1}, "first_sample=-1: must be 0 or more"),
        ({"rows_at_a_time": 0}, "batch_size=0"),
        ({"sort_by": "length"}, "sort_by='length': likelihood puts"),
    ],
)
def test_refuses(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        job(tmp_path, **wrong)


def test_a_tokenizer_that_writes_all_at_once_is_given_all_at_once(tmp_path):
    writer = writer_of(TinyTokenizer(), str(tmp_path / "a.txt"), [3, 1])
    with writer:
        writer.append(0, np.array([0, 1]))
        writer.append(1, np.array([2]))
        writer.append(0, np.array([3]))
        writer.finish(1, name="second", facts={"seed": "0"})
        writer.finish(0, name="first", facts={})
        assert not (tmp_path / "a.txt").exists()
        assert writer.paths == []
    assert (tmp_path / "a.txt").read_text() == "second seed=0 c\nfirst abd\n"
    assert writer.paths == [str(tmp_path / "a.txt")]
