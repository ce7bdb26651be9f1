"""`seqmodels generate`: new sequences from a trained model, written in the domain's own format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqmodels.cli.bars import bar
from seqmodels.cli.compose import compose
from seqmodels.cli.console import show_log

if TYPE_CHECKING:
    from seqmodels.inference import LoadedModel

DEFAULT_LENGTH = 1000


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    for path in generate_run(compose("generate", words)):
        print(f"written     {path}")
    return 0


def generate_run(config: Mapping[str, Any]) -> list[str]:
    """Generates from the plain data of conf/generate.yaml; returns the files written."""
    from seqmodels.cli.evaluate import _run_folder
    from seqmodels.inference import Sampling, generate, load

    loaded = load(config["run"], config["device"], which=config["checkpoint"], objective="next_token")
    tokenizer, count = loaded.tokenizer, config["num_samples"]
    length = _length(config, tokenizer)
    allowed_ids = getattr(tokenizer, "drawn_ids", None)  # bases, say, and no special tokens; all where it names none
    sampling = Sampling(config["temperature"], config["top_k"], config["top_p"], config["seed"], allowed_ids)
    prompt_ids = None if config["prompt"] is None else tokenizer.read_prompt(str(config["prompt"]))
    with bar("generating", length * count, tokenizer.unit) as move:
        made = generate(
            loaded.model,
            length,
            start_id=tokenizer.start_id,
            prompt_ids=prompt_ids,
            batch_size=count,
            class_ids=_class_id(config["class_name"], loaded),
            sampling=sampling,
            on_tokens=lambda ids_BQ: move(ids_BQ.numel()),
        )
    sequences = list(made.ids_BL.cpu().numpy())
    if config["include_prompt"] and prompt_ids is not None:
        import numpy as np

        sequences = [np.concatenate([prompt_ids.astype(ids.dtype), ids]) for ids in sequences]
    bits = (-made.log_likelihood_B / length / math.log(2)).tolist()
    rates = ", ".join(f"{b:.3f}" for b in bits[:8])
    print(f"made        {count} x {length:,} {tokenizer.unit}s, {rates} bits/{tokenizer.unit}")
    default = _run_folder(config["run"]) / "results" / f"generated-{config['seed']}{tokenizer.file_suffix}"
    output = Path(config["output"] or default)
    output.parent.mkdir(parents=True, exist_ok=True)
    names = [f"generated_{number} seed={config['seed']} bits={b:.4f}" for number, b in enumerate(bits)]
    return tokenizer.write(str(output), sequences, names=names)


def _class_id(name: Any, loaded: LoadedModel) -> int | None:
    """The number of the class to make; None for a model that is told no class.

    Raises:
        ValueError: the model is told classes and none is named, or the other way round, or it knows no such class.
    """
    from seqmodels.backbones.class_conditioned import ClassConditioned

    names = ", ".join(loaded.class_names)
    if not isinstance(loaded.model.backbone, ClassConditioned):
        if name is not None:
            raise ValueError(f"class_name={name}: this model is told no class; train one with condition=class")
        return None
    if str(name) not in loaded.class_names:
        raise ValueError(f"class_name={'null' if name is None else name}: say which class to make, one of {names}")
    return loaded.class_names.index(str(name))


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
