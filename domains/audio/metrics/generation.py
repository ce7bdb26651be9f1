"""How good generated clips are, from what a classifier answers: FID, IS, modified IS, AM, accuracy, diversity.

    probabilities_NO, features_NF = ...        # a classifier's softmax and what its last layer reads, one row a clip
    inception_score(probabilities_NO)                                   larger is better, 1 .. O
    bootstrap(inception_score, probabilities_NO).low                    95 % interval over clips

Definitions are the standard ones; `convention="sashimi"` gives, where it differs, exactly what the evaluation script of
SaShiMi computes (state-spaces/s4, models/sashimi/sc09_classifier), which published SC09 tables use:

- inception score: it shuffles the clips (NumPy's seed 0), takes the first half, and normalises each *class* over clips
  instead of each clip over classes: exp of the mean over classes of KL(share of each clip in the class | uniform).
  Equal to the standard score only where all classes are predicted equally often and confidently; else larger.
- modified inception score: 10,000 random pairs of clips (NumPy's seed 0) instead of all pairs.
- rejection by likelihood: its search over thresholds never remembers the best, so that the last pair tried is taken:
  the 40 % least and the 5 % most likely clips are dropped, whatever the clips are.

Scores of finitely many clips are biased (FID upwards, by the number of features over the number of clips): compare at
equal numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

CONVENTIONS = ("standard", "sashimi")
LOWER_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
UPPER_SHARES = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_SASHIMI_PAIRS = 10_000


class Interval(NamedTuple):
    """A score of all clips, and where as many other clips would put it; `low <= value <= high`."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FeatureGaussian:
    """The Gaussian fitted to features, N - 1 in the covariance: made once where many are compared with it.

    Attributes:
        mean_F, covariance_FF: of the rows.
    """

    mean_F: Float[np.ndarray, " F"]
    covariance_FF: Float[np.ndarray, "F F"]

    @classmethod
    def of(cls, features_NF: Float[np.ndarray, "N F"]) -> FeatureGaussian:
        """Fitted to one row a clip.

        Raises:
            ValueError: fewer than two clips.
        """
        rows = _rows("features", features_NF)
        if len(rows) < 2:
            raise ValueError(f"features {rows.shape}: at least two rows are needed")
        return cls(rows.mean(axis=0), np.cov(rows, rowvar=False).reshape(rows.shape[1], -1))

    @functools.cached_property
    def root_FF(self) -> Float[np.ndarray, "F F"]:
        """The symmetric root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance_FF)
        return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def distance(self, reference: FeatureGaussian) -> float:
        """Fréchet distance: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

        Raises:
            ValueError: another number of features than the reference's.
        """
        if len(self.mean_F) != len(reference.mean_F):
            raise ValueError(f"{len(self.mean_F)} features against {len(reference.mean_F)} of the reference")
        # C C' is similar to root' C root', which is symmetric: its eigenvalues are real, no matrix's root is guessed
        inner_FF = reference.root_FF @ self.covariance_FF @ reference.root_FF
        overlap = np.sqrt(np.linalg.eigvalsh(inner_FF).clip(min=0)).sum()
        shift = float(((self.mean_F - reference.mean_F) ** 2).sum())
        traces = float(np.trace(self.covariance_FF) + np.trace(reference.covariance_FF))
        return max(0.0, shift + traces - 2 * float(overlap))


def frechet_distance(features_NF: Float[np.ndarray, "N F"], reference_MF: Float[np.ndarray, "M F"]) -> float:
    """Fréchet distance of two Gaussians fitted to features: FID with a sound classifier's features; 0 is best.

    Raises:
        ValueError: fewer than two clips, or other features than the reference's.
    """
    return FeatureGaussian.of(features_NF).distance(FeatureGaussian.of(reference_MF))


def inception_score(probabilities_NO: Float[np.ndarray, "N O"], *, convention: str = "standard") -> float:
    """exp E[KL(p(class | clip) | p(class))] (Salimans et al. 2016, arXiv:1606.03498), in 1..O; larger is better.

    Raises:
        ValueError: rows that are no probabilities, or an unknown convention.
    """
    p_NO = _probabilities(probabilities_NO, convention)
    if convention == "sashimi":
        first_NO = p_NO[np.random.RandomState(0).permutation(len(p_NO))][: len(p_NO) // 2]
        if len(first_NO) == 0:
            raise ValueError("SaShiMi's inception score takes half of the clips, and of one clip that is none")
        share_NO = first_NO / np.maximum(first_NO.sum(axis=0), np.finfo(np.float64).tiny)
        return float(np.exp((np.log(len(first_NO)) - _entropy(share_NO, axis=0)).mean()))
    return float(np.exp(_entropy(p_NO.mean(axis=0)) - _entropy(p_NO).mean()))


def modified_inception_score(probabilities_NO: Float[np.ndarray, "N O"], *, convention: str = "standard") -> float:
    """exp E[KL(p(class | clip) | p(class | other clip))] over pairs of clips, in 1..inf; larger is better.

    All ordered pairs of different clips (Gurumurthy et al. 2017, arXiv:1706.02071). Where a class has probability 0
    for a clip and not for another, the score is infinite: give softmax probabilities in float64, not rounded ones.

    Raises:
        ValueError: fewer than two clips, rows that are no probabilities, or an unknown convention.
    """
    p_NO = _probabilities(probabilities_NO, convention)
    if len(p_NO) < 2:
        raise ValueError("a score of pairs needs at least two clips")
    with np.errstate(divide="ignore"):
        log_NO = np.log(p_NO)
    if convention == "sashimi":
        i, j = _sashimi_pairs(len(p_NO))
        return float(np.exp(_times_log(p_NO[i], log_NO[i] - log_NO[j]).sum(axis=1).mean()))
    # sum over ordered pairs of KL(p_i | p_j) = N sum_i p_i log p_i - (sum_i p_i)(sum_j log p_j); i = j adds nothing
    count = len(p_NO)
    cross = _times_log(p_NO.sum(axis=0), log_NO.sum(axis=0)).sum()
    total = -count * _entropy(p_NO).sum() - cross
    return float(np.exp(total / (count * (count - 1))))


def am_score(probabilities_NO: Float[np.ndarray, "N O"], reference_MO: Float[np.ndarray, "M O"]) -> float:
    """KL(mean of the reference | mean of the clips) + E[H(p(class | clip))] (Zhou et al. 2018, arXiv:1703.02000), nats.

    0 is best: confident answers, classes in the reference's shares.

    Raises:
        ValueError: rows that are no probabilities, or another number of classes than the reference's.
    """
    p_NO, reference = _probabilities(probabilities_NO), _probabilities(reference_MO).mean(axis=0)
    if p_NO.shape[1] != len(reference):
        raise ValueError(f"{p_NO.shape[1]} classes against {len(reference)} of the reference")
    with np.errstate(divide="ignore"):
        ratio = np.log(reference) - np.log(p_NO.mean(axis=0))
    return float(_times_log(reference, ratio).sum() + _entropy(p_NO).mean())


def accuracy(probabilities_NO: Float[np.ndarray, "N O"], labels_N: Int[np.ndarray, " N"]) -> float:
    """Share of clips whose likeliest class is the one they were made as (or are)."""
    p_NO = _probabilities(probabilities_NO)
    if len(labels_N) != len(p_NO):
        raise ValueError(f"{len(labels_N)} labels for {len(p_NO)} clips")
    return float((p_NO.argmax(axis=1) == np.asarray(labels_N)).mean())


def class_diversity(probabilities_NO: Float[np.ndarray, "N O"]) -> float:
    """How many classes are made, in effect: exp of the entropy of the mean answer; 1 .. O, O for equal shares."""
    return float(np.exp(_entropy(_probabilities(probabilities_NO).mean(axis=0))))


def feature_diversity(features_NF: Float[np.ndarray, "N F"]) -> float:
    """Root of the mean squared distance between the features of two different clips; 0 where all are alike.

    The mean over all pairs, without sampling any: twice the trace of the covariance.
    """
    return float(np.sqrt(2 * _rows("features", features_NF).var(axis=0, ddof=1).sum()))


# ------------------------------------------------------------------------------------------------------- rejection


class Rejection(NamedTuple):
    """Which clips are dropped by their likelihood: shares of all, from the least likely up.

    Attributes:
        lower: the least likely share that is dropped, in [0, upper).
        upper: beyond this share the most likely are dropped, in (lower, 1].
    """

    lower: float = 0.4
    upper: float = 0.95

    def keep(self, log_likelihood_N: Float[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
        """The clips that stay; clips are ranked by log-likelihood, equal ones in their order."""
        count = len(log_likelihood_N)
        if not 0 <= self.lower < self.upper <= 1:
            raise ValueError(f"{self}: 0 <= lower < upper <= 1 is accepted")
        order = np.argsort(np.asarray(log_likelihood_N, np.float64), kind="stable")
        kept = np.zeros(count, dtype=bool)
        kept[order[int(self.lower * count) : int(self.upper * count)]] = True
        return kept


def tune_rejection(
    probabilities_NO: Float[np.ndarray, "N O"],
    log_likelihood_N: Float[np.ndarray, " N"],
    *,
    convention: str = "standard",
) -> Rejection:
    """The thresholds of the highest inception score among those that SaShiMi's protocol tries; of equals the widest.

    Tune on other clips than those that are scored: `halves` gives two sets.

    Args:
        probabilities_NO: a classifier's answers.
        log_likelihood_N: of each clip under the model that made it.
        convention: "sashimi" is (0.4, 0.95) whatever the clips are; see the module's text.

    Raises:
        ValueError: fewer than 10 clips (some thresholds would keep none).
    """
    p_NO = _probabilities(probabilities_NO, convention)
    if convention == "sashimi":
        return Rejection(LOWER_SHARES[-1], UPPER_SHARES[-1])
    if len(p_NO) < 10 or len(log_likelihood_N) != len(p_NO):
        raise ValueError(f"{len(p_NO)} clips with {len(log_likelihood_N)} log-likelihoods: at least 10 with one each")
    tried = [Rejection(lower, upper) for lower in LOWER_SHARES for upper in UPPER_SHARES]

    def worth(rejection: Rejection) -> tuple[float, float]:
        score = inception_score(p_NO[rejection.keep(log_likelihood_N)])
        return round(score, 9), rejection.upper - rejection.lower

    return max(tried, key=worth)


def halves(count: int, *, seed: int = 0) -> tuple[Int[np.ndarray, " half"], Int[np.ndarray, " rest"]]:
    """Two random sets of clip numbers, in order: thresholds are tuned on the first, scores taken of the second."""
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[: count // 2]), np.sort(order[count // 2 :])


# ------------------------------------------------------------------------------------------------------- intervals


def bootstrap(
    score: Callable[..., float],
    *samples: np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Bootstrap over clips: how much a score owes to which clips were drawn.

    Percentiles of the draws, moved so that their mean is the score itself. A draw repeats clips, which alone makes
    some scores worse (FID and AM grow, inception scores and diversity shrink); plain percentiles would often lie beside
    the score that they belong to.

    Args:
        score: of `samples`, e.g. `inception_score`, or `lambda f: frechet_distance(f, reference)`.
        *samples: arrays with one row a clip; the same rows are drawn of all.
        resamples: draws with replacement, at least 2.
        confidence: share of the draws that lies within, in (0, 1).
        seed: of the draws.
        bounds: values that the score can have; the interval ends there.

    Returns:
        The score of all clips, and the interval around it.

    Raises:
        ValueError: no clips, arrays of unequal length, or an argument out of range.
    """
    lengths = {len(sample) for sample in samples}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"samples have {sorted(lengths)} rows; equally many, and at least one, are needed")
    if resamples < 2 or not 0 < confidence < 1:
        raise ValueError(f"resamples={resamples}, confidence={confidence}: at least 2, and between 0 and 1")
    dice, count = np.random.default_rng(seed), lengths.pop()
    scores = []
    for _ in range(resamples):
        rows = dice.integers(0, count, count)
        scores.append(score(*(sample[rows] for sample in samples)))
    value = float(score(*samples))
    shift = value - np.mean(scores)  # of the repeated clips, not of the score
    ends = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2]) + shift
    low, high = (float(end) for end in np.clip(ends, *bounds))
    return Interval(value, min(low, value), max(high, value))


