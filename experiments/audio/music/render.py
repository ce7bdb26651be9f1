"""MIDI files to 16 kHz mono WAVs, and a manifest that says which of them train, validate and test.

    python experiments/audio/music/render.py build/music /tmp/piano --workers 16

This is rendered sound: human performances (key, velocity, time, pedal), played by a sampled piano of one instrument in
a dry room. Files are cut into stretches of `STRETCH_S` that are rendered side by side, each from `RUN_UP_S` before its
beginning, so that what still sounds from before is heard. The synthesizer knows no sustain pedal: keys released while
it is down are released when it comes up.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import sys
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RATE_HZ = 16_000
GAIN_DB = 4.5  # about as loud as it gets without clipping
STRETCH_S, RUN_UP_S, TAIL_S = 480, 15, 4  # the tail: what is heard behind the last event of a file
PEDAL, PEDAL_DOWN = 64, 64  # MIDI controller and the value from which it counts as down
TEST, VALID = ("Maestro_1", "Maestro_3", "Maestro_4"), ("Maestro_10",)  # whole files; all others train
SOUND_FONT = "TimGM6mb.sf2"


class Key(NamedTuple):
    """A key going down (velocity 1..127) or up (0) at a time in seconds."""

    seconds: float
    key: int
    velocity: int


def keys_of(path: Path) -> list[Key]:
    """What the synthesizer is told, in the order of time, releases held back by the pedal."""
    from tinysoundfont import midi  # pyright: ignore[reportMissingImports]

    told: list[Key] = []
    held: set[int] = set()
    down = False
    for event in midi.load(str(path)):
        action = event.action
        if isinstance(action, midi.ControlChange) and action.control == PEDAL:
            down = action.control_value >= PEDAL_DOWN
            if not down:
                told += [Key(event.t, key, 0) for key in sorted(held)]
                held.clear()
        elif isinstance(action, midi.NoteOn) and action.velocity:
            if action.key in held:  # struck again while it still sounds
                told.append(Key(event.t, action.key, 0))
                held.discard(action.key)
            told.append(Key(event.t, action.key, action.velocity))
        elif isinstance(action, midi.NoteOn | midi.NoteOff):
            if down:
                held.add(action.key)
            else:
                told.append(Key(event.t, action.key, 0))
    return told


def rendered(keys: list[Key], font: Path, begin_s: float, end_s: float) -> np.ndarray:
    """(S,) int16 of [begin_s, end_s), every key at its own sample."""
    import tinysoundfont  # pyright: ignore[reportMissingImports]

    synth = tinysoundfont.Synth(gain=GAIN_DB, samplerate=RATE_HZ)
    synth.program_select(0, synth.sfload(str(font)), 0, 0)
    start = max(0.0, begin_s - RUN_UP_S)
    total, place = round((end_s - start) * RATE_HZ), 0
    sound = np.empty(total, np.float32)

    def play(to: int) -> None:
        nonlocal place
        if to > place:
            stereo = np.frombuffer(synth.generate_simple(to - place), np.float32).reshape(-1, 2)
            sound[place:to] = stereo.mean(axis=1)
            place = to

    for key in keys:
        if start <= key.seconds < end_s:
            play(min(total, round((key.seconds - start) * RATE_HZ)))
            _ = synth.noteon(0, key.key, key.velocity) if key.velocity else synth.noteoff(0, key.key)
    play(total)
    wanted = sound[round((begin_s - start) * RATE_HZ) :]
    return np.rint(np.clip(wanted, -1, 1) * 32767).astype("<i2")


def stretches(path: Path, limit_s: float | None) -> Iterator[tuple[float, float]]:
    """[begin, end) of each, in seconds."""
    end_s = keys_of(path)[-1].seconds + TAIL_S
    end_s = min(end_s, limit_s) if limit_s else end_s
    begin_s = 0.0
    while begin_s < end_s:
        yield begin_s, min(begin_s + STRETCH_S, end_s)
        begin_s += STRETCH_S


def _job(job: tuple[Path, Path, float, float]) -> np.ndarray:
    path, font, begin_s, end_s = job
    return rendered(keys_of(path), font, begin_s, end_s)


def render(folder: Path, out: Path, *, workers: int, limit_s: float | None = None) -> Path:
    """Renders all MIDI files of a folder; returns the manifest's path.

    Args:
        folder: MIDI files and the sound font.
        out: folder for the WAVs and manifest.csv.
        workers: processes.
        limit_s: of every file only so many seconds.

    Raises:
        FileNotFoundError: no MIDI files, or no sound font.
    """
    songs = sorted(folder.glob("*.mid"))
    if not songs or not (folder / SOUND_FONT).exists():
        raise FileNotFoundError(f"{folder}: needs MIDI files and {SOUND_FONT}; data.py makes such a folder")
    out.mkdir(parents=True, exist_ok=True)
    jobs = [(song, folder / SOUND_FONT, *stretch) for song in songs for stretch in stretches(song, limit_s)]
    rows: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        sounds = list(pool.map(_job, jobs))
    for song in songs:
        sound = np.concatenate([made for job, made in zip(jobs, sounds, strict=True) if job[0] == song])
        split = "test" if song.stem in TEST else "valid" if song.stem in VALID else "train"
        with wave.open(str(out / f"{song.stem}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE_HZ)
            file.writeframes(sound.tobytes())
        rows.append({"path": f"{song.stem}.wav", "split": split})
        level_S = np.abs(sound / 32768)
        facts = f"peak {level_S.max():.3f}, rms {np.sqrt(np.mean(level_S**2)):.4f}, {(level_S > 0.9999).sum()} clipped"
        print(f"{song.stem}: {len(sound) / RATE_HZ:.1f} s, {split}, {facts}", flush=True)
    partial = out / "manifest.csv.partial"
    with open(partial, "w", newline="") as file:
        table = csv.DictWriter(file, ["path", "split"])
        table.writeheader()
        table.writerows(rows)
    return partial.replace(out / "manifest.csv")  # last: who waits for it finds everything


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="MIDI files and the sound font, as data.py makes it")
    parser.add_argument("out", type=Path, help="folder for the sound")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--limit-s", type=float, default=None, help="of every file only so many seconds")
    parser.add_argument("--wheel", type=Path, default=None, help="tinysoundfont's wheel unpacked, where not installed")
    options = parser.parse_args(words)
    if options.wheel:
        sys.path.insert(0, str(options.wheel))
    begin = time.perf_counter()
    manifest = render(options.folder, options.out, workers=options.workers, limit_s=options.limit_s)
    print(f"{manifest} in {time.perf_counter() - begin:.1f} s")


if __name__ == "__main__":
    main()
