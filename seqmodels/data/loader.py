"""A corpus to batches: reading records (in this process or in workers), skipping bad ones, collating.

Workers are started with `forkserver`, never `fork`: no open file, lock or thread of this process is inherited, so
a reader that is not safe across a fork cannot return wrong bases. The dataset travels to them by pickle.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.utils.data import DataLoader, Dataset

from seqmodels.data.collate import Collate
from seqmodels.data.length_warmup import LengthWarmup, Stage, StagedSampler
from seqmodels.data.record import Batch, Record, SampleKey, SequenceDataset
from seqmodels.data.sampler import BatchSampler, Share, in_order

# What a reader raises for a file that cannot be used; anything else is a bug and keeps its traceback.
BAD_RECORD_ERRORS = (ValueError, OSError, EOFError)
MAX_BAD_IN_A_ROW = 1000


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How records become batches; the same samples whatever the number of workers.

    Attributes:
        batch_size: sequences a batch holds, all processes together.
        eval_batch_size: sequences a batch holds in validation and evaluation; None for `batch_size`. Changes
            speed and memory, never a result.
        num_workers: processes that read ahead; 0 reads in the training process, "auto" takes 0 on a CPU and up to 4
            beside a GPU.
        on_bad_record: "raise" stops at a record that cannot be read, "skip" takes another one instead (training) or
            leaves it out (evaluation) and counts it.
        length_warmup: shorter samples first, with equally many symbols a batch; `batch_size` is that of the last stage.
    """

    batch_size: int = 8
    eval_batch_size: int | None = None
    num_workers: int | Literal["auto"] = "auto"
    on_bad_record: Literal["raise", "skip"] = "raise"
    length_warmup: LengthWarmup = field(default_factory=LengthWarmup)

    def __post_init__(self) -> None:
        for name in ("batch_size", "eval_batch_size"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"data.{name}={value!r} must be a whole number from 1 on")
        if self.on_bad_record not in ("raise", "skip"):
            raise ValueError(f"data.on_bad_record={self.on_bad_record!r} must be raise or skip")
        if self.num_workers != "auto" and (not isinstance(self.num_workers, int) or self.num_workers < 0):
            raise ValueError(f'data.num_workers={self.num_workers!r} must be "auto" or a whole number from 0 on')

    @property
    def workers(self) -> int:
        """The number of worker processes on this machine."""
        if self.num_workers != "auto":
            return self.num_workers
        return min(4, max(0, (os.cpu_count() or 1) - 1)) if torch.cuda.is_available() else 0


@dataclass(frozen=True, slots=True)
class LoadedBatch:
    """What a worker sends: a batch, or why there is none; and what was skipped on the way."""

    batch: Batch | None
    skipped: tuple[str, ...] = ()
    error: str | None = None

    def pin_memory(self) -> LoadedBatch:
        """Called by the DataLoader's pinning thread, so that copies to the GPU overlap with computing."""
        if self.batch is None:
            return self
        return LoadedBatch(_pinned(self.batch), self.skipped, self.error)


class BatchReader(Dataset):
    """Maps a list of sample keys to a `LoadedBatch`; runs in the workers.

    Args:
        dataset: the split.
        collate: records to batch.
        on_bad_record: "raise" or "skip", see `DataSettings`.
        replace: with "skip", take the next good record in file order (training: the batch keeps its size) or leave
            the row out (evaluation: nothing counts twice).
    """

    def __init__(
        self, dataset: SequenceDataset, collate: Collate, *, on_bad_record: str = "raise", replace: bool = True
    ) -> None:
        self.dataset, self.collate = dataset, collate
        self.skip = on_bad_record == "skip"
        self.replace = replace

    def __getitem__(self, keys: Sequence[SampleKey]) -> LoadedBatch:
        records: list[Record] = []
        skipped: list[str] = []
        try:
            for key in keys:
                record = self._read(key, skipped)
                if record is not None:
                    records.append(record)
            return LoadedBatch(self.collate(records) if records else None, tuple(skipped))
        except BAD_RECORD_ERRORS as error:
            # As text: an exception that crosses processes arrives with the worker's traceback as its message.
            return LoadedBatch(None, tuple(skipped), error=f"{error}" or type(error).__name__)

    def _read(self, key: SampleKey, skipped: list[str]) -> Record | None:
        if not self.skip:
            return self.dataset[key]
        for offset in range(min(len(self.dataset), MAX_BAD_IN_A_ROW) if self.replace else 1):
            try:
                return self.dataset[SampleKey(key.epoch, (key.index + offset) % len(self.dataset))]
            except BAD_RECORD_ERRORS as error:
                skipped.append(f"{error}")
        if self.replace:
            raise ValueError(f"{len(skipped)} records in a row cannot be read; the last: {skipped[-1]}")
        return None


