"""`seqmodels prepare` from a local server: what is printed, where files go, what is refused. No network."""

from __future__ import annotations

import functools
import gzip
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from domains.dna import public
from domains.dna.public import PublicData
from seqmodels.data.download import RemoteFile

pytest.importorskip("pooch")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "g.fa.gz").write_bytes(gzip.compress(b">a\nACGT\n"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_data_set_of_the_list(run, url, monkeypatch, tmp_path):
    data = PublicData("a genome", "data/mine", (RemoteFile(f"{url}/g.fa.gz", "g.fa.gz"),), "domain=dna_windows")
    monkeypatch.setattr(public, "catalogue", lambda: {"mine": data})
    monkeypatch.setattr(public.catalogue, "__module__", public.__name__)
    monkeypatch.chdir(tmp_path)
    code, out, err = run("prepare", "dataset=mine")
    assert (code, Path("data/mine/g.fa").read_bytes()) == (0, b">a\nACGT\n"), err
    assert "its publisher gives no checksum" in err
    assert "next        seqmodels train domain=dna_windows" in out
    code, out, err = run("prepare", "dataset=mine")
    assert (code, err) == (0, "")
    assert "there already" in out
    code, out, err = run("prepare", "dataset=mines")
    assert code == 1
    assert "there is none of this name; did you mean mine?" in err


def test_one_file_of_ones_own(run, url, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("prepare", f"url={url}/g.fa.gz", "folder=here", "unpack=false", f"checksum=md5:{'0' * 32}")
    assert code == 1
    assert "is not what was expected, md5:000" in err
    code, out, err = run("prepare", f"url={url}/g.fa.gz", "folder=here", "unpack=false")
    assert code == 0
    assert "files       here/g.fa.gz" in out
    code, out, err = run("prepare", f"url={url}/g.fa.gz", "dataset=hg38")
    assert "give one of the two" in err


def test_the_list(run):
    code, out, _ = run("prepare")
    assert code == 0
    assert any(line.startswith("hg38 ") and "2 files" in line for line in out.splitlines())
    assert "nt_H3K4me3" in out
