"""`seqmodels evaluate per_sequence=`: every sequence's own numbers, which add up to the total."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_the_rows_add_up_to_the_total(run, trained, monkeypatch: pytest.MonkeyPatch):
    code, out, err = run("evaluate", f"run={trained}", "markov_order=null", "per_sequence=tables/rows.tsv")
    assert code == 0, err
    assert "written     tables/rows.tsv" in out
    report = json.loads((trained / "results" / "evaluate-test.json").read_text())
    rows = rows_of("tables/rows.tsv")
    assert len({row["sequence"] for row in rows}) == report["sequences"] == 8
    targets = [float(row["targets"]) for row in rows]
    for name, value in report["metrics"].items():
        mean = sum(float(row[name]) * count for row, count in zip(rows, targets)) / sum(targets)
        assert mean == pytest.approx(value, abs=1e-5), name
    # in pieces and in other batches: the same rows
    import seqmodels.training.evaluate as evaluation

    monkeypatch.setattr(evaluation, "PIECE", 24)
    code, _, err = run("evaluate", f"run={trained}", "markov_order=null", "per_sequence=b.tsv", "data.batch_size=3")
    assert code == 0, err
    again = rows_of("b.tsv")
    assert [row["sequence"] for row in again] == [row["sequence"] for row in rows]
    for row, other in zip(rows, again):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), abs=1e-5)
    assert len({row["loss"] for row in rows}) > 1


def test_several_runs_have_no_table_of_one(run, trained):
    code, _, err = run("evaluate", f"runs={trained}", "per_sequence=rows.tsv")
    assert code != 0
    assert "the table of one run" in err
    assert not Path("rows.tsv").exists()
