"""What is installed is what is in the tree: packages, data files, the command, the names that must not be taken."""

from __future__ import annotations

import importlib.metadata
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {"domains": ROOT / "domains", "seqmodels": ROOT / "seqmodels", "seqkernels": ROOT / "kernels/seqkernels"}


def test_listed_packages_are_the_folders_with_an_init():
    folders = {"seqmodels.conf"}
    for name, path in SOURCES.items():
        for init in path.rglob("__init__.py"):
            folders.add(".".join((name, *init.parent.relative_to(path).parts)))
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == folders


def test_every_folder_with_python_files_is_a_package():
    for path in SOURCES.values():
        for file in path.rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), f"{file.parent} has Python files and no __init__.py"


def test_no_init_where_it_would_shadow_somebody():
    assert not (ROOT / "kernels/__init__.py").exists(), "a package called kernels shadows Hugging Face's"
    assert not list((ROOT / "tests").rglob("__init__.py")), "tests run in importlib mode, without packages"


def test_the_command_is_installed():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="seqmodels")
    assert [script.value for script in scripts] == ["seqmodels.cli:main"]


def test_constraints_pin_every_dependency_once():
    lines = (ROOT / "constraints.txt").read_text().split()
    pins = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert len(pins) == len(set(pins))
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    for requirement in wanted:
        name = requirement.split(";")[0].split(">")[0].split("<")[0].split("[")[0].strip().lower()
        assert name in pins, f"{name} is not pinned in constraints.txt"


def test_importing_the_library_is_light():
    """`import seqmodels` must not pull torch or a framework in: the command line answers --help at once."""
    heavy = ["torch", "lightning", "hydra", "matplotlib", "transformers", "numba", "torchaudio"]
    code = f"import sys, seqmodels; print([name for name in {heavy} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
