"""A disk that can't be read in places, or at all: it is read around once, then given up, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from manifests import backends
from manifests import format as fmt
from manifests.backends import LocalDirectory
from manifests.errors import BackendError
from pipeline.badmedia import BadMedia
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.packreader import ReadFigures
from pipeline.restore.run import RestoreRequest
from stages.assemble import ByteRange
from stages.shard import ShardRecord, data_offset
from tests.sampling import one_in

INLINE = IngestOptions(inline=True, workers=1)
SIZE = 36_000_000
Fails = Callable[[str, int, int], bool]


class Disk:
    """Which reads of packs fail, by location and key, offset and length; and how many did."""

    def __init__(self) -> None:
        self.fails: Fails = lambda where, offset, length: False
        self.number = errno.EIO
        self.failed = Counter[str]()
        self.read = 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    found = Disk()

    class Failing(LocalDirectory):
        def read_range(self, key: str, offset: int, length: int) -> bytes:
            if key.startswith("packs/") and self.exists(key):
                found.read += 1
                if found.fails(f"{self.location}/{key}", offset, length):
                    found.failed[Path(self.location).name] += 1
                    raise self._error("reading", key, OSError(found.number, os.strerror(found.number))) from OSError(
                        found.number, "scripted"
                    )
            return super().read_range(key, offset, length)

    monkeypatch.setitem(backends.BACKEND_TYPES, "local", Failing)
    yield found
    assert found.failed, "the fault was never hit"


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    found = random.Random(1).randbytes(SIZE)
    (tmp_path / "object").write_bytes(found)
    return found


@pytest.fixture
def store(tmp_path: Path, data: bytes) -> Iterator[Path]:
    with FileStore.create([tmp_path / "store"], pack_size=8 << 20, cache=tmp_path / "cache") as made:
        assert made.ingest([str(tmp_path / "object")], options=INLINE).exit_code == 0
    yield tmp_path / "store"


def past_64k(*names: str) -> Fails:
    return lambda where, offset, length: any(name in where for name in names) and offset + length > 64 << 10


def at_all(*names: str) -> Fails:
    return lambda where, offset, length: any(name in where for name in names)


@pytest.mark.parametrize("fails", [past_64k, at_all])
@pytest.mark.parametrize("lost", one_in(2, [2, 1]))
def test_a_failing_disk_costs_tens_of_reads(
    store: Path, tmp_path: Path, data: bytes, disk: Disk, fails: Callable[..., Fails], lost: int
) -> None:
    bad = [f"/backend-{number}/" for number in range(lost)]
    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        disk.fails = fails(*bad)
        result = opened.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True, workers=1))
        assert result.exit_code == 0
        assert (tmp_path / "out" / "object").read_bytes() == data
        assert disk.failed.keys() <= {name.strip("/") for name in bad}
        assert all(count <= 40 for count in disk.failed.values()), disk.failed
        assert len(result.troubles) == len(disk.failed)
        assert all("Input/output error" in each for each in result.troubles)
        disk.failed.clear()
        figures = ReadFigures()
        assert b"".join(opened.open_range("latest:object", None, figures)) == data
        assert all(count <= 40 for count in disk.failed.values()), disk.failed
        assert len(list(figures.media.lines())) == len(disk.failed)
        for start in (0, 7_000_001, SIZE - 300_000):
            disk.failed.clear()
            part = ByteRange.parse(f"{start}-{start + 200_000}")
            assert b"".join(opened.open_range("latest:object", part)) == data[start : start + 200_001]
            assert disk.failed.total() <= 40 * lost, disk.failed
        disk.failed.clear()
        checked = opened.verify(data=True, inline=True, workers=1)
        assert checked.exit_code == 4 and not checked.lost_chunks
        assert all(count <= 80 for count in disk.failed.values()), disk.failed
        assert len(checked.troubles) == lost and checked.repairable
        assert any("given up" in each for each in checked.damaged_shards)


def test_programs_read_on(store: Path, tmp_path: Path, data: bytes, disk: Disk) -> None:
    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        info = next(iter(opened.list("latest:object")))
        disk.fails = past_64k("/backend-1/")
        with opened.get_object_data(f"{info.run}-{info.row}") as stream:
            assert stream.read() == data
        assert disk.failed.total() <= 40


def test_what_can_be_decoded_in_no_other_way_is_read_all_the_same(
    store: Path, tmp_path: Path, data: bytes, disk: Disk
) -> None:
    """Of each shard most cells can't be read, and of each row four can: all backends are given up."""
    cell = 16 << 10

    @cache
    def head_of(where: str) -> int:
        with open(where, "rb") as file:
            return data_offset(ShardRecord.parse(file.read(fmt.RECORD_SIZE))[0].shard_length)

    def fails(where: str, offset: int, length: int) -> bool:
        number, head = int(where.partition("/backend-")[2][0]), head_of(where)
        if offset < head or length < 1:
            return False
        cells = range(max(0, offset - head) // cell, max(0, offset + length - 1 - head) // cell + 1)
        return any((number + each // 8) % 6 < 2 for each in cells)

    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        disk.fails = fails
        result = opened.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True, workers=1))
        assert (result.exit_code, result.failures) == (0, [])
        assert (tmp_path / "out" / "object").read_bytes() == data


def test_three_bad_sectors_give_nothing_up(store: Path, tmp_path: Path, data: bytes, disk: Disk) -> None:
    spots = (100_000, 700_000, 1_500_000)

    def spots_in(path: Path) -> int:
        with open(path, "rb") as file:
            length = ShardRecord.parse(file.read(fmt.RECORD_SIZE))[0].shard_length
        return sum(data_offset(length) <= spot < data_offset(length) + length for spot in spots)

    def fails(where: str, offset: int, length: int) -> bool:
        return "/backend-1/" in where and any(offset <= spot < offset + length for spot in spots)

    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        disk.fails = fails
        checked = opened.verify(data=True, inline=True, workers=1)
        assert checked.bad_cells == sum(map(spots_in, store.glob("backend-1/packs/*/*"))) > 3
        assert checked.missing_shards == 0
        assert len(checked.troubles) == 1 and "given up" not in checked.troubles[0]
        first = disk.failed.total()
        result = opened.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True, workers=1))
        assert result.exit_code == 0 and (tmp_path / "out" / "object").read_bytes() == data
        assert disk.failed.total() <= 2 * first


