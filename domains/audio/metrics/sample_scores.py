"""How good generated sounds are, beside real ones: `seqmodels evaluate run=… classifier=… samples=…` ends up here.

    scorer = SampleScores(reference="test")
    scorer(load("runs/digit_classifier"), corpus, "runs/digits/results")["rows"]["samples"]["fid"].value

In: a trained classifier, the labelled corpus it was trained on, sounds on disk (what `seqmodels generate` wrote, with
its table `samples.tsv`, or any folder). Out: FID, inception score, modified inception score, AM, accuracy, diversity of
the sounds, and of the corpus' own splits, each with an interval over clips; and of those sounds that remain when the
least and the most likely are dropped (SaShiMi's protocol: thresholds tuned on one half, the other half scored).
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from domains.audio.manifest import SPLITS, find_audio_files
from domains.audio.metrics.answers import Answers, classifier_answers
from domains.audio.metrics.generation import (
    CONVENTIONS,
    FeatureGaussian,
    Interval,
    Rejection,
    accuracy,
    am_score,
    bootstrap,
    class_diversity,
    feature_diversity,
    halves,
    inception_score,
    modified_inception_score,
    tune_rejection,
)
from domains.audio.wav import read_samples

if TYPE_CHECKING:
    from domains.audio.datasets import AudioCorpus
    from seqmodels.data.record import Batch
    from seqmodels.inference import LoadedModel

log = logging.getLogger(__name__)

TABLE_NAME = "samples.tsv"
FEWEST_TO_TUNE = 20  # sounds; half of them tune the thresholds
_SETTINGS = ("temperature", "top_k", "top_p", "prompt", "model", "step", "precision")
Scores = dict[str, Interval | int]


class MadeSounds(NamedTuple):
    """Sounds to score.

    Attributes:
        paths: their files.
        class_names: what each was made as; None where nobody said.
        log_likelihood_N: nats a symbol of each under the model that made it; None where nobody said.
    """

    paths: list[Path]
    class_names: list[str] | None = None
    log_likelihood_N: Float[np.ndarray, " N"] | None = None


class Heard(NamedTuple):
    """What a classifier answered about real clips, and what they are."""

    answers: Answers
    labels_N: Int[np.ndarray, " N"]


@dataclass(frozen=True)
class SampleScores:
    """Scores sounds with a classifier.

    Args:
        convention: "standard" definitions, or "sashimi": its published evaluation script's inception score, pairs and
            fixed thresholds (see generation.py).
        reference: the split whose features and classes FID and AM compare with. Published SC09 tables take "train";
            "test" does not reward sounds that repeat the training set.
        rejection: "auto" tunes thresholds where likelihoods are known and there are at least 20 sounds, "tuned"
            insists, "none" drops nothing; [0.4, 0.95] drops the least likely 40 % and the most likely 5 %.
        resamples: bootstrap draws behind every interval; 0 gives none.
        confidence: share of the draws within an interval.
        batch_size: clips in one forward pass; changes no score.

    Raises:
        ValueError: an argument out of range.
    """

    convention: str = "standard"
    reference: str = "test"
    rejection: str | Sequence[float] = "auto"
    resamples: int = 1000
    confidence: float = 0.95
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise ValueError(f"scorer.convention={self.convention!r}; accepted: {', '.join(CONVENTIONS)}")
        if self.reference not in SPLITS:
            raise ValueError(f"scorer.reference={self.reference!r}; accepted: {', '.join(SPLITS)}")
        if isinstance(self.rejection, str):
            if self.rejection not in ("auto", "tuned", "none"):
                raise ValueError(f"scorer.rejection={self.rejection!r}; accepted: auto, tuned, none or [lower, upper]")
        elif len(self.rejection) != 2 or not 0 <= self.rejection[0] < self.rejection[1] <= 1:
            raise ValueError(f"scorer.rejection={list(self.rejection)}: two shares, 0 <= lower < upper <= 1")
        if self.resamples < 0 or self.resamples == 1 or not 0 < self.confidence < 1:
            raise ValueError(
                f"scorer.resamples={self.resamples}, scorer.confidence={self.confidence}: 0 or at least 2, and between "
                "0 and 1"
            )
        if self.batch_size < 1:
            raise ValueError(f"scorer.batch_size={self.batch_size} must be at least 1")

    def __call__(
        self,
        classifier: LoadedModel,
        corpus: AudioCorpus,
        samples: str | Path,
        *,
        on_clips: Callable[[int], object] = lambda count: None,
        real: Mapping[str, Heard] | None = None,
    ) -> dict[str, Any]:
        """Scores the sounds of a folder or table, and the corpus' splits beside them.

        Args:
            classifier: with a `ClassificationHead`.
            corpus: labelled; what the classifier was trained on.
            samples: a folder of sound files, with `samples.tsv` or without, or such a table.
            on_clips: called with the number of clips after every batch, for progress.
            real: what `hear_splits` gave, where several sets of sounds are scored; None listens to them now.

        Returns:
            rows: what -> clips and scores (`Interval`s), real splits first; classifier_accuracy on the reference split;
            reference, convention and confidence; and with a rejection its thresholds.

        Raises:
            ValueError: no labels, a table without sounds, classes that the classifier does not know, likelihoods
                missing that are needed, or a sound that cannot be used.
            FileNotFoundError: no such folder, table or file.
        """
        if not corpus.class_names:
            raise ValueError("scores need a labelled data set behind the classifier, and this one has no labels")
        made = made_sounds(samples)
        if len(made.paths) < 2:
            raise ValueError(f"samples={str(samples)!r}: one sound alone has no scores; at least two are needed")
        labels_N = self._labels(made, corpus)
        real = self.hear_splits(classifier, corpus, on_clips=on_clips) if real is None else real
        reference, _ = real[self.reference]
        rows = {f"{split} (real)": self.scores(*parts, reference) for split, parts in real.items()}
        answers = classifier_answers(classifier.model, _batches(made, corpus, classifier, self.batch_size, on_clips))
        rows["samples"] = self.scores(answers, labels_N, reference)
        report: dict[str, Any] = {
            "samples": str(samples),
            "rows": rows,
            "classifier_accuracy": rows[f"{self.reference} (real)"]["accuracy"],
            "reference": self.reference,
            "convention": self.convention,
            "confidence": self.confidence if self.resamples else None,
            "features": answers.features_NF.shape[1],
        }
        kept = self._kept(answers, made)
        if kept is not None:
            rejection, scored_N = kept
            report["rejection"] = rejection._asdict()
            rows["samples, after rejection"] = self.scores(
                _take(answers, scored_N), None if labels_N is None else labels_N[scored_N], reference
            )
        return report

    def hear_splits(
        self, classifier: LoadedModel, corpus: AudioCorpus, *, on_clips: Callable[[int], object] = lambda count: None
    ) -> dict[str, Heard]:
        """The classifier's answers about every split of the corpus, and the true labels."""
        return {split: self._hear(classifier, corpus, split, on_clips) for split in SPLITS}

    def _hear(
        self, classifier: LoadedModel, corpus: AudioCorpus, split: str, on_clips: Callable[[int], object]
    ) -> Heard:
        from seqmodels.data.collate import collate_for
        from seqmodels.data.loader import DataSettings, evaluation_batches

        settings = DataSettings(batch_size=self.batch_size, num_workers=0)
        batches = evaluation_batches(corpus.as_held_out(split), collate_for("classify", classifier.tokenizer), settings)
        labels: list[np.ndarray] = []

        def noted() -> Iterator[Batch]:
            for batch in batches:
                assert batch.labels_B is not None, "of a labelled corpus"
                labels.append(batch.labels_B.numpy())
                yield batch
                on_clips(len(batch.record_ids))

        return Heard(classifier_answers(classifier.model, noted()), np.concatenate(labels))

    def scores(self, answers: Answers, labels_N: Int[np.ndarray, " N"] | None, reference: Answers) -> Scores:
        """The scores of what a classifier answered, beside its answers about reference clips; labels for accuracy."""
        p_NO, f_NF = answers
        how: dict[str, Any] = {"convention": self.convention}
        row: Scores = {"clips": len(p_NO)}
        beside, classes = FeatureGaussian.of(reference.features_NF), float(p_NO.shape[1])
        most = np.inf if self.convention == "sashimi" else classes  # its inception score has no such end
        row["fid"] = self._interval((0, np.inf), lambda f: FeatureGaussian.of(f).distance(beside), f_NF)
        row["inception_score"] = self._interval((1, most), partial(inception_score, **how), p_NO)
        row["modified_inception_score"] = self._interval((1, np.inf), partial(modified_inception_score, **how), p_NO)
        row["am"] = self._interval((0, np.inf), lambda p: am_score(p, reference.probabilities_NO), p_NO)
        if labels_N is not None:
            row["accuracy"] = self._interval((0, 1), accuracy, p_NO, labels_N)
        row["class_diversity"] = self._interval((1, classes), class_diversity, p_NO)
        row["feature_diversity"] = self._interval((0, np.inf), feature_diversity, f_NF)
        return row

    def _interval(self, bounds: tuple[float, float], score: Callable[..., float], *samples: np.ndarray) -> Interval:
        if self.resamples:
            how: dict[str, Any] = dict(resamples=self.resamples, confidence=self.confidence, bounds=bounds)
            return bootstrap(score, *samples, **how)
        value = score(*samples)
        return Interval(value, float("nan"), float("nan"))

    def _kept(self, answers: Answers, made: MadeSounds) -> tuple[Rejection, Int[np.ndarray, " K"]] | None:
        """Thresholds, and the numbers of the sounds that are scored with them; None where nothing is dropped."""
        likely_N = made.log_likelihood_N
        too_little = likely_N is None or len(made.paths) < FEWEST_TO_TUNE
        if self.rejection == "none" or (self.rejection == "auto" and too_little):
            return None
        if likely_N is None:
            raise ValueError(
                f"scorer.rejection={self.rejection} drops sounds by their likelihood, which only {TABLE_NAME} of "
                "`seqmodels generate` tells; it is not beside these"
            )
        if isinstance(self.rejection, str):
            if len(made.paths) < FEWEST_TO_TUNE:
                raise ValueError(f"{len(made.paths)} sounds: at least {FEWEST_TO_TUNE} are needed to tune thresholds")
            tuned_on, rest = halves(len(made.paths))
            rejection = tune_rejection(
                answers.probabilities_NO[tuned_on], likely_N[tuned_on], convention=self.convention
            )
        else:
            rejection, rest = Rejection(*self.rejection), np.arange(len(made.paths))
        kept: Bool[np.ndarray, " K"] = rejection.keep(likely_N[rest])
        if kept.sum() < 2:
            raise ValueError(f"{rejection} leaves {kept.sum()} of {len(rest)} sounds; make more, or drop fewer")
        return rejection, rest[kept]

    def _labels(self, made: MadeSounds, corpus: AudioCorpus) -> Int[np.ndarray, " N"] | None:
        if made.class_names is None:
            return None
        number_of = {name: number for number, name in enumerate(corpus.class_names)}
        if strange := sorted(set(made.class_names) - set(number_of)):
            raise ValueError(
                f"sounds were made as {strange[0]!r}, and the classifier knows {', '.join(corpus.class_names)}"
            )
        return np.array([number_of[name] for name in made.class_names])


