"""Reads a configuration file's keys, values and trailing comments as text: enough for `--help`, without Hydra.

Knows the plain form that conf/ keeps: two-space indents, one key a line, `# explanation` behind it. A test compares
what is found here with what Hydra composes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CONF = Path(__file__).resolve().parent.parent.parent / "conf"  # in a checkout
_INSTALLED = Path(__file__).resolve().parent.parent / "conf"
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w@/]*):(?: +(?P<rest>.*))?$")


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a YAML file.

    Attributes:
        path: dotted, inside the file.
        value: as written, "" for a mapping.
        comment: what stands behind `#`.
    """

    path: str
    value: str
    comment: str


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A YAML file, read as text.

    Attributes:
        title: its first comment line, or the comment of its `_target_`.
        package: of its `# @package` line, "" without one.
        keys: in order.
        defaults: entries of its defaults list, as written.
    """

    title: str
    package: str
    keys: tuple[Key, ...]
    defaults: tuple[str, ...]


def conf_folder() -> Path:
    """Where the YAML files lie: beside the package when installed, at the top of a checkout."""
    return _INSTALLED if _INSTALLED.is_dir() else CONF


def groups() -> dict[str, list[str]]:
    """The configuration groups and their options, sorted."""
    folders = sorted(folder for folder in conf_folder().iterdir() if folder.is_dir())
    options = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    return {name: found for name, found in options.items() if found}


@cache
def read(name: str) -> ConfigFile:
    """Reads `conf/<name>.yaml`, e.g. "train" or "optimizer/adamw"."""
    lines = (conf_folder() / f"{name}.yaml").read_text().splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    package = next((text.removeprefix("@package").strip() for text in comments if text.startswith("@package")), "")
    titles = [text for text in comments if not text.startswith("@package")]
    keys, defaults = _keys(lines)
    target = next((key.comment for key in keys if key.path.endswith("_target_")), "")
    return ConfigFile(titles[0] if titles else target, package, tuple(keys), tuple(defaults))


def _keys(lines: list[str]) -> tuple[list[Key], list[str]]:
    keys: list[Key] = []
    defaults: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in lines:
        if line.lstrip().startswith("- ") and parents and parents[0][1] == "defaults":
            defaults.append(line.strip()[2:].partition(" #")[0].strip())
            continue
        match = _KEY.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        while parents and parents[-1][0] >= indent:
            parents.pop()
        parents.append((indent, match["key"]))
        if parents[0][1] == "defaults":
            continue
        value, _, comment = (match["rest"] or "").partition("# ")
        keys.append(Key(".".join(name for _, name in parents), value.strip(), comment.strip()))
    return keys, defaults


def resolved(group: str, option: str) -> list[Key]:
    """An option's keys with those of the files in its defaults list, paths as they are typed on a command line."""
    file = read(f"{group}/{option}")
    prefix = {"": f"{group}.", "_global_": ""}.get(file.package, f"{file.package}.")
    found: dict[str, Key] = {}
    for entry in file.defaults:
        name, _, value = entry.partition(":")
        if entry == "_self_" or name.startswith("override "):
            continue
        if not value:
            found |= {key.path: key for key in resolved(group, name)}
            continue
        other, _, package = name.removeprefix("/").partition("@")
        for key in resolved(other, value.strip()):
            path = prefix + (package or other) + key.path.removeprefix(other)
            found[path] = Key(path, key.value, key.comment)
    for key in file.keys:
        path = prefix + key.path
        comment = key.comment or (found[path].comment if path in found else "")
        found[path] = Key(path, key.value, comment)
    return list(found.values())
