"""Patterns of layers as published: one letter a block, `M-M*-` is Mamba-2, MLP, Mamba-2, attention, MLP.

A pattern and a palette of layer factories -> the factories in order. Letters are those of Megatron's hybrid models (M,
*, -), continued; a palette may name its layers by these letters, by their words, or by letters of its own.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

LETTERS: dict[str, str] = {
    "M": "mamba2",
    "m": "mamba",
    "z": "mamba_complex",
    "*": "attention",
    "-": "mlp",
    "s": "s4d",
    "S": "mamba_s4",
    "h": "hyena",
    "c": "dilated_conv",
    "l": "lstm",
}


def factories(pattern: str, palette: Mapping[str, Any]) -> list[Any]:
    """The layer factories of a pattern, first block first.

    Args:
        pattern: one letter a block.
        palette: letter, or the word that `LETTERS` has for it, -> factory (or its spec). What is not used is left
            unused, so that one override changes the pattern alone.

    Raises:
        ValueError: an empty pattern, a letter that the palette does not have (which, and where), or a palette with
            two entries for one letter.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"pattern={pattern!r}: must be a string with a letter for each block, such as 'M-M*-'")
    known = _by_letter(palette)
    for place, letter in enumerate(pattern):
        if letter not in known:
            meaning = f" ({LETTERS[letter]})" if letter in LETTERS else ""
            has = ", ".join(f"{key!r} ({LETTERS[key]})" if key in LETTERS else repr(key) for key in sorted(known))
            raise ValueError(
                f"pattern {pattern!r}: letter {letter!r}{meaning} at position {place} (from 0) has no layer;"
                f" layers has {has or 'none'}. Add layers.{LETTERS.get(letter, letter)}, or change the pattern"
            )
    return [known[letter] for letter in pattern]


def _by_letter(palette: Mapping[str, Any]) -> dict[str, Any]:
    words = {word: letter for letter, word in LETTERS.items()}
    known: dict[str, Any] = {}
    for name, factory in palette.items():
        letter = words.get(name, name)
        if len(letter) != 1:
            near = difflib.get_close_matches(name, words, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"layers has an entry {name!r}: must be one letter, or one of {', '.join(sorted(words))}{hint}"
            )
        if letter in known:
            raise ValueError(f"layers has two entries for {letter!r} ({LETTERS[letter]}): keep one")
        known[letter] = factory
    return known
