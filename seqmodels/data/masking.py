"""Which symbols a masked language model has to fill in, and what it sees in their place.

    record -> record whose `ids` hide some symbols and whose `target_ids` name those, `IGNORE_INDEX` elsewhere

Masks are a function of (seed, epoch, sample): the same on any worker, any rank and after any resume. In validation and
evaluation they are the same for ever, so that losses can be compared between epochs and between runs.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from seqmodels.data.record import IGNORE_INDEX, Record, SampleKey, SequenceDataset, Tokenizer

EVALUATION_SEED = 20_190_524  # of masks that are not trained on: whatever seed a run has, it is judged on the same


@dataclass(frozen=True, slots=True)
class Masking:
    """How much is hidden, and how (the defaults: arXiv:1810.04805, section 3.1; Caduceus took them over).

    Attributes:
        rate: chance of each symbol to be a target.
        mask_share: share of the targets that are replaced by the mask id.
        random_share: share that is replaced by a symbol drawn uniformly; it may be the same one. The rest is kept.
    """

    rate: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"head.masking.rate={self.rate!r} must lie above 0 and not above 1 (published: 0.15)")
        if not (self.mask_share >= 0 and self.random_share >= 0 and self.mask_share + self.random_share <= 1 + 1e-9):
            raise ValueError(
                f"head.masking.mask_share={self.mask_share!r} and random_share={self.random_share!r} must be shares of "
                "the targets, together at most 1 (published: 0.8 and 0.1; the rest is kept)"
            )


class MaskedSamples:
    """A split with symbols hidden, each sample by its own dice.

    Never a target: what the record itself does not predict (N), and ids that are no symbols (padding).

    Args:
        samples: the split.
        masking: how much, and how.
        tokenizer: has `mask_id`; its `drawn_ids` are the symbols, all other ids are never hidden and never drawn.
        seed: of the dice, together with the sample's epoch and index.

    Raises:
        ValueError: the tokenizer has no id that stands for a hidden symbol.
    """

    def __init__(
        self, samples: SequenceDataset, masking: Masking, tokenizer: Tokenizer, *, seed: int = EVALUATION_SEED
    ) -> None:
        mask_id = getattr(tokenizer, "mask_id", None)
        if mask_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no mask_id, the id that stands for a hidden symbol, so that masked "
                "symbols cannot be learnt from this data; take head=next_token, or a DNA data set"
            )
        self.samples, self.masking, self.mask_id, self.seed = samples, masking, int(mask_id), seed % 2**64
        others = {self.mask_id, tokenizer.start_id}
        symbols = getattr(tokenizer, "drawn_ids", [i for i in range(tokenizer.vocab_size) if i not in others])
        self._symbols = np.array(symbols, dtype=np.int64)
        self._is_symbol = np.zeros(tokenizer.vocab_size, dtype=bool)
        self._is_symbol[self._symbols] = True

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: SampleKey | int) -> Record:
        """The record with `ids` as the model sees them and `target_ids` at the hidden positions."""
        record = self.samples[key]
        epoch, index = key if isinstance(key, tuple) else (0, int(key))
        return self._hide(record, np.random.default_rng([self.seed, epoch, index]))

    def _hide(self, record: Record, dice: np.random.Generator) -> Record:
        true_L = np.asarray(record.ids).astype(np.int64)
        masking = self.masking
        # One throw a position decides all: below `rate` it is a target, and how far below says what is put there.
        throw_L = dice.random(len(true_L)) / masking.rate
        is_target_L = (throw_L < 1) & self._is_symbol[true_L]
        if record.target_ids is not None:
            is_target_L &= np.asarray(record.target_ids) != IGNORE_INDEX
        ids_L = true_L.copy()
        ids_L[is_target_L & (throw_L < masking.mask_share)] = self.mask_id
        is_random_L = is_target_L & (throw_L >= masking.mask_share)
        is_random_L &= throw_L < masking.mask_share + masking.random_share
        ids_L[is_random_L] = self._symbols[dice.integers(len(self._symbols), size=int(is_random_L.sum()))]
        target_ids = np.where(is_target_L, true_L, IGNORE_INDEX)
        return dataclasses.replace(record, ids=ids_L, target_ids=target_ids)


def hidden_by(
    masking: Masking | None, samples: SequenceDataset, tokenizer: Tokenizer, *, seed: int = EVALUATION_SEED
) -> SequenceDataset:
    """What a head reads of a split: `MaskedSamples` where it has a `masking`, the split itself where it has none."""
    return samples if masking is None else MaskedSamples(samples, masking, tokenizer, seed=seed)
