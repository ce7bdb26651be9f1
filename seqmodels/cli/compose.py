"""Command-line words to plain data: Hydra composes, and what comes out are dicts, lists and scalars."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqmodels.cli.yaml_lines import Key, groups, read, resolved

PATH_KEY = re.compile(r"(^|_)(fasta|folder|file|path|bed|vcf|csv|jsonl|manifest|dir)s?$")
ALIASES = {"layer": "layer@backbone.layer"}  # what a user types -> where the group stands


class OverrideError(ValueError):
    """A word of the command line that names nothing, or cannot be read."""


# Fills in values known only now, before interpolations are resolved: (composed config, option taken of each group).
Fill = Callable[[Any, Mapping[str, str]], None]


def compose(command: str, words: Sequence[str], fill: Fill | None = None) -> dict[str, Any]:
    """The configuration of a command as plain data, every interpolation resolved.

    Args:
        command: name of the top YAML file.
        words: Hydra overrides, `key=value` or `group=option`.
        fill: sets what is known only at run time.

    Raises:
        OverrideError: a key, group or option does not exist (the nearest is named), a value cannot be read, or a
            value that must be given is not.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words = [aliased(word) for word in words]
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise OverrideError(f"{word!r} is not of the form key=value")
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module("seqmodels.conf", version_base="1.3"):
            config = hydra.compose(command, overrides=list(words), return_hydra_config=True)
            choices = dict(config.hydra.runtime.choices)
            OmegaConf.set_struct(config, False)
            del config["hydra"]
    except (HydraException, OmegaConfBaseException) as error:
        raise OverrideError(explain(command, words, error)) from error
    finally:
        GlobalHydra.instance().clear()
    if fill is not None:
        fill(config, choices)
    values = plain(config, command)
    _check_kinds(command, words, values)
    return values


def plain(config: Any, command: str) -> dict[str, Any]:
    """A DictConfig as plain data.

    Args:
        config: composed by Hydra.
        command: the top YAML file, for messages.

    Raises:
        OverrideError: a mandatory value (???) is missing, or an interpolation leads nowhere.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise OverrideError(f"{missing[0]} must be given: add {missing[0]}=<value>{_comment_of(missing[0], command)}")
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise OverrideError(f"{error}".split("\n")[0]) from error


def absolute_paths(value: Any, key: str = "") -> Any:
    """Existing relative paths under path-like keys made absolute, so that a run can be used from any folder."""
    if isinstance(value, dict):
        return {name: absolute_paths(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [absolute_paths(part, key) for part in value]
    if isinstance(value, str) and PATH_KEY.search(key) and Path(value).exists():
        return str(Path(value).resolve())
    return value


def set_keys(config: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Sets dotted keys of a saved configuration, which must exist, or be arguments that came in a later version.

    Raises:
        OverrideError: a key does not exist.
    """
    import yaml

    for word in words:
        key, _, text = word.lstrip("+").partition("=")
        place: Any = config
        *parents, last = key.split(".")
        for name in parents:
            place = place.get(name) if isinstance(place, dict) else None
        if not isinstance(place, dict) or (last not in place and last not in _arguments(place)):
            raise OverrideError(f"the run's configuration has no {key}{_nearest(key, _leaves(config))}")
        place[last] = yaml.safe_load(text)
    return config


def _arguments(spec: Mapping[str, Any]) -> Collection[str]:
    """What the class that a spec names takes; nothing for other mappings."""
    from seqmodels.instantiate import locate

    return inspect.signature(locate(spec["_target_"])).parameters if "_target_" in spec else ()


