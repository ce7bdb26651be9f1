"""metrics.csv: whole rows, equal numbers as equal text, rolled back to a step."""

from __future__ import annotations

import csv

import pytest

from seqmodels.training.loggers import CsvLog, TensorBoardLog


def logged(folder, steps=(1, 2, 3)) -> CsvLog:
    log = CsvLog(folder)
    for step in steps:
        log.log_metrics({"split": "train", "loss": step / 3}, step=step)
        if step % 2 == 0:
            log.log_metrics({"split": "valid", "loss": 1.0, "accuracy": float("nan")}, step=step)
    return log


def test_rows_and_columns(tmp_path):
    logged(tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,split,loss,accuracy\n"
        "1,train,0.3333333333333333,\n"
        "2,train,0.6666666666666666,\n"
        "2,valid,1.0,nan\n"
        "3,train,1.0,\n"
    )


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_rolled_back_and_continued_is_as_if_never_stopped(tmp_path, step):
    (tmp_path / "whole").mkdir()
    (tmp_path / "resumed").mkdir()
    logged(tmp_path / "whole")
    path = logged(tmp_path / "resumed").path
    path.write_text(path.read_text() + "4,tra")  # a kill in the middle of a row
    again = CsvLog(tmp_path / "resumed")
    again.roll_back(step)
    with path.open() as file:
        assert all(int(row["step"]) <= step for row in csv.DictReader(file))
    for later in range(step + 1, 4):
        again.log_metrics({"split": "train", "loss": later / 3}, step=later)
        if later % 2 == 0:
            again.log_metrics({"split": "valid", "loss": 1.0, "accuracy": float("nan")}, step=later)
    assert path.read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_tensorboard_gets_one_scalar_a_metric(tmp_path):
    log = TensorBoardLog(tmp_path)
    log.log_metrics({"split": "valid", "loss": 1.5, "note": "text is left out"}, step=7)
    log.finalize("success")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["valid/loss"]
    assert [(event.step, event.value) for event in events.Scalars("valid/loss")] == [(7, 1.5)]
