"""Builds objects from plain data: `_target_` names a class, the other keys are its keyword arguments.

    build({"_target_": "seqmodels.layers.mamba.Mamba", "d_model": 64, "d_state": 16})

The same form that Hydra's `instantiate` reads, but strict: only this project's names and torch's and lightning's
building blocks can be called (a checkpoint's model.json must not be a way to run code), unknown keys are refused
with the nearest name, and what a constructor raises comes through as it is.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

OWN_ROOTS = ("seqmodels", "domains", "seqkernels")
ALLOWED_PREFIXES = ("seqmodels.", "domains.", "seqkernels.", "torch.nn.", "torch.optim.", "lightning.")


def build(spec: Mapping[str, Any], /, **kwargs: Any) -> Any:
    """Calls what `_target_` names with the spec's other keys and `kwargs` (which win); nested specs first.

    Args:
        spec: plain dicts, lists and scalars. `_partial_: true` gives a functools.partial instead of a call.
        **kwargs: run-time values, passed as they are.

    Raises:
        ValueError: no or a forbidden `_target_`, a name that does not exist, an unknown or missing argument.
    """
    if "_target_" not in spec:
        raise ValueError(f"a spec needs _target_, the full name of a class; this one has {sorted(spec)}")
    name = spec["_target_"]
    target = locate(name)
    own = {key: value for key, value in spec.items() if key not in {"_target_", "_partial_"} and key not in kwargs}
    check_arguments(target, own.keys() | kwargs.keys(), name)
    arguments = {key: _build_nested(value) for key, value in own.items()} | kwargs
    if spec.get("_partial_", False):
        return functools.partial(target, **arguments)
    _check_required(target, arguments, name)
    return target(**arguments)


def locate(name: str) -> Callable[..., Any]:
    """The class or function of a full dotted name, if a spec may name it.

    Own code may be named freely; of torch and lightning only classes, and only ones that live there: a path such as
    `torch.os.system` leads out and is refused.

    Raises:
        ValueError: the name is not allowed, or does not exist.
    """
    if not isinstance(name, str) or not name.startswith(ALLOWED_PREFIXES):
        raise ValueError(f"_target_ {name!r} is not allowed; names begin with one of {', '.join(ALLOWED_PREFIXES)}")
    target = _import(name)
    home = (getattr(target, "__module__", None) or "").split(".")[0]
    if not callable(target) or home not in {*OWN_ROOTS, name.split(".")[0]}:
        raise ValueError(f"_target_ {name!r} is not a class or function of {name.split('.')[0]}")
    if home not in OWN_ROOTS and not inspect.isclass(target):
        raise ValueError(f"_target_ {name!r} is not a class; outside this project only classes may be named")
    return target


def check_arguments(target: Callable[..., Any], keys: Any, name: str) -> None:
    """Refuses keys that `target` does not take, with the nearest name it does.

    Raises:
        ValueError: naming the key, the nearest argument and all arguments.
    """
    parameters = inspect.signature(target).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for key in sorted(keys):
        if key not in parameters:
            near = difflib.get_close_matches(key, parameters, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"{name} has no argument {key!r}{hint} It takes {', '.join(parameters)}")


def _check_required(target: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> None:
    empty = inspect.Parameter.empty
    named = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    missing = [
        key
        for key, parameter in inspect.signature(target).parameters.items()
        if parameter.kind in named and parameter.default is empty and key not in arguments
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}")


def _build_nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _build_nested(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_build_nested(part) for part in value]
    return value


def _import(name: str) -> Any:
    """Imports the longest module prefix of a dotted name, then follows attributes."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and module_name.startswith(error.name):
                continue  # that prefix is not a module; an import that fails inside a module comes through
            raise
        for part in parts[cut:]:
            if not hasattr(found, part):
                near = difflib.get_close_matches(part, dir(found), n=1)
                hint = f"; did you mean {'.'.join([*parts[:cut], near[0]])}?" if near else ""
                raise ValueError(f"_target_ {name!r} does not exist: {found.__name__} has no {part!r}{hint}")
            found = getattr(found, part)
        return found
    raise ValueError(f"_target_ {name!r} does not exist: there is no module {parts[0]!r}")
