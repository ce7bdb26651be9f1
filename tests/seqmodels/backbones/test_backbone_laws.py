"""The same laws for every YAML in conf/backbone/, made small: causality, cuts, packing, padding, state."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest
import torch

from seqmodels import testing
from seqmodels.backbones.stack import round_up
from seqmodels.instantiate import build

BACKBONES = sorted(path.stem for path in (pathlib.Path(__file__).parents[3] / "conf/backbone").glob("*.yaml"))
VOCAB_SIZE = 12  # of DNA: RC-equivariant backbones pair its ids
SMALLER = {"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_state": 8, "headdim": 8, "ngroups": 2}

_checked: set[str] = set()


def small(spec: dict[str, Any]) -> dict[str, Any]:
    """The same backbone 32 wide and as short as shows all of its layers."""
    shrunk = {**_smaller(spec), "d_model": 32}
    if spec.get("n_layers") is not None:
        shrunk["n_layers"] = min(spec["n_layers"], 2)
    for key in ("pattern", "outer", "centre"):
        if spec.get(key) is not None:
            shrunk[key] = "".join(dict.fromkeys(spec[key]))  # each letter once
    if "pattern" in shrunk and shrunk["pattern"] is not None:
        shrunk["n_layers"] = None
    if "pool" in spec:
        shrunk |= {"pool": [min(p, 3 + level) for level, p in enumerate(spec["pool"])], "n_layers": 1}
    return shrunk


def _smaller(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    made = {key: _smaller(part) for key, part in value.items()}
    for key, size in SMALLER.items():
        if isinstance(made.get(key), int):
            made[key] = min(made[key], size)
    if isinstance(made.get("rotary_dim"), int):
        made["rotary_dim"] = min(made["rotary_dim"], 4)
    return made


@pytest.mark.parametrize("name", BACKBONES)
def test_builds_on_the_meta_device_at_full_size(compose, name):
    spec = compose("backbone", name)
    with torch.device("meta"):
        backbone = build(spec, vocab_size=VOCAB_SIZE)
    assert backbone.embedding.weight.shape[0] == round_up(VOCAB_SIZE, spec["pad_vocab_to"])
    assert {parameter.device.type for parameter in backbone.parameters()} == {"meta"}


@pytest.mark.parametrize("name", BACKBONES)
def test_laws(compose, name):
    spec = small(compose("backbone", name))
    seen = json.dumps(spec, sort_keys=True)
    if seen in _checked:
        pytest.skip("made small it is a backbone already checked: presets that differ in size alone")
    _checked.add(seen)
    torch.manual_seed(0)
    backbone = build(spec, vocab_size=VOCAB_SIZE)
    with torch.no_grad():  # away from an initialisation that leaves every block nearly without effect
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    testing.check_laws(backbone, torch.randint(0, VOCAB_SIZE, (2, 19)))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["stack", "mamba2_hybrid_small", "transformer", "unet", "unet_sc09_6m"])
def test_laws_on_a_gpu(compose, name):
    torch.manual_seed(0)
    backbone = build(small(compose("backbone", name)), vocab_size=VOCAB_SIZE).cuda()
    testing.check_laws(backbone, torch.randint(0, VOCAB_SIZE, (2, 19), device="cuda"))
