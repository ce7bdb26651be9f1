"""Which implementation of an op runs: a registry of module paths, imported only when they are asked for.

In: the name a caller gave ("auto", "reference", "cpu", "cuda", "triton") and the tensors of the call.
Out: the function that computes it, or a `ValueError` that says in words why it cannot.

An implementation is a module with two functions:

* `unavailable(x, parameter, **details) -> str | None`: why it cannot run on these tensors here, None when it can;
* the op's entry (`scan`, `conv`, `norm`, `step`), with the positional arguments that the op's `op.py` documents.

Both run inside `torch.compile`, so they stay traceable: plain checks of `.device`, `.dtype`, `.shape`. On nothing else
may the answer of `unavailable` depend (answers are kept). What does not trace (is a package there, which GPU is this)
goes into a function without tensor arguments decorated with `constant`, which is evaluated once and whose result the
compiler takes as it is.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

log = logging.getLogger("seqkernels")

Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Cache a function of hashable, non-tensor arguments and let `torch.compile` take its result as a constant."""
    cached = functools.cache(function)

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return cached(*args)

    # What torch.compiler.assume_constant_result sets; that function imports torch._dynamo, a second and a half.
    call._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


MOST_KEPT_CHOICES = 1024

_preferred = "auto"


@contextmanager
def preferring(implementation: str) -> Iterator[None]:
    """What "auto" means inside: for a whole run, without telling every layer.

    Args:
        implementation: a name that "auto" takes for every op that has it, raising where it cannot run; ops without it
            take the best that can run. "auto" changes nothing.
    """
    global _preferred
    before, _preferred = _preferred, implementation
    try:
        yield
    finally:
        _preferred = before