def made_sounds(samples: str | Path) -> MadeSounds:
    """The sounds of a folder or of a table, and what the table says of them.

    Args:
        samples: `samples.tsv`, a folder with one, or a folder of sound files (searched below, too).

    Raises:
        FileNotFoundError: no such place, or a file of the table is gone.
        ValueError: no sounds, or a table that is none of `seqmodels generate`.
    """
    place = Path(samples)
    if place.is_dir() and not (place / TABLE_NAME).exists():
        paths = find_audio_files(place)
        if not paths:
            raise ValueError(f"samples={str(samples)!r}: neither {TABLE_NAME} nor a sound file is in it")
        return MadeSounds(paths)
    table = place / TABLE_NAME if place.is_dir() else place
    if not table.is_file():
        raise FileNotFoundError(
            f"{table}: no such table of samples; make some first (seqmodels generate run=<run> num_samples=256 "
            "seconds=…), or say samples=<folder of sound files>"
        )
    with open(table, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    if not rows or not {"file", "log_likelihood_nats"} <= rows[0].keys():
        raise ValueError(f"{table} is no table of samples, or an empty one; it should be one of `seqmodels generate`")
    _say_if_mixed(table, rows)
    paths = [table.parent / row["file"] for row in rows]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{table} lists {path.name}, which is not there; remove its line, or make it again")
    return MadeSounds(paths, _names(table, rows), _likelihoods(table, rows))


def _names(table: Path, rows: Sequence[Mapping[str, str]]) -> list[str] | None:
    names = [row.get("class_name") or "none" for row in rows]
    unnamed = names.count("none")
    if unnamed and unnamed < len(names):
        raise ValueError(f"{table}: {unnamed} of {len(names)} sounds were made as no class; score them by themselves")
    return None if unnamed else names


def _likelihoods(table: Path, rows: Sequence[Mapping[str, str]]) -> Float[np.ndarray, " N"]:
    try:
        return np.array([-float(row.get("bits_per_symbol") or row["log_likelihood_nats"]) for row in rows])
    except ValueError as error:
        raise ValueError(f"{table}: a likelihood is no number ({error})") from None


def _say_if_mixed(table: Path, rows: Sequence[Mapping[str, str]]) -> None:
    kinds = {tuple(row.get(name) for name in _SETTINGS) for row in rows}
    if len(kinds) > 1:
        log.warning(
            "%s: %d sounds of %d settings (temperature, model, …) are scored together; keep them in folders of their "
            "own to compare them", table, len(rows), len(kinds),
        )  # fmt: skip


def _batches(
    made: MadeSounds,
    corpus: AudioCorpus,
    classifier: LoadedModel,
    batch_size: int,
    on_clips: Callable[[int], object],
) -> Iterator[Batch]:
    """The sounds as the classifier reads held-out clips: at its rate, the first segment of each, filled as theirs."""
    from seqmodels.data.collate import collate_for
    from seqmodels.data.record import Record

    collate, rate_hz = collate_for("classify", classifier.tokenizer), corpus.tokenizer.sample_rate_hz
    longer = 0
    for first in range(0, len(made.paths), batch_size):
        records = []
        for path in made.paths[first : first + batch_size]:
            samples = read_samples(path, sample_rate_hz=rate_hz)
            longer += len(samples) > corpus.segment_samples
            records.append(Record(path.name, corpus.ids_of(samples), label=0))
        yield collate(records)
        on_clips(len(records))
    if longer:
        log.warning(
            "%d of %d sounds are longer than the %d samples that the classifier was trained on: it hears their "
            "beginning", longer, len(made.paths), corpus.segment_samples,
        )  # fmt: skip


def _take(answers: Answers, rows_K: Int[np.ndarray, " K"]) -> Answers:
    return Answers(*(column[rows_K] for column in answers))