# --------------------------------------------------------------------------------------------------------- checks


def _rows(what: str, values: np.ndarray) -> Float[np.ndarray, "N F"]:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise ValueError(f"{what} have shape {values.shape}: one row of finite numbers a clip was expected")
    return values


def _probabilities(values: np.ndarray, convention: str = "standard") -> Float[np.ndarray, "N O"]:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r}; accepted: {', '.join(CONVENTIONS)}")
    p_NO = _rows("probabilities", values)
    if (p_NO < 0).any() or np.abs(p_NO.sum(axis=1) - 1).max() > 1e-3:
        raise ValueError("probabilities must be at least 0 and sum to 1 in every row: give softmax(logits), not logits")
    return p_NO / p_NO.sum(axis=1, keepdims=True)


@functools.lru_cache(maxsize=16)
def _sashimi_pairs(count: int) -> np.ndarray:
    """The two rows of each of its random pairs, drawn one pair at a time, as it does."""
    dice, clips = np.random.RandomState(0), np.arange(count)
    return np.array([dice.choice(clips, size=2, replace=True) for _ in range(_SASHIMI_PAIRS)]).T


def _entropy(p: np.ndarray, axis: int = -1) -> np.ndarray:
    """-sum p log p in nats; 0 log 0 is 0."""
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=axis)


def _times_log(p: np.ndarray, log: np.ndarray) -> np.ndarray:
    """p times a logarithm, 0 where p is 0 even if the logarithm is infinite."""
    return np.where(p > 0, p * np.where(p > 0, log, 0.0), 0.0)