def split_words(words: Sequence[str], own: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words whose key begins with one of `own`, and the others."""
    mine = [word for word in words if word.lstrip("+").startswith(tuple(own))]
    return mine, [word for word in words if word not in mine]


def aliased(word: str) -> str:
    """A word with a short group name written out: layer=mamba is layer@backbone.layer=mamba."""
    key, equals, value = word.partition("=")
    return f"{ALIASES[key]}{equals}{value}" if key in ALIASES else word


def explain(command: str, words: Sequence[str], error: Exception) -> str:
    """Which word is wrong and what was perhaps meant; Hydra's own first line where that is unclear."""
    unknown = unknown_word(command, words)
    if unknown is not None:
        return unknown
    first = str(error).strip().split("\n")[0]
    if f"'{ALIASES['layer']}'" in first:
        return (
            "this backbone takes its layers from a pattern, so layer= has no place in it: change backbone.pattern (or"
            " outer and centre of a U-Net) and the keys under backbone.layers, or take backbone=stack"
        )
    broken = next((word for word in words if not _parses(word)), None)
    if broken is not None:
        key, _, value = broken.partition("=")
        return f"cannot read {broken!r}: put quotes around the value, '{key}=\"{value}\"' ({first})"
    return first


def unknown_word(command: str, words: Sequence[str]) -> str | None:
    """The message about the first word whose key, group or option does not exist; None where all do."""
    options = groups()
    keys = [key.path for key in _known_keys(command, words)]
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        group = key.partition("@")[0]
        if group in options:
            for option in value.split(","):
                if option not in (*options[group], "null", ""):
                    near = _nearest(option, options[group])
                    return f"{group}={option}: there is no such option{near} Options: {', '.join(options[group])}"
        elif not word.startswith(("+", "hydra")) and not any(f"{known}.".startswith(f"{key}.") for known in keys):
            near = _nearest(key, [*keys, *options])
            return f"there is no option {key!r}{near}  (seqmodels {command} --help lists all)"
    return None


def _parses(word: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    try:
        OverridesParser.create().parse_override(word)
    except Exception:
        return False
    return True


def _known_keys(command: str, words: Sequence[str]) -> list[Key]:
    """Keys that the chosen options have, from the text of the YAML files."""
    options = groups()
    file = read(command)
    found = list(file.keys)
    chosen = dict(entry.split(": ") for entry in file.defaults if ": " in entry)
    chosen |= {word.partition("=")[0]: word.partition("=")[2] for word in words}
    experiment = chosen.get("experiment", "null")
    if experiment in options.get("experiment", ()):
        overrides = (entry for entry in read(f"experiment/{experiment}").defaults if entry.startswith("override "))
        named = dict(entry.removeprefix("override ").lstrip("/").split(": ") for entry in overrides)
        chosen |= {group: named[group] for group in named if not any(w.startswith(f"{group}=") for w in words)}
    for group, option in chosen.items():
        if option in options.get(group, ()):
            found += resolved(group, option)
    return found


def _leaves(value: Any, prefix: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [prefix]
    return [leaf for name, part in value.items() for leaf in _leaves(part, f"{prefix}.{name}" if prefix else name)]


def _nearest(name: str, known: Sequence[str]) -> str:
    last = name.rpartition(".")[2]
    near = [key for key in known if key.rpartition(".")[2] == last][:3]  # fasta -> domain.dataset.fasta
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else "."


def _check_kinds(command: str, words: Sequence[str], values: Mapping[str, Any]) -> None:
    """Where a number stands in the YAML, no word can take its place (data sets have their own, better messages), and
    no list either, unless the line says that one may."""
    keys = [key for key in _known_keys(command, words) if not key.path.startswith("domain.")]
    kinds = {key.path: None if "or a list" in key.comment else _kind(key.value) for key in keys}
    for word in words:
        key, _, text = word.lstrip("+~").partition("=")
        kind = kinds.get(key)
        if kind is None:
            continue
        value: Any = values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        allowed = {"number": (int, float), "true or false": bool}[kind]
        if value is not None and (not isinstance(value, allowed) or (kind == "number" and isinstance(value, bool))):
            raise OverrideError(
                f"{key}={text!r} must be a {kind}" if kind == "number" else f"{key}={text!r} must be {kind}"
            )


def _kind(text: str) -> str | None:
    if text in ("true", "false"):
        return "true or false"
    try:
        float(text)
    except ValueError:
        return None
    return "number"


def _comment_of(key: str, command: str) -> str:
    for found in read(command).keys:
        if found.path == key and found.comment:
            return f"  ({found.comment})"
    for group, options in groups().items():
        if key.startswith(f"{group}."):
            for option in options:
                for found in resolved(group, option):
                    if found.path == key and found.comment:
                        return f"  ({found.comment})"
    return ""
