"""`seqmodels evaluate`: loss and metrics of a run on a split, printed and kept as JSON in the run folder.

With `classifier=` also scores of generated sounds.
With `runs=` several runs, for example one experiment with several seeds, and mean ± sd over them.
"""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqmodels.cli.bars import bar
from seqmodels.cli.compose import OverrideError, absolute_paths, compose, set_keys, split_words
from seqmodels.cli.console import show_log

SOUND_SCORES = {  # how a score is called on the screen -> in the report
    "FID, 0 is best": "fid",
    "inception score, up to the number of classes": "inception_score",
    "modified inception score, more is better": "modified_inception_score",
    "AM, 0 is best": "am",
    "accuracy: heard as what it was made as": "accuracy",
    "classes made, in effect": "class_diversity",
    "distance of two clips' features": "feature_diversity",
}

if TYPE_CHECKING:
    from seqmodels.inference import LoadedModel
    from seqmodels.model import SequenceModel


def run(words: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    show_log()
    of_data, own = split_words(words, ["domain."])
    several, own = split_words(own, ["runs="])
    if several and several[-1] not in ("runs=", "runs=null"):
        return _run_several(several[-1].partition("=")[2], own, of_data)
    config = compose("evaluate", own)
    report = evaluate_run(config, of_data)
    _show(report)
    print(f"written     {_write(report, config['output'] or _home(config))}")
    if config["per_sequence"] is not None:
        print(f"written     {config['per_sequence']}")
    return 0


def _run_several(runs: str, own: Sequence[str], of_data: Sequence[str]) -> int:
    """Each run by itself, then mean ± sd over them."""
    from seqmodels.training.repeats import spreads

    if any(word.startswith("run=") for word in own):
        raise OverrideError("give run=<one> or runs=<several>, not both")
    paths, reports = _expanded(runs), []
    for path in paths:
        config = compose("evaluate", [*own, f'run="{path}"'])
        if config["per_sequence"] is not None:
            raise OverrideError("per_sequence= is the table of one run: give run=<one>, not runs=<several>")
        reports.append(evaluate_run(config, of_data))
        _write(reports[-1], _home(config))
        shown = (f"{name.replace('_', ' ')} {value:.4f}" for name, value in reports[-1]["metrics"].items())
        print(f"{path}: {', '.join(shown)}")
    over = spreads([report["metrics"] for report in reports])
    print(f"\nmean ± sd   of {len(paths)} runs on {config['split']}")
    for name, spread in over.items():
        print(f"{name:20} {spread}")
    summary = {"split": config["split"], "runs": [report["run"] for report in reports]}
    summary["metrics"] = {name: spread.plain() for name, spread in over.items()}
    target = config["output"] or _run_folder(paths[0]).parent / f"evaluate-{config['split']}-{len(paths)}-runs.json"
    print(f"written     {_write(summary, target)}")
    return 0


def _expanded(runs: str) -> list[str]:
    """Run folders of `runs=`: separated by commas, patterns allowed; each once.

    Raises:
        FileNotFoundError: a pattern fits nothing.
    """
    found: dict[str, None] = {}
    for pattern in runs.strip("[]").split(","):
        pattern = pattern.strip(" '\"")
        matches = sorted(path for path in glob.glob(pattern) if Path(path).is_dir()) if "*" in pattern else [pattern]
        if not matches:
            raise FileNotFoundError(f"runs={runs}: no folder is named {pattern!r}")
        found |= dict.fromkeys(matches)
    return list(found)


def _home(config: Mapping[str, Any]) -> Path:
    """Where a report lies if nobody says otherwise."""
    return _run_folder(config["run"]) / "results" / f"evaluate-{config['split']}.json"


def _write(report: Mapping[str, Any], path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    return path


def evaluate_run(config: Mapping[str, Any], data_words: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluates a run.

    Args:
        config: the plain data of conf/evaluate.yaml.
        data_words: `domain.dataset.<key>=<value>` to evaluate on other data than the run was trained on.

    Returns:
        What the JSON file holds: run, checkpoint, step, split, sequences, metrics, and with classes the confusion
        matrix (rows are true classes) and class names. For a language model of a genome, by_class (repeats, bases next
        to N) and markov, its baselines on the same symbols. With a classifier, sounds: scores of what was generated.
    """
    from seqmodels.data.collate import collate_for
    from seqmodels.data.loader import evaluation_batches
    from seqmodels.data.masking import hidden_by
    from seqmodels.data.record import MarkedCorpus
    from seqmodels.inference import load
    from seqmodels.instantiate import build
    from seqmodels.training.baseline import Witness, markov_beside
    from seqmodels.training.class_scores import class_scores
    from seqmodels.training.evaluate import RowTable, evaluate

    loaded = load(config["run"], config["device"], which=config["checkpoint"])
    dataset_spec = _dataset(config["run"], data_words)
    corpus = build(dataset_spec)
    _check_fits(corpus, loaded)
    model = _asked(loaded, conjoin=config["conjoin"], by_likelihood=config["by_likelihood"])
    # before the split: what is wrong with the sounds is said at once, and not after minutes
    sounds = _sound_scores(config, loaded) if _wants_scores(config, loaded) else None
    objective, counted = model.head.objective, model.head.counted(loaded.tokenizer.unit)
    marked = isinstance(corpus, MarkedCorpus) and objective != "classify"
    samples = corpus.marked(config["split"]) if marked else corpus.split(config["split"])
    split = hidden_by(model.head.masking, samples, loaded.tokenizer)
    settings = build(config["data"])
    batches = evaluation_batches(
        split, collate_for(objective, loaded.tokenizer), settings, max_batches=config["max_batches"]
    )
    mask_id = getattr(loaded.tokenizer, "mask_id", None) if model.head.masking else None
    witness = Witness(corpus.mark_names if marked else (), mask_id)
    seen = witness.watch(batches) if marked else batches
    table = RowTable()
    with bar("evaluating", len(split), "sequence") as move:
        on_row = None if config["per_sequence"] is None else table.add
        how = {"precision": config["precision"], "mark_names": witness.names, "on_row": on_row}
        result = evaluate(model, seen, on_batch=move, **how)
    if config["per_sequence"] is not None:
        table.write(config["per_sequence"], counted)
    report: dict[str, Any] = {
        "run": str(_run_folder(config["run"])),
        "checkpoint": loaded.folder.name,
        "step": loaded.meta["step"],
        "split": config["split"],
        "dataset": dataset_spec,
        "conjoined": config["conjoin"],
        "by_likelihood": config["by_likelihood"],
        "sequences": result.sequences,
        "skipped": len(batches.skipped),
        "metrics": result.metrics(counted),
    }
    if marked:
        report["by_class"] = result.metrics_by_mark(counted)
        if config["markov_order"] is not None:
            # of what the model learnt from, whatever it is judged on
            trained_on = build(_dataset(config["run"])) if data_words else corpus
            limits = {"max_order": config["markov_order"], "max_symbols": config["markov_symbols"]}
            report["markov"] = markov_beside(trained_on, witness, **limits)
    if result.confusion_OO is not None:
        report["metrics"] |= class_scores(result.confusion_OO)
        report |= {"class_names": list(loaded.class_names), "confusion": result.confusion_OO.tolist()}
    return report if sounds is None else report | {"sounds": sounds}


def _dataset(run: str, words: Sequence[str] = ()) -> dict[str, Any]:
    """What builds the data that a run was trained on, with `domain.dataset.<key>=<value>` changed."""
    from seqmodels.training.run_folder import RunFolder

    saved = RunFolder(_run_folder(run)).read_config()
    if "domain" not in saved:
        raise ValueError(
            f"{run} was converted and names no data to evaluate on: convert it again with domain=<name>, "
            "for example domain=dna_windows domain.dataset.fasta=my.fa"
        )
    return absolute_paths(set_keys(saved, words)["domain"]["dataset"])


def _check_fits(corpus: Any, loaded: LoadedModel) -> None:
    """Raises ValueError for data with other classes or other ids than the model's."""
    if tuple(corpus.class_names) != loaded.class_names:
        raise ValueError(
            f"the data's classes {', '.join(corpus.class_names)} are not the model's {', '.join(loaded.class_names)}"
        )
    if corpus.tokenizer.spec() != loaded.tokenizer.spec():
        raise ValueError(f"the data's ids {corpus.tokenizer.spec()} are not the model's {loaded.tokenizer.spec()}")


def _wants_scores(config: Mapping[str, Any], loaded: LoadedModel) -> bool:
    """Whether generated sounds are to be scored; `samples` alone scores them with the run itself, a classifier."""
    if config["classifier"] is None and config["samples"] is not None and loaded.model.head.objective != "classify":
        raise ValueError(
            f"samples={config['samples']}: a classifier has to score them; give the run of one: classifier=runs/<name> "
            "(seqmodels train experiment=digit_classifier makes one)"
        )
    return config["classifier"] is not None or config["samples"] is not None


def _sound_scores(config: Mapping[str, Any], loaded: LoadedModel) -> dict[str, Any]:
    """Scores of generated sounds, by a classifier and beside the data that it was trained on; plain data."""
    from seqmodels.inference import load
    from seqmodels.instantiate import build

    scorer = build(config["scorer"])  # it belongs to a domain: only the YAML names it
    judge = config["classifier"] or config["run"]
    classifier = loaded if config["classifier"] is None else load(judge, config["device"], objective="classify")
    corpus = build(_dataset(judge))
    samples = _run_folder(config["run"]) / "results" if config["samples"] is None else str(config["samples"])
    with bar("scoring", None, "clip") as move:
        scores = scorer(classifier, corpus, samples, on_clips=move)
    rows = {name: {key: _plain(value) for key, value in row.items()} for name, row in scores["rows"].items()}
    scores |= {"classifier": str(judge), "classifier_accuracy": _plain(scores["classifier_accuracy"])}
    return scores | {"rows": rows}


def _plain(score: Any) -> Any:
    """A count as it is; a score as value, low and high, null where there is no interval."""
    if not hasattr(score, "_asdict"):
        return score
    return {key: None if math.isnan(number) else number for key, number in score._asdict().items()}


def _asked(loaded: LoadedModel, *, conjoin: bool, by_likelihood: bool) -> SequenceModel:
    """The model as it is, or the mean over both strands, or classes by likelihood, or both."""
    from seqmodels.inference.by_likelihood import ByLikelihood
    from seqmodels.inference.conjoin import Conjoined

    tokenizer = loaded.tokenizer
    pairs = getattr(tokenizer, "complement_ids", None) if conjoin else None
    if conjoin and pairs is None:
        kind = type(tokenizer).__name__
        raise ValueError(f"conjoin=true: {kind} knows no complement; only DNA has two strands")
    if by_likelihood:
        counted = getattr(tokenizer, "drawn_ids", None)  # bases, and neither N nor special tokens
        return ByLikelihood(loaded.model, start_id=tokenizer.start_id, counted_ids=counted, complement_ids=pairs)
    return loaded.model if pairs is None else Conjoined(loaded.model, pairs)


def _run_folder(run: str) -> Path:
    """The run folder of a run or of one of its checkpoints."""
    path = Path(run)
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _show(report: Mapping[str, Any]) -> None:
    print(f"checkpoint  {report['checkpoint']}")
    print(f"split       {report['split']}, {report['sequences']:,} sequences")
    for name, value in report["metrics"].items():
        print(f"{name:20} {value:.5f}")
    if "by_class" in report:
        _show_classes(report["by_class"], report.get("markov"))
    if report["skipped"]:
        print(f"skipped     {report['skipped']} records that could not be read")
    if "confusion" in report:
        _show_confusion(report["class_names"], report["confusion"])
    if "sounds" in report:
        _show_sounds(report["sounds"])


def _show_classes(by_class: Mapping[str, Mapping[str, Any]], markov: Mapping[str, Any] | None) -> None:
    """Bits a symbol, one line a class, the model beside the Markov models of order 0 and of the best order."""
    orders = markov["orders"] if markov else []
    best = min(orders, key=lambda row: row["bits"]) if orders else None
    shown = [orders[0], best] if best and best["order"] else [best] if best else []
    print(f"\n{'bits':20} {'model':>8}" + "".join(f"{'order ' + str(row['order']):>10}" for row in shown) + "  targets")
    for name, values in by_class.items():
        bits = next(value for key, value in values.items() if key.startswith("bits_per_"))
        beside = (row["bits"] if name == "all" else row["by_class"].get(name, float("nan")) for row in shown)
        print(f"{name:20} {bits:8.4f}" + "".join(f"{value:10.4f}" for value in beside) + f"  {values['targets']:,}")
    if markov:
        learnt_from = f"{markov['train_symbols']:,} training symbols"
        print(f"(order k: Markov models that learnt from {learnt_from}: the unigram and the best one)")


def _show_confusion(names: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    width = max(6, *(len(name) for name in names)) + 1
    print(f"\n{'true / predicted':>{width + 2}}" + "".join(f"{name:>{width}}" for name in names))
    for name, row in zip(names, counts):
        print(f"{name:>{max(width + 2, 16)}}" + "".join(f"{count:>{width}}" for count in row))


def _show_sounds(scores: Mapping[str, Any]) -> None:
    """One line a set of clips, the real ones first; intervals in brackets."""
    right = scores["classifier_accuracy"]["value"]
    print(f"\nsounds      {scores['samples']}")
    features = scores["features"]
    print(f"scored by   {scores['classifier']}: {right:.4f} of {scores['reference']} right, {features} features")
    within = f", [{scores['confidence']:.0%} of resampled clips]" if scores["confidence"] else ""
    print(f"definitions {scores['convention']}, FID and AM against {scores['reference']}{within}")
    if "rejection" in scores:
        share = scores["rejection"]
        print(f"rejection   the least likely {share['lower']:.0%} and the most likely {1 - share['upper']:.0%} dropped")
    for column, name in SOUND_SCORES.items():
        print(f"\n{column}")
        for what, row in scores["rows"].items():
            if name in row:
                score = row[name]
                low_high = "" if score["low"] is None else f"  [{score['low']:.3f}, {score['high']:.3f}]"
                print(f"  {what:26} {score['value']:9.3f}{low_high}   {row['clips']:,} clips")