class StagedReader(Dataset):
    """The readers of a length warm-up's stages: maps (number of the stage, its sample keys) to a `LoadedBatch`."""

    def __init__(self, readers: Sequence[BatchReader]) -> None:
        self.readers = readers

    def __getitem__(self, request: tuple[int, Sequence[SampleKey]]) -> LoadedBatch:
        stage, keys = request
        return self.readers[stage][keys]


class BatchStream:
    """Batches of a loader, in order, with an account of what was skipped.

    Attributes:
        skipped: (number of the batch, counted from `start`; message) of every record left out so far.
    """

    def __init__(self, loader: DataLoader, *, start: int = 0) -> None:
        self.loader, self.start = loader, start
        self.skipped: list[tuple[int, str]] = []

    def __iter__(self) -> Iterator[Batch]:
        for number, loaded in enumerate(self.loader, start=self.start):
            if loaded.error is not None:
                raise ValueError(f"{loaded.error}\n(data.on_bad_record=skip leaves out such records and counts them)")
            self.skipped += [(number, message) for message in loaded.skipped]
            if loaded.batch is not None:
                yield loaded.batch

    def close(self) -> None:
        """Ends the reading processes. Left to the garbage collector, their queues may go first, and torch then waits
        five seconds for each process."""
        workers = self.loader._iterator
        if workers is not None:
            workers._shutdown_workers()  # type: ignore[attr-defined]  # torch has no public name for it
            self.loader._iterator = None


def training_batches(
    dataset: SequenceDataset,
    collate: Collate,
    settings: DataSettings,
    *,
    seed: int = 0,
    start: int = 0,
    share: Share | None = None,
) -> BatchStream:
    """The endless training stream of this process, from batch number `start` on (see `BatchSampler`)."""
    sampler = BatchSampler(len(dataset), settings.batch_size, seed=seed, start=start, share=share)
    reader = BatchReader(dataset, collate, on_bad_record=settings.on_bad_record)
    return BatchStream(_loader(reader, sampler, settings.workers), start=start)


def staged_batches(
    stages: Sequence[Stage],
    collate: Collate,
    settings: DataSettings,
    *,
    seed: int = 0,
    start: int = 0,
    share: Share | None = None,
) -> BatchStream:
    """The endless training stream through the stages of a length warm-up, from batch number `start` on.

    One loader serves all stages: its workers read ahead across the border of two.
    """
    sampler = StagedSampler(stages, seed=seed, start=start, share=share)
    readers = [BatchReader(stage.dataset, collate, on_bad_record=settings.on_bad_record) for stage in stages]
    return BatchStream(_loader(StagedReader(readers), sampler, settings.workers), start=start)


def evaluation_batches(
    dataset: SequenceDataset,
    collate: Collate,
    settings: DataSettings,
    *,
    max_batches: int | None = None,
    share: Share | None = None,
) -> BatchStream:
    """Every sample of a split once, in order; or `max_batches` batches spread evenly over it."""
    batches = in_order(len(dataset), settings.eval_batch_size or settings.batch_size, limit=max_batches, share=share)
    reader = BatchReader(dataset, collate, on_bad_record=settings.on_bad_record, replace=False)
    return BatchStream(_loader(reader, batches, min(settings.workers, len(batches))))


def _loader(
    reader: BatchReader | StagedReader, batches: BatchSampler | StagedSampler | list, workers: int
) -> DataLoader:
    context = multiprocessing.get_context("forkserver") if workers else None
    if context is not None:
        context.set_forkserver_preload(["__main__", __name__])  # torch is imported once, not once a worker
    return DataLoader(
        reader,
        batch_size=None,  # the sampler gives whole batches and the reader makes them
        sampler=batches,
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # torch's stub knows lists of samples only
        num_workers=workers,
        multiprocessing_context=context,
        worker_init_fn=_start_worker if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else the loader draws from, and so changes, the global one
    )


def _as_it_is(loaded: LoadedBatch) -> LoadedBatch:
    return loaded


def _start_worker(_: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group: the trainer must outlive them to save, and so must they.
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_trainer, daemon=True).start()


def _end_with_the_trainer() -> None:
    """Ends this worker when the training process is gone, killed without a chance to say so.

    torch's own check looks at the parent process, which is the fork server here, and that lives as long as its workers.
    """
    trainer = multiprocessing.parent_process()
    assert trainer is not None, "runs in a worker"
    multiprocessing.connection.wait([trainer.sentinel])
    os._exit(1)


def _pinned(batch: Batch) -> Batch:
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    pinned = {name: value.pin_memory() for name, value in values.items() if isinstance(value, torch.Tensor)}
    return dataclasses.replace(batch, **pinned)
