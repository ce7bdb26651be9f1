"""Samples in [-1, 1] to ids 0..V-1 and back: mu-law (8 to 12 bits) and linear (8 to 16 bits) quantisers, V = 2^bits.

Two published conventions, which differ by up to one level and must not be mixed, and that of PCM files:

    "torchaudio"   id = floor((y + 1)/2 · (V-1) + 0.5)          y' = 2·id/(V-1) - 1      the level keeps its loudness
    "sashimi"      id = floor((y + 1)/2 · (V-0.01) + 0.005)     y' = 2·id/V - 1          after min–max of the clip
    "pcm"          id = floor(y · V/2 + 0.5) + V/2, up to V-1   y' = 2·id/V - 1         linear; 16 bits lose nothing

y is the sample x itself (linear) or sign(x)·ln(1 + (V-1)|x|)/ln V (mu-law, ITU-T G.711 as used by WaveNet). SaShiMi's
convention first stretches every clip (one call of `encode`) so that its least sample is -1 and its greatest +1: gain
and offset of the clip are lost, a constant clip becomes all zeros, and silence of a clip need not be level V/2. Its
decoder returns the lower edge of each level's bin rather than the middle: on a clip that reaches -1 and +1,
encode(decode(id)) is id or id - 1, but a decoded clip reaches only y = 1 - 2/V, so that encoding it again stretches and
shifts it, and quiet samples may move by many levels. With "torchaudio", encode(decode(id)) = id for every id. Level V/2
is y = 0 in both: it is `start_id`.

Comparing bits/sample. A model's bits/sample says how well it predicts ids, so it depends on how fine the levels are.
With levels of width w(x) around the samples, bits + E[log2 w] is (nearly) the same number for every tokenizer: the
differential entropy in bits of the sound in amplitude units. So bits_B = bits_A + E[log2 w_A] - E[log2 w_B], and
`mean_log2_width` gives E[log2 w] of a clip. From 8 to 12 bits linear w shrinks 16 times (4.01 bits more); from linear
to mu-law it depends on how loud the sound is, which is why figures of two tokenizers must be converted on the same
clips. It holds as long as levels are fine against what is uncertain; where most ids repeat, it does not. Under
"sashimi" the widths are those of the stretched clip: bits/sample are comparable with its papers as they are.
"""

from __future__ import annotations

import abc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt

from domains.audio.wav import AUDIO_SUFFIXES, read_info, read_samples

if TYPE_CHECKING:
    from domains.audio.sample_writer import AudioWriter

log = logging.getLogger(__name__)

CONVENTIONS = ("torchaudio", "sashimi")
MIN_BITS = 8
_SASHIMI_EPSILON = 0.01


class SampleTokenizer(abc.ABC):
    """What the two quantisers share; satisfies `seqmodels.data.record.Tokenizer`.

    Args:
        sample_rate_hz: rate of the sound in Hz; part of the tokenizer, so that a checkpoint knows it.
        bits: 8 up to the kind's `max_bits`. More than 12 are for heads that give no logit a level
            (`MixtureOfLogisticsHead`).
        convention: one of the kind's `conventions`; see the module's text.

    Attributes:
        vocab_size: V = 2^bits.
        start_id: V/2, the level of silence.

    Raises:
        ValueError: bits, convention or rate out of range.
    """

    unit: ClassVar[str] = "sample"
    file_suffix: ClassVar[str] = ".wav"
    max_bits: ClassVar[int] = 12
    conventions: ClassVar[tuple[str, ...]] = CONVENTIONS

    def __init__(self, *, sample_rate_hz: int, bits: int = 8, convention: str = "torchaudio") -> None:
        if not MIN_BITS <= bits <= self.max_bits:
            raise ValueError(f"bits={bits}: {type(self).__name__} takes {MIN_BITS} to {self.max_bits}")
        if convention not in self.conventions:
            there = ", ".join(self.conventions)
            raise ValueError(f"convention={convention!r} is not known to {type(self).__name__}; use one of {there}")
        if sample_rate_hz < 1:
            raise ValueError(f"sample_rate_hz={sample_rate_hz} is not a rate; give samples a second, e.g. 16000")
        self.sample_rate_hz = int(sample_rate_hz)
        self.bits = int(bits)
        self.convention = convention
        self.vocab_size = 1 << self.bits
        self.start_id = self.vocab_size // 2
        self._samples_V = self._decoded_levels()

    def encode(self, raw: Float[np.ndarray, " L"]) -> UInt[np.ndarray, " L"]:
        """Samples of one clip to ids: uint8 for 8 bits, else uint16.

        Raises:
            ValueError: not one row, NaN, or (but for "sashimi") samples outside [-1, 1].
        """
        samples = np.asarray(raw, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"samples have shape {samples.shape}; one row (mono) was expected")
        peak = float(np.abs(samples).max(initial=0.0))
        if not np.isfinite(peak):
            raise ValueError("samples hold NaN or infinity")
        if self.convention == "sashimi":
            level = self._sashimi_levels(samples)
        else:
            if peak > 1.0:
                raise ValueError(f"samples reach {peak:.4g}; scale them to [-1, 1] before encoding")
            level = self._levels(samples)
        return level.astype(np.uint8 if self.bits == 8 else np.uint16)

    def decode(self, ids: np.ndarray) -> Float[np.ndarray, " L"]:
        """Ids to float32 samples in [-1, 1].

        Raises:
            ValueError: ids outside 0..V-1.
        """
        ids = np.asarray(ids)
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size):
            raise ValueError(f"ids span {ids.min()}..{ids.max()}; this tokenizer has 0..{self.vocab_size - 1}")
        return self._samples_V[ids.astype(np.int64)]

    def mean_log2_width(self, ids: np.ndarray) -> float:
        """E[log2 w] of a clip's ids in bits, w being the width of each id's bin in amplitude (module's text)."""
        edges = self._expand(np.clip(self._lower_edges(), -1.0, 1.0))
        return float(np.log2(np.diff(edges))[np.asarray(ids, dtype=np.int64)].mean())

    def read_prompt(self, prompt: str) -> UInt[np.ndarray, " L"]:
        """The ids of a whole sound file, mixed to mono and resampled to the tokenizer's rate; the log says so.

        Raises:
            FileNotFoundError: no such file.
            AudioFileError: a file that cannot be read.
        """
        if not Path(prompt).exists():
            kinds = " ".join(AUDIO_SUFFIXES)
            raise FileNotFoundError(f"prompt={prompt!r}: no such file; for sound, give the path of a file ({kinds})")
        info = read_info(prompt)
        samples = read_samples(info, sample_rate_hz=self.sample_rate_hz)
        changes = [f"resampled from {info.sample_rate_hz:,} Hz"] if info.sample_rate_hz != self.sample_rate_hz else []
        changes += [f"{info.channels} channels mixed to one"] if info.channels > 1 else []
        log.info(
            "prompt      %s: %s samples at %s Hz (%.2f s)%s", prompt, f"{len(samples):,}", f"{self.sample_rate_hz:,}",
            len(samples) / self.sample_rate_hz, "".join(f", {change}" for change in changes),
        )  # fmt: skip
        return self.encode(samples)

    def write(self, path: str, sequences: Sequence[np.ndarray], *, names: Sequence[str]) -> list[str]:
        """Writes ids as WAV or FLAC: one sequence as exactly `path`, several as path_0, path_1, ….

        Args:
            path: ends in .wav or .flac; without a suffix, .wav is added.
            sequences: ids of each file, each at least one.
            names: one a sequence; stored as the file's title.

        Returns:
            The paths written, in the order of `sequences`.
        """
        if len(names) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences but {len(names)} names; one name a sequence is needed")
        with self.writer(path, [len(ids) for ids in sequences]) as writer:
            for row, (ids, name) in enumerate(zip(sequences, names)):
                writer.append(row, ids)
                writer.finish(row, name=name, facts={})
        return writer.paths

    def writer(self, path: str, lengths: Sequence[int]) -> AudioWriter:
        """Files that are written while their ids are made: see `AudioWriter`."""
        from domains.audio.sample_writer import AudioWriter

        return AudioWriter(self, path, lengths)

    def describe(self) -> str:
        """One line: kind, bits, convention, rate."""
        return f"{type(self).__name__} {self.bits} bit {self.convention} {self.sample_rate_hz} Hz"

    def spec(self) -> dict[str, Any]:
        """What rebuilds this tokenizer: `_target_` and its keyword arguments, plain data."""
        return {
            "_target_": f"domains.audio.tokenizer.{type(self).__name__}",
            "sample_rate_hz": self.sample_rate_hz,
            "bits": self.bits,
            "convention": self.convention,
        }

    def _levels(self, samples: np.ndarray) -> np.ndarray:
        """Samples in [-1, 1] to fractional ids, whose whole parts are the ids."""
        return (self._compress(samples) + 1) / 2 * (self.vocab_size - 1) + np.float32(0.5)

    @abc.abstractmethod
    def _compress(self, samples: np.ndarray) -> np.ndarray:
        """x in [-1, 1] to y in [-1, 1]."""

    @abc.abstractmethod
    def _compress_sashimi(self, fraction: np.ndarray) -> np.ndarray:
        """(x - least) / (greatest - least) of the clip to (y + 1) / 2, with SaShiMi's rounding aids."""

    @abc.abstractmethod
    def _expand(self, y: np.ndarray) -> np.ndarray:
        """The inverse of `_compress`."""

    def _decoded_levels(self) -> Float[np.ndarray, " V"]:
        levels = np.arange(self.vocab_size, dtype=np.float64)
        top = self.vocab_size - 1 if self.convention == "torchaudio" else self.vocab_size
        return self._expand(2 * levels / top - 1).astype(np.float32)

    def _sashimi_levels(self, samples: np.ndarray) -> np.ndarray:
        if not len(samples):
            return samples
        low, high = samples.min(), samples.max()
        fraction = (samples - low) / (high - low + np.float32(1e-6))
        spread = np.float32(self.vocab_size - _SASHIMI_EPSILON)
        return self._compress_sashimi(fraction) * spread + np.float32(_SASHIMI_EPSILON / 2)

    def _lower_edges(self) -> Float[np.ndarray, " V+1"]:
        """Where each bin begins, in y, and where the last ends."""
        level = np.arange(self.vocab_size + 1, dtype=np.float64)
        if self.convention == "sashimi":
            return 2 * (level - _SASHIMI_EPSILON / 2) / (self.vocab_size - _SASHIMI_EPSILON) - 1
        if self.convention == "pcm":
            return 2 * (level - 0.5) / self.vocab_size - 1
        return 2 * (level - 0.5) / (self.vocab_size - 1) - 1


class MuLawTokenizer(SampleTokenizer):
    """Logarithmic levels, fine near silence: what raw-audio models train on. Arguments: see `SampleTokenizer`."""

    def _compress(self, samples: np.ndarray) -> np.ndarray:
        mu = np.float32(self.vocab_size - 1)
        return np.sign(samples) * np.log1p(mu * np.abs(samples)) / np.log1p(mu)

    def _compress_sashimi(self, fraction: np.ndarray) -> np.ndarray:
        mu = np.float32(self.vocab_size - 1)
        x = -1 + 2 * fraction
        return (np.sign(x) * (np.log1p(mu * np.abs(x + np.float32(1e-8))) / np.log1p(mu)) + 1) / 2

    def _expand(self, y: np.ndarray) -> np.ndarray:
        mu = self.vocab_size - 1
        return np.sign(y) * np.expm1(np.abs(y) * np.log1p(mu)) / mu


class LinearTokenizer(SampleTokenizer):
    """Levels of equal width. Arguments: see `SampleTokenizer`; also convention="pcm"."""

    max_bits: ClassVar[int] = 16
    conventions: ClassVar[tuple[str, ...]] = (*CONVENTIONS, "pcm")

    def _compress(self, samples: np.ndarray) -> np.ndarray:
        return samples

    def _compress_sashimi(self, fraction: np.ndarray) -> np.ndarray:
        return fraction

    def _levels(self, samples: np.ndarray) -> np.ndarray:
        if self.convention != "pcm":
            return super()._levels(samples)
        half = self.vocab_size // 2  # a float32 of 16 bits plus half a level is exact; plus V/2 it might not be
        return (np.floor(samples * half + np.float32(0.5)) + half).clip(max=self.vocab_size - 1)

    def _expand(self, y: np.ndarray) -> np.ndarray:
        return y
