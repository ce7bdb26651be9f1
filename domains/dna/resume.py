"""What a long job leaves behind when it is killed, so that the next one goes on where it stopped.

A folder beside the output: `position.json` says how far the job is and which job it is; tensors that it carries lie
beside it. Both are put in place by one rename, so a kill at any moment leaves the position of the last whole step. A
job is the same job when its settings, its model's weights and its input files are: `identity_of_model` and
`identity_of_files` tell them apart also where the path stayed. One process at a time may work in a folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from domains.dna.fasta_scan import fingerprint, written_whole

try:
    import fcntl
except ImportError:  # Windows: two processes on one output are not noticed
    fcntl = None

_NO_LOCKS_HERE = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # some network file systems


class ResumeFolder:
    """The folder of one job; a context, inside which no other process may work in it.

    Args:
        folder: made on entering; on leaving it goes where no step was saved, and with `done`.
        identity: settings and inputs that must be the same for a job to go on, as plain data.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]):
        self.folder, self.identity = folder, json.loads(json.dumps(identity))
        self._lock: int | None = None
        self._nothing_done = True  # neither by this process nor by one before it

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT)
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise ValueError(
                f"another process is writing this output (it holds {self.folder}); wait for it, or name another output"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                self._release()
                raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._nothing_done:
            self.done()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def load(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """(position, tensors) of the job that was stopped; None if there was none.

        Raises:
            ValueError: it was a job with other settings or inputs, which are named; or what it left is damaged.
        """
        try:
            text = (self.folder / "position.json").read_text()
            self._nothing_done = False  # what is refused below stays
            noted = json.loads(text)
            identity, position, tensors = noted["identity"], noted["position"], self._tensors(noted["tensors"])
        except FileNotFoundError:
            if (self.folder / "position.json").exists():
                raise self._damaged("a file is missing") from None
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(str(error)) from None
        if identity != self.identity:
            names = self.identity.keys() | identity.keys()
            differ = sorted(name for name in names if identity.get(name) != self.identity.get(name))
            raise ValueError(
                f"{self.folder} holds a run with other settings or inputs (changed: {', '.join(differ)}); delete it to "
                "start again, or name another output"
            )
        self._nothing_done = not position["step"]
        return position, tensors

    def _tensors(self, name: str) -> dict[str, Tensor]:
        if not name:
            return {}
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(self.folder / name)
        except SafetensorError as error:
            raise ValueError(f"{name}: {error}") from None

    def _damaged(self, why: str) -> ValueError:
        return ValueError(f"{self.folder} holds a stopped run that is damaged ({why}); delete it to start again")

    def save(self, position: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Notes that everything up to `position` is done; it says "step", a number that grows, among other things."""
        name = ""
        if tensors:
            from safetensors.torch import save_file

            name = f"carried-{position['step']}.safetensors"
            with written_whole(self.folder / name) as partial:
                save_file(dict(tensors), partial)
        noted = {"identity": self.identity, "position": dict(position), "tensors": name}
        with written_whole(self.folder / "position.json") as partial:
            partial.write_text(json.dumps(noted))
        self._nothing_done = not position["step"]
        for old in self.folder.glob("carried-*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)

    def done(self) -> None:
        """The output is complete: the folder goes."""
        shutil.rmtree(self.folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------- identity


def identity_of_files(paths: Iterable[str | os.PathLike]) -> list[list[Any]]:
    """Path, size and time stamp of each file: tells an edited or replaced one."""
    return [[os.path.abspath(path), *fingerprint(Path(path))] for path in paths]


def identity_of_model(loaded: Any) -> list[str]:
    """The folder, and a digest of tokenizer and weights: a model that was trained on at the same path is another."""
    digest = hashlib.sha256(repr(loaded.tokenizer.spec()).encode())
    for name, tensor in loaded.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return [str(loaded.folder), digest.hexdigest()[:16]]


def identity_of_rows(rows: Iterable[object]) -> str:
    """A digest of plain rows, in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row!r}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------------- targets


def prepare_target(path: str | os.PathLike, *, name: str = "output") -> None:
    """Makes sure, before any work, that a file can be written at `path` at the end; makes its folder.

    Args:
        path: where the file will be put.
        name: of the argument, for the message.

    Raises:
        ValueError: `path` is a folder, lies under a file, or its folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{name}={str(path)!r} is a folder; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.{os.getpid()}.part")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{name}={str(path)!r} cannot be written: {error.strerror} ({path.parent})") from None


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes what killed writers of `name` (a pattern) left half done in a folder; call it with the folder locked."""
    for left in folder.glob(f".{name}.*.part"):
        left.unlink(missing_ok=True)
