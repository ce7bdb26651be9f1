"""Objects from plain data: what may be named, and what a typing mistake is told."""

from __future__ import annotations

import functools

import pytest
import torch

from seqmodels.instantiate import build, locate

MAMBA = "seqmodels.layers.mamba.Mamba"


def test_builds_nested_and_partial_specs():
    spec = {
        "_target_": "seqmodels.backbones.stack.Stack",
        "n_layers": 2,
        "layer": {"_target_": MAMBA, "_partial_": True, "d_state": 4},
    }
    stack = build(spec, vocab_size=5, d_model=8)
    assert [mixer.d_state for mixer in stack.mixers] == [4, 4]
    assert isinstance(build(spec["layer"]), functools.partial)
    assert build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}).weight.shape == (3, 2)


def test_lists_and_plain_mappings_pass_through():
    built = build({"_target_": "torch.nn.ParameterDict", "parameters": {"a": torch.ones(1)}})
    assert list(built) == ["a"]
    linear = {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1}
    assert len(build({"_target_": "torch.nn.ModuleList", "modules": [linear, linear]})) == 2


def test_run_time_values_win():
    assert build({"_target_": MAMBA, "d_model": 8, "d_state": 4}, d_state=3).d_state == 3


def test_unknown_key_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"no argument 'd_sate'; did you mean 'd_state'\?"):
        build({"_target_": MAMBA, "_partial_": True, "d_sate": 4})
    with pytest.raises(ValueError, match=r"no argument 'zzz'\. It takes d_model") as caught:
        build({"_target_": MAMBA, "zzz": 4})
    assert "mean" not in str(caught.value)


def test_missing_arguments_are_named():
    with pytest.raises(ValueError, match="needs d_model"):
        build({"_target_": MAMBA})
    with pytest.raises(ValueError, match="_target_"):
        build({"d_model": 3})


def test_the_constructors_own_error_comes_through():
    with pytest.raises(ValueError, match=r"^d_state=0"):
        build({"_target_": MAMBA, "d_model": 8, "d_state": 0})


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "tests.conftest.pytest_configure",
        "experiments.anything.Thing",
        "torch.load",
        "torch.hub.load",
        "torch.nn.os.system",
        "torch.nn.modules.module.torch.load",
        "torch.nn.init.normal_",
        "seqmodels.instantiate.importlib.import_module",
        "seqmodels.testing.nn.Linear",
        "seqmodelsx.layers.mamba.Mamba",
        "seqmodels.layers.mamba.math.pi",
        "seqmodels.instantiate.OWN_ROOTS",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match=r"not allowed|not a class|does not exist"):
        locate(name)


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match=r"did you mean seqmodels\.layers\.mamba\.Mamba\?"):
        locate("seqmodels.layers.mamba.Mambo")
    with pytest.raises(ValueError, match="does not exist"):
        locate("seqmodels.layers.mambo.Mamba")
    with pytest.raises(ValueError, match="does not exist"):
        locate("domains.nothing_here.Thing")


def test_a_failing_import_inside_a_module_comes_through(monkeypatch, tmp_path):
    import domains

    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.setattr(domains, "__path__", [*domains.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        locate("domains.broken.Thing")
