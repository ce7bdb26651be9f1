"""Which samples make which batch: one endless, seeded stream that can start anywhere.

Sample number t of the stream belongs to epoch `t // num_samples` and is entry `t % num_samples` of that epoch's
permutation, which depends on (seed, epoch) alone. Batch p holds samples `p * batch_size` up to
`(p + 1) * batch_size`, so nothing is dropped at an epoch's end and a batch may span two epochs. The batch size
counts the rows of all ranks together; rank r takes its own part of them. Hence the samples of batch p depend on the
seed and on p only: not on the number of workers or ranks, nor on where the stream was started.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from seqmodels.data.record import SampleKey


@dataclass(frozen=True, slots=True)
class Share:
    """This process's part of every batch: rank 0..world_size-1."""

    rank: int = 0
    world_size: int = 1


class BatchSampler:
    """An endless iterator over lists of `SampleKey`, for `torch.utils.data.DataLoader(batch_sampler=...)`.

    Args:
        num_samples: samples of the split, at least 1.
        batch_size: rows of one batch over all ranks together.
        seed: any integer; 0 is a seed.
        start: number of the first batch to give, counted from the beginning of training.
        share: this process's part.

    Raises:
        ValueError: no samples, or a batch size that the ranks cannot share evenly.
    """

    def __init__(
        self, num_samples: int, batch_size: int, *, seed: int = 0, start: int = 0, share: Share | None = None
    ) -> None:
        self.share = share or Share()
        if num_samples < 1:
            raise ValueError("the training split has no samples: use more data or a shorter window")
        if batch_size < 1 or batch_size % self.share.world_size:
            raise ValueError(
                f"data.batch_size={batch_size} counts the rows of all processes together and must be a positive"
                f" multiple of their number, {self.share.world_size}"
            )
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self._permutation: tuple[int, np.ndarray] | None = None

    def __iter__(self) -> Iterator[list[SampleKey]]:
        position = self.start
        while True:
            yield self.batch(position)
            position += 1

    def batch(self, position: int) -> list[SampleKey]:
        """This rank's keys of batch number `position`."""
        rows = self.batch_size // self.share.world_size
        first = position * self.batch_size + self.share.rank * rows
        return [self._sample(number) for number in range(first, first + rows)]

    def _sample(self, number: int) -> SampleKey:
        epoch, entry = divmod(number, self.num_samples)
        if self._permutation is None or self._permutation[0] != epoch:
            self._permutation = (epoch, epoch_permutation(self.num_samples, seed=self.seed, epoch=epoch))
        return SampleKey(epoch, int(self._permutation[1][entry]))


def epoch_permutation(num_samples: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order in which epoch number `epoch` visits samples 0..num_samples-1; a function of its arguments alone."""
    # Philox is a counter-based generator with a 128-bit key: (seed, epoch) is that key.
    key = np.array([seed % 2**64, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).permutation(num_samples)


def in_order(num_samples: int, batch_size: int, *, limit: int | None = None, share: Share | None = None) -> list:
    """Batches of epoch-0 keys for evaluation: every sample once, in order, this rank's share of the batches.

    Args:
        num_samples: samples of the split.
        batch_size: rows of one batch of one rank.
        limit: at most so many batches over all ranks together, their samples spread evenly over the split (which may
            be sorted by class); None for all.
        share: this process's part: every world_size-th sample.

    Raises:
        ValueError: fewer samples than processes.
    """
    share = share or Share()
    count = num_samples if limit is None else min(num_samples, limit * batch_size)
    keys = [SampleKey(0, number * num_samples // count) for number in range(count)]
    if count < share.world_size:
        raise ValueError(f"{count} sequences cannot be shared by {share.world_size} processes")
    mine = keys[share.rank :: share.world_size]
    return [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
