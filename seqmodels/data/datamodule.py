"""A `Corpus` as a Lightning DataModule whose position is saved and restored: resuming continues with equal batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import lightning as L
import torch

from seqmodels.data.collate import collate_for
from seqmodels.data.length_warmup import Stage, plan_stages
from seqmodels.data.loader import BatchStream, DataSettings, evaluation_batches, staged_batches, training_batches
from seqmodels.data.masking import Masking, hidden_by
from seqmodels.data.record import Batch, Corpus
from seqmodels.data.sampler import Share


class SequenceDataModule(L.LightningDataModule):
    """Training and validation batches of a corpus.

    Args:
        corpus: the data set with its splits and tokenizer.
        objective: what the head needs, see `seqmodels.data.collate.collate_for`.
        settings: batch size, workers, bad records.
        masking: how the head's inputs are hidden, see `seqmodels.data.masking`; None hides nothing.
        seed: order of the samples, and what is hidden in training.
        accumulate: batches of one optimizer step; the stages of a length warm-up are counted in steps.

    Attributes:
        stages: of a length warm-up; without one, a single stage.
        position: training batches the model has been trained on. The trainer counts it up after each one (what
            was only read ahead does not count); `state_dict` carries it.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        objective: str,
        settings: DataSettings,
        masking: Masking | None = None,
        seed: int = 0,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        self.corpus = corpus
        self.settings = settings
        self.masking = masking
        self.seed = seed
        self.collate = collate_for(objective, corpus.tokenizer)
        self.position = 0
        self.stages: list[Stage] = plan_stages(
            corpus, settings.length_warmup, batch_size=settings.batch_size, accumulate=accumulate
        )
        self._stream: BatchStream | None = None
        self._validation: tuple[int | None, BatchStream] | None = None
        self._skipped_before: list[str] = []

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        if self.trainer is None:
            return Share()
        return Share(self.trainer.global_rank, self.trainer.world_size)

    @property
    def epoch(self) -> float:
        """How often the training split has been seen, in passes (of the full length: every batch has equally much)."""
        return self.position * self.settings.batch_size / len(self.corpus.split("train"))

    @property
    def skipped(self) -> list[str]:
        """Why records were skipped in what has been trained on, one message a record."""
        now = self._stream.skipped if self._stream else []
        return self._skipped_before + [message for number, message in now if number < self.position]

    def train_dataloader(self) -> BatchStream:
        """The endless stream from `position` on."""
        where = {"seed": self.seed, "start": self.position, "share": self.share}
        tokenizer = self.corpus.tokenizer
        stages = [
            replace(stage, dataset=hidden_by(self.masking, stage.dataset, tokenizer, seed=self.seed))
            for stage in self.stages
        ]
        if len(stages) == 1:
            self._stream = training_batches(stages[0].dataset, self.collate, self.settings, **where)
        else:
            self._stream = staged_batches(stages, self.collate, self.settings, **where)
        return self._stream

    def validation_batches(self, max_batches: int | None = None) -> BatchStream:
        """The validation split in order, this process's share of it; its workers stay for the next time."""
        if self._validation is None or self._validation[0] != max_batches:
            samples = hidden_by(self.masking, self.corpus.split("valid"), self.corpus.tokenizer)
            stream = evaluation_batches(
                samples, self.collate, self.settings, max_batches=max_batches, share=self.share
            )
            self._validation = (max_batches, stream)
        return self._validation[1]

    def close(self) -> None:
        """Ends the processes that read batches."""
        for stream in (self._stream, self._validation[1] if self._validation else None):
            if stream is not None:
                stream.close()

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copies that overlap with computing where the batch lies in pinned memory."""
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is counted in: it means nothing on other data or with another batch size."""
        return {"position": self.position, "skipped": self.skipped, **self._units()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken.

        Raises:
            ValueError: the data, the batch size or the seed are not those of the saved position.
        """
        changed = [
            f"{name} was {state_dict.get(name)} and is {value}"  # checkpoints from before the warm-up have no stages
            for name, value in self._units().items()
            if state_dict.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"cannot continue with equal batches: {'; '.join(changed)}. Put the data back as it was, or start a"
                " new run from these weights with model_from=<run>"
            )
        self.position = state_dict["position"]
        self._skipped_before = list(state_dict["skipped"])

    def _units(self) -> dict[str, Any]:
        return {
            "num_samples": len(self.corpus.split("train")),
            "batch_size": self.settings.batch_size,
            "seed": self.seed,
            "stages": [stage.numbers() for stage in self.stages] if len(self.stages) > 1 else None,
        }
