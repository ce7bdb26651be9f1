"""Published weights to a run folder, and a run folder to published weights.

    from seqmodels.interop.convert import convert
    print(convert("mamba-130m/", "runs/mamba-130m"))                 # published -> run folder
    print(convert("runs/dna", "dna-hf/", to="hf"))                   # run folder -> published

Everything fits or nothing is written: every parameter of the model must be in the source with its shape, every tensor
of the source must be used, tied copies must be equal. The target appears whole, by one rename.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from seqmodels.instantiate import build
from seqmodels.interop.caduceus import BIDIRECTIONAL, RCPS_STACK, Caduceus
from seqmodels.interop.hugging_face import HuggingFace
from seqmodels.interop.layout import Layout
from seqmodels.interop.mapping import Mapped, give, take
from seqmodels.interop.published import Published, read_published, write_published
from seqmodels.interop.report import ConversionError, Report, listed
from seqmodels.interop.state_spaces import StateSpaces
from seqmodels.interop.tokens import LARGEST_TABLE, IdTokenizer, letters_of, symbols_of
from seqmodels.training.checkpoint import find_checkpoint, point, read_meta, read_weights, step_folder, write_checkpoint
from seqmodels.training.run_folder import RunFolder

LAYOUTS: tuple[Layout, ...] = (StateSpaces(), HuggingFace(), Caduceus())
TARGETS = ("seqmodels", "hf", "state-spaces")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONVERSION = "conversion.json"  # the report, beside what was written


@dataclass(frozen=True, slots=True)
class Tokens:
    """How a converted model's ids are read.

    Attributes:
        spec: of a tokenizer.
        symbols: id -> what it stands for, as far as the source says.
        note: what the user should know, or "".
    """

    spec: Mapping[str, Any]
    symbols: Mapping[int, str]
    note: str


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str | None = None,
    checkpoint: str = "best",
    dtype: str | None = None,
    dataset: Mapping[str, Any] | None = None,
    known_tokenizers: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """Converts a checkpoint and writes it to a new folder.

    Args:
        source: a folder of published weights, or a run folder or checkpoint of ours.
        target: the folder to make.
        to: "hf", "state-spaces" (from a run folder) or "seqmodels" (from published weights); None takes the last.
        checkpoint: of a run folder, "best" or "last".
        dtype: of exported weights: "float32" (None), "bfloat16" or "float16". Run folders are always fp32.
        dataset: spec of a data set that the run folder is to be evaluated on; its tokenizer becomes the model's.
        known_tokenizers: name -> spec of tokenizers to be taken for a source whose letters have the same ids.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError: the source, its config.json or its weights are missing.
        ConversionError: something does not fit; the message names every tensor or option concerned.
    """
    target, is_ours = Path(target), _is_ours(Path(source))
    if target.exists():
        raise FileExistsError(f"target={str(target)!r} exists: name a new folder, or remove this one")
    to = to or ("seqmodels" if not is_ours else None)
    if to not in TARGETS or is_ours == (to == "seqmodels"):
        allowed = "hf or state-spaces" if is_ours else "seqmodels (published weights come by way of a run folder)"
        kind = "is a run folder" if is_ours else "holds published weights"
        raise ConversionError(f"to={to}: {str(source)!r} {kind}, which converts to {allowed}")
    if is_ours:
        if dataset is not None:
            raise ConversionError("domain=…: only a run folder names data; leave it out of an export")
        return _export(Path(source), target, to, checkpoint, dtype)
    if dtype not in (None, "float32"):
        raise ConversionError(f"dtype={dtype}: run folders keep fp32; dtype is for exports")
    return _import(read_published(source), target, dataset, known_tokenizers or {})


def _is_ours(source: Path) -> bool:
    return (source / "checkpoints").is_dir() or (source / "manifest.json").is_file()


def layout_of(config: Mapping[str, Any]) -> Layout:
    """The layout that a config.json is of.

    Raises:
        ConversionError: none; with the nearest known architecture.
    """
    for layout in LAYOUTS:
        if layout.reads(config):
            return layout
    known = [kind for layout in LAYOUTS for kind in layout.model_types]
    kind = config.get("model_type")
    if kind is None:
        raise ConversionError(
            "config.json has neither model_type (Hugging Face) nor d_model and n_layer (state-spaces); it has "
            + listed(sorted(config))
        )
    near = difflib.get_close_matches(str(kind), known, n=1, cutoff=0.3)
    hint = f"; the nearest is {near[0]!r}" if near else ""
    raise ConversionError(
        f"config.json is of model_type {kind!r}, which is not known here{hint}. Known: {', '.join(known)}, and "
        "state-spaces' own mamba-*, mamba2-*, mamba2attn-*"
    )


def _import(
    published: Published,
    target: Path,
    dataset: Mapping[str, Any] | None,
    known_tokenizers: Mapping[str, Mapping[str, Any]],
) -> Report:
    layout = layout_of(published.config)
    symbols = symbols_of(published.folder) or layout.symbols(published.config)
    spec = layout.spec(published.config, symbols, published.weights)
    taken = take(layout, spec, published.weights)
    tokens = _tokens(spec, symbols, published.config, dataset, known_tokenizers)
    notes = (tokens.note, "" if dataset else _NO_DATA)
    source = f"{published.folder} ({', '.join(published.files)}), {layout.name} layout, {_words(spec)}"
    report = _report(taken, source, str(target), notes, tokens.symbols)
    meta = {
        "model": spec,
        "tokenizer": tokens.spec,
        "unit": build(tokens.spec).unit,
        "class_names": [],
        "data": {},
        "versions": _versions(),
        "step": 0,
        "metrics": {},
        "converted_from": {"folder": str(published.folder), "layout": layout.name, "config": dict(published.config)},
    }
    config = {"model": spec, "converted_from": str(published.folder)}
    if dataset is not None:
        config["domain"] = {"dataset": dict(dataset)}
    with _new_folder(target) as draft:
        run = RunFolder.create(draft, config)
        folder = step_folder(run.checkpoints, 0)
        write_checkpoint(folder, weights=taken.weights, meta=meta, training_state={})
        for name in ("last", "best"):
            point(run.checkpoints, name, folder)
        (draft / CONVERSION).write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    return report


_NO_DATA = "names no data: seqmodels evaluate needs some; convert with domain=<one of conf/domain> to have it named"


def _export(source: Path, target: Path, to: str, checkpoint: str, dtype: str | None) -> Report:
    if dtype is not None and dtype not in DTYPES:
        raise ConversionError(f"dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    folder = find_checkpoint(source, checkpoint)
    meta, ours = read_meta(folder), read_weights(folder)
    spec = meta["model"]
    layout = _layout_for(to, spec)
    tokenizer = build(meta["tokenizer"])
    special_ids = {"start": tokenizer.start_id}
    if hasattr(tokenizer, "pad_id"):
        special_ids["pad"] = tokenizer.pad_id
    config = layout.config(spec, special_ids)
    given = give(layout, spec, ours, DTYPES[dtype or "float32"])
    if "model_type" in config:
        config["torch_dtype"] = dtype or "float32"
    report = _report(given, f"{folder}, {_words(spec)}", f"{target}, {layout.name} layout", layout.notes(spec))
    with _new_folder(target) as draft:
        write_published(draft, config, given.weights, as_pickle=layout.as_pickle)
        (draft / CONVERSION).write_text(json.dumps(report.as_dict(), indent=2) + "\n")
    return report


def _report(
    tensors: Mapped, source: str, target: str, notes: Sequence[str], symbols: Mapping[int, str] | None = None
) -> Report:
    return Report(
        source=source,
        target=target,
        mapped=dict(tensors.mapped),
        copies=tensors.copies,
        constants=tensors.constants,
        parameters=tensors.parameters,
        dtypes=tensors.dtypes,
        symbols=symbols or {},
        notes=tuple(note for note in notes if note),
    )


def _layout_for(to: str, spec: Mapping[str, Any]) -> Layout:
    """The layout that `to` means for this model: a hub folder of bidirectional models is Caduceus'."""
    if to == "state-spaces":
        return StateSpaces()
    backbone = spec["backbone"]
    is_caduceus = backbone["_target_"] == RCPS_STACK or (backbone.get("layer") or {}).get("_target_") == BIDIRECTIONAL
    return Caduceus() if is_caduceus else HuggingFace()


