"""`seqmodels prepare`: public data into the folders that the domains read, with checksums and resume."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from seqmodels.cli.bars import bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    config = compose("prepare", words)
    from seqmodels.instantiate import build

    known = build(config["catalogue"])
    if config["dataset"] is None and config["url"] is None:
        _list(known)
        return 0
    files, folder, use = _wanted(config, known)
    from seqmodels.data.download import fetch

    with bar("downloading", None, "byte") as move:
        # The total is that of one file: of several, the bar shows the rate alone.
        one = len(files) == 1
        paths = fetch(files, folder, unpack=config["unpack"], progress=lambda more, of: move(more, of if one else None))
    print(f"folder      {folder}")
    print(f"files       {', '.join(str(path) for path in paths[:4])}{' …' if len(paths) > 4 else ''}")
    if use and config["folder"] is None:
        print(f"next        seqmodels train {use}")
    return 0


def _wanted(config: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[Sequence[Any], str, str]:
    """Files, folder, and the words that read them."""
    from seqmodels.data.download import RemoteFile

    name, url = config["dataset"], config["url"]
    if name is not None and url is not None:
        raise ValueError(f"dataset={name} and url={url}: give one of the two")
    if url is not None:
        path = PurePosixPath(urlsplit(str(url)).path).name
        if not path:
            raise ValueError(f"url={url!r} names no file")
        return [RemoteFile(str(url), path, config["checksum"])], config["folder"] or "data", ""
    if config["checksum"] is not None:
        raise ValueError("checksum belongs to url; the data sets of the list bring their own")
    if (data := known.get(str(name))) is None:
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise ValueError(f"dataset={name!r}: there is none of this name{hint} seqmodels prepare lists all")
    return data.files, config["folder"] or data.folder, data.use


def _list(known: Mapping[str, Any]) -> None:
    width = max(map(len, known))
    for name, data in known.items():
        print(f"{name:{width}}  {data.title}; {len(data.files)} file{'s' if len(data.files) > 1 else ''}")
    print("\nseqmodels prepare dataset=<name>, or url=<address> for a file of your own choice")
