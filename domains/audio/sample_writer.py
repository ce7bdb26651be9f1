"""Generated sound to files while it is made: one draft a sample, named and tagged when it is whole."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from domains.audio.wav import WRITE_FORMATS, read_samples
from domains.audio.wav.draft import BitDepth, Draft

if TYPE_CHECKING:
    from domains.audio.tokenizer import SampleTokenizer

log = logging.getLogger(__name__)
PICTURED_SOUNDS, PICTURED_SECONDS = 16, 10


class AudioWriter:
    """Satisfies `seqmodels.data.sequence_writer.SequenceWriter`: 16-bit WAV or FLAC, 24-bit where the levels need it.

    Unfinished samples lie beside the target as `<name>.partial.wav`. They are removed when the disk is full; after
    Ctrl-C or another error they are closed and stay, and the log says where; after a kill they stay as they are.

    Args:
        tokenizer: decodes ids and says rate and bit depth.
        path: ends in .wav or .flac; without a suffix, .wav is added. One sample is written as exactly `path`, several
            as path_0, path_1, … in the order in which they are finished.
        lengths: samples of each row.

    Raises:
        ValueError: another suffix, or a row without samples.
    """

    def __init__(self, tokenizer: SampleTokenizer, path: str, lengths: Sequence[int]) -> None:
        if lengths and min(lengths) < 1:
            raise ValueError(f"{path}: a sound has at least one sample")
        target = Path(path)
        if target.suffix.lower() not in WRITE_FORMATS:
            if target.suffix:
                raise ValueError(f"{path}: cannot write {target.suffix}; use .wav or .flac")
            target = target.with_suffix(tokenizer.file_suffix)
        self._tokenizer, self._target, self._lengths = tokenizer, target, lengths
        self._bit_depth: BitDepth = bit_depth(tokenizer)
        self._drafts: dict[int, Draft] = {}
        self.paths: list[str] = []

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        drafts = list(self._drafts.values())
        if isinstance(error, OSError) or kind is None:
            for draft in drafts:
                draft.discard()
            return
        for draft in drafts:
            draft.close()
        if drafts:
            seconds = max(draft.written for draft in drafts) / self._tokenizer.sample_rate_hz
            where = ", ".join(str(draft.path) for draft in drafts[:3]) + (", ..." if len(drafts) > 3 else "")
            log.warning("stopped: %d unfinished of up to %.2f s kept in %s", len(drafts), seconds, where)

    def append(self, row: int, ids: np.ndarray) -> None:
        """The next ids of a row."""
        if row not in self._drafts:
            path = self._numbered(row).with_suffix(".partial.wav")
            rate_hz = self._tokenizer.sample_rate_hz
            self._drafts[row] = Draft(path, rate_hz, samples=self._lengths[row], bit_depth=self._bit_depth)
        self._drafts[row].append(self._tokenizer.decode(ids))

    def finish(self, row: int, *, name: str, facts: Mapping[str, str]) -> str:
        """Gives a whole row the next number, its title and its facts; returns the path."""
        import seqmodels

        target = self._numbered(len(self.paths))
        comment = " ".join(f"{key}={value}" for key, value in facts.items())
        tags = {
            "title": name,
            "comment": f"{comment} {self._tokenizer.describe()}".strip(),
            "software": f"seqmodels {seqmodels.__version__}",
        }
        self._drafts[row].become(target, tags)
        del self._drafts[row]
        self.paths.append(str(target))
        return self.paths[-1]

    def picture(self, captions: Sequence[str]) -> str:
        """Spectrograms of the first files side by side, an SVG beside them; returns its path.

        Args:
            captions: what stands above each.
        """
        from seqmodels.reporting.spectrogram_grid import spectrogram_grid

        rate_hz = self._tokenizer.sample_rate_hz
        most, shown = PICTURED_SECONDS * rate_hz, range(min(PICTURED_SOUNDS, len(self.paths)))
        sounds = [read_samples(self.paths[i], 0, min(most, self._lengths[i])) for i in shown]
        path = self._target.with_name(f"{self._target.stem}.spectrograms.svg")
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(spectrogram_grid(sounds, [captions[i] for i in shown], rate_hz), encoding="utf-8")
        partial.replace(path)
        return str(path)

    def _numbered(self, number: int) -> Path:
        if len(self._lengths) == 1:
            return self._target
        digits = len(str(len(self._lengths) - 1))
        return self._target.with_stem(f"{self._target.stem}_{number:0{digits}d}")


def bit_depth(tokenizer: SampleTokenizer) -> BitDepth:
    """16 where that tells every level from its neighbour, else 24: mu-law of 10 bits and more is finer near silence."""
    levels = tokenizer.decode(np.arange(tokenizer.vocab_size)).astype(np.float64)
    written = np.clip(np.rint(levels * 32768), -32768, 32767)
    return 16 if np.diff(written).min() >= 1 else 24
