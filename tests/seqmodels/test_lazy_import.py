"""`import seqmodels` costs nothing; every public name is there when asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

import seqmodels


def test_import_loads_no_heavy_module():
    code = (
        "import sys, seqmodels; heavy = {'torch', 'numpy', 'lightning', 'hydra', 'matplotlib', 'transformers'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_using_the_library_loads_no_training_framework():
    code = (
        "import sys, seqmodels; [getattr(seqmodels, name) for name in seqmodels.__all__]; "
        "heavy = {'lightning', 'hydra', 'omegaconf', 'matplotlib', 'transformers', 'triton', 'numba'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names():
    assert seqmodels.__all__ == sorted(seqmodels.__all__, key=lambda name: (name.islower(), name))
    assert set(seqmodels.__all__) == set(seqmodels._HOME)
    assert set(seqmodels.__all__) <= set(dir(seqmodels))
    for name in seqmodels.__all__:
        assert getattr(seqmodels, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Mambo'"):
        seqmodels.Mambo  # noqa: B018
