"""What the system denies a process ends the command with one line that says so, and is nobody else's fault."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import BackendError, BackendFull, DrystoneError
from manifests.limits import LimitReached, denied
from manifests.localdirectory import LocalDirectory
from manifests.storage import storage_error
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.sampling import one_in

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
    one_in(
        2,
        [
            ("ingest", resource.RLIMIT_NOFILE, 10),
            ("ingest", resource.RLIMIT_NOFILE, 24),
            ("ingest", resource.RLIMIT_AS, 250 << 20),
            ("restore", resource.RLIMIT_NOFILE, 20),
            ("restore", resource.RLIMIT_NOFILE, 24),
            ("ingest", resource.RLIMIT_NOFILE, 40),
            ("restore", resource.RLIMIT_AS, 150 << 20),
            ("verify", resource.RLIMIT_NOFILE, 32),
            ("ingest", resource.RLIMIT_FSIZE, 2 << 20),
            ("restore", resource.RLIMIT_FSIZE, 4 << 20),
            ("verify", resource.RLIMIT_FSIZE, 2 << 20),
        ],
        several=True,
    ),
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
    assert isinstance(raised, LimitReached) and not isinstance(raised, DrystoneError)
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


def test_a_file_that_is_too_long_for_its_file_system_is_no_limit_of_the_process() -> None:
    too_long = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    assert denied(too_long) is None
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, before[1]))
    try:
        assert "ulimit -f" in (denied(too_long) or "")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("workers", ["1000000", "99999999999"])
@pytest.mark.parametrize("command", one_in(2, ["ingest", "restore", "verify"]))
def test_workers_that_can_not_be_are_refused_before_anything_is_laid_out(
    place: Path, tmp_path: Path, command: str, workers: str
) -> None:
    arguments = {"ingest": [place / "source"], "restore": ["--to", tmp_path / "out"], "verify": ["--data"]}
    done = subprocess.run(
        [COMMAND, "-s", place / "store", command, *arguments[command], "--workers", workers],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{int(workers):,} workers: at least 1, and at most 1,024" in done.stderr


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, int], None]:
    """A function that makes opening files fail whose path holds a word, some times from the n-th on."""
    really = os.open

    def arm(word: str, after: int, times: int) -> None:
        seen = 0

        def opened(path: Any, *rest: Any, **named: Any) -> int:
            nonlocal seen
            if word in os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else False:
                seen += 1
                if after < seen <= after + times:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
            return really(path, *rest, **named)

        monkeypatch.setattr(os, "open", opened)

    return arm


@pytest.mark.parametrize("after", one_in(3, range(0, 24, 3)))
def test_a_limit_is_no_damage_and_nothing_of_it_is_noted(
    place: Path, tmp_path: Path, deny: Callable[[str, int, int], None], after: int
) -> None:
    with FileStore.open(place / "store", cache=tmp_path / "cache") as store:
        records = len(store.log.records)
        deny("packs/", after, 1)
        with pytest.raises(LimitReached, match="ulimit -n"):
            store.verify(data=True, inline=True)
        deny("packs/", 0, 0)
    with FileStore.open(place / "store", cache=tmp_path / "cache") as store:
        assert len(store.log.records) == records
        assert store.status().lost_packs == 0
        assert store.verify(data=True, inline=True).exit_code == 0


@pytest.mark.parametrize(("times", "copies"), [(1, 6), (1000, 5)])
def test_a_record_that_could_not_be_written_at_once_is_written_again(
    make_store: Callable[..., FileStore], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int, copies: int
) -> None:
    (tmp_path / "file").write_bytes(b"bytes")
    write, left = LocalDirectory._write_in, [times]

    def denied_write(self: LocalDirectory, folder: str, name: str, pieces: Any) -> None:
        if name.endswith(".ingest.json") and self.location.endswith("backend-0") and left[0]:
            left[0] -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        write(self, folder, name, pieces)

    monkeypatch.setattr(LocalDirectory, "_write_in", denied_write)
    with make_store() as store:
        result = store.ingest([str(tmp_path / "file")], options=IngestOptions(inline=True, workers=1))
        assert result.exit_code == (0 if copies == 6 else 3)
        assert [name for name in result.lost_backends if "ulimit -n" in name] == result.lost_backends
        assert len(store.runs()) == 1
    assert len(list(tmp_path.glob("store/backend-*/log/*.ingest.json"))) == copies


def test_a_store_that_can_not_be_made_is_undone_as_far_as_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remove = LocalDirectory.remove_folder

    def denied_write(self: LocalDirectory, key: str, pieces: Any) -> None:
        if key.startswith("log/"):
            raise self._error("writing", key, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        write(self, key, pieces)

    def denied_remove(self: LocalDirectory, prefix: str) -> None:
        if self.location.endswith("backend-5"):
            raise LimitReached("removing: too many")
        remove(self, prefix)

    write = LocalDirectory.write
    monkeypatch.setattr(LocalDirectory, "write", denied_write)
    monkeypatch.setattr(LocalDirectory, "remove_folder", denied_remove)
    with pytest.raises(BackendFull):
        FileStore.create([tmp_path / "store"], cache=tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "store").glob("*")) in ([], ["backend-5"])
