"""Makes `import torchaudio` work beside any build of torch. Import this before torchaudio (domains.audio does).

Every Linux wheel of torchaudio 2.11 carries a compiled extension that links CUDA: beside a CPU build of torch
`import torchaudio` raises OSError, beside another CUDA than its own RuntimeError, and transformers, which imports
torchaudio when it is installed, fails with it. What this project uses (resampling, mel filters, mu-law) is plain
Python on torch. `install` therefore hooks the import of `torchaudio._extension`: the real extension is tried first, and
only where it cannot load does the import go on without it, with the reason kept for `seqmodels doctor`.

Nothing but the standard library is imported here, and torchaudio itself only when `load_torchaudio` is called.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

_EXTENSION = "torchaudio._extension"


class _ForgivingLoader(importlib.abc.Loader):
    """Runs the extension's own loader; where that fails, leaves the names that torchaudio asks for, all saying no."""

    def __init__(self, own_loader: Any) -> None:
        self._own_loader = own_loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._own_loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        try:
            self._own_loader.exec_module(module)
        except (OSError, RuntimeError, ImportError) as error:
            vars(module).update(
                _IS_TORCHAUDIO_EXT_AVAILABLE=False,
                _IS_ALIGN_AVAILABLE=False,
                _check_cuda_version=lambda: None,
                fail_if_no_align=_refuse_alignment,
                guard_reason=" ".join(str(error).split()),
            )

    def __getattr__(self, name: str) -> Any:  # get_source and the like, which tracebacks and inspect ask for
        return getattr(self._own_loader, name)


class _ExtensionFinder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ForgivingLoader(spec.loader)
        return spec


def _refuse_alignment(function: Any) -> Any:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"torchaudio's {function.__name__} needs its compiled extension: {state()}")

    return refuse


def install() -> None:
    """Hooks the import of torchaudio's extension. Cheap (imports nothing), and calling it twice changes nothing."""
    if not any(isinstance(finder, _ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ExtensionFinder())


def load_torchaudio() -> ModuleType:
    """torchaudio, imported with or without its compiled extension.

    Raises:
        ImportError: torchaudio is not installed.
    """
    install()
    if "torchaudio" not in sys.modules and importlib.util.find_spec("torchaudio") is None:
        raise ImportError("torchaudio is not installed; resampling and spectrograms need it: pip install torchaudio")
    return importlib.import_module("torchaudio")


def state() -> str:
    """One sentence on torchaudio in this process, for `seqmodels doctor` (imports torchaudio)."""
    try:
        torchaudio = load_torchaudio()
    except ImportError as error:
        return str(error)
    reason = getattr(sys.modules.get(_EXTENSION), "guard_reason", None)
    if reason is None:
        return f"torchaudio {torchaudio.__version__} with its compiled extension"
    return (
        f"torchaudio {torchaudio.__version__} without its compiled extension, which nothing here needs "
        f"(it does not load beside this torch: {reason})"
    )
