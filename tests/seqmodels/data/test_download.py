"""Downloads from a local server that breaks off, changes its files and lies: what is kept is right, or nothing is."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pooch")

from seqmodels.data import download
from seqmodels.data.download import RECORD, RemoteFile, fetch

BYTES = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()


class Server(ThreadingHTTPServer):
    """Serves `files`; `break_after` bytes of an answer it hangs up, so many times as `breaks` says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.break_after, self.breaks = 100_000, 0
        self.ranges = self.tags = True
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        path = self.path.partition("?")[0]
        server.seen.append((path, asked))
        if path not in server.files:
            self.send_error(404)
            return
        data = server.files[path]
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        begin = 0
        if asked and server.ranges and self.headers.get("If-Range", tag) == tag:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
        if begin and begin >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(data) - begin))
        if server.tags:
            self.send_header("ETag", tag)
        self.end_headers()
        body = data[begin:]
        if server.breaks and len(body) > server.break_after:
            server.breaks -= 1
            body = body[: server.break_after]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(download.Resuming, "pause_seconds", 0.0)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_a_file_arrives_once(server, tmp_path: Path):
    server.files["/x.bin"] = BYTES
    file = RemoteFile(f"{server.url}/x.bin", "sub/x.bin", sha256(BYTES))
    moved = []
    assert fetch([file], tmp_path, progress=lambda more, total: moved.append((more, total))) == [tmp_path / "sub/x.bin"]
    assert (tmp_path / "sub/x.bin").read_bytes() == BYTES
    assert sum(more for more, _ in moved) == len(BYTES)
    assert {total for _, total in moved} == {len(BYTES)}
    fetch([file], tmp_path)
    assert server.seen == [("/x.bin", None)], "what is there is not asked for again"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [RECORD, "sub", "x.bin"]


def test_it_goes_on_where_it_broke_off(server, tmp_path: Path):
    server.files["/x.bin"], server.breaks = BYTES, 2
    moved = []
    file = RemoteFile(f"{server.url}/x.bin", "x.bin", sha256(BYTES))
    fetch([file], tmp_path, progress=lambda more, total: moved.append((more, total)))
    assert (tmp_path / "x.bin").read_bytes() == BYTES
    assert sum(more for more, _ in moved) == len(BYTES), "no byte counts twice"
    assert {total for _, total in moved} == {len(BYTES)}
    assert [asked for _, asked in server.seen] == [None, "bytes=98304-", "bytes=196608-"], "in whole pieces of 16 KiB"