def test_what_fails_everywhere_is_not_tried_piece_by_piece(
    store: Path, tmp_path: Path, data: bytes, disk: Disk
) -> None:
    with FileStore.open(store, cache=tmp_path / "cache") as opened:
        disk.fails, disk.number = at_all("/backend-4/"), errno.EACCES
        result = opened.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True, workers=1))
        assert result.exit_code == 0
        assert disk.failed.total() <= 2 * 6
        [trouble] = result.troubles
        assert "backend-4" in trouble and "Permission denied" in trouble


def test_workers_tell_what_ails_a_backend(store: Path, tmp_path: Path, data: bytes) -> None:
    """With real processes: shards that may be opened by nobody, as somebody else than root sees them, and that are
    directories otherwise."""
    for path in store.glob("backend-2/packs/*/*"):
        path.unlink()
        path.symlink_to(path.name)  # opening it says that it loops
    command = [str(Path(sys.executable).with_name("drystone")), "-s", str(store)]
    done = subprocess.run([*command, "restore", "--to", tmp_path / "out", "--json"], capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "out" / "object").read_bytes() == data
    assert "ailing:" in done.stderr and "backend-2" in done.stderr
    assert len(json.loads(done.stdout)["troubles"]) == 1
    done = subprocess.run([*command, "cat", "latest:object"], capture_output=True)
    assert done.stdout == data and b"ailing:" in done.stderr
    done = subprocess.run([*command, "verify", "--data"], capture_output=True, text=True)
    assert done.returncode == 4 and "ailing:" in done.stderr and "every chunk and digest in it checked" in done.stdout


def test_ranges_are_remembered_and_the_oldest_shards_forgotten() -> None:
    media = BadMedia()
    assert media.known("/a", "k", 0, 100) == []
    for start, end in ((10, 20), (40, 50), (20, 25), (45, 60), (0, 5)):
        media.note("/a", "k", start, end)
    assert media.known("/a", "k", 0, 100) == [(0, 5), (10, 25), (40, 60)]
    assert media.known("/a", "k", 12, 45) == [(12, 25), (40, 45)]
    assert not media.gave_up("/a", "k")
    for _ in range(12):
        media.failed("/a", "k", BackendError("no"))
    assert media.gave_up("/a", "k") and not media.gave_up("/a") and not media.gave_up("/a", "other")
    for _ in range(12):
        media.failed("/a", "other", BackendError("no"))
    assert media.gave_up("/a") and media.gave_up("/a", "third") and not media.gave_up("/b", "k")
