"""Room for queries that spill: gone with its store, or else with the next one that is opened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.errors import DrystoneError
from manifests.scratch import Scratch
from pipeline.filestore import FileStore

MakeStore = Callable[..., FileStore]
#: Opens a store, lets tables spill, says so, and waits.
SPILLER = """
import sys
from pathlib import Path
from pipeline.filestore import FileStore
with FileStore.open(sys.argv[1], cache=Path(sys.argv[2])) as store:
    store.catalog.limit_memory(30 << 20)
    store.catalog.execute("CREATE TABLE numbers AS SELECT i, hash(i) AS h FROM range(1_500_000) r(i)")
    store.catalog.execute("CREATE TABLE others AS SELECT i, hash(i) AS h FROM range(1_500_000) r(i)")
    print("spilled", flush=True)
    sys.stdin.read()
"""


def scratches(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/tmp-*"))


def test_what_a_killed_process_left_is_swept_and_what_is_in_use_stays(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store()
    command = [sys.executable, "-c", SPILLER, tmp_path / "store", tmp_path / "cache"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"spilled\n"
        (spilled,) = scratches(tmp_path / "cache")
        assert any(path.stat().st_size for path in spilled.rglob("*") if path.is_file()), "nothing was spilled"
        assert store.catalog
        own = set(scratches(tmp_path / "cache")) - {spilled}
        assert len(own) == 1 and spilled.exists(), "it is in use"
        process.send_signal(signal.SIGKILL)
    assert spilled.exists()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as other:
        assert other.catalog
        assert not spilled.exists() and own < set(scratches(tmp_path / "cache"))
    store.close()
    assert not scratches(tmp_path / "cache")


def test_who_sweeps_takes_nothing_from_who_begins(tmp_path: Path) -> None:
    failed: list[Path] = []

    def work() -> None:
        for _ in range(200):
            scratch = Scratch(tmp_path)
            folder = scratch.folder()
            try:
                folder.mkdir()
            except FileNotFoundError:
                failed.append(folder)
            scratch.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and not os.listdir(tmp_path)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    scratch = Scratch(tmp_path / "file" / "cache")
    assert scratch.folder() != scratch.folder()
    scratch.close()


def test_a_disk_that_is_too_small_for_a_query_is_named(make_store: MakeStore) -> None:
    store = make_store()
    store.catalog.limit_memory(30 << 20)
    store.catalog.execute("SET max_temp_directory_size = '1MiB'")
    with pytest.raises(DrystoneError, match=r"more room on disk than there is in .*/tmp-[0-9a-f]+: make room there"):
        for name in ("numbers", "others"):
            store.catalog.execute(f"CREATE TABLE {name} AS SELECT i, hash(i) AS h FROM range(3_000_000) r(i)")
