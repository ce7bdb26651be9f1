"""The synthetic study in tiny sizes: every task and model trains and is scored; its schedule and figure are right."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(experiment):
    return experiment("synthetic.run")


@pytest.fixture
def recipes(run):
    return run.smoke_recipes()


JOBS = ["recall:mamba2", "copying:mamba", "copying:s4d", "copying:mamba_s4", "induction:transformer",
        "phonebook:hybrid", "phonebook_reversed:mamba"]  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_a_job_gives_a_full_row_for_every_test_size(run, recipes, job):
    rows = list(run.run_job(job, run.arguments(["--smoke"])))
    task, model = job.split(":")
    assert [row["test_size"] for row in rows] == list(recipes[task].tests)
    for row in rows:
        assert row.keys() <= set(run.COLUMNS)
        assert (row["task"], row["model"], row["steps"]) == (task, model, 4)
        assert 0 <= row["exact_match"] <= row["accuracy"] <= 1
        assert row["sequences"] >= 8


def test_every_job_is_listed_and_can_be_chosen(run):
    full = run.recipes()
    jobs = run.jobs_of(run.arguments([]), full)
    assert len(jobs) == sum(len(recipe.models) for recipe in full.values()) == len(set(jobs))
    assert run.jobs_of(run.arguments(["--only", "copying:s4d,induction"]), full) == [
        *[job for job in jobs if job == "copying:s4d" or job.startswith("induction:")]
    ]
    with pytest.raises(SystemExit, match="nonsense: unknown"):
        run.jobs_of(run.arguments(["--only", "nonsense"]), full)


def test_the_published_sizes_are_kept(run):
    full = run.recipes()
    assert full["copying"].stages[-1][0].length == 4096
    assert full["copying"].stages[-1][0].data_tokens == 16
    assert full["induction"].stages == [[full["induction"].tests[256]]]
    assert list(full["induction"].tests) == [2**n for n in range(6, 21)]
    assert [task.pairs for (task,) in full["recall"].stages] == [8, 16, 32, 64]  # T/32, T/16, T/8, T/4
    assert all(task.examples == 2 for task in full["phonebook"].tests.values())
    assert all(task.reversed_form for task in full["phonebook_reversed"].tests.values())


def test_a_pattern_has_so_many_mixers(run):
    for model in ("mamba", "mamba2", "s4d", "mamba_s4", "transformer", "hybrid"):
        for mixers in (2, 4):
            assert len(run.pattern_of(model, mixers).replace("-", "")) == mixers
    assert run.pattern_of("hybrid", 4) == "M-M-n-M-"


def test_stages_and_rate_over_a_run(run):
    assert [run.stage_at(p, 4, 0.4) for p in (0, 0.19, 0.21, 0.41, 0.59, 0.61, 0.99)] == [0, 0, 1, 2, 2, 3, 3]
    assert run.stage_at(0.0, 1, 0.4) == 0
    assert run.rate_at(0.5) == 1
    assert run.rate_at(0.015) == pytest.approx(0.5)
    assert run.rate_at(0.875) == pytest.approx(0.5)
    assert run.rate_at(1.0) == 0


def test_logits_are_those_of_the_asked_positions(run):
    """Against the whole sequence's logits through the library's own collate."""
    from domains.synthetic.datasets import SyntheticCorpus
    from domains.synthetic.tasks import AssociativeRecall, Sequences
    from seqmodels.data.collate import collate_for
    from seqmodels.data.record import IGNORE_INDEX

    task = AssociativeRecall(length=32, pairs=4, vocab_size=64)
    corpus = SyntheticCorpus(task)
    records = [corpus.split("valid")[index] for index in range(3)]
    batch = collate_for("next_token", corpus.tokenizer)(records)
    model = run.build_model("mamba", run.smoke_recipes()["recall"], 64, "cpu")
    assert batch.target_ids_BL is not None
    ids = torch.stack([torch.from_numpy(record.ids.astype("int64")) for record in records])
    with torch.no_grad():
        logits, answers = run.logits_and_answers(model, Sequences(ids, batch.target_ids_BL), task.num_answers)
        whole, _ = model(batch.input_ids_BL)
    asked = batch.target_ids_BL != IGNORE_INDEX
    for row in range(3):
        targets = batch.target_ids_BL[row][asked[row]].tolist()
        expected = dict(zip(targets, whole[row][asked[row]]))
        assert set(answers[row].tolist()) == set(expected)
        for answer, vector in zip(answers[row].tolist(), logits[row]):
            torch.testing.assert_close(vector, expected[answer])


def test_training_learns(run, recipes):
    """A hundred steps of the script's own loop bring copying of two symbols well above chance (1/2)."""
    from dataclasses import replace

    from domains.synthetic.tasks import SelectiveCopying

    task = SelectiveCopying(length=6, data_tokens=2, vocab_size=4)
    recipe = replace(recipes["copying"], stages=[[task]], steps=120, d_model=32, batch_tokens=288, stop_early=True)
    torch.manual_seed(0)
    model = run.build_model("mamba", recipe, 4, "cpu")
    trained = run.train(model, recipe, 1e-2, 1, "cpu")
    assert trained.steps <= 120
    assert run.test(model, task, 2048, "cpu").accuracy > 0.9


@pytest.mark.slow
def test_the_command_writes_rows_and_a_figure(tmp_path):
    file, figure = tmp_path / "rows.csv", tmp_path / "tasks.png"
    script, jobs = ROOT / "experiments/synthetic/run.py", "induction:mamba,copying:mamba"
    command = [sys.executable, script, "--smoke", "--only", jobs, "--csv", file, "--figure", figure, "--workers", "1"]
    command += ["--commit", "abc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert {row["task"] for row in rows} == {"induction", "copying"}
    assert all(row["commit"] == "abc" for row in rows)
    assert figure.read_bytes().startswith(b"\x89PNG")
