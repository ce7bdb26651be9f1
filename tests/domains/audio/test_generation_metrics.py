"""Scores of generated clips against cases worked out by hand, and against the published variants' own arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from domains.audio.metrics.generation import (
    Rejection,
    accuracy,
    am_score,
    bootstrap,
    class_diversity,
    feature_diversity,
    frechet_distance,
    halves,
    inception_score,
    modified_inception_score,
    tune_rejection,
)

SURE = np.eye(4).repeat(5, axis=0)  # five clips of each of four classes, no doubt
TWO = np.array([[0.75, 0.25], [0.25, 0.75]])
H34 = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # entropy of (3/4, 1/4)


def soft(count: int = 400, classes: int = 5, seed: int = 0) -> np.ndarray:
    """Unbalanced, rather sure answers."""
    logits = np.random.default_rng(seed).normal(size=(count, classes)) * 3 + np.linspace(0, 2, classes)
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_inception_score_by_hand():
    assert inception_score(SURE) == pytest.approx(4)
    assert inception_score(np.full((7, 3), 1 / 3)) == pytest.approx(1)
    assert inception_score(np.eye(4)[:1].repeat(9, axis=0)) == pytest.approx(1)  # always the same class
    assert inception_score(TWO) == pytest.approx(math.exp(math.log(2) - H34))


def test_sashimis_inception_score_is_the_script_of_its_authors():
    p = soft()
    first = p[np.random.RandomState(0).permutation(400)][:200]
    expected = []
    for column in first.T:  # entropy(p, q) of scipy with axis=0: both normalised over clips, q is uniform
        share = column / column.sum()
        expected.append((share * np.log(share / (1 / 200))).sum())
    assert inception_score(p, convention="sashimi") == pytest.approx(math.exp(np.mean(expected)))
    assert inception_score(p, convention="sashimi") > 1.05 * inception_score(p)


def test_both_conventions_agree_where_classes_are_balanced_and_sure():
    p = np.eye(4)[np.arange(4000) % 4]
    assert inception_score(p, convention="sashimi") == pytest.approx(4, rel=0.02)


def test_modified_inception_score_by_hand():
    """KL of (3/4, 1/4) from (1/4, 3/4) is 3/4 ln 3 - 1/4 ln 3 = ln 3 / 2, and the other way round."""
    assert modified_inception_score(TWO) == pytest.approx(math.exp(math.log(3) / 2))
    assert modified_inception_score(TWO[[0, 0, 0]]) == pytest.approx(1)
    # two of one kind and one of the other: 4 of the 6 ordered pairs differ
    assert modified_inception_score(TWO[[0, 0, 1]]) == pytest.approx(math.exp(4 / 6 * math.log(3) / 2))
    assert modified_inception_score(SURE) == math.inf


def test_sashimis_modified_score_draws_its_pairs():
    p, dice, kl = soft(50), np.random.RandomState(0), []
    for _ in range(10_000):
        i, j = dice.choice(np.arange(50), size=2, replace=True)
        kl.append((p[i] * np.log(p[i] / p[j])).sum())
    assert modified_inception_score(p, convention="sashimi") == pytest.approx(math.exp(np.mean(kl)))
    # drawn with replacement, so that 1 pair in 50 is a clip and itself
    all_pairs = math.log(modified_inception_score(p)) * 49 / 50
    assert np.mean(kl) == pytest.approx(all_pairs, rel=0.1)


def test_am_score_by_hand():
    assert am_score(SURE, SURE) == pytest.approx(0)
    assert am_score(TWO, TWO) == pytest.approx(H34)
    one = np.array([[0.75, 0.25]])
    assert am_score(one, np.array([[0.5, 0.5]])) == pytest.approx(0.5 * math.log(4 / 3) + H34)
    assert am_score(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])) == math.inf  # a class is never made


def test_frechet_distance_by_hand():
    """In one dimension it is the square of both differences, of means and of standard deviations."""
    a, b = np.array([[0.0], [2.0]]), np.array([[4.0], [8.0]])  # means 1, 6; deviations sqrt 2, sqrt 8
    assert frechet_distance(a, b) == pytest.approx(25 + (math.sqrt(8) - math.sqrt(2)) ** 2)
    x = np.random.default_rng(0).normal(size=(300, 6))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + np.array([3, 4, 0, 0, 0, 0])) == pytest.approx(25)
    assert frechet_distance(x, 2 * x - x.mean(axis=0)) == pytest.approx(np.trace(np.cov(x.T)))


def test_frechet_distance_of_covariances_that_do_not_commute():
    """(C C')^(1/2) of 2 x 2 by its closed form: the trace is sqrt(tr(CC') + 2 sqrt(det(CC')))."""
    dice = np.random.default_rng(1)
    x, y = dice.normal(size=(50, 2)) @ [[2, 1], [0, 1]], dice.normal(size=(70, 2)) @ [[1, 0], [3, 0.5]]
    product = np.cov(x.T) @ np.cov(y.T)
    trace = math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T)) + np.trace(np.cov(y.T)) - 2 * trace
    assert frechet_distance(x, y) == pytest.approx(expected)


