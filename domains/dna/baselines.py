"""The k-mer baseline of sequence classification: counts of all k-mers of a window, then logistic regression.

In: labelled records of token ids (splits of `SpeciesWindows`, or of a table of sequences). Out: accuracy, macro recall
and a confusion matrix, to be printed beside those of a model that has read the same windows.

    result = kmer_baseline(corpus, k=5, train_windows=4096)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from domains.dna.datasets.sequence_corpus import SequenceCorpus
from domains.dna.datasets.species_windows import LabelledWindows
from domains.dna.intervals import Interval
from domains.dna.tokenizer import BASE_IDS
from seqmodels.data.record import Record, SampleKey

L2_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
_TUNING_SHARE = 0.2
_ITERATIONS = 60


@dataclass(frozen=True)
class ClassificationResult:
    """How well labels were predicted.

    Attributes:
        class_names: names of the rows and columns of `confusion`.
        confusion: (classes, classes) counts; rows are true labels, columns are predictions.
        l2: the strength that was chosen on training data.
    """

    class_names: tuple[str, ...]
    confusion: Int64[np.ndarray, "O O"]
    l2: float

    @property
    def accuracy(self) -> float:
        """Share of windows with the right label."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def macro_recall(self) -> float:
        """Mean over classes of the share found; classes without a window are left out."""
        totals = self.confusion.sum(axis=1)
        return float((np.diag(self.confusion)[totals > 0] / totals[totals > 0]).mean())


def kmer_counts(ids: np.ndarray, k: int) -> Int64[np.ndarray, " 4^k"]:
    """How often each k-mer of ACGT occurs in token ids, overlapping ones included; those over an N are left out.

    The k-mer's number reads its letters as digits to base 4 (A 0, C 1, G 2, T 3), first letter most significant.
    """
    if not 1 <= k <= 10:
        raise ValueError(f"k={k} must lie in 1..10")
    codes = ids.astype(np.int64) - BASE_IDS[0]
    if len(codes) < k:
        return np.zeros(4**k, dtype=np.int64)
    is_base = (codes >= 0) & (codes < 4)
    count = len(codes) - k + 1
    numbers, whole = np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
    for offset in range(k):
        numbers = numbers * 4 + codes[offset : offset + count]
        whole &= is_base[offset : offset + count]
    return np.bincount(numbers[whole], minlength=4**k)


def kmer_features(records: Iterable[Record], k: int) -> tuple[Float32[Tensor, "n F"], Int64[Tensor, " n"]]:
    """Features and labels of records. Features are log(1 + count), scaled to the same length of window."""
    rows, labels = [], []
    for record in records:
        if record.label is None:
            raise ValueError(f"{record.id} has no label; the k-mer baseline needs labelled data")
        counts = kmer_counts(record.ids, k)
        rows.append(np.log1p(counts * (1000.0 / max(int(counts.sum()), 1))).astype(np.float32))
        labels.append(record.label)
    return torch.from_numpy(np.array(rows, dtype=np.float32)), torch.tensor(labels, dtype=torch.int64)


class LogisticRegression:
    """Multinomial logistic regression on standardised features, fitted by L-BFGS.

    Minimises mean cross-entropy + l2/2 * |weights|^2 (the bias is free).
    """

    def __init__(self, features: Tensor, labels: Tensor, *, classes: int, l2: float):
        self.mean = features.mean(dim=0)
        self.scale = features.std(dim=0, correction=0).clamp_min(1e-6)
        # Samples along the last axis: with a handful of classes this product is five times faster than the other.
        x_FB = self._standardised(features).T.contiguous()
        self.weight = torch.zeros(classes, len(x_FB), requires_grad=True)
        self.bias = torch.zeros(classes, 1, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=_ITERATIONS, history_size=10, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy((self.weight @ x_FB + self.bias).T, labels)
            loss = loss + 0.5 * l2 * self.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)  # pyright: ignore[reportArgumentType] - a closure may return a tensor

    def _standardised(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.scale

    def predict(self, features: Tensor) -> Tensor:
        """The likeliest class of each row."""
        with torch.no_grad():
            return (self.weight @ self._standardised(features).T + self.bias).argmax(dim=0)


def kmer_baseline(
    corpus: LabelledWindows | SequenceCorpus,
    *,
    k: int = 5,
    train_windows: int = 4096,
    split: str = "test",
    l2_strengths: Sequence[float] = L2_STRENGTHS,
) -> ClassificationResult:
    """Fits on the training split and judges on `split`.

    Args:
        corpus: labelled windows of genomes, or labelled sequences.
        k: length of the k-mers, 1..10.
        train_windows: how many training windows to draw (epoch after epoch, in order); sequences are all taken, once.
        split: what to judge on: "valid" or "test".
        l2_strengths: candidates; of windows the one that predicts the last fifth of each training sequence best is
            taken, of sequences the one that predicts the validation split best.
    """
    held_out = corpus.split(split)
    x_test, labels_test = kmer_features((held_out[index] for index in range(len(held_out))), k)
    classes = len(corpus.class_names)
    if isinstance(corpus, SequenceCorpus):
        fit, tune = (
            kmer_features((records[index] for index in range(len(records))), k)
            for records in (corpus.split("train"), corpus.split("valid"))
        )
        x, labels = fit
    else:
        train = corpus.split("train")
        keys = [SampleKey(*divmod(number, len(train))) for number in range(train_windows)]
        x, labels = kmer_features((train[key] for key in keys), k)
        fit, tune = ((x[rows], labels[rows]) for rows in _disjoint_parts([train.window(key) for key in keys]))

    def tuned(l2: float) -> float:
        model = LogisticRegression(*fit, classes=classes, l2=l2)
        return float((model.predict(tune[0]) == tune[1]).float().mean())

    with _one_thread():
        best = max(l2_strengths, key=tuned)
        predicted = LogisticRegression(x, labels, classes=classes, l2=best).predict(x_test)
    confusion = torch.bincount(labels_test * classes + predicted, minlength=classes**2).reshape(classes, classes)
    return ClassificationResult(tuple(corpus.class_names), confusion.numpy(), best)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The matrices are small: threads that wait for each other on a busy machine cost seven times the work itself."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _disjoint_parts(windows: Sequence[Interval]) -> tuple[Tensor, Tensor]:
    """Rows to fit and rows to tune on: windows of the last fifth of each sequence, and those that do not touch them.

    Random windows overlap; a tuning window that shares bases with a fitted one would ask for too little smoothing.
    """
    fit, tune = [], []
    for contig in {window.contig: None for window in windows}:
        rows = [row for row, window in enumerate(windows) if window.contig == contig]
        border = np.quantile([windows[row].start for row in rows], 1 - _TUNING_SHARE)
        tune += [row for row in rows if windows[row].start >= border]
        fit += [row for row in rows if windows[row].end <= border]
    return torch.tensor(fit), torch.tensor(tune)
