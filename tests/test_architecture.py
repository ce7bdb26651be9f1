"""Imports point one way: domains -> seqmodels -> seqkernels; hydra and DictConfig live in seqmodels/cli alone."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FORBIDDEN = {
    "kernels/seqkernels": {"seqmodels", "domains", "experiments", "tests", "lightning", "hydra"},
    "seqmodels": {"domains", "experiments", "tests", "pytorch_lightning"},
    "domains": {"experiments", "tests", "pytorch_lightning"},
}
SAYS_NOTHING = {"utils", "util", "common", "misc", "helpers"}


def imported_modules(path: pathlib.Path) -> set[str]:
    """Full names of every module that the file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room: str):
    for path in sorted((ROOT / room).rglob("*.py")):
        crossed = {name for name in imported_modules(path) if name.split(".")[0] in FORBIDDEN[room]}
        assert not crossed, f"{path.relative_to(ROOT)} imports {sorted(crossed)}"


def test_config_stops_at_the_command_line():
    for path in sorted((ROOT / "seqmodels").rglob("*.py")):
        if "cli" in path.parts or path.name == "instantiate.py":
            continue
        crossed = {name for name in imported_modules(path) if name.split(".")[0] in {"hydra", "omegaconf"}}
        assert not crossed, f"{path.relative_to(ROOT)} imports {sorted(crossed)}: typed keywords only, below the CLI"


def test_names_say_something():
    for room in ("kernels", "seqmodels", "domains", "experiments"):
        for path in (ROOT / room).rglob("*.py"):
            assert path.stem not in SAYS_NOTHING, path
