"""A current directory that is gone, and where caches go, as the environment says."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli.options import cache_directory
from pipeline.filestore import default_cache

COMMAND = str(Path(sys.executable).with_name("drystone"))


def run_without_directory(place: Path, *line: str) -> subprocess.CompletedProcess[str]:
    """Run a command whose current directory was removed."""
    gone = place / "gone"
    gone.mkdir()
    words = ["/bin/sh", "-c", 'rmdir "$PWD" && exec "$@"', "sh", COMMAND, *line]
    return subprocess.run(words, cwd=gone, capture_output=True, text=True, timeout=120)


def test_absolute_paths_need_no_current_directory(tmp_path: Path) -> None:
    store, tree, out = str(tmp_path / "store"), tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    lines = [
        ["init", store],
        ["-s", store, "ingest", str(tree)],
        ["-s", store, "runs"],
        ["-s", store, "ls", "latest"],
        ["-s", store, "restore", "--to", str(out)],
        ["-s", store, "restore", "latest:tree/file", "--range", "0-2", "--to", str(tmp_path / "part")],
        ["-s", store, "compare", "latest", str(tree)],
        ["-s", store, "verify", "--data"],
    ]
    for line in lines:
        done = run_without_directory(tmp_path, *line)
        assert done.returncode == 0, (line, done.stderr)
    assert (out / "tree" / "file").read_bytes() == b"content"
    assert (tmp_path / "part").read_bytes() == b"con"


def test_a_relative_path_names_the_current_directory_that_is_gone(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    subprocess.run([COMMAND, "init", store], capture_output=True, check=True)
    told = "relative: the current directory can't be found (No such file or directory); give an absolute path"
    for line in (["-s", "relative", "runs"], ["-s", store, "ingest", "relative"]):
        done = run_without_directory(tmp_path, *line)
        assert done.returncode == 2 and told in done.stderr, (line, done.stderr)


def test_a_relative_cache_home_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DRYSTONE_CACHE")
    for value, expected in (("caches", None), ("", None), ("/caches", Path("/caches/drystone"))):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_directory() == expected


def test_without_home_the_password_database_tells_where_caches_go(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "drystone"
    monkeypatch.setenv("HOME", "/somewhere")
    assert default_cache() == Path("/somewhere/.cache/drystone")
    for value in ("", "relative"):
        monkeypatch.setenv("HOME", value)
        assert default_cache() == own

    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert default_cache() is None
