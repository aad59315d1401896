"""The file system that other tests restore into: what is wrong with it fails them, and skips none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import oddfs
from tests.oddfs import odd_file_system, unmounted

needs_root = pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/fuse"), reason="mounting takes root")


def served_by(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let the server be another program."""
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda line, **how: start([sys.executable, "-c", program, *line[3:]], **how)
    )


@needs_root
@pytest.mark.parametrize("program", ["raise SystemExit(1)", "print('mount')", "import time; time.sleep(60)"])
def test_a_broken_server_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    served_by(monkeypatch, program)
    monkeypatch.setattr(oddfs, "WAIT", 2)
    with pytest.raises(AssertionError, match="broke"), odd_file_system(tmp_path):
        pass


@needs_root
def test_a_refused_mount_skips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served_by(monkeypatch, "print('refused: Operation not permitted')")
    with pytest.raises(pytest.skip.Exception, match="Operation not permitted"), odd_file_system(tmp_path):
        pass


@needs_root
def test_a_mount_in_use_is_taken_off_and_told(tmp_path: Path) -> None:
    held = []
    try:
        with pytest.raises(AssertionError, match="still open"), odd_file_system(tmp_path) as odd:
            held.append(os.open(odd, os.O_RDONLY))
        assert not os.path.ismount(odd) and not unmounted(odd)
    finally:
        for fd in held:
            os.close(fd)
