"""What the system denies a process ends the command with one line that says so, and is nobody else's fault."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.errors import BackendError, LimitReached
from manifests.limits import denied
from manifests.storage import storage_error

COMMAND = str(Path(sys.executable).with_name("drystone"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("limits")
    (place / "source").mkdir()
    (place / "source/file").write_bytes(os.urandom(100_000))
    for line in (["init", place / "store"], ["-s", place / "store", "ingest", "-q", place / "source"]):
        subprocess.run([COMMAND, *line], check=True, capture_output=True)
    return place


@pytest.mark.parametrize(
    ("command", "limit", "size"),
    [
        ("ingest", resource.RLIMIT_NOFILE, 10),
        ("ingest", resource.RLIMIT_NOFILE, 24),
        ("ingest", resource.RLIMIT_AS, 250 << 20),
        ("restore", resource.RLIMIT_NOFILE, 24),
        ("restore", resource.RLIMIT_AS, 150 << 20),
        ("verify", resource.RLIMIT_NOFILE, 32),
    ],
)
def test_a_limit_is_named_in_one_line(place: Path, tmp_path: Path, command: str, limit: int, size: int) -> None:
    arguments = {"ingest": ["--force", place / "source"], "restore": ["--to", tmp_path], "verify": ["--data"]}
    done = subprocess.run(
        [COMMAND, "-s", place / "store", command, *arguments[command]],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(limit, (size, size)),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "raise `ulimit -" in done.stderr
    assert subprocess.run([COMMAND, "-s", place / "store", "verify"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_no_backend_is_given_up_for_what_this_process_may_not_do(number: int) -> None:
    raised = storage_error("writing", "/mnt/a/packs", OSError(number, os.strerror(number)))
    assert isinstance(raised, LimitReached) and not isinstance(raised, BackendError)
    assert isinstance(storage_error("writing", "/mnt/a/packs", OSError(errno.EIO, "bad")), BackendError)


def test_limits_are_found_behind_other_errors_and_in_words() -> None:
    try:
        try:
            raise MemoryError
        except MemoryError as error:
            raise ValueError("a consequence") from error
    except ValueError as error:
        assert "memory" in (denied(error) or "")
    assert "threads" in (denied(RuntimeError("can't start new thread")) or "")
    assert denied(ImportError("no such name")) is None
    assert denied(ValueError("Too many open files")) is None
