"""YAML of layers, backbones and heads: every key explained, every argument there, every default the class's own."""

from __future__ import annotations

import inspect
import pathlib
import re

import pytest
import yaml

from seqmodels.instantiate import locate

CONF = pathlib.Path(__file__).parents[2] / "conf"


def _says_everything(values: dict) -> bool:
    """Names its class, and takes no keys from another file of its group."""
    inherited = [entry for entry in values.get("defaults", ()) if isinstance(entry, str) and entry != "_self_"]
    return "_target_" in values and not inherited


FILES = sorted(path for group in ("layer", "backbone", "head") for path in (CONF / group).glob("*.yaml"))
# the others are presets on top of one of these; building them (test_backbone_laws.py) checks their keys
WHOLE = [path for path in FILES if _says_everything(yaml.safe_load(path.read_text()))]
# filled in by code or by the defaults list; a pattern and its layers stand in place of one layer
RUN_TIME = {"d_model", "vocab_size", "num_classes", "layer", "layers", "pattern", "options"}

ONE_OF = {"n_layers", "pattern"}  # of a stack: None where the other says it


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_key_is_explained(path):
    lines = path.read_text().splitlines()
    start = lines.index("defaults:") + 1 if "defaults:" in lines else 0
    for line in lines[start:]:
        if re.match(r"\w+: *[^ #]", line):  # a mapping's own keys are explained one by one
            assert re.search(r"\S  # \S", line), f"{path.name}: {line!r} lacks an explanation"


@pytest.mark.parametrize("path", WHOLE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_keys_are_the_arguments_with_their_defaults(path):
    values = yaml.safe_load(path.read_text())
    parameters = inspect.signature(locate(values["_target_"])).parameters
    given = set(values) - {"_target_", "_partial_", "defaults"}
    assert given <= set(parameters)
    assert set(parameters) - given <= RUN_TIME
    for key in given - ONE_OF:
        default = parameters[key].default
        default = list(default) if isinstance(default, tuple) else default  # YAML has no tuples
        if default is not inspect.Parameter.empty and not isinstance(values[key], dict):
            assert values[key] == default, f"{path.name}: {key} is {values[key]!r}, the class says {default!r}"
