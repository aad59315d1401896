"""What all tests share: stores in temporary places, and a look for leaks after each test."""

from __future__ import annotations

import gc
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.config import ChunkerSpec, ECScheme
from pipeline.filestore import FileStore


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of commands go to a temporary place."""
    monkeypatch.setenv("DRYSTONE_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("DRYSTONE_STORE", raising=False)


@pytest.fixture(autouse=True)
def no_temporary_files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No command leaves a temporary file behind, however it ends. Where a supervisor is `killed`, its workers clean up,
    who take a moment; the socket of its fork server stays."""
    folder = tmp_path_factory.mktemp("t")
    monkeypatch.setenv("TMPDIR", str(folder))
    yield
    limit = time.monotonic() + 10
    while (left := sorted(folder.iterdir())) and time.monotonic() < limit:
        if all(path.name.startswith("pymp-") for path in left) and request.node.get_closest_marker("killed"):
            break
        time.sleep(0.02)
    else:
        assert not left, f"temporary files are left: {left}"
    shutil.rmtree(folder)


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
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves a worker, an arena or a descriptor behind."""
    yield
    children = multiprocessing.active_children()
    assert not children, f"workers are left: {children}"
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
