"""Where the bench works: a folder on tmpfs, one on a real disk, and room in both."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.datasets import DataSet
from tests.bench.measure import BenchError

#: Room that a round needs on tmpfs, in sizes of the data: a store with its parity, and a restored tree or as much
#: memory to be touched.
ROOM = 3.2


def file_system(path: Path) -> str:
    """The type of the file system that holds `path`, as the kernel calls it."""
    path, best, kind = path.resolve(), "", ""
    with open("/proc/self/mounts") as file:
        for line in file:
            _, place, found, *_ = line.split(" ")
            place = place.encode().decode("unicode_escape")  # spaces are written as \040
            if path.is_relative_to(place) and len(place) >= len(best):
                best, kind = place, found
    return kind


@contextmanager
def environment_for(scratch: Path, disk: Path | None) -> Iterator[tuple[Path, Path | None]]:
    """New folders below `scratch` and `disk`, removed in the end; temporary files of all tools go to the first. No
    option of the user's environment changes what is measured."""
    for name in [name for name in os.environ if name.startswith(("RESTIC_", "BORG_", "DRYSTONE_", "ZSTD_", "TAR_"))]:
        del os.environ[name]
    if disk is not None:
        disk.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="bench-", dir=scratch))
    slow = None if disk is None else Path(tempfile.mkdtemp(prefix="bench-", dir=disk))
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(own)
    try:
        yield own, slow
    finally:
        os.environ.pop("TMPDIR")
        if before is not None:
            os.environ["TMPDIR"] = before
        for path in (own, slow):
            if path is not None:
                shutil.rmtree(path, ignore_errors=True)


def require_room(scratch: Path, data: DataSet) -> None:
    """Raises BenchError where the largest things of a round would not fit."""
    need, free = int(data.bytes * ROOM), shutil.disk_usage(scratch).free
    if file_system(scratch) == "tmpfs":
        with open("/proc/meminfo") as file:
            available = next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))
        free = min(free, available)
    if need > free:
        raise BenchError(
            f"{data.name} needs about {need >> 20:,} MiB in {scratch}, which has {free >> 20:,}; "
            "leave it out by --data, or name another folder by --scratch"
        )
