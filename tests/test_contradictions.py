"""What is given on the command line and can't be meant is refused, exit 2, with one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.filestore import FileStore

COMMAND = str(Path(sys.executable).with_name("drystone"))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["runs", "--json", "--format", "csv"], "--json and --format csv contradict each other"),
        (["runs", "--format", "table", "--json"], "--json and --format table contradict each other"),
        (["runs", "--tag", ""], "--tag is empty"),
        (["runs", "--tag", "a=b", "--tag", ""], "--tag is empty"),
        (["ls", "--tag", ""], "--tag is empty"),
        (["ingest", ".", "--exclude", ""], "--exclude is empty"),
        (["ingest", ".", "--checksums", ""], "--checksums is empty"),
        (["ingest", "--files-from", os.devnull], "/dev/null names nothing to archive"),
    ],
)
def test_refused(make_store: Callable[..., FileStore], tmp_path: Path, words: list[str], reason: str) -> None:
    make_store()
    done = subprocess.run([COMMAND, "-s", tmp_path / "store", *words], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1 and reason in done.stderr


def test_the_same_form_twice_is_no_contradiction(make_store: Callable[..., FileStore], tmp_path: Path) -> None:
    make_store()
    for words in (["--json", "--format", "json"], ["--json"], ["--format", "csv", "--format", "json"]):
        done = subprocess.run([COMMAND, "-s", tmp_path / "store", "runs", *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