def test_fewer_clips_than_features_still_give_a_number():
    x = np.random.default_rng(0).normal(size=(5, 20))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_accuracy_and_diversity_by_hand():
    assert accuracy(TWO, np.array([0, 0])) == 0.5
    assert class_diversity(SURE) == pytest.approx(4)
    assert class_diversity(SURE[:5]) == pytest.approx(1)
    x = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert feature_diversity(x) == pytest.approx(5)
    pairs = [((a - b) ** 2).sum() for i, a in enumerate(soft()) for j, b in enumerate(soft()) if i != j]
    assert feature_diversity(soft()) == pytest.approx(math.sqrt(np.mean(pairs)))


def test_rejection_drops_both_ends_by_rank():
    log_likelihood = np.array([5.0, -1.0, 3.0, 0.0, 9.0, 8.0, 7.0, 1.0, 2.0, 4.0])
    kept = Rejection(0.2, 0.9).keep(log_likelihood)
    assert sorted(log_likelihood[kept]) == [1, 2, 3, 4, 5, 7, 8]
    with pytest.raises(ValueError, match="lower < upper"):
        Rejection(0.9, 0.2).keep(log_likelihood)


def test_tuning_finds_where_the_bad_clips_are_and_sashimi_does_not_look():
    """The least likely 30 % are noise, the most likely 10 % all of one class."""
    p = np.concatenate([np.full((30, 4), 0.25), np.eye(4)[np.arange(60) % 4], np.eye(4)[:1].repeat(10, axis=0)])
    assert tune_rejection(p, np.arange(100.0)) == Rejection(0.3, 0.9)
    assert tune_rejection(p[::-1], -np.arange(100.0)) == Rejection(0.3, 0.9)
    assert tune_rejection(p, np.arange(100.0), convention="sashimi") == Rejection(0.4, 0.95)


def test_halves_share_no_clip():
    first, second = halves(11)
    assert sorted([*first, *second]) == list(range(11))
    assert (len(first), len(second)) == (5, 6)
    assert not np.array_equal(first, halves(11, seed=1)[0])


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    dice, inside = np.random.default_rng(0), 0
    for trial in range(200):
        x = dice.normal(size=40)
        interval = bootstrap(lambda rows: float(rows.mean()), x, resamples=200, confidence=0.9, seed=trial)
        inside += interval.low <= 0 <= interval.high
    assert 0.83 <= inside / 200 <= 0.96


def test_bootstrap_draws_the_same_rows_of_all_and_the_same_for_a_seed():
    labels = SURE.argmax(axis=1)
    assert bootstrap(accuracy, SURE, labels, resamples=20) == (1, 1, 1)
    p = soft()
    assert bootstrap(inception_score, p, resamples=20) == bootstrap(inception_score, p, resamples=20)
    low, high = bootstrap(inception_score, p, resamples=50)[1:]
    assert low < inception_score(p) < high


def test_the_interval_of_a_score_that_repeated_clips_make_worse_lies_around_the_score():
    """Percentiles as they are would lie to one side of all of these."""
    dice = np.random.default_rng(3)
    features, reference = dice.normal(size=(60, 20)), dice.normal(size=(60, 20))
    classes = np.eye(4)[np.arange(24) % 4]  # 4 classes in equal shares: any draw has less of one
    for score, rows in (
        (lambda f: frechet_distance(f, reference), features),
        (inception_score, classes),
        (class_diversity, classes),
        (lambda p: am_score(p, classes), classes * 0.9 + 0.025),
    ):
        value, low, high = bootstrap(score, rows, resamples=100)
        draws = [score(rows[dice.integers(0, len(rows), len(rows))]) for _ in range(100)]
        assert abs(np.median(draws) - value) > 0.2 * (high - low), "a score that resampling moves"
        assert low < value < high
        assert high - low == pytest.approx(np.diff(np.quantile(draws, [0.025, 0.975]))[0], rel=0.5)


def test_an_interval_ends_where_scores_end():
    value, low, high = bootstrap(inception_score, np.eye(4)[np.arange(24) % 4], resamples=100, bounds=(1.0, 4.0))
    assert (value, high) == (pytest.approx(4), pytest.approx(4))
    assert low < 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: inception_score(np.array([[2.0, -1.0]])), "not logits"),
        (lambda: inception_score(np.array([[2.0, 1.0]])), "not logits"),
        (lambda: inception_score(np.array([[np.nan, 1.0]])), "finite numbers"),
        (lambda: inception_score(np.zeros((0, 3))), r"shape \(0, 3\)"),
        (lambda: inception_score(TWO, convention="fid"), "accepted: standard, sashimi"),
        (lambda: inception_score(TWO[:1], convention="sashimi"), "of one clip that is none"),
        (lambda: modified_inception_score(TWO[:1]), "at least two clips"),
        (lambda: am_score(TWO, SURE), "2 classes against 4"),
        (lambda: accuracy(TWO, np.array([0])), "1 labels for 2 clips"),
        (lambda: frechet_distance(TWO, SURE), "2 features against 4"),
        (lambda: frechet_distance(TWO[:1], TWO), "at least two rows"),
        (lambda: tune_rejection(TWO, np.zeros(2)), "at least 10"),
        (lambda: bootstrap(accuracy, TWO, np.zeros(3)), "equally many"),
        (lambda: bootstrap(inception_score, TWO, confidence=1.0), "between 0 and 1"),
    ],
)
def test_what_has_no_score(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()
