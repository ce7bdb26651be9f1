"""A task as a corpus: seeded splits of records, whose loss and accuracy count the answers alone.

    corpus = SyntheticCorpus(InductionHeads(length=256), test_task=InductionHeads(length=4096))
    corpus.split("train")[SampleKey(epoch=0, index=7)]

Training samples are new in every epoch; validation and test samples are fixed lists. A sample depends on
(seed, split, epoch, index) alone.
"""

from __future__ import annotations

import numpy as np
import torch

from domains.synthetic.tasks import Task
from domains.synthetic.tokenizer import SymbolTokenizer
from seqmodels.data.record import Record, SampleKey

SPLITS = ("train", "valid", "test")


class SyntheticSamples:
    """One split: sample `key` is drawn when it is asked for.

    Args:
        task: what is drawn.
        split: "train", "valid" or "test": splits draw from different streams.
        length: samples of the split.
        seed: of the corpus.
        tokenizer: gives the type of the ids.
    """

    def __init__(self, task: Task, split: str, length: int, *, seed: int, tokenizer: SymbolTokenizer):
        self.task, self.split, self.length, self.seed, self.tokenizer = task, split, length, seed, tokenizer

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: SampleKey | int) -> Record:
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is not in 0..{self.length - 1}")
        if self.split != "train":
            epoch = 0
        entropy = np.random.SeedSequence([self.seed, SPLITS.index(self.split), epoch, index])
        generator = torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
        drawn = self.task.draw(1, generator)
        return Record(
            id=f"{self.task.name}:{self.split}:{epoch}:{index}",
            ids=self.tokenizer.encode(drawn.ids_BL[0].numpy()),
            target_ids=drawn.target_ids_BL[0].numpy(),
        )


class SyntheticCorpus:
    """Splits of one task; satisfies `seqmodels.data.record.Corpus`.

    Args:
        task: of training and validation.
        test_task: of the test split, for example longer; None takes `task`.
        train_samples: samples of a training epoch.
        eval_samples: samples of validation, and of test.
        seed: of every draw.

    Raises:
        ValueError: no samples, or tasks with different vocabularies.
    """

    class_names: tuple[str, ...] = ()

    def __init__(
        self,
        task: Task,
        *,
        test_task: Task | None = None,
        train_samples: int = 65536,
        eval_samples: int = 512,
        seed: int = 0,
    ):
        for name, value in (("train_samples", train_samples), ("eval_samples", eval_samples)):
            if value < 1:
                raise ValueError(f"{name}={value}: must be at least 1")
        test_task = test_task or task
        if test_task.vocab_size != task.vocab_size:
            raise ValueError(
                f"test_task has {test_task.vocab_size} symbols and task has {task.vocab_size}: one model reads both,"
                " so they must agree"
            )
        self.task, self.test_task, self.tokenizer = task, test_task, SymbolTokenizer(vocab_size=task.vocab_size)
        sizes = {"train": train_samples, "valid": eval_samples, "test": eval_samples}
        self._splits = {
            split: SyntheticSamples(
                test_task if split == "test" else task, split, size, seed=seed, tokenizer=self.tokenizer
            )
            for split, size in sizes.items()
        }

    def split(self, name: str) -> SyntheticSamples:
        """The samples of "train", "valid" or "test".

        Raises:
            ValueError: there is no such split.
        """
        if name not in self._splits:
            raise ValueError(f"there is no split {name!r}; there are: {', '.join(SPLITS)}")
        return self._splits[name]

    def report(self) -> dict[str, int | float | str]:
        """What the corpus is: the task, symbols and answers a sequence, samples of each split."""
        counts = {f"{split}_samples": len(samples) for split, samples in self._splits.items()}
        return {
            "task": self.task.name,
            "symbols": self.task.num_symbols,
            "answers": self.task.num_answers,
            "test_symbols": self.test_task.num_symbols,
            **counts,
        }
