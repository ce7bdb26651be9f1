"""Where samples come from while training: memory, a memory-mapped cache on disk, or the sound files themselves.

    store = SampleStore(infos, sample_rate_hz=16000, memory_mib=256, cache_folder=None)
    store.read(clip, start, stop)       mono float32 at 16 kHz

A corpus of at most `memory_mib` (4 bytes a sample) is decoded once, when the store is made. A larger one is read by
seeking, each segment anew, or, given `cache_folder`, decoded once into one `.npy` a file and memory-mapped in this and
every later run. All three may be forked and pickled: nothing holds an open file.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from domains.audio.splits import sampled_hash
from domains.audio.wav import AudioFileError, AudioInfo, LevelMeter, read_samples

log = logging.getLogger(__name__)

Mode = Literal["memory", "mapped", "files"]
_CACHE_VERSION = 1  # part of every key: raise it when decoding or resampling changes a sample
_PIECE = 1 << 22
_SECONDS_BETWEEN_MESSAGES = 10.0


class SampleStore:
    """Samples of a list of files at one rate.

    Args:
        infos: headers of the files.
        sample_rate_hz: rate of every answer.
        memory_mib: decode everything into memory if it fits into so many MiB (1 MiB = 262,144 samples).
        cache_folder: decode into memory-mapped files here instead (made if missing). A file's key is its size, time of
            change, encoding, the wanted rate and a hash of its beginning, middle and end.
        on_bad_file: "raise", or "skip": a file that cannot be decoded is left out; `infos` are then the others.

    Attributes:
        mode: "memory", "mapped" or "files".
        infos: the files that can be read; their places in this list are the clip numbers.
        skipped: message of every file that was left out.
        clipped_samples: full-scale samples of each file (`LevelMeter`); None in mode "files", where nothing has been
            decoded yet.
    """

    def __init__(
        self,
        infos: Sequence[AudioInfo],
        *,
        sample_rate_hz: int,
        memory_mib: int = 256,
        cache_folder: str | os.PathLike[str] | None = None,
        on_bad_file: str = "raise",
    ) -> None:
        self.infos, self.sample_rate_hz = list(infos), sample_rate_hz
        self.lengths = [info.samples_at(sample_rate_hz) for info in infos]
        self.skipped: list[str] = []
        self.clipped_samples: list[int] | None = None
        self._memory: list[np.ndarray] = []
        self._mapped: list[Path] = []
        if cache_folder is not None:
            self.mode: Mode = "mapped"
            self._folder = Path(cache_folder).expanduser()
            self._folder.mkdir(parents=True, exist_ok=True)
        else:
            self.mode = "memory" if sum(self.lengths) * 4 <= memory_mib * 2**20 else "files"
        if self.mode != "files":
            self._decode_all(on_bad_file)
        elif slow := [info.path for info in self.infos if not info.seekable]:
            log.warning(
                "%d files (such as %s) cannot be read from the middle and are decoded from their start for every "
                "segment: decode them once with cache_folder=…",
                len(slow),
                slow[0],
            )

    def read(self, clip: int, start: int, stop: int) -> Float[np.ndarray, " L"]:
        """Samples [start, stop) of a file. A view where possible: do not write into it.

        Raises:
            AudioFileError: the file is broken there, or has changed since the store was made (mode "files").
        """
        if self.mode == "memory":
            return self._memory[clip][start:stop]
        if self.mode == "mapped":
            return np.asarray(_map(str(self._mapped[clip]))[start:stop])
        return read_samples(self.infos[clip], start, stop - start, sample_rate_hz=self.sample_rate_hz)

    def describe(self) -> str:
        """Where samples come from, in words."""
        mebibytes = f"{sum(self.lengths) / 2**18:,.1f} MiB"
        if self.mode == "memory":
            return f"decoded in memory, {mebibytes}"
        if self.mode == "mapped":
            return f"decoded in {self._folder}, {mebibytes}"
        return f"read from the files as needed ({mebibytes} decoded; cache_folder=… would decode once)"

    def _decode_all(self, on_bad_file: str) -> None:
        self.clipped_samples, good = [], []
        last_message = time.monotonic()
        for number, info in enumerate(self.infos):
            try:
                clipped = self._decode_to_memory(info) if self.mode == "memory" else self._decode_to_disk(info)
            except (AudioFileError, FileNotFoundError) as error:
                if on_bad_file == "raise":
                    raise
                log.warning("left out: %s", error)
                self.skipped.append(str(error))
                continue
            good.append(info)
            self.clipped_samples.append(clipped)
            if time.monotonic() - last_message > _SECONDS_BETWEEN_MESSAGES:
                last_message = time.monotonic()
                log.info("decoded %d of %d sound files", number + 1, len(self.infos))
        if not good:
            raise AudioFileError(f"none of {len(self.infos)} files can be decoded; the first: {self.skipped[0]}")
        self.infos, self.lengths = good, [info.samples_at(self.sample_rate_hz) for info in good]

    def _decode_to_memory(self, info: AudioInfo) -> int:
        meter = LevelMeter()
        samples = read_samples(info, sample_rate_hz=self.sample_rate_hz, meter=meter)
        samples.flags.writeable = False
        self._memory.append(samples)
        return meter.clipped_samples

    def _decode_to_disk(self, info: AudioInfo) -> int:
        """Decodes a file that is not in the cache yet. The account beside it is written first, so that a kill in
        between leaves nothing that looks finished."""
        target = self._folder / f"{_key(info, self.sample_rate_hz)}.npy"
        account = target.with_suffix(".json")
        if not target.exists():
            partial = target.with_suffix(f".{os.getpid()}.partial")
            try:
                clipped = self._decode_into(partial, info)
                _write_text(account, json.dumps({"source": os.path.basename(info.path), "clipped_samples": clipped}))
                os.replace(partial, target)
            finally:
                partial.unlink(missing_ok=True)
        self._mapped.append(target)
        return int(json.loads(account.read_text())["clipped_samples"])

    def _decode_into(self, path: Path, info: AudioInfo) -> int:
        """Plain writes, not a mapped array: on a full disk those raise, a mapped write kills the process."""
        length, meter = info.samples_at(self.sample_rate_hz), LevelMeter()
        header = {"descr": "<f4", "fortran_order": False, "shape": (length,)}
        try:
            with open(path, "wb") as file:
                np.lib.format.write_array_header_2_0(file, header)
                for start in range(0, length, _PIECE):
                    count = min(_PIECE, length - start)
                    samples = read_samples(info, start, count, sample_rate_hz=self.sample_rate_hz, meter=meter)
                    file.write(samples.astype("<f4").tobytes())
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            needed = f"{sum(self.lengths) * 4 / 2**20:,.0f} MiB for the whole corpus"
            raise type(error)(
                error.errno, f"cache_folder={str(self._folder)!r}: {error.strerror}; it needs {needed}"
            ) from error
        return meter.clipped_samples


def _key(info: AudioInfo, sample_rate_hz: int) -> str:
    facts = (_CACHE_VERSION, info.size_bytes, info.modified_ns, info.encoding, info.raw, sample_rate_hz)
    return hashlib.blake2b(repr(facts).encode() + sampled_hash(info), digest_size=16).hexdigest()


def _write_text(path: Path, text: str) -> None:
    partial = path.with_suffix(f".{os.getpid()}.json.partial")
    partial.write_text(text)
    os.replace(partial, path)


@functools.lru_cache(maxsize=256)
def _map(path: str) -> np.ndarray:
    return np.load(path, mmap_mode="r")
