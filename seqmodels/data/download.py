"""Files from the network into a folder: checked by checksum, resumed after a break, unpacked. Through pooch.

    fetch([RemoteFile("https://…/hg38.fa.gz", "hg38.fa.gz", "md5:…")], "data/hg38")

A download that breaks off leaves `<name>.part` and goes on from there, in the same call a few times and in the next
one, unless the file at the source has changed meanwhile. `downloads.json` in the folder says what came from where with
which SHA-256: where the publisher gives no checksum, the first download is what later ones are held against.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from seqmodels.data.whole_file import written_whole

log = logging.getLogger(__name__)

RECORD = "downloads.json"
ATTEMPTS = 5
_CHUNK = 1 << 20
_ARRIVING = 1 << 14  # bytes written at a time; fewer are lost when a connection breaks
Progress = Callable[[int, "int | None"], None]  # bytes more (fewer where it starts anew), bytes in all (None: unknown)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at its source.

    Attributes:
        url: http or https.
        path: where it goes, relative to the folder, as it is downloaded ("hg38.fa.gz").
        checksum: "sha256:<hex>" or "md5:<hex>"; None where none is known.
        checksums_url: a list of the publisher with a line `<md5> <path>` for the file, used where `checksum` is None.
    """

    url: str
    path: str
    checksum: str | None = None
    checksums_url: str | None = None

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"url={self.url!r} must begin with http:// or https://")
        if self.checksum is not None:
            kind, _, digits = self.checksum.partition(":")
            length = {"sha256": 64, "md5": 32}.get(kind)
            if length is None or len(digits) != length or not set(digits) <= set("0123456789abcdef"):
                raise ValueError(f"checksum={self.checksum!r} must be sha256:<64 hex digits> or md5:<32>, lower case")


def _silent(more: int, total: int | None) -> None:
    """No progress."""


def fetch(
    files: Sequence[RemoteFile], folder: str | Path, *, unpack: bool = True, progress: Progress = _silent
) -> list[Path]:
    """Downloads what is not there yet and returns the paths, in the order of `files`.

    Args:
        files: what to get.
        folder: made where it is missing.
        unpack: `.gz` and `.zip` are unpacked beside and removed; a zip becomes a folder of its name.
        progress: called as bytes arrive.

    Raises:
        ValueError: what arrived has another checksum, or cannot be unpacked. Nothing of it is kept.
        OSError: the source cannot be reached; the message says where the file can be put by hand.
        ImportError: pooch is not installed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record = _Record(folder / RECORD)
    return [_fetch_one(file, folder, record, unpack, progress) for file in files]


def _fetch_one(file: RemoteFile, folder: Path, record: _Record, unpack: bool, progress: Progress) -> Path:
    target = folder / file.path
    result = unpacked_path(target) if unpack else target
    if record.has(file, result):
        log.info("there already  %s", result)
        return result
    put_there = file.path not in record.entries  # what is there was put there by the user
    if put_there and result != target and result.exists():
        log.warning("%s is there, but not from this command: it is taken as it is, unchecked", result)
        return result
    expected = file.checksum or _published_checksum(file) or record.checksum_of(file)
    if expected is None:
        log.warning("%s: its publisher gives no checksum; what arrives now is recorded in %s", file.url, record.path)
    if put_there and target.exists():
        _check(target, expected)
        log.info("there already  %s", target)
    else:
        log.info("downloading    %s", file.url)
        _download(file.url, target, expected, progress)
    sha256 = _digest(target, "sha256")
    if result != target:
        _unpack(target, result)
    record.add(file, sha256, result)
    log.info("written        %s (sha256 %s)", result, sha256)
    return result


def unpacked_path(path: Path) -> Path:
    """What a file is called once it is unpacked; itself where it is not packed."""
    return path.with_suffix("") if path.suffix in (".gz", ".zip") else path


# ------------------------------------------------------------------------------------------------------ downloading


def _download(url: str, target: Path, expected: str | None, progress: Progress) -> None:
    import requests

    try:
        import pooch
    except ImportError as error:
        raise ImportError("downloads need pooch: pip install pooch", name="pooch") from error
    pooch.get_logger().setLevel(logging.WARNING)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # changed since it was recorded: pooch would trust it where no hash is known
    resuming = Resuming(target.with_name(f"{target.name}.part"), trusted=expected is not None, progress=progress)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            pooch.retrieve(
                url, expected, fname=target.name, path=target.parent,
                downloader=resuming,  # pyright: ignore[reportArgumentType] - a plain callable does; pooch's docs say so
            )  # fmt: skip
            return
        except requests.HTTPError as error:
            answer = error.response
            said = f"{answer.status_code} {answer.reason}" if answer is not None else "an error"
            raise OSError(f"{url}: the server answers {said}") from None
        except requests.RequestException as error:
            if attempt == ATTEMPTS:
                raise OSError(
                    f"{url} cannot be downloaded ({type(error).__name__} after {ATTEMPTS} tries). Run the same command"
                    f" again to go on, or put the file at {target} yourself"
                ) from None
            log.info("broke off at byte %d, trying again", resuming.arrived)
            time.sleep(resuming.pause_seconds * attempt)
        except ValueError as error:  # pooch found another checksum, and has deleted the file
            raise ValueError(
                f"{url}: what arrived is not what was expected, {expected}; it was changed at its source or damaged on"
                f" the way. Nothing was kept; try again, or check the source ({error})"
            ) from None


class Resuming:
    """A downloader for pooch that goes on where an earlier try broke off.

    Args:
        partial: holds what has arrived.
        trusted: a checksum will be checked, so that going on without a proof that the source is unchanged is safe.
        progress: called as bytes arrive.
    """

    pause_seconds = 1.0

    def __init__(self, partial: Path, *, trusted: bool, progress: Progress) -> None:
        self.partial, self.trusted, self.progress = partial, trusted, progress
        self.told = 0  # bytes that `progress` knows of
        self.note = partial.with_name(f"{partial.name}.json")  # url and version of what has arrived

    @property
    def arrived(self) -> int:
        """Bytes that have arrived so far."""
        return self.partial.stat().st_size if self.partial.exists() else 0

    def __call__(self, url: str, output_file: Any, pooch: Any) -> None:
        """Downloads `url` to `output_file`; called by pooch."""
        import requests

        headers = {"Accept-Encoding": "identity"} | self._where_to_go_on(url)
        with requests.get(url, headers=headers, stream=True, timeout=60) as response:
            if response.status_code == 416:  # nothing behind what has arrived: it is whole, or of another version
                self.partial.unlink()
                raise requests.ConnectionError("the part is as long as the file")
            response.raise_for_status()
            going_on = response.status_code == 206
            self._write_note(url, response.headers)
            begun = self.arrived if going_on else 0
            size = response.headers.get("Content-Length")
            total = None if size is None else begun + int(size)
            self._tell(begun, total)
            with open(self.partial, "ab" if going_on else "wb") as file:
                for chunk in response.iter_content(_ARRIVING):
                    file.write(chunk)
                    self._tell(self.told + len(chunk), total)
        if total is not None and self.arrived != total:
            raise requests.ConnectionError(f"{self.arrived} of {total} bytes arrived")
        shutil.move(self.partial, str(output_file))
        self.note.unlink(missing_ok=True)

    def _tell(self, arrived: int, total: int | None) -> None:
        self.progress(arrived - self.told, total)
        self.told = arrived

    def _where_to_go_on(self, url: str) -> dict[str, str]:
        if not self.arrived:
            return {}
        try:
            note = json.loads(self.note.read_text())
        except (OSError, ValueError):
            note = {}
        if note.get("url") != url or not (note.get("version") or self.trusted):
            self.partial.unlink()
            return {}
        headers = {"Range": f"bytes={self.arrived}-"}
        # If-Range: the server sends the rest only if the file is still the same, else all of it.
        return headers | ({"If-Range": note["version"]} if note.get("version") else {})

    def _write_note(self, url: str, headers: Any) -> None:
        tag = headers.get("ETag", "")
        version = headers.get("Last-Modified", "") if not tag or tag.startswith("W/") else tag
        self.note.write_text(json.dumps({"url": url, "version": version}))


def _published_checksum(file: RemoteFile) -> str | None:
    """The MD5 that the publisher's list gives for a file; None where the list or the line is not there."""
    if file.checksums_url is None:
        return None
    import requests

    try:
        answer = requests.get(file.checksums_url, timeout=60)
        answer.raise_for_status()
    except requests.RequestException as error:
        log.warning("%s cannot be read (%s)", file.checksums_url, type(error).__name__)
        return None
    wanted = urlsplit(file.url).path
    for line in answer.text.splitlines():
        digest, _, name = line.strip().partition(" ")
        if name and wanted.endswith("/" + name.strip().lstrip("*").removeprefix("./")):
            return f"md5:{digest}"
    return None


