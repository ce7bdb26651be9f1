"""The studies of human DNA in tiny sizes: data and its borders, pretraining with its baselines, context."""

from __future__ import annotations

import csv
import json
import time

import pytest


@pytest.fixture
def dna_data(experiment):
    return experiment("dna.data")


def rows_sent(text: str) -> list[dict]:
    return [json.loads(line[4:]) for line in text.splitlines() if line.startswith("ROW ")]


def written(path, columns, rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def test_held_out_bases_are_the_same_in_windows_of_any_length(experiment, dna_data, tmp_path):
    lm = experiment("dna.language_model")
    data = dna_data.tiny_human(tmp_path)
    for split in ("train", "valid", "test"):
        for region in lm.corpus(data, 256).regions[split]:
            assert region.start % data.unit == region.end % data.unit == 0
    bases = {length: len(lm.corpus(data, length).split("valid")) * length for length in (256, 1024, 4096)}
    assert set(bases.values()) == {2 * data.unit}


def test_the_real_files_become_one_fasta_with_a_train_valid_and_test_part(dna_data, tmp_path):
    import gzip

    chromosome, pieces = tmp_path / "c.fa.gz", tmp_path / "human.fa.gz"
    chromosome.write_bytes(gzip.compress(b">20 of GRCh37\n" + b"ACGT\n" * 5))
    pieces.write_bytes(gzip.compress(b">chr22_seg01\nAAcc\n>chr22_seg02\nGG\n"))
    dna_data.collect_human(chromosome, pieces, tmp_path / "build")
    data = dna_data.unpack_human(tmp_path / "build", tmp_path / "work")
    assert data.fasta.read_text() == ">20\n" + "ACGT\n" * 5 + ">chr22_seg01\nAAcc\n>chr22_seg02\nGG\n"
    unit = 2**20
    assert [line.split() for line in data.bed.read_text().splitlines()] == [
        ["20", "0", str(54 * unit), "train"], ["20", str(54 * unit), str(58 * unit), "valid"],
        ["chr22_seg01", "0", str(2 * unit), "test"], ["chr22_seg02", "0", str(2 * unit), "test"],
    ]  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"chr20.fa.gz is missing: python experiments/dna/data.py human"):
        dna_data.unpack_human(tmp_path / "nowhere", tmp_path / "work")


