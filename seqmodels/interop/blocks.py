"""A backbone's spec as a plain list of blocks, and the options of a layer as the ones that somebody else's has.

Both directions of a conversion meet here: ours to a list of (class, every keyword with its default), that list to
their configuration, and back.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqmodels.backbones.pattern import LETTERS, factories
from seqmodels.instantiate import locate
from seqmodels.interop.report import ConversionError

STACK = "seqmodels.backbones.stack.Stack"


@dataclass(frozen=True, slots=True)
class LayerOptions:
    """One kind of layer in two vocabularies.

    Attributes:
        target: our class.
        letter: its letter in patterns.
        names: our keyword -> theirs, of what the trained function depends on.
        starting: our keyword -> theirs, of what only an initialisation depends on.
        own: our keywords that choose how a result is computed, not which; left out.
        ignored: their keywords of that kind, or of initialisation, which we have no use for.
        only: their keyword -> the one value of it that our layer can be.
    """

    target: str
    letter: str
    names: Mapping[str, str]
    starting: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    only: Mapping[str, Any] = field(default_factory=dict)

    def ours(self, theirs: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Our spec of a layer with their options; those they leave out are left out (same published defaults).

        Raises:
            ConversionError: an option that is not known, or a value that our layer cannot have.
        """
        known = {name: own for own, name in (*self.names.items(), *self.starting.items())}
        for name, value in theirs.items():
            if name in self.only and value != self.only[name]:
                kind = self.target.rpartition(".")[2]
                raise ConversionError(f"{where}: {name}={value!r} is not what {kind} here is: {self.only[name]!r}")
            if name not in known and name not in self.ignored and name not in self.only:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; the nearest is {near[0]!r}" if near else ""
                raise ConversionError(f"{where}: the option {name}={value!r} is not known here{hint}")
        return {"_target_": self.target, "_partial_": True} | {known[k]: v for k, v in theirs.items() if k in known}

    def theirs(self, spec: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Their options for one of our layers, every one written out.

        Raises:
            ConversionError: the layer uses an option that they do not have.
        """
        full, defaults = with_defaults(spec), with_defaults({"_target_": self.target})
        both = {**self.names, **self.starting}
        for name, value in full.items():
            if name not in both and name not in self.own and value != defaults[name]:
                kind = self.target.rpartition(".")[2]
                raise ConversionError(f"{where} has no place for {kind} with {name}={value!r}")
        return {name: full[own] for own, name in both.items()}


def with_defaults(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Every keyword of a layer's spec but d_model, unwritten ones at their defaults."""
    parameters = inspect.signature(locate(spec["_target_"])).parameters
    defaults = {name: value.default for name, value in parameters.items() if name != "d_model"}
    return defaults | {name: value for name, value in spec.items() if not name.startswith("_")}


def block_specs(backbone: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layer's spec of every block of a stack, first to last.

    Raises:
        ConversionError: the backbone is not a stack.
    """
    if backbone["_target_"] != STACK:
        raise ConversionError(f"{backbone['_target_']} has no counterpart in published layouts; a stack of layers has")
    if backbone.get("pattern") is None:
        return [backbone["layer"]] * backbone["n_layers"]
    once = factories(backbone["pattern"], backbone["layers"])
    return list(once) * ((backbone.get("n_layers") or len(once)) // len(once))  # type: ignore[return-value]


def stack_spec(blocks: Sequence[str], layers: Mapping[str, Mapping[str, Any]], **others: Any) -> dict[str, Any]:
    """The spec of a stack from the letter of each block and the layers' specs; plain where all blocks are alike."""
    used = {letter: layers[letter] for letter in dict.fromkeys(blocks)}
    if len(used) == 1:
        return {"_target_": STACK, "n_layers": len(blocks), "layer": next(iter(used.values())), **others}
    words = {LETTERS[letter]: spec for letter, spec in used.items()}
    return {"_target_": STACK, "pattern": "".join(blocks), "layers": words, **others}


def require_one(specs: Sequence[Mapping[str, Any]], what: str) -> Mapping[str, Any]:
    """The one spec that all of them are.

    Raises:
        ConversionError: they differ.
    """
    full = [with_defaults(spec) | {"_target_": spec["_target_"]} for spec in specs]
    for index, spec in enumerate(full):
        if spec != full[0]:
            differ = sorted(name for name in full[0].keys() | spec.keys() if full[0].get(name) != spec.get(name))
            raise ConversionError(
                f"the layout has one configuration for {what}, and this model's differ: number 0 and number {index} "
                f"in {', '.join(differ)}"
            )
    return specs[0]