def watched() -> bool:
    """Whether torch compiles, traces or records what is called now, so that shortcuts around it are not to be taken."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()


GPU_IMPLEMENTATIONS = ("cuda", "triton", "cute")


@dataclass
class Planned:
    """The GPU that is planned for.

    Attributes:
        memory_bytes: its memory.
        asked: whether anybody's plan depended on that.
    """

    memory_bytes: int
    asked: bool = False


_planned: Planned | None = None


@contextmanager
def planned_for_gpu(memory_bytes: int) -> Iterator[Planned]:
    """Inside, "auto" takes what an NVIDIA GPU of so much memory would run, whatever device the tensors are on.

    For adding up memory and work on fake tensors (`torch._subclasses.FakeTensorMode`), on a machine without that GPU:
    the ops' fake implementations say what they return and keep; nothing can be computed.
    """
    global _planned
    before, _planned = _planned, Planned(memory_bytes)
    try:
        yield _planned
    finally:
        _planned = before


def planned_memory() -> int | None:
    """Memory in bytes of the GPU that is planned for, None outside `planned_for_gpu`."""
    if _planned is None:
        return None
    _planned.asked = True
    return _planned.memory_bytes


# Module path to the imported implementation, or to the reason in words why it cannot be imported.
_imported: dict[str, ModuleType | str] = {}


@constant
def _import(path: str) -> None:
    """Import an implementation; a missing dependency becomes a reason in words."""
    try:
        _imported[path] = importlib.import_module(path)
    except ImportError as error:
        _imported[path] = f"cannot be imported: {error}"


@constant
def _announce(op: str, name: str, why: str) -> None:
    """Say once per distinct choice what was taken and why."""
    log.info("%s: taking implementation %r%s", op, name, f" ({why})" if why else "")


class Row(NamedTuple):
    """One line of `table()`."""

    op: str
    implementation: str
    available: bool
    reason: str


@dataclass(frozen=True)
class Registry:
    """The implementations of one op, best first.

    Args:
        op: name of the op.
        entry: name of the function that every implementation module exposes.
        modules: implementation name to module path, in the order in which "auto" tries them.
    """

    op: str
    entry: str
    modules: Mapping[str, str] = field(default_factory=dict)
    _choices: dict[tuple[object, ...], Callable[..., Any]] = field(default_factory=dict, repr=False, compare=False)

    def unavailable(self, name: str, x: Tensor, parameter: Tensor, **details: object) -> str | None:
        """Why implementation `name` cannot run on these tensors, or None when it can."""
        _import(self.modules[name])
        module = _imported[self.modules[name]]
        if isinstance(module, str):
            return module
        return module.unavailable(x, parameter, **details)

    def asked(self, implementation: str) -> str:
        """What a name stands for: "auto" for what is preferred (see `preferring`), where this op has it."""
        return _preferred if implementation == "auto" and _preferred in self.modules else implementation

    def choose(self, implementation: str, x: Tensor, parameter: Tensor, **details: object) -> Callable[..., Any]:
        """Return the entry function of the implementation to run; kept, for asking takes as long as a small kernel.

        Args:
            implementation: "auto" for the first that can run, or a name that must run.
            x: the main input; decides by device and dtype.
            parameter: the op's main parameter (`a_EN` of the scan, the weight elsewhere).
            details: further facts of the call that implementations may limit (`packed`, `groups`, ...).

        Raises:
            ValueError: the name is unknown, or that implementation cannot run on these tensors.
        """
        implementation = self.asked(implementation)
        if watched():
            return self._choose(implementation, x, parameter, details)
        key = (implementation, x.shape, x.dtype, x.device, parameter.shape, parameter.dtype, *details.items())
        run = self._choices.get(key)
        if run is None:
            if len(self._choices) >= MOST_KEPT_CHOICES:
                self._choices.clear()
            run = self._choices[key] = self._choose(implementation, x, parameter, details)
        return run

    def _choose(
        self, implementation: str, x: Tensor, parameter: Tensor, details: Mapping[str, object]
    ) -> Callable[..., Any]:
        if implementation != "auto":
            if implementation not in self.modules:
                accepted = ", ".join(["auto", *self.modules])
                raise ValueError(f"{self.op}: implementation={implementation!r} is unknown; accepted: {accepted}")
            reason = self.unavailable(implementation, x, parameter, **details)
            if reason is not None:
                raise ValueError(
                    f"{self.op}: implementation={implementation!r} cannot run here: {reason}. "
                    "Ask for implementation='auto' to take the best that can."
                )
            return getattr(_imported[self.modules[implementation]], self.entry)
        passed_over = ""
        for name in self.modules:  # before `_imported` is first read: a compiler remembers what it read
            _import(self.modules[name])
        if _planned is not None:
            for name in self.modules:
                if name in GPU_IMPLEMENTATIONS and isinstance(_imported[self.modules[name]], ModuleType):
                    return getattr(_imported[self.modules[name]], self.entry)
        for name in self.modules:
            reason = self.unavailable(name, x, parameter, **details)
            if reason is None:
                _announce(self.op, name, passed_over)
                return getattr(_imported[self.modules[name]], self.entry)
            passed_over += f"{'; ' if passed_over else ''}not {name}: {reason}"
        raise ValueError(f"{self.op}: no implementation can run on these inputs ({passed_over})")


def ops() -> dict[str, Registry]:
    """The registry of every op, found by folder: each sub-package with a `spec.py` is an op."""
    from seqkernels.spec import specs

    return {spec.name: spec.registry for spec in specs()}


def table(device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> list[Row]:
    """What `seqmodels doctor` prints: every op and implementation, whether it can run here, and why not.

    Args:
        device: where the inputs would live; the GPU when there is one, else the CPU.
        dtype: dtype of the inputs; bf16 on a GPU, fp32 on a CPU.

    Returns:
        Rows (op, implementation, available, reason), in the order in which "auto" tries them.
    """
    from seqkernels.spec import specs

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    rows: list[Row] = []
    for spec in specs():
        x, parameter = spec.probe(device, dtype)
        for name in spec.registry.modules:
            reason = spec.registry.unavailable(name, x, parameter)
            rows.append(Row(spec.name, name, reason is None, reason or ""))
    return rows
