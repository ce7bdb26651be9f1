"""What the piano of this study is made of, into one small folder: ten MIDI files and a sound font.

    pip download --no-deps --no-binary :all: miditok==3.1.0 pretty_midi==0.2.11.post0 -d DOWNLOADS
    python experiments/audio/music/data.py DOWNLOADS build/music

The MIDI files are human performances from MAESTRO (CC BY-NC-SA 4.0: for experiments, not for this repository), as the
sdist of miditok carries them; the sound font is TimGM6mb (GPL-2), as the sdist of pretty_midi carries it. `render.py`
makes sound of them.
"""

from __future__ import annotations

import argparse
import re
import tarfile
from pathlib import Path

WANTED = {
    "miditok-*.tar.gz": re.compile(r"/tests/MIDIs_one_track/(Maestro_\d+\.mid)$"),
    "pretty_midi-*.tar.gz": re.compile(r"/pretty_midi/(TimGM6mb\.sf2)$"),
}


def extract(downloads: Path, out: Path) -> list[Path]:
    """The files wanted, by name, into `out`.

    Raises:
        FileNotFoundError: an sdist is not there, or holds none of them.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for pattern, wanted in WANTED.items():
        archives = sorted(downloads.glob(pattern))
        if not archives:
            raise FileNotFoundError(f"{downloads}/{pattern}: download it first, see the top of this file")
        before = len(written)
        with tarfile.open(archives[-1]) as archive:
            for member in archive.getmembers():
                found = wanted.search(member.name)
                content = archive.extractfile(member) if found else None
                if found and content:
                    target = out / found[1]
                    target.write_bytes(content.read())
                    written.append(target)
        if len(written) == before:
            raise FileNotFoundError(f"{archives[-1]} holds nothing like {wanted.pattern}")
    return written


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("downloads", type=Path, help="folder with the two sdists")
    parser.add_argument("out", type=Path, help="folder to fill, for example build/music")
    options = parser.parse_args(words)
    written = extract(options.downloads, options.out)
    print(f"{len(written)} files, {sum(path.stat().st_size for path in written) / 1e6:.1f} MB in {options.out}")


if __name__ == "__main__":
    main()
