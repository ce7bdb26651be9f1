from __future__ import annotations

import importlib.machinery
import subprocess
import sys
from types import ModuleType

import pytest

from domains.audio import torchaudio_guard


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_audio_domain_loads_neither_torch_nor_torchaudio_nor_numpy():
    heavy = _run("import domains.audio, sys; print([m for m in ('torch', 'torchaudio', 'numpy') if m in sys.modules])")
    assert heavy == "[]"


def test_torchaudio_and_transformers_import_where_the_extension_cannot_load():
    code = """
import domains.audio, importlib.machinery as machinery
original = machinery.SourceFileLoader.exec_module
def fail(self, module):
    if module.__name__ == "torchaudio._extension":
        raise OSError("no libcudart here")
    original(self, module)
machinery.SourceFileLoader.exec_module = fail
import torch, torchaudio
print(torchaudio.transforms.Resample(2, 1)(torch.zeros(10)).shape)
print(torchaudio.functional.mu_law_encoding(torch.zeros(1), 256))
from domains.audio import torchaudio_guard
print(torchaudio_guard.state())
try:
    torchaudio.functional.forced_align(torch.zeros(1, 2, 3), torch.zeros(1, 1, dtype=torch.int32))
except RuntimeError as refused:
    print(refused)
from transformers import MambaForCausalLM
print(MambaForCausalLM.__name__)
"""
    shape, encoded, state, refused, model = _run(code).splitlines()
    assert (shape, encoded, model) == ("torch.Size([5])", "tensor([128])", "MambaForCausalLM")
    assert "without its compiled extension" in state
    assert "no libcudart here" in state
    assert "forced_align needs its compiled extension" in refused


class _FailingLoader:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def exec_module(self, module: ModuleType) -> None:
        raise self.error


@pytest.mark.parametrize("error", [OSError("no libcudart"), RuntimeError("CUDA\n12"), ImportError("no ops")])
def test_what_a_failed_extension_leaves_behind(error: Exception):
    module = ModuleType("torchaudio._extension")
    torchaudio_guard._ForgivingLoader(_FailingLoader(error)).exec_module(module)
    assert vars(module)["_IS_TORCHAUDIO_EXT_AVAILABLE"] is False
    assert vars(module)["_IS_ALIGN_AVAILABLE"] is False
    assert vars(module)["guard_reason"] == str(error).replace("\n", " ")


def test_another_error_of_the_extension_is_not_swallowed():
    with pytest.raises(KeyError, match="a bug"):
        torchaudio_guard._ForgivingLoader(_FailingLoader(KeyError("a bug"))).exec_module(ModuleType("x"))


def test_only_the_extension_is_hooked():
    finder = next(f for f in sys.meta_path if isinstance(f, torchaudio_guard._ExtensionFinder))
    assert finder.find_spec("torchaudio.functional", []) is None
    assert finder.find_spec("json") is None
    assert importlib.machinery.PathFinder.find_spec("json") is not None


def test_installing_twice_changes_nothing():
    torchaudio_guard.install()
    before = list(sys.meta_path)
    torchaudio_guard.install()
    assert sys.meta_path == before


def test_the_state_is_one_sentence_with_the_version():
    assert torchaudio_guard.state().startswith("torchaudio 2.")
    assert "\n" not in torchaudio_guard.state()
