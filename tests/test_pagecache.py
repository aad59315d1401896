"""Reading large files leaves the page cache as it was: what was resident stays, the rest goes when it was read."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manifests.config import CodecSpec
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from stages.filesystem import KEPT_IN_MEMORY, file_system
from stages.pagecache import LARGE_FILE, WINDOW, LargeFile
from tests.sampling import one_in

PAGE = mmap.PAGESIZE
SIZE = 3 * WINDOW + 3 * PAGE + 77
MakeStore = Callable[..., FileStore]


def kept_in_memory(folder: Path) -> bool:
    fd = os.open(folder, os.O_RDONLY)
    try:
        return file_system(fd) in KEPT_IN_MEMORY
    finally:
        os.close(fd)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system whose files are not in memory alone."""
    for place in (tmp_path, Path(__file__).parent):
        if not kept_in_memory(place):
            with tempfile.TemporaryDirectory(prefix=".pagecache-", dir=place) as folder:
                yield Path(folder)
            return
    pytest.skip("the folders of the tests lie in memory, where nothing can be dropped")


def resident(path: Path) -> list[bool]:
    """Which pages of a file are in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
    size = path.stat().st_size
    states = ctypes.create_string_buffer(-(-size // PAGE))
    with open(path, "rb") as file:
        place = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        assert place != ctypes.c_void_p(-1).value
        assert libc.mincore(ctypes.c_void_p(place), ctypes.c_size_t(size), states) == 0
        libc.munmap(ctypes.c_void_p(place), ctypes.c_size_t(size))
    return [bool(state & 1) for state in states.raw]


def make_file(path: Path, keep: Callable[[int], bool], size: int = SIZE) -> bytes:
    """A file of which only the pages that `keep` takes are in the page cache."""
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        pages = range(-(-size // PAGE))
        for page in filter(keep, pages):
            os.pread(fd, PAGE, page * PAGE)
    finally:
        os.close(fd)
    found = resident(path)
    assert not any(there and not keep(page) for page, there in enumerate(found)), "pages could not be dropped"
    assert sum(found) >= 0.9 * sum(map(keep, pages)), "pages do not stay"
    return data


MIXTURES: dict[str, Callable[[int], bool]] = {
    "nothing": lambda page: False,
    "everything": lambda page: True,
    "the first half": lambda page: page < SIZE // PAGE // 2,
    "a few and the last": lambda page: page % 100 < 7 or page == SIZE // PAGE,
}


@pytest.mark.parametrize("name", one_in(2, MIXTURES))
def test_an_ingest_leaves_the_page_cache_as_it_was(disk: Path, make_store: MakeStore, name: str) -> None:
    data = make_file(disk / "large", MIXTURES[name])
    store = make_store(chunker="fastcdc:128KiB", codec=CodecSpec("none"))
    before = resident(disk / "large")
    assert store.ingest([str(disk / "large")], options=IngestOptions(inline=True, workers=1)).exit_code == 0
    after = resident(disk / "large")
    assert not [page for page, there in enumerate(after) if there and not before[page]]
    assert sum(after) >= 0.9 * sum(before), "the kernel may take some back at any time, but not all"
    assert b"".join(store.open_range("latest:large")) == data


def test_a_sparse_file_is_dropped_too(disk: Path, make_store: MakeStore) -> None:
    chance = random.Random(3)
    pieces = {0: chance.randbytes(WINDOW), 20 << 20: chance.randbytes(3 * WINDOW), 60 << 20: chance.randbytes(5000)}
    with open(disk / "sparse", "wb") as file:
        for offset, piece in pieces.items():
            file.seek(offset)
            file.write(piece)
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    store = make_store(chunker="fastcdc:128KiB", codec=CodecSpec("none"))
    store.ingest([str(disk / "sparse")], options=IngestOptions(inline=True, workers=1))
    assert not any(resident(disk / "sparse"))
    assert b"".join(store.open_range("latest:sparse")) == (disk / "sparse").read_bytes()


def test_what_was_asked_for_and_not_read_is_dropped(disk: Path) -> None:
    data = make_file(disk / "large", lambda page: False)
    fd = os.open(disk / "large", os.O_RDONLY)
    try:
        file, piece = LargeFile(fd), bytearray(100_000)
        assert file.fill(memoryview(piece)) == (len(piece), False)
        assert piece == data[: len(piece)]
        limit = time.monotonic() + 10
        while sum(resident(disk / "large")) <= WINDOW // PAGE:
            assert time.monotonic() < limit, "the next window is not read ahead"
            time.sleep(0.01)
        while sum(resident(disk / "large")) < 2 * WINDOW // PAGE - len(piece) // PAGE - 1 and time.monotonic() < limit:
            time.sleep(0.01)  # what is still under way can't be dropped
        file.close()
    finally:
        os.close(fd)
    assert not any(resident(disk / "large"))


@pytest.mark.parametrize("length", [1, 100_001, SIZE + 1])
@pytest.mark.parametrize("cold", [False, True])
def test_every_byte_is_read_once_whatever_fits(disk: Path, length: int, cold: bool) -> None:
    size = 3 * PAGE + 5 if length == 1 else SIZE
    data = make_file(disk / "large", lambda page: not cold or page == 2, size)
    fd = os.open(disk / "large", os.O_RDONLY)
    found, piece, ended = bytearray(), memoryview(bytearray(length)), False
    try:
        file = LargeFile(fd)
        while not ended:
            count, ended = file.fill(piece)
            found += piece[:count]
        file.close()
    finally:
        os.close(fd)
    assert found == data


def test_a_file_that_grows_meanwhile_is_read_to_its_end(disk: Path) -> None:
    data = make_file(disk / "large", lambda page: False)
    fd = os.open(disk / "large", os.O_RDONLY)
    try:
        file, piece = LargeFile(fd), memoryview(bytearray(SIZE))
        assert file.fill(piece) == (SIZE, False)
        with open(disk / "large", "ab") as more:
            more.write(b"more" * 3_000_000)
        rest = memoryview(bytearray(13_000_000))
        assert file.fill(rest) == (12_000_000, True)
        file.close()
    finally:
        os.close(fd)
    assert piece == data and rest[:12_000_000] == b"more" * 3_000_000


def test_in_memory_a_file_is_read_as_it_is() -> None:
    fd = os.memfd_create("large")
    try:
        os.truncate(fd, LARGE_FILE)
        os.pwrite(fd, b"end", LARGE_FILE)
        file, piece = LargeFile(fd), memoryview(bytearray(LARGE_FILE + 10))
        assert file.fill(piece) == (LARGE_FILE + 3, True)
        assert piece[LARGE_FILE : LARGE_FILE + 3] == b"end"
        file.close()
    finally:
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_of_the_files_of_others_nothing_is_told_and_nothing_dropped(disk: Path) -> None:
    data = make_file(disk / "large", lambda page: page < 100)
    fd = os.open(disk / "large", os.O_RDONLY)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads; the child only reads
            child = os.fork()
        if not child:
            code = 1
            try:
                os.setuid(65534)
                file, piece = LargeFile(fd), memoryview(bytearray(SIZE + 1))
                code = 0 if file.fill(piece) == (SIZE, True) and piece[:SIZE] == data else 2
                file.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(fd)
    assert sum(resident(disk / "large")) > 0.9 * SIZE / PAGE
