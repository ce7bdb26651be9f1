"""The table of generation speed, in tiny sizes on the CPU."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import torch

RUN_ALL = Path(__file__).resolve().parents[2] / "experiments" / "gpu" / "run_all.sh"


def test_every_row_is_there_and_adds_up(experiment, tmp_path):
    script = experiment("audio.generation_speed")
    script.main(["--smoke", "--csv", str(tmp_path / "g.csv"), "--commit", "abc"])
    with open(tmp_path / "g.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["dtype"], row["B"]) for row in rows] == [
        (model, dtype, batch) for model in script.MODELS for dtype in ("bf16", "fp32") for batch in ("1", "16")
    ]
    for row in rows:
        step_ms = float(row["ms_per_step"])
        assert float(row["samples_per_s"]) == pytest.approx(int(row["B"]) / step_ms * 1e3, rel=0.01)
        assert float(row["real_time"]) == pytest.approx(1e3 / step_ms / 16_000, rel=0.05)
        assert row["commit"] == "abc"
        assert row["peer_ms"] == "", "a tiny model has no peer"


def test_without_time_nothing_is_measured(experiment, tmp_path, capsys):
    experiment("audio.generation_speed").main(["--smoke", "--seconds", "0", "--csv", str(tmp_path / "g.csv")])
    assert capsys.readouterr().out.count("left out for time") == 8
    assert not (tmp_path / "g.csv").exists()


@pytest.mark.parametrize(("name", "millions"), [("unet_sc09_6m", 6.2), ("mamba_130m", 90.6)])
def test_the_models_have_the_sizes_that_the_table_says(experiment, name, millions):
    """The stack has 129 M with the published vocabulary of 50,280; over 256 levels, the rest."""
    model = experiment("audio.generation_speed").model_of(name, torch.device("meta"), smoke=False)
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_it_is_a_step_of_the_gpu_run():
    assert re.search(r"generation_speed\(\) \{\n.*experiments/audio/generation_speed\.py", RUN_ALL.read_text())
