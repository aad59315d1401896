"""What all tests share: stores in temporary places, and a look for leaks after each test."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.config import ChunkerSpec, ECScheme
from pipeline.filestore import FileStore


def pytest_configure() -> None:
    """A suite that a script runs in the background ignores Ctrl-C, and whatever it starts would do so, too. Not when
    this module is imported: workers import it with the tests that start them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of commands go to a temporary place."""
    monkeypatch.setenv("DRYSTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DRYSTONE_STORE", raising=False)


@pytest.fixture(autouse=True)
def no_temporary_files(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No command leaves a temporary file behind, however it ends. Workers of a supervisor that was killed take a moment
    to clean up."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    limit = time.monotonic() + 10
    while (left := sorted(folder.iterdir())) and time.monotonic() < limit:
        time.sleep(0.02)
    assert not left, f"temporary files are left: {left}"
    shutil.rmtree(folder)


def workers() -> list[int]:
    """Workers that the fork server of this process started, and that live."""
    servers = children_of(os.getpid())
    return [pid for server in servers if name_of(server) == "drystone-fork" for pid in children_of(server)]


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    except OSError:  # it ended meanwhile
        return []


def name_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def memory_files() -> list[str]:
    """Arenas that this process holds."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if "drystone-arena" in target:
            found.append(target)
    with open("/proc/self/maps") as maps:
        found += [line.strip() for line in maps if "drystone-arena" in line]
    return found


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """No test leaves a worker or an arena behind."""
    yield
    assert not (left := workers()), f"workers are left: {left}"
    if memory_files():
        gc.collect()
    assert not memory_files(), "shared memory is left"


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[object]:
    """A function that makes stores below the test's directory; they are closed at its end."""
    made: list[FileStore] = []

    def make(
        name: str = "store",
        scheme: str = "4+2",
        chunker: str = "fastcdc:4KiB",
        pack_size: int = 256 << 10,
        **more: object,
    ) -> FileStore:
        store = FileStore.create(
            [tmp_path / name],
            scheme=ECScheme.parse(scheme),
            chunker=ChunkerSpec.parse(chunker),
            pack_size=pack_size,
            cache=tmp_path / "cache",
            **more,  # type: ignore[arg-type]
        )
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