def test_pretraining_then_context(experiment, dna_data, tmp_path, capsys):
    """One model through both studies: every kind of row, and a run folder that inference takes."""
    from seqmodels.inference import load

    pretrain, context = experiment("dna.pretrain"), experiment("dna.context")
    dna_data.tiny_human(tmp_path)
    places = ["--smoke", f"--work={tmp_path}", f"--out={tmp_path / 'out'}"]
    options = pretrain.arguments(places)
    rows = list(pretrain.run_job("train", options))
    curve = rows_sent(capsys.readouterr().out)
    assert [(row["step"], row["split"]) for row in curve] == [
        (step, split) for step in (1, 2, 4) for split in ("chr20_held_out", "chr22")
    ]
    assert [row["tokens"] for row in curve[::2]] == [512, 1024, 2048]
    assert {row["what"] for row in rows} == {"training", "held_out"}
    judged = {
        (row["window_bases"], row["split"], row["region_class"]): row for row in rows if row["what"] == "held_out"
    }
    assert len(judged) == 2 * 2 * 3
    for window in (256, 1024):
        parts = [judged[window, "chr22", name] for name in ("repeat", "unique", "all")]
        total = sum(part["bits_per_base"] * part["targets"] for part in parts[:2])
        assert total / parts[2]["targets"] == pytest.approx(parts[2]["bits_per_base"], abs=1e-4)
    assert all(set(row) <= set(pretrain.COLUMNS) for row in [*rows, *curve])

    options = context.arguments([*places, f"--start={tmp_path / 'runs' / 'pretrain'}"])
    start = list(context.run_job("start", options))
    assert start[0]["bits_per_base"] == pytest.approx(judged[256, "chr20_held_out", "all"]["bits_per_base"], abs=1e-4)
    rows = list(context.run_job("continue:4096", options))
    training = next(row for row in rows if row["what"] == "training")
    assert (training["batch_size"], training["tokens"], training["status"]) == (1, 2 * 4096, "ok")
    # Continued, not started afresh: the first loss is about the old model's, not that of random weights.
    assert training["first_bits"] == pytest.approx(start[0]["bits_per_base"], abs=0.15)
    asked = [(row["eval_length"], row["split"]) for row in rows if row["what"] == "held_out"]
    assert asked == [
        (256, "chr20_held_out"), (1024, "chr20_held_out"), (1024, "chr22"), (4096, "chr20_held_out"), (4096, "chr22")
    ]  # fmt: skip
    assert all(set(row) <= set(context.COLUMNS) for row in [*start, *rows])
    written(tmp_path / "dna_context.csv", context.COLUMNS, [*start, *rows])
    written(tmp_path / "dna_pretrain.csv", pretrain.COLUMNS, [*curve, *judged.values()])
    figures, charts = experiment("dna.figures"), experiment("charts")
    for name, draw in (("context", figures.context), ("pretrain", figures.pretrain)):
        draw(charts.read_rows(tmp_path / f"dna_{name}.csv"), tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    kept = load(tmp_path / "out" / "dna_run", "cpu")
    assert kept.meta["step"] == 2  # the continued one, which is better than the start


def test_a_slow_machine_trains_for_fewer_steps(experiment, monkeypatch):
    from types import SimpleNamespace

    pretrain, lm = experiment("dna.pretrain"), experiment("dna.language_model")
    monkeypatch.setattr(pretrain, "words", lambda *_: [])
    monkeypatch.setattr(lm, "train", lambda words: SimpleNamespace(run_dir=None, step=80))
    monkeypatch.setattr(lm, "metrics_of", lambda _: [{"tokens_per_second": 2.0**20}] * 4)
    options = pretrain.arguments([])
    assert pretrain.affordable_steps(None, options) == 200 * 2**20 // (128 * 1024)
    assert options.steps == 5000


def test_markov_models_by_split_and_class(experiment, dna_data, tmp_path):
    pretrain = experiment("dna.pretrain")
    dna_data.tiny_human(tmp_path)
    options = pretrain.arguments(["--smoke", f"--work={tmp_path}", f"--out={tmp_path / 'out'}"])
    one, both = (list(pretrain.run_job(part, options)) for part in ("markov", "markov_both"))
    assert len(one) == len(both) == 4 * 2 * 3
    assert both[0]["tokens"] == 2 * one[0]["tokens"] == 2 * 40 * 4096
    best = min(row["bits_per_base"] for row in both if row["split"] == "chr22" and row["region_class"] == "all")
    assert 1.8 < best < 1.95


def test_what_is_too_late_is_left_out_and_said(experiment):
    context = experiment("dna.context")
    options = context.arguments(["--smoke", f"--deadline={time.time() - 1}"])
    (row,) = context.run_job("scratch:256", options)
    assert (row["status"], row["kind"]) == ("left out", "scratch:256")


def test_jobs_in_order(experiment):
    context = experiment("dna.context")
    assert context.jobs(context.arguments(["--only", "recompute"])) == ["recompute:1048576"]
    assert context.jobs(context.arguments(["--only", "small:4096"])) == ["small:4096"]
    with_start = context.jobs(context.arguments(["--start", "run"]))
    assert with_start[:3] == ["start", "continue:1024", "continue:1048576"]
    assert len(with_start) == 1 + 6 + 6 + 1 + 6
    assert not any(job.startswith(("start", "continue")) for job in context.jobs(context.arguments([])))
    with pytest.raises(SystemExit):
        context.arguments(["--only", "nonsense"])


def test_memory_that_does_not_suffice_is_a_row_and_blocks_are_recomputed(experiment, dna_data, tmp_path, monkeypatch):
    import torch

    context, lm = experiment("dna.context"), experiment("dna.language_model")
    dna_data.tiny_human(tmp_path)
    options = context.arguments(["--smoke", f"--work={tmp_path}", f"--out={tmp_path / 'out'}"])
    train = lm.train

    def short_of_memory(words, callbacks=()):
        if "backbone.checkpoint_blocks=false" in words:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return train(words, callbacks)

    monkeypatch.setattr(lm, "train", short_of_memory)
    first, second, *_ = context.run_job("scratch:4096", options)
    assert first["status"] == "out of memory"
    assert (second["status"], second["recomputed_blocks"]) == ("ok", "yes")


def test_rows_of_the_log(experiment, tmp_path):
    lm = experiment("dna.language_model")
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        names = ["step", "split", "bits_per_base", "tokens_per_second", "gradient_norm", "learning_rate"]
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([[step, "train", 2.0, rate, 1.0, 0.1] for step, rate in enumerate((1, 50, 100, 60), 1)])
        writer.writerow([4, "valid", 1.9, "", "", ""])
    rows = lm.metrics_of(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert lm.typical_rate(rows) == 60  # of 50, 100, 60: the first quarter does not count


def test_stretches_copied_from_training_on_either_strand(experiment, monkeypatch):
    import numpy as np

    audit = experiment("dna.audit")
    monkeypatch.setattr(audit, "PIECE", 64)  # stretches cross from one piece to the next
    random = np.random.default_rng(0)
    training, held_out = (random.integers(0, 4, size).astype(np.uint8) for size in (5000, 2000))
    training[3500] = training[100] = 255  # letters that are none
    held_out[200:240] = training[3000:3040]
    held_out[600:700] = audit.reverse_complement(training[300:400])
    held_out[900:950] = training[3480:3530]  # 20 and 29 bases on either side of such a letter: too short
    held_out[1500:1532] = 255
    expected = np.zeros(2000, bool)
    expected[200:240] = expected[600:700] = True
    wrong = np.flatnonzero(audit.copied(held_out, [training], 32) != expected)
    assert all(min(abs(place - edge) for edge in (199, 240, 599, 700)) <= 3 for place in wrong)  # by chance alike
    assert not audit.copied(held_out, [training], 128).any()


def test_the_audit_of_a_run(experiment, dna_data, tmp_path):
    """Its bits are those of the study; long windows and short ones say the same of the bases at their start."""
    pretrain, audit = experiment("dna.pretrain"), experiment("dna.audit")
    data = dna_data.tiny_human(tmp_path)
    options = pretrain.arguments(["--smoke", f"--work={tmp_path}", f"--out={tmp_path / 'out'}"])
    trained = [row for row in pretrain.run_job("train", options) if row["what"] == "held_out"]
    rows = list(audit.rows_of(data, tmp_path / "runs" / "pretrain", windows=8, lengths=(256, 1024)))
    assert {row["split"] for row in rows if row["what"] == "copies"} == {"chr20_held_out", "chr22"}
    parts = [row for row in rows if row["what"] == "bits" and row["split"] == "chr22" and row["copy_bases"] == 32]
    total = sum(row["bits_per_base"] * row["bases"] for row in parts) / sum(row["bases"] for row in parts)
    (judged,) = (
        row["bits_per_base"] for row in trained
        if (row["split"], row["window_bases"], row["region_class"]) == ("chr22", 1024, "all")
    )  # fmt: skip
    assert total == pytest.approx(judged, abs=2e-3)
    reading = [row for row in rows if row["what"] == "reading"]
    assert [row["where"] for row in reading] == ["0-63 before", "64-255 before"]
    assert sum(row["bases"] for row in reading) == 2 * data.unit
    assert all(set(row) <= set(audit.COLUMNS) for row in rows)