# -------------------------------------------------------------------------------------------- unpacking, the record


def _unpack(packed: Path, result: Path) -> None:
    partial = result.with_name(f".{result.name}.{os.getpid()}.part")
    try:
        if packed.suffix == ".zip":
            with zipfile.ZipFile(packed) as archive:  # extractall keeps names such as ../x inside
                archive.extractall(partial)
            inner = [entry for entry in partial.iterdir() if entry.name != "__MACOSX"]
            whole = inner[0] if len(inner) == 1 and inner[0].is_dir() else partial
            if result.exists():
                shutil.rmtree(result)
            os.replace(whole, result)
        else:
            with gzip.open(packed) as source, open(partial, "wb") as out:
                shutil.copyfileobj(source, out, _CHUNK)
            os.replace(partial, result)
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise ValueError(f"{packed}: cannot be unpacked, it is damaged or cut off ({error})") from None
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
    packed.unlink()


def _digest(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _check(path: Path, expected: str | None) -> None:
    """A file that the user has put there must be the one that would be downloaded, where that can be told."""
    if expected is not None:
        kind, _, digits = expected.partition(":")
        if (found := _digest(path, kind)) != digits:
            raise ValueError(f"{path} is not the file that is meant: its {kind} is {found}, not {digits}; remove it")


class _Record:
    """downloads.json: from a file's path to where it came from, its SHA-256 as downloaded, and what it became."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text())
        except FileNotFoundError:
            self.entries = {}
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); remove it to download anew") from None

    def has(self, file: RemoteFile, result: Path) -> bool:
        """Whether a file is there as it was left: a folder exists, a file has the size and time of the record."""
        entry = self.entries.get(file.path)
        if entry is None or entry["url"] != file.url or not result.exists():
            return False
        if file.checksum is not None and file.checksum not in (f"sha256:{entry['sha256']}", entry["checksum"]):
            return False
        return entry["result"] == _state(result)

    def checksum_of(self, file: RemoteFile) -> str | None:
        """What an earlier download of the same address had."""
        entry = self.entries.get(file.path)
        return f"sha256:{entry['sha256']}" if entry and entry["url"] == file.url else None

    def add(self, file: RemoteFile, sha256: str, result: Path) -> None:
        """Notes a download, at once: a later one may fail."""
        entry = {"url": file.url, "sha256": sha256, "checksum": file.checksum, "result": _state(result)}
        self.entries[file.path] = entry
        with written_whole(self.path) as partial:
            partial.write_text(json.dumps(self.entries, indent=1) + "\n")


def _state(path: Path) -> list[int] | str:
    if path.is_dir():
        return "folder"
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