def test_the_next_command_goes_on_where_the_last_one_gave_up(server, tmp_path: Path):
    server.files["/x.bin"], server.breaks, server.break_after = BYTES, 1000, 20_000
    file = RemoteFile(f"{server.url}/x.bin", "x.bin", sha256(BYTES))
    with pytest.raises(OSError, match=r"x.bin cannot be downloaded .* Run the same command again to go on, or put"):
        fetch([file], tmp_path)
    assert not (tmp_path / "x.bin").exists()
    arrived = (tmp_path / "x.bin.part").stat().st_size
    assert arrived == 16_384 * download.ATTEMPTS
    server.breaks = 0
    fetch([file], tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BYTES
    assert server.seen[-1][1] == f"bytes={arrived}-"
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize("checked", [True, False])
def test_a_file_that_changed_meanwhile_is_not_patched_together(server, tmp_path: Path, checked: bool):
    """The tag (or, without one, the lack of a proof) makes it start anew."""
    server.files["/x.bin"], server.breaks, server.break_after = BYTES, 5, 20_000
    with pytest.raises(OSError, match="cannot be downloaded"):
        fetch([RemoteFile(f"{server.url}/x.bin", "x.bin")], tmp_path)
    other = BYTES[::-1]
    server.files["/x.bin"], server.breaks, server.tags = other, 0, checked
    file = RemoteFile(f"{server.url}/x.bin", "x.bin", sha256(other) if checked else None)
    fetch([file], tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == other


def test_a_server_without_ranges_starts_anew(server, tmp_path: Path):
    server.files["/x.bin"], server.breaks, server.ranges = BYTES, 1, False
    fetch([RemoteFile(f"{server.url}/x.bin", "x.bin", sha256(BYTES))], tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BYTES


def test_a_wrong_checksum_keeps_nothing(server, tmp_path: Path):
    server.files["/x.bin"] = BYTES
    with pytest.raises(ValueError, match=r"x.bin: what arrived is not what was expected, sha256:.* Nothing was kept"):
        fetch([RemoteFile(f"{server.url}/x.bin", "x.bin", sha256(b"other"))], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_changed_file_on_the_disk_is_fetched_again_and_checked(server, tmp_path: Path):
    server.files["/x.bin"] = BYTES
    file = RemoteFile(f"{server.url}/x.bin", "x.bin")
    fetch([file], tmp_path)
    (tmp_path / "x.bin").write_bytes(b"damaged")
    fetch([file], tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == BYTES
    (tmp_path / "x.bin").unlink()
    server.files["/x.bin"] = BYTES + b"?"
    with pytest.raises(ValueError, match="is not what was expected"):
        fetch([file], tmp_path)  # without a checksum of the publisher, the first download counts


def test_a_file_put_there_by_hand_is_taken_and_checked(server, tmp_path: Path, caplog):
    file = RemoteFile(f"{server.url}/x.fa.gz", "x.fa.gz", sha256(gzip.compress(b">a\nAC\n", mtime=0)))
    (tmp_path / "x.fa.gz").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"x.fa.gz is not the file that is meant: its sha256 is .*; remove it"):
        fetch([file], tmp_path)
    (tmp_path / "x.fa.gz").write_bytes(gzip.compress(b">a\nAC\n", mtime=0))
    assert fetch([file], tmp_path) == [tmp_path / "x.fa"]
    (tmp_path / "y.fa").write_text("mine")
    assert fetch([RemoteFile(f"{server.url}/y.fa.gz", "y.fa.gz")], tmp_path) == [tmp_path / "y.fa"]
    assert (tmp_path / "y.fa").read_text() == "mine"
    assert "y.fa is there, but not from this command" in caplog.text
    assert not server.seen


def test_the_publishers_list_of_checksums(server, tmp_path: Path, caplog):
    digest = hashlib.md5(BYTES).hexdigest()
    server.files |= {"/d/x.bin": BYTES, "/d/md5sum.txt": f"0  ./other\n{digest}  ./x.bin\n".encode()}
    make = lambda name: RemoteFile(f"{server.url}/d/x.bin", name, checksums_url=f"{server.url}/d/md5sum.txt")  # noqa: E731
    fetch([make("a.bin")], tmp_path)
    assert "no checksum" not in caplog.text
    server.files["/d/md5sum.txt"] = f"{'0' * 32}  x.bin\n".encode()
    with pytest.raises(ValueError, match="not what was expected, md5:0000"):
        fetch([make("b.bin")], tmp_path)
    del server.files["/d/md5sum.txt"]
    fetch([make("c.bin")], tmp_path)
    assert "md5sum.txt cannot be read" in caplog.text
    assert "its publisher gives no checksum; what arrives now is recorded in" in caplog.text
    record = json.loads((tmp_path / RECORD).read_text())
    assert {name: entry["sha256"] for name, entry in record.items()} == dict.fromkeys(
        ("a.bin", "c.bin"), hashlib.sha256(BYTES).hexdigest())  # fmt: skip


def test_packed_files_are_unpacked_and_removed(server, tmp_path: Path):
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("set_v0/train/a/0.txt", "ACGT")
            archive.writestr("set_v0/test/a/0.txt", "GGGG")
        server.files["/set_v0.zip"] = buffer.getvalue()
    with io.BytesIO() as buffer:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("train/a/0.txt", "TTTT")
            archive.writestr("../outside.txt", "no")
        server.files["/flat.zip"] = buffer.getvalue()
    server.files["/g.fa.gz"] = gzip.compress(b">a\nACGT\n")
    names = {"g.fa.gz": "g.fa.gz", "set_v0.zip": "set.zip", "flat.zip": "flat.zip"}
    files = [RemoteFile(f"{server.url}/{name}?download=1", path) for name, path in names.items()]
    folder = tmp_path / "data"
    assert fetch(files, folder) == [folder / "g.fa", folder / "set", folder / "flat"]
    assert (folder / "g.fa").read_bytes() == b">a\nACGT\n"
    assert (folder / "set/train/a/0.txt").read_text() == "ACGT"
    assert (folder / "flat/train/a/0.txt").read_text() == "TTTT"
    assert not (tmp_path / "outside.txt").exists()
    assert not (folder / "../outside.txt").exists()
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, "flat", "g.fa", "set"]
    asked = len(server.seen)
    fetch(files, folder)
    assert len(server.seen) == asked
    kept = fetch([RemoteFile(f"{server.url}/g.fa.gz", "k.fa.gz")], folder, unpack=False)
    assert gzip.decompress(kept[0].read_bytes()) == b">a\nACGT\n"


def test_a_damaged_archive_is_named(server, tmp_path: Path):
    server.files |= {"/x.gz": gzip.compress(BYTES)[:-100], "/x.zip": b"no zip"}
    for name in ("x.gz", "x.zip"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be unpacked, it is damaged"):
            fetch([RemoteFile(f"{server.url}/{name}", name)], tmp_path)


def test_what_the_server_says_and_bad_arguments(server, tmp_path: Path):
    with pytest.raises(OSError, match=r"/gone: the server answers 404 Not Found"):
        fetch([RemoteFile(f"{server.url}/gone", "gone")], tmp_path)
    with pytest.raises(ValueError, match=r"url='ftp://x/y' must begin with http"):
        RemoteFile("ftp://x/y", "y")
    with pytest.raises(ValueError, match=r"checksum='md5:12' must be sha256"):
        RemoteFile("http://x/y", "y", "md5:12")
    (tmp_path / RECORD).write_text("{")
    with pytest.raises(ValueError, match=rf"{RECORD} cannot be read .* remove it"):
        fetch([], tmp_path)
