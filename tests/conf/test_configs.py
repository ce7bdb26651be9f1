"""Every YAML that ships: it composes, its keys fit what it names, each key is explained, and it builds."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
import yaml

from seqmodels.cli.compose import compose
from seqmodels.cli.yaml_lines import conf_folder, groups, read, resolved
from seqmodels.instantiate import build, check_arguments, locate

CONF = conf_folder()
COMMANDS = sorted(file.stem for file in CONF.glob("*.yaml"))
OPTIONS = [(group, option) for group, options in groups().items() for option in options]
EXPERIMENTS = groups()["experiment"]
MUST_BE_GIVEN = {
    "evaluate": ["run=x"],
    "generate": ["run=x"],
    "score": ["run=x", "vcf=a", "fasta=b", "output=c"],
    "convert": ["source=a", "target=b"],
    "embed": ["run=x", "fasta=b", "output=c"],
    "mutagenesis": ["run=x", "fasta=b", "region=r", "output=c"],
}


@functools.cache
def composed(command: str, *words: str) -> dict:
    return compose(command, [*MUST_BE_GIVEN.get(command, ()), *words])


def specs(value, path="") -> list[tuple[str, dict]]:
    """Every mapping with a `_target_`, wherever it stands."""
    found = [(path, value)] if isinstance(value, dict) and "_target_" in value else []
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [spec for key, part in parts for spec in specs(part, f"{path}.{key}".lstrip("."))]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes_and_its_keys_fit(command):
    for path, spec in specs(composed(command)):
        keys = spec.keys() - {"_target_", "_partial_"}
        check_arguments(locate(spec["_target_"]), keys, f"{path} ({spec['_target_']})")


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] != "experiment"])
def test_an_option_composes_and_its_keys_fit(group, option):
    word = f"layer@backbone.layer={option}" if group == "layer" else f"{group}={option}"
    for path, spec in specs(composed("train", word)):
        keys = spec.keys() - {"_target_", "_partial_"}
        check_arguments(locate(spec["_target_"]), keys, f"{path} ({spec['_target_']})")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_and_builds_on_the_meta_device(experiment):
    from seqmodels.model import model_spec

    config = composed("train", f"experiment={experiment}")
    for path, spec in specs(config):
        check_arguments(locate(spec["_target_"]), spec.keys() - {"_target_", "_partial_"}, path)
    classes = "num_classes" in locate(config["head"]["_target_"]).__init__.__annotations__
    spec = model_spec(config["backbone"], config["head"], vocab_size=12, num_classes=8 if classes else None)
    with torch.device("meta"):
        model = build(spec)
    assert sum(parameter.numel() for parameter in model.parameters()) > 0
    build_the_rest(config)


@pytest.mark.parametrize(("group", "option"), [pair for pair in OPTIONS if pair[0] in (
    "optimizer", "scheduler", "trainer", "callbacks", "logger", "kernels", "paths")])  # fmt: skip
def test_an_option_builds(group, option):
    build_the_rest(composed("train", f"{group}={option}"))


def build_the_rest(config: dict) -> None:
    """Optimizer, schedule, settings, callbacks, loggers: everything but model and data."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build(config["optimizer"])([{"params": [parameter]}])
    settings = build(config["trainer"])
    scheduler = build(config["scheduler"])(optimizer, total_steps=settings.max_steps)
    optimizer.step()
    scheduler.step()
    build(config["data"])
    for spec in config["callbacks"].values():
        build(spec)
    for spec in config["logger"].values():
        build(spec, folder="nowhere")


@pytest.mark.parametrize("name", [*COMMANDS, *(f"{group}/{option}" for group, option in OPTIONS)])
def test_every_key_is_explained_and_read_as_yaml_reads_it(name):
    data = yaml.safe_load((CONF / f"{name}.yaml").read_text()) or {}
    data.pop("defaults", None)
    file = read(name)
    assert file.title, f"{name}.yaml needs a first line that says what it is"
    leaves = flat(data)
    read_leaves = {key.path: key for key in file.keys if key.value}
    assert read_leaves.keys() == leaves.keys(), f"{name}.yaml: keep to one key a line and two-space indents"
    for path, key in read_leaves.items():
        assert key.comment, f"{name}.yaml: {path} has no explanation behind it"
        assert yaml.safe_load(key.value) == leaves[path]


@pytest.mark.parametrize(
    ("group", "option"), [pair for pair in OPTIONS if pair[0] not in ("experiment", "layer")]
)
def test_help_lists_the_keys_that_hydra_composes(group, option):
    config = composed("train", f"{group}={option}")
    listed = {key.path for key in resolved(group, option) if key.value and key.value != "{}"}
    actual = {f"{group}.{path}" for path in flat(config[group]) if path}
    assert listed == actual


def flat(value, prefix="") -> dict:
    if not isinstance(value, dict) or not value:
        return {} if value == {} else {prefix: value}
    return {
        k: v for name, part in value.items() for k, v in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def test_no_resolver_runs_code():
    for file in Path(CONF).rglob("*.yaml"):
        text = file.read_text()
        assert "${eval" not in text, file
        assert "${oc.env" not in text, file


def test_seed_zero_is_a_seed():
    assert composed("train")["seed"] == 0
