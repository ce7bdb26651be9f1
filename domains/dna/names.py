"""Names of chromosomes and other records: other spellings, globs, and what was perhaps meant.

    find_contig("20", genome.lengths)      # "chr20", where the genome calls it so
    matches("galGal4/chr5", "chr[57]")     # True
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any


def aliases(name: str) -> list[str]:
    """Other spellings of a chromosome: 20 and chr20; M, MT, chrM, chrMT."""
    bare = name[3:] if name.lower().startswith("chr") else name
    spellings = [bare, f"chr{bare}", f"Chr{bare}"]
    if bare in ("M", "MT"):
        spellings += ["M", "MT", "chrM", "chrMT"]
    return [spelling for spelling in dict.fromkeys(spellings) if spelling != name]


def find_contig(name: str, lengths: Mapping[str, int]) -> str | None:
    """The record called `name`, or spelled as one of its aliases; None where there is none."""
    return next((spelling for spelling in [name, *aliases(name)] if spelling in lengths), None)


def matches(contig: str, pattern: str) -> bool:
    """Whether a record's name, with or without its genome's (`galGal4/chr5`), or an alias of it fits a glob."""
    bare = contig.rpartition("/")[2]
    return any(fnmatchcase(name, pattern) for name in (contig, bare, *aliases(bare)))


def close_names(name: str, names: Mapping[str, Any] | Iterable[str]) -> str:
    """A ready tail for an error message: names spelled like `name`, else the first few there are."""
    names = list(names)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5) if len(names) <= 10_000 else []
    if close:
        return f"; close: {', '.join(close)}"
    first = names[:8]
    return f"; there are: {', '.join(first)}{' …' if len(names) > 8 else ''}" if first else ""
