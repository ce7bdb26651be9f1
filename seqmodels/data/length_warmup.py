"""Length warm-up: training starts on short samples and doubles their length from stage to stage.

Every batch of every stage holds the same number of symbols (half as many rows when samples are twice as long), so a
learning-rate schedule, which counts optimizer steps, means the same in tokens with and without warm-up. Stages begin
at optimizer steps that are known before training, so a run can be resumed in the middle of one.

    plan = plan_stages(corpus, LengthWarmup(start=1024, steps_per_stage=200), batch_size=1)
    [(stage.length, stage.batch_size, stage.first) for stage in plan]    # (1024, 1024, 0), (2048, 512, 200), ...

Published for DNA (Mamba, appendix E.3.3): two epochs at every power of two from 2^10 on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from seqmodels.data.record import Corpus, SampleKey, SequenceDataset
from seqmodels.data.sampler import BatchSampler, Share


@runtime_checkable
class AnyLength(Protocol):
    """A corpus whose training samples can be cut at other lengths.

    Attributes:
        sample_length: symbols of a training sample.
    """

    @property
    def sample_length(self) -> int: ...

    def train_at(self, length: int) -> SequenceDataset:
        """The training split in samples of `length` symbols."""
        ...


@dataclass(frozen=True, slots=True)
class LengthWarmup:
    """Which lengths training goes through before the full one.

    Attributes:
        start: symbols of a sample in the first stage, doubled from stage to stage up to the corpus's own length, which
            must be `start` times a power of two; None for no warm-up.
        steps_per_stage: optimizer steps of each stage before the last; None for `epochs_per_stage`.
        epochs_per_stage: passes over the training samples in each stage before the last.
    """

    start: int | None = None
    steps_per_stage: int | None = None
    epochs_per_stage: float = 2

    def __post_init__(self) -> None:
        for name in ("start", "steps_per_stage"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"data.length_warmup.{name}={value!r} must be a whole number from 1 on, or null")
        if not self.epochs_per_stage > 0:
            raise ValueError(f"data.length_warmup.epochs_per_stage={self.epochs_per_stage!r} must be above 0")

    def lengths(self, full: int) -> list[int]:
        """The lengths of all stages, the full one last.

        Raises:
            ValueError: the full length is not `start` times a power of two.
        """
        if self.start is None:
            return [full]
        doublings = full // self.start
        if full % self.start or doublings & (doublings - 1):
            raise ValueError(
                f"data.length_warmup.start={self.start}: the full length, {full}, must be start times a power of two,"
                " so that every step trains on equally many symbols"
            )
        return [self.start << power for power in range(doublings.bit_length())]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training with samples of one length.

    Attributes:
        length: symbols of a sample.
        batch_size: rows of a batch, all processes together.
        first: number of its first batch, counted from the beginning of training.
        dataset: the samples.
    """

    length: int
    batch_size: int
    first: int
    dataset: SequenceDataset

    def numbers(self) -> list[int]:
        """What must not change when a run is resumed."""
        return [self.length, self.batch_size, self.first, len(self.dataset)]


def plan_stages(corpus: Corpus, warmup: LengthWarmup, *, batch_size: int, accumulate: int = 1) -> list[Stage]:
    """The stages of a training run.

    Args:
        corpus: with samples of any length where there is a warm-up.
        warmup: lengths and durations.
        batch_size: rows of a batch at the full length.
        accumulate: batches of one optimizer step.

    Raises:
        ValueError: the corpus cannot cut its samples, or the lengths do not fit.
    """
    if warmup.start is None:
        return [Stage(0, batch_size, 0, corpus.split("train"))]
    if not isinstance(corpus, AnyLength):
        raise ValueError(
            f"data.length_warmup.start={warmup.start}: {type(corpus).__name__} has samples of one length only; length"
            " warm-up is for windows of genomes (domain=dna_windows, dna_hg38, dna_species, dna_species_folders)"
        )
    full, first, stages = corpus.sample_length, 0, []
    for length in warmup.lengths(full):
        dataset = corpus.train_at(length)
        stages.append(Stage(length, batch_size * (full // length), first, dataset))
        steps = warmup.steps_per_stage
        if steps is None:
            steps = math.ceil(warmup.epochs_per_stage * len(dataset) / (stages[-1].batch_size * accumulate))
        first += steps * accumulate
    return stages


class StagedSampler:
    """An endless iterator over (number of the stage, this process's `SampleKey`s), batch after batch.

    Every stage has its own epochs and permutations, which depend on the seed and the stage's samples alone.

    Args:
        stages: from `plan_stages`.
        seed: any integer.
        start: number of the first batch to give, counted from the beginning of training.
        share: this process's part of every batch.
    """

    def __init__(self, stages: Sequence[Stage], *, seed: int = 0, start: int = 0, share: Share | None = None) -> None:
        self.stages, self.start = stages, start
        self.samplers = [BatchSampler(len(s.dataset), s.batch_size, seed=seed, share=share) for s in stages]

    def __iter__(self) -> Iterator[tuple[int, list[SampleKey]]]:
        position = self.start
        while True:
            yield self.batch(position)
            position += 1

    def batch(self, position: int) -> tuple[int, list[SampleKey]]:
        """Stage and keys of batch number `position`."""
        number = self.stage_at(position)
        return number, self.samplers[number].batch(position - self.stages[number].first)

    def stage_at(self, position: int) -> int:
        """The number of the stage that batch `position` belongs to."""
        return max(number for number, stage in enumerate(self.stages) if stage.first <= position)
