"""The folder of a job that may be killed: its lock. What it carries is tested with the jobs themselves."""

from __future__ import annotations

import errno

import pytest

from domains.dna import resume

fcntl = pytest.importorskip("fcntl", reason="locks are POSIX's")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EIO])
def test_a_file_system_without_locks_is_put_up_with_and_a_failing_one_is_not(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, "from the file system")

    monkeypatch.setattr(fcntl, "flock", flock)
    folder = resume.ResumeFolder(tmp_path / "job", {})
    if number == errno.EIO:
        with pytest.raises(OSError, match="from the file system"):
            folder.__enter__()
        return
    with folder:
        assert (tmp_path / "job").is_dir()
