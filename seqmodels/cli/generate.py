"""`seqmodels generate`: new sequences from a trained model, written in the domain's own format."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from seqmodels.cli.bars import bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log

if TYPE_CHECKING:
    import numpy as np

    from seqmodels.inference import LoadedModel
    from seqmodels.inference.samples import SamplesJob
    from seqmodels.model import SequenceModel

DEFAULT_LENGTH = 1000
EVERY_CLASS = "all"
MOST_PATHS_SHOWN = 20
MOST_PROMPT_SHOWN = 60

log = logging.getLogger("seqmodels")


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    with _stopped_by_sigterm():
        written = generate_run(compose("generate", words))
    for path in written[:MOST_PATHS_SHOWN]:
        print(f"written     {path}")
    if len(written) > MOST_PATHS_SHOWN:
        print(f"written     and {len(written) - MOST_PATHS_SHOWN} more; the table is {written[-1]}")
    return 0


def generate_run(config: Mapping[str, Any]) -> list[str]:
    """Generates from the plain data of conf/generate.yaml; returns the files written, the table last."""
    from seqmodels.inference import load
    from seqmodels.inference.generate import read_prefix
    from seqmodels.inference.samples import make_samples

    _require_numbers(config, "length", "seconds", "top_k", "top_p", "batch_size")
    loaded = load(config["run"], config["device"], which=config["checkpoint"], objective="next_token")
    tokenizer, class_ids = loaded.tokenizer, _class_ids(config["class_name"], loaded)
    prompt_ids = None if config["prompt"] is None else tokenizer.read_prompt(str(config["prompt"]))
    _say_if_longer_than_trained(prompt_ids, loaded)
    job = _job(config, loaded, prompt_ids)
    model, begin = _in_precision(loaded.model, config["precision"]), time.perf_counter()
    prefix = read_prefix(
        model, start_id=tokenizer.start_id, prompt_ids=prompt_ids, class_ids=class_ids,
        batch_size=len(class_ids or [0]),
    )  # fmt: skip
    with bar("generating", job.num_tokens * job.num_samples, tokenizer.unit) as move:
        samples, written = make_samples(
            model, tokenizer, prefix, job, on_symbols=move, picture=bool(config["figure"])
        )
    seconds, total = time.perf_counter() - begin, job.num_tokens * job.num_samples
    bits = ", ".join(f"{sample.bits:.3f}" for sample in samples[:8]) + (", ..." if len(samples) > 8 else "")
    print(f"made        {job.num_samples} x {job.num_tokens:,} {tokenizer.unit}s, {bits} bits/{tokenizer.unit}")
    print(f"            in {seconds:.1f} s, {total / seconds:,.0f} {tokenizer.unit}s/s")
    return written


def _job(config: Mapping[str, Any], loaded: LoadedModel, prompt_ids: np.ndarray | None) -> SamplesJob:
    """What conf/generate.yaml asks for."""
    from seqmodels.cli.evaluate import _run_folder
    from seqmodels.inference import Sampling
    from seqmodels.inference.samples import SamplesJob

    tokenizer = loaded.tokenizer
    allowed_ids = getattr(tokenizer, "drawn_ids", None)  # bases, say, and no special tokens; all where it names none
    default = _run_folder(config["run"]) / "results" / f"generated-{config['seed']}{tokenizer.file_suffix}"
    output = Path(config["output"] or default)
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "prompt": _shown(config["prompt"]),
        "class_name": _shown(config["class_name"]),
        "model": _shown(config["run"]),
        "step": str(loaded.meta.get("step", "none")),
        "precision": config["precision"],
    }
    return SamplesJob(
        str(output),
        config["num_samples"],
        _length(config, tokenizer),
        first_sample=config["first_sample"],
        sampling=Sampling(config["temperature"], config["top_k"], config["top_p"], config["seed"], allowed_ids),
        written_prompt=prompt_ids if config["include_prompt"] else None,
        sort_by=config["sort_by"],
        rows_at_a_time=config["batch_size"],
        facts=facts,
        class_names=[loaded.class_names[i] for i in _class_ids(config["class_name"], loaded) or []],
    )


def _shown(value: Any) -> str:
    """A value in one line of the files' metadata; letters of a long prompt are cut."""
    text = "none" if value is None else " ".join(str(value).split())
    is_long = len(text) > MOST_PROMPT_SHOWN and not os.path.exists(text)
    return f"{text[:MOST_PROMPT_SHOWN]}...({len(text):,}_letters)" if is_long else text


def _say_if_longer_than_trained(prompt_ids: np.ndarray | None, loaded: LoadedModel) -> None:
    """Models go on past the length they were trained on, but nobody has seen how well."""
    longest, unit = loaded.meta.get("longest_sample"), loaded.tokenizer.unit
    if prompt_ids is not None and longest and len(prompt_ids) > longest:
        log.warning(
            "the prompt has %s %ss, and training showed the model at most %s at a time: what it makes of the rest is"
            " untried", f"{len(prompt_ids):,}", unit, f"{longest:,}",
        )  # fmt: skip


def _in_precision(model: SequenceModel, precision: str) -> SequenceModel:
    """The model, or a copy with its matrices in bf16."""
    import torch

    from seqmodels.inference.graph import decoding_copy

    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision={precision}: must be fp32 or bf16")
    return model if precision == "fp32" else decoding_copy(model, torch.bfloat16)


def _require_numbers(config: Mapping[str, Any], *names: str) -> None:
    for name in names:
        value = config[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{name}={value}: must be a number, or null")


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds like Ctrl-C, so that unfinished files are closed; the exit code is 143."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only the main one may listen
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _class_ids(name: Any, loaded: LoadedModel) -> list[int] | None:
    """The numbers of the classes to make, which take turns; None for a model that is told no class.

    Raises:
        ValueError: the model is told classes and none is named, or the other way round, or it knows no such class.
    """
    from seqmodels.backbones.class_conditioned import ClassConditioned

    names = ", ".join(loaded.class_names)
    if not isinstance(loaded.model.backbone, ClassConditioned):
        if name is not None:
            raise ValueError(f"class_name={name}: this model is told no class; train one with condition=class")
        return None
    if str(name) in loaded.class_names:
        return [loaded.class_names.index(str(name))]
    if name == EVERY_CLASS:
        return list(range(len(loaded.class_names)))
    shown = "null" if name is None else name
    raise ValueError(f"class_name={shown}: say which class to make, one of {names}, or {EVERY_CLASS} in turn")


def _length(config: Mapping[str, Any], tokenizer: Any) -> int:
    """Symbols to make.

    Raises:
        ValueError: both length and seconds, seconds of something that is no sound, or less than one sample.
    """
    length, seconds = config["length"], config["seconds"]
    if length is not None and seconds is not None:
        raise ValueError(f"length={length} and seconds={seconds}: give one of them")
    if seconds is None:
        return DEFAULT_LENGTH if length is None else length
    rate_hz = getattr(tokenizer, "sample_rate_hz", None)
    if rate_hz is None:
        raise ValueError(f"seconds={seconds}: this model makes {tokenizer.unit}s, say length=<number of them>")
    exact = seconds * rate_hz
    if not (math.isfinite(exact) and exact >= 1):
        raise ValueError(f"seconds={seconds}: less than one sample at {rate_hz} Hz, or no number of seconds")
    length = round(exact)
    if abs(exact - length) > 1e-6 * exact:
        print(f"length      seconds={seconds} is {exact:.3f} samples at {rate_hz} Hz: {length:,} are made")
    return length