def _tokens(
    spec: Mapping[str, Any],
    symbols: Mapping[int, str],
    config: Mapping[str, Any],
    dataset: Mapping[str, Any] | None,
    known: Mapping[str, Mapping[str, Any]],
) -> Tokens:
    """The tokenizer of a converted model: the data set's, a known one with the same letters, or ids as they are."""
    vocab_size = spec["backbone"]["vocab_size"]
    table = dict(symbols) if len(symbols) <= LARGEST_TABLE else {}
    if dataset is not None:
        tokenizer = build(dataset["tokenizer"])
        if tokenizer.vocab_size > vocab_size:
            raise ConversionError(
                f"the data set's tokenizer has {tokenizer.vocab_size} ids, and this model {vocab_size}: choose the "
                "data that it was trained on"
            )
        return Tokens(tokenizer.spec(), table, "")
    letters = letters_of(symbols)
    for name, candidate in known.items():
        tokenizer = build(candidate)
        if letters and tokenizer.vocab_size <= vocab_size and _same_ids(tokenizer, letters):
            return Tokens(tokenizer.spec(), table, f"its ids are those of the {name} tokenizer, which it gets")
    start_id = next((config[key] for key in ("bos_token_id", "eos_token_id") if isinstance(config.get(key), int)), 0)
    tokenizer = IdTokenizer(vocab_size=vocab_size, start_id=min(start_id, vocab_size - 1), letters=letters)
    note = "its letters have ids of their own: sequences are read and written as text" if letters else (
        "no tokenizer of ours for its vocabulary: prompts and generated sequences are ids, as numbers"
    )
    return Tokens(tokenizer.spec(), table, note)


def _same_ids(tokenizer: Any, letters: Mapping[str, int]) -> bool:
    try:
        return [int(token) for token in tokenizer.encode("".join(letters))] == list(letters.values())
    except (ValueError, TypeError):
        return False


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """A hidden folder that becomes `target` when all went well, and vanishes when not."""
    draft = target.parent / f".draft-{target.name}-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        draft.rename(target)
    except OSError as error:
        raise OSError(f"target={str(target)!r} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _words(spec: Mapping[str, Any]) -> str:
    backbone = spec["backbone"]
    with torch.device("meta"):
        model = build(spec)
    kinds = list(dict.fromkeys(type(mixer).__name__ for mixer in model.backbone.mixers))
    return (
        f"{len(model.backbone.mixers)} x {backbone['d_model']} {' and '.join(kinds)}, vocabulary "
        f"{backbone['vocab_size']:,} ({len(model.backbone.embedding.weight):,} rows)"
    )


def _versions() -> dict[str, str]:
    import safetensors

    import seqmodels

    return {
        "seqmodels": seqmodels.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }
