"""`AudioCorpus` with every option by its own name: what YAML, the command line and saved runs give.

    corpus = AudioSegments("example:digits", tokenizer=MuLawTokenizer(sample_rate_hz=8000), segment_seconds=0.5)
    corpus.split("train")[SampleKey(epoch=0, index=7)]      Record("7_it_IT_m_Carlo.wav:0-4000", ids, label=7)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from domains.audio.augment import WaveformAugment
from domains.audio.datasets.audio_corpus import AudioCorpus, Cutting, Division, Source, Storage
from domains.audio.tokenizer import SampleTokenizer
from domains.audio.wav import RawFormat


class AudioSegments(AudioCorpus):
    """Segments of sound files, labelled or not; a `Corpus`.

    Args:
        folder: a folder of sound files, searched through all its sub-folders, or `example:digits`, `example:loops`.
        manifest: a `.jsonl` or `.csv` list of files instead; see `list_clips`.
        tokenizer: samples to ids; its rate is the rate that every file is brought to.
        segment_seconds: length of a segment, rounded to whole samples (and said so in `report`).
        segment_samples: exact length of a segment in samples; where given it replaces `segment_seconds`.
        min_segment_samples: shorter segments (ends of clips, short clips) are dropped and counted; 1 keeps all.
        split_by: "auto", "official", "file", "speaker", "order", "time" or "balanced"; see `assign_splits`.
        valid_fraction: share held out for validation; None is the rule's own.
        test_fraction: share held out for test; None is the rule's own.
        label: "auto", "folder", None or a regular expression on file names; see `list_clips`.
        speaker: "folder", None or a regular expression on file names.
        classes: keep clips with these labels alone, e.g. the ten digits of Speech Commands; None keeps all.
        crop: training segments: "random" starts, or the "grid". "start" takes the beginning of every clip, in every
            split, and drops the rest.
        fill: segments shorter than the full length end in digital silence up to it: "none", those of "train", or "all".
        silence: "keep", or "drop" segments below `silence_dbfs`: on the grid they are left out, random crops are drawn
            again (up to 8 times).
        silence_dbfs: RMS level in dB below full scale under which a segment counts as silent.
        augment: changes training waveforms, or None.
        memory_mib: decode the whole corpus into memory if it takes at most so many MiB (about 70 minutes at 16 kHz
            for 256); larger ones are read from the files by seeking.
        cache_folder: decode once into memory-mapped files here instead.
        raw_format: for headerless .raw and .pcm files: `RawFormat` or its fields as a mapping.
        on_bad_file: "raise", or "skip" files that cannot be used, counted in `report`.
        seed: of the split and of every draw.

    Raises:
        FileNotFoundError: no such folder, manifest or file.
        ValueError: an argument out of range; no sound in the folder; a broken file; too few files for the split.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, tokenizer: SampleTokenizer,
        manifest: str | os.PathLike[str] | None = None, segment_seconds: float = 1.0,
        segment_samples: int | None = None, min_segment_samples: int = 1, split_by: str = "auto",
        valid_fraction: float | None = None, test_fraction: float | None = None, label: str | None = "auto",
        speaker: str | None = None, classes: Sequence[str] | None = None, crop: str = "random", fill: str = "none",
        silence: str = "keep", silence_dbfs: float = -60.0, augment: WaveformAugment | None = None,
        memory_mib: int = 256, cache_folder: str | os.PathLike[str] | None = None,
        raw_format: RawFormat | Mapping[str, Any] | None = None, on_bad_file: str = "raise", seed: int = 0,
    ) -> None:  # fmt: skip
        cutting = Cutting(
            segment_seconds, segment_samples, min_segment_samples, crop, silence, silence_dbfs, augment, fill
        )  # first: its mistakes are seen before a folder is searched through
        super().__init__(
            Source(folder, manifest, label, speaker, classes, raw_format, on_bad_file),
            tokenizer=tokenizer,
            cutting=cutting,
            division=Division(split_by, valid_fraction, test_fraction),
            storage=Storage(memory_mib, cache_folder),
            seed=seed,
        )
