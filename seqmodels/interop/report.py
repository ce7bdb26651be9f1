"""What a conversion did with every tensor, and the error that says why it did nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SHOWN = 8  # names of one kind in a message


class ConversionError(ValueError):
    """A checkpoint that cannot be converted as it is; nothing was written."""


@dataclass(frozen=True, slots=True)
class Report:
    """An account of a conversion in which everything fits.

    Attributes:
        source: what was read, and in which layout.
        target: what was written.
        mapped: name in the source -> names in the target, of every tensor.
        copies: names in the source that hold a copy of another tensor, checked to be equal -> that tensor's name.
        constants: names in the source that hold what the configuration already says, checked to be equal.
        parameters: numbers in the tensors, each counted once.
        dtypes: the tensors' types, in the source and in the target.
        symbols: id -> what it stands for, where the source says so.
        notes: what else the user should know.
        missing: names that the model needs and the source does not have. Always empty: a conversion that lacks
            something raises `ConversionError`. So is `unused`.
        unused: names in the source that the model has no place for.
    """

    source: str
    target: str
    mapped: Mapping[str, tuple[str, ...]]
    copies: Mapping[str, str]
    constants: tuple[str, ...]
    parameters: int
    dtypes: tuple[str, str]
    symbols: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for conversion.json."""
        return {
            "source": self.source,
            "parameters": self.parameters,
            "dtypes": list(self.dtypes),
            "mapped": {name: list(ours) for name, ours in self.mapped.items()},
            "copies": dict(self.copies),
            "constants": list(self.constants),
            "missing": list(self.missing),
            "unused": list(self.unused),
            "symbols": {str(token): symbol for token, symbol in self.symbols.items()},
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        renamed = {name: ours for name, ours in self.mapped.items() if name not in ours}
        example = next(iter(renamed.items()), None)
        same = len(self.mapped) - len(renamed)
        lines = [
            f"source      {self.source}",
            f"mapped      {len(self.mapped)} tensors, {self.parameters:,} parameters, "
            + (self.dtypes[0] if self.dtypes[0] == self.dtypes[1] else f"{self.dtypes[0]} -> {self.dtypes[1]}"),
            f"names       {same} the same, {len(renamed)} others"
            + (f", such as {example[0]} -> {', '.join(example[1])}" if example else ""),
            f"copies      {len(self.copies)}, checked equal{listed(self.copies, ': ')}",
        ]
        if self.constants:
            lines.append(f"constants   {len(self.constants)}, as the configuration says: {', '.join(self.constants)}")
        lines += ["missing     none", "unused      none"]
        if self.symbols:
            lines.append("ids         " + ", ".join(f"{token} {symbol}" for token, symbol in self.symbols.items()))
        lines += [f"note        {note}" for note in self.notes]
        return "\n".join([*lines, f"written     {self.target}"])


def listed(names: Sequence[str] | Mapping[str, Any], before: str = "") -> str:
    """The first few names, comma-separated; how many more there are."""
    shown = list(names)[:SHOWN]
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{before}{', '.join(shown)}{more}" if shown else ""
