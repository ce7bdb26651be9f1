"""`seqmodels describe`: tables, JSON, and what it says to words that make no sense."""

from __future__ import annotations

import json

import pytest
import torch

from seqmodels.cli import main

SMALL = ["backbone=mamba_tiny", "length=100", "gpu_gib=24"]


def test_tables(capsys):
    assert main(["describe", *SMALL, "batch=2"]) == 0
    said = capsys.readouterr().out
    assert "parameters  197,312" in said
    assert "Mamba                   195,840" in said
    assert "shares the embedding's table" in said
    assert "whatever its length" in said
    assert "training    2 x 100 in bf16-mixed" in said
    assert "24 GiB" in said
    assert " yes " in said


def test_json_and_its_flag_say_the_same(capsys):
    assert main(["describe", *SMALL, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 197_312
    assert facts["parameters_by_part"]["Mamba"] == 195_840
    assert facts["training"][0]["fits"] is True
    assert main(["describe", *SMALL, "json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == facts


def test_without_a_gpu_common_sizes_are_compared(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["describe", "backbone=mamba_tiny", "backbone.n_layers=1", "length=64", "--json"]) == 0
    names = [row["gpu"] for row in json.loads(capsys.readouterr().out)["training"]]
    assert names == ["24 GB", "80 GB", "141 GB (H200)"]


def test_a_model_that_is_not_causal_has_no_state(capsys):
    words = ["head=classification", "layer=attention", "backbone.layer.causal=false", "backbone.d_model=32"]
    assert main(["describe", *SMALL[1:], "backbone=stack", *words]) == 0
    assert "none: the model is not causal" in capsys.readouterr().out


def test_a_growing_state_is_said_to_grow(capsys):
    assert main(["describe", *SMALL[1:], "backbone=transformer", "backbone.n_layers=2"]) == 0
    assert "100 KiB a sequence after 100 positions; it grows with them" in capsys.readouterr().out


def test_a_list_where_the_line_says_that_one_may_stand(capsys):
    words = ["backbone=unet", "backbone.d_model=8", "backbone.n_layers=1", "backbone.pool=[2,2]"]
    assert main(["describe", *SMALL[1:], *words, "backbone.expand=[1,3]"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["describe", *SMALL[1:], *words, "backbone.expand=[1,3,2]"]) == 1
    assert "one for each of the 2 pooling factors" in capsys.readouterr().err
    assert main(["describe", *SMALL[1:], *words, "backbone.d_model=[8]"]) == 1
    assert "must be a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["length=long"], "length='long' must be a number"),
        (["length=1.5"], "length=1.5 must be a whole number"),
        (["gpu_gib=0"], "gpu_gib=0 must be a positive number"),
        (["precision=fp8"], "precision='fp8' must be one of"),
        (["backbone=mamba_tinny"], "did you mean mamba_tiny"),
        (["lenght=5"], "did you mean length"),
    ],
)
def test_errors(capsys, words, message):
    assert main(["describe", "backbone=mamba_tiny", *words]) == 1
    assert message in capsys.readouterr().err


def test_one_layer_for_a_pattern_has_no_place(capsys):
    assert main(["describe", "backbone=pattern", "layer=mamba2"]) == 1
    assert "takes its layers from a pattern, so layer= has no place" in capsys.readouterr().err
