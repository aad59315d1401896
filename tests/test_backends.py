"""What every backend must do, written once, and what the local directory does besides.

One file, though long: one suite, run on every kind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from manifests.backends import (
    BackendStorage,
    Buffer,
    DirectDirectory,
    LocalDirectory,
    MemoryBackend,
    open_backend,
    parse_place,
    place_of,
)
from manifests.errors import BackendError, BackendFull, KeyNotFound, StoreExists, UsageError
from manifests.memory import PLACES, MemoryPlace
from pipeline.metrics.backend import MeteredBackend
from pipeline.metrics.meters import Meters
from tests.sampling import one_in


def _local(place: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDirectory:
    root = place / "root"
    root.mkdir()
    return LocalDirectory(root)


def _direct(place: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDirectory:
    root = place / "root"
    root.mkdir()
    return DirectDirectory(root)


def _memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> MemoryBackend:
    monkeypatch.setitem(PLACES, str(place), MemoryPlace())  # gone again behind the test
    return MemoryBackend(str(place))


def _local_without_unnamed_files(place: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDirectory:
    """A local directory on a file system that knows no O_TMPFILE, as some network ones."""
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr("manifests.localdirectory.os.open", refuse)
    return _local(place, monkeypatch)


LOCAL: dict[str, Callable[[Path, pytest.MonkeyPatch], LocalDirectory]] = {
    "local": _local,
    "local without unnamed files": _local_without_unnamed_files,
    "local-direct": _direct,
}


def _metered(storage: BackendStorage) -> BackendStorage:
    meters = Meters.private()
    meters.grow(1)
    return MeteredBackend(storage, meters, 0)


#: Name → maker of an empty backend, given a directory to itself. A new backend is added here.
IMPLEMENTATIONS: dict[str, Callable[[Path, pytest.MonkeyPatch], BackendStorage]] = {
    **LOCAL,
    "memory": _memory,
    "metered": lambda place, patch: _metered(_local(place, patch)),
}


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackendStorage:
    return IMPLEMENTATIONS[request.param](tmp_path, monkeypatch)


class Broken(list[bytes]):
    """Pieces of which the last can't be had."""

    def __iter__(self):  # type: ignore[no-untyped-def]
        yield from super().__iter__()
        raise OSError(errno.EIO, "scripted")


BreakDisk = Callable[[BackendStorage, str, int], pytest.MonkeyPatch]


@pytest.fixture
def break_disk() -> Iterator[BreakDisk]:
    """A function that makes an action (writing, reading, listing) fail on a backend until what it returns is undone; it
    must be hit."""
    hits: list[str] = []
    patch = pytest.MonkeyPatch()
    calls = {
        "writing": ("write", "writev"),
        "reading": ("pread", "preadv"),
        "listing": ("scandir",),
        "deleting": ("unlink",),
    }

    def arm(backend: BackendStorage, action: str, number: int) -> pytest.MonkeyPatch:
        def fail(*args: object, **more: object) -> None:
            hits.append(action)
            raise OSError(number, os.strerror(number))

        if isinstance(backend, MemoryBackend):
            place = PLACES[backend.location]
            patch.setattr(place, "fault", lambda done, key: fail() if done == action else None)
        else:
            for call in calls[action]:
                patch.setattr(f"manifests.localdirectory.os.{call}", fail)
        return patch

    yield arm
    patch.undo()
    assert hits, "the fault was never hit"


class TestAnyBackend:
    """The conformance suite of BackendStorage."""

    def test_it_begins_empty(self, backend: BackendStorage) -> None:
        assert list(backend.list("")) == []
        assert list(backend.list("packs")) == []
        assert not backend.exists("store.json")

    @pytest.mark.parametrize("key", ["store.json", "log/0190.ingest.json", "packs/5f/0190aaaa.0", "a/b/c/d/e"])
    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 1000], ids=len)
    def test_what_was_written_is_there(self, backend: BackendStorage, key: str, content: bytes) -> None:
        backend.write(key, [content])
        assert backend.read(key) == content
        assert backend.exists(key)
        assert backend.size(key) == len(content)
        assert list(backend.list("")) == [key]

    def test_a_second_instance_sees_it(self, backend: BackendStorage) -> None:
        backend.write("log/a", [b"one"])
        assert open_backend(backend.type, backend.location).read("log/a") == b"one"

    def test_pieces_of_all_kinds_are_written_one_after_the_other(self, backend: BackendStorage) -> None:
        whole = bytearray(b"0123456789")
        pieces: list[Buffer] = [
            b"",
            b"ab",
            whole,
            memoryview(whole)[3:5],
            b"",
            memoryview(b"z"),
            memoryview(bytes(8)).cast("Q"),
        ]
        backend.write("k", pieces)
        assert backend.read("k") == b"ab012345678934z" + bytes(8)
        del pieces
        whole.append(0)  # no view of the caller's buffer was kept

    @pytest.mark.parametrize("pieces", [[], [b""]], ids=["none", "empty"])
    def test_no_pieces_make_an_empty_file(self, backend: BackendStorage, pieces: list[bytes]) -> None:
        backend.write("folder/k", pieces)
        assert backend.exists("folder/k")
        assert backend.read("folder/k") == b""
        assert backend.read_range("folder/k", 0, 10) == b""

    def test_many_pieces(self, backend: BackendStorage) -> None:
        pieces = [bytes([i % 256]) * (i % 37) for i in range(3000)]
        backend.write("k", pieces)
        assert backend.read("k") == b"".join(pieces)

    @pytest.mark.parametrize(
        ("old", "new"), [(b"old", b"something longer"), (b"something longer", b"new"), (b"x", b"")]
    )
    def test_a_write_replaces_the_whole(self, backend: BackendStorage, old: bytes, new: bytes) -> None:
        backend.write("log/k", [old])
        backend.write("log/k", [new])
        assert backend.read("log/k") == new
        assert backend.size("log/k") == len(new)
        assert list(backend.list("log")) == ["log/k"]

    def test_readers_see_the_old_or_the_new_content_never_a_mixture(self, backend: BackendStorage) -> None:
        contents = [bytes([i]) * (200_000 + i) for i in range(12)]
        backend.write("k", [contents[0]])

        def rewrite() -> None:
            for content in contents:
                backend.write("k", [content[:1000], content[1000:]])

        with ThreadPoolExecutor(2) as threads:
            writers = [threads.submit(rewrite) for _ in range(2)]
            seen = {backend.read("k")}
            while not all(writer.done() for writer in writers):
                seen.add(backend.read("k"))
            for writer in writers:
                writer.result()
        assert seen <= set(contents)
        assert list(backend.list("")) == ["k"]

    def test_threads_write_side_by_side_into_new_folders(self, backend: BackendStorage) -> None:
        keys = [f"packs/{i % 4:02x}/{i}" for i in range(32)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda key: backend.write(key, [key.encode()]), keys))
        assert sorted(backend.list("packs")) == sorted(keys)
        assert all(backend.read(key) == key.encode() for key in keys)

    @pytest.mark.parametrize(
        ("offset", "length", "wanted"),
        [
            (0, 5, b"01234"),
            (3, 4, b"3456"),
            (0, 10, b"0123456789"),
            (9, 1, b"9"),
            (8, 5, b"89"),
            (0, 1 << 20, b"0123456789"),
            (10, 1, b""),
            (11, 5, b""),
            (1 << 40, 1, b""),
            (0, 0, b""),
            (5, 0, b""),
            (99, 0, b""),
        ],
    )
    def test_a_range_is_cut_at_the_end(self, backend: BackendStorage, offset: int, length: int, wanted: bytes) -> None:
        backend.write("k", [b"0123456789"])
        got = backend.read_range("k", offset, length)
        assert isinstance(got, bytes)
        assert got == wanted

    @pytest.mark.parametrize("key", ["", "/", "/k", "k/", "a//b", ".", "..", "../k", "a/../../k", "a/./b", "a\0b"])
    def test_what_is_no_key_is_refused_and_touches_nothing(self, backend: BackendStorage, key: str) -> None:
        backend.write("k", [b"x"])
        for ask in (
            backend.read,
            backend.size,
            backend.exists,
            backend.delete,
            backend.remove_folder,
            lambda key: backend.write(key, [b"y"]),
            lambda key: backend.read_range(key, 0, 1),
            lambda key: list(backend.list(key or "..")),
        ):
            with pytest.raises(BackendError, match="is no key"):
                ask(key)
        assert [(each, backend.read(each)) for each in backend.list("")] == [("k", b"x")]

    @pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (-3, 0)])
    def test_what_is_no_range_is_refused(self, backend: BackendStorage, offset: int, length: int) -> None:
        backend.write("k", [b"0123456789"])
        with pytest.raises(BackendError, match="no range"):
            backend.read_range("k", offset, length)

    @pytest.mark.parametrize("key", ["absent", "absent/below", "here/below", "fold", "folder"])
    def test_an_absent_key_is_key_not_found(self, backend: BackendStorage, key: str) -> None:
        backend.write("here", [b"x"])
        backend.write("folder/k", [b"x"])
        for ask in (backend.read, backend.size, lambda key: backend.read_range(key, 0, 1)):
            with pytest.raises(KeyNotFound, match=key):
                ask(key)
        with pytest.raises(KeyNotFound):
            backend.read_range(key, 0, 0)
        assert not backend.exists(key)

    def test_a_deleted_key_is_gone_and_the_others_stay(self, backend: BackendStorage) -> None:
        for key in ("log/a", "log/b"):
            backend.write(key, [key.encode()])
        backend.delete("log/a")
        assert not backend.exists("log/a")
        with pytest.raises(KeyNotFound):
            backend.read("log/a")
        assert list(backend.list("")) == ["log/b"]
        backend.write("log/a", [b"again"])
        assert backend.read("log/a") == b"again"

    @pytest.mark.parametrize("key", ["absent", "absent/below", "folder"])
    def test_deleting_an_absent_key_is_fine(self, backend: BackendStorage, key: str) -> None:
        backend.delete(key)
        backend.write("k", [b"x"])
        backend.write("folder/k", [b"x"])
        backend.delete(key)
        assert sorted(backend.list("")) == ["folder/k", "k"]

    def test_a_list_goes_through_all_folders_below_and_no_others(self, backend: BackendStorage) -> None:
        keys = {"store.json", "log/1", "log/2", "packs/00/a.0", "packs/01/a.1", "packs/01/b.0", "packs2/x", "p"}
        for key in keys:
            backend.write(key, [b""])
        assert sorted(backend.list("")) == sorted(keys)
        assert sorted(backend.list("packs")) == ["packs/00/a.0", "packs/01/a.1", "packs/01/b.0"]
        assert sorted(backend.list("packs/01")) == ["packs/01/a.1", "packs/01/b.0"]
        for empty in ("packs/02", "absent", "absent/below", "pac", "store.json"):
            assert list(backend.list(empty)) == []

    @pytest.mark.parametrize("new", [[b"new", object()], Broken([b"new"])], ids=["no buffer", "failing"])
    def test_a_failed_write_keeps_the_old_content_and_leaves_nothing_else(
        self, backend: BackendStorage, new: list[bytes]
    ) -> None:
        backend.write("log/k", [b"old"])
        for key in ("log/k", "log/other", "fresh/k"):
            with pytest.raises((BackendError, TypeError)):
                backend.write(key, new)
        assert backend.read("log/k") == b"old"
        assert list(backend.list("")) == ["log/k"]

    def test_keys_behave_like_a_dictionary(self, backend: BackendStorage) -> None:
        choose, model = random.Random(3), dict[str, bytes]()
        keys = [f"{folder}{name}" for folder in ("", "log/", "packs/0a/") for name in "xyz"]
        for _ in range(150):
            key = choose.choice(keys)
            match choose.randrange(4):
                case 0:
                    model[key] = choose.randbytes(choose.randrange(200))
                    backend.write(key, [model[key][:50], model[key][50:]])
                case 1:
                    model.pop(key, None)
                    backend.delete(key)
                case 2:
                    assert sorted(backend.list("")) == sorted(model)
                case _:
                    assert backend.exists(key) == (key in model)
                    if key in model:
                        offset, length = choose.randrange(220), choose.randrange(220)
                        assert backend.read_range(key, offset, length) == model[key][offset : offset + length]
        assert {key: backend.read(key) for key in backend.list("")} == model

    def test_a_list_with_sizes_says_the_same_and_how_long_each_is(self, backend: BackendStorage) -> None:
        for number in range(5):
            backend.write(f"packs/0{number % 2}/{number}", [bytes(number)])
        assert sorted(backend.list_sizes("packs")) == sorted((key, backend.size(key)) for key in backend.list("packs"))
        assert dict(backend.list_sizes("packs/01")) == {"packs/01/1": 1, "packs/01/3": 3}
        assert list(backend.list_sizes("absent")) == []

    def test_a_removed_folder_is_gone_and_the_others_stay(self, backend: BackendStorage) -> None:
        for key in ("inflight/r1/marker.json", "inflight/r1/deep/k", "inflight/r2/marker.json"):
            backend.write(key, [b"x"])
        backend.remove_folder("inflight/r1")
        backend.remove_folder("inflight/absent")
        assert list(backend.list("")) == ["inflight/r2/marker.json"]
        backend.write("inflight/r1/marker.json", [b"again"])
        assert backend.read("inflight/r1/marker.json") == b"again"

    def test_a_place_with_something_in_it_is_not_empty(self, backend: BackendStorage) -> None:
        backend.require_empty()
        backend.make()  # what is there already is fine
        backend.write("k", [b""])
        with pytest.raises(StoreExists, match="not empty"):
            backend.require_empty()

    def test_folders_in_a_place_are_places(self, backend: BackendStorage) -> None:
        assert list(backend.folders()) == []
        for name in "ba":
            below = open_backend(backend.type, f"{backend.location}/{name}")
            below.require_empty()
            below.make()
            below.write("backend.json", [b"{}"])
        assert list(backend.folders()) == [f"{backend.location}/a", f"{backend.location}/b"]
        with contextlib.suppress(KeyError):
            for name in "ab":
                del PLACES[f"{backend.location}/{name}"]

    def test_its_kind_opens_it_again(self, backend: BackendStorage) -> None:
        backend.write("k", [b"x"])
        again = open_backend(backend.type, backend.location)
        assert (again.type, again.location) == (backend.type, backend.location)
        assert again.read("k") == b"x"
        again.close()
        again.close()

    def test_a_place_is_known_by_its_identity(self, backend: BackendStorage) -> None:
        backend.write("k", [b"x"])
        place = place_of(backend)
        assert place.open().read("k") == b"x"
        assert open_backend(backend.type, backend.location).identity() == backend.identity() != ""
        backend.require_in_place()

    def test_a_place_that_was_made_can_be_undone(self, backend: BackendStorage) -> None:
        below = open_backend(backend.type, f"{backend.location}/a")
        below.make()
        below.write("store.json", [b"{}"])
        below.delete("store.json")
        below.unmake()
        assert list(backend.folders()) == []

    def test_what_a_file_system_holds_can_be_read_there(self, backend: BackendStorage) -> None:
        backend.write("log/k", [b"content"])
        path = backend.local_path("log/k")
        assert path is None or path.read_bytes() == b"content"

    def test_a_long_file_comes_back_whole_and_in_parts(self, backend: BackendStorage) -> None:
        content = random.Random(5).randbytes((3 << 20) + 4321)
        backend.write("k", [content[:5], content[5 : 1 << 20], memoryview(content)[1 << 20 :]])
        assert backend.read("k") == content
        for offset, length in ((0, 4096), (4095, 2), ((1 << 20) - 7, 100), (3 << 20, 10_000), (4096, 3 << 20)):
            assert backend.read_range("k", offset, length) == content[offset : offset + length]

    @pytest.mark.parametrize(
        ("number", "kind"), [(errno.ENOSPC, BackendFull), (errno.EDQUOT, BackendFull), (errno.EIO, BackendError)]
    )
    def test_a_write_that_fails_keeps_the_old_content(
        self,
        backend: BackendStorage,
        break_disk: BreakDisk,
        number: int,
        kind: type[BackendError],
    ) -> None:
        backend.write("log/k", [b"old"])
        broken = break_disk(backend, "writing", number)
        for key in ("log/k", "log/other"):
            with pytest.raises(BackendError, match=key) as caught:
                backend.write(key, [b"new"])
            assert type(caught.value) is kind
        broken.undo()
        assert {key: backend.read(key) for key in backend.list("")} == {"log/k": b"old"}

    @pytest.mark.parametrize("action", ["reading", "listing", "deleting"])
    def test_a_disk_that_fails_is_no_absent_key(
        self, backend: BackendStorage, break_disk: BreakDisk, action: str
    ) -> None:
        backend.write("log/k", [b"old"])
        break_disk(backend, action, errno.EIO)
        asks: dict[str, Callable[[], object]] = {
            "reading": lambda: backend.read_range("log/k", 0, 2),
            "listing": lambda: list(backend.list("log")),
            "deleting": lambda: backend.delete("log/k"),
        }
        with pytest.raises(BackendError) as caught:
            asks[action]()
        assert type(caught.value) is BackendError and backend.location in str(caught.value)

    def test_it_says_where_it_is_and_how_much_room_there_is(self, backend: BackendStorage) -> None:
        assert backend.location
        assert open_backend(backend.type, backend.location).location == backend.location
        total, free = backend.space()
        assert 0 < free <= total and backend.space().known
        assert backend.device() == backend.device() != ""

    def test_errors_name_the_place_and_the_key(self, backend: BackendStorage) -> None:
        with pytest.raises(BackendError, match="log/absent") as caught:
            backend.read("log/absent")
        assert backend.location in str(caught.value)


# --- the local directory


@pytest.fixture(params=sorted(LOCAL))
def local(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDirectory:
    return LOCAL[request.param](tmp_path, monkeypatch)


def files_below(root: Path) -> list[str]:
    """All files, temporary ones too."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def open_descriptors() -> int:
    gc.collect()  # backends of tests before this one
    return len(os.listdir("/proc/self/fd"))


class TestLocalDirectory:
    def test_a_write_never_makes_the_root(self, tmp_path: Path) -> None:
        """An unmounted mount point, or its absence, must not be filled in its stead."""
        gone = LocalDirectory(tmp_path / "not mounted")
        for key in ("store.json", "log/k", "packs/00/a.0"):
            with pytest.raises(BackendError):
                gone.write(key, [b"x"])
        assert not (tmp_path / "not mounted").exists()

    def test_a_root_that_vanishes_is_not_made_anew(self, local: LocalDirectory) -> None:
        local.write("log/k", [b"x"])
        local.root.rename(local.root.with_name("elsewhere"))
        for key in ("log/k", "log/l", "packs/00/a.0"):
            with pytest.raises(BackendError):
                local.write(key, [b"y"])
        assert not local.root.exists()

    def test_a_missing_root_gives_backend_errors_only(self, tmp_path: Path) -> None:
        gone = LocalDirectory(tmp_path / "not mounted")
        assert not gone.exists("store.json")
        assert list(gone.list("")) == []
        gone.delete("store.json")
        with pytest.raises(KeyNotFound):
            gone.read("store.json")

    @pytest.mark.parametrize("ask", [LocalDirectory.space, LocalDirectory.device], ids=["space", "device"])
    def test_asking_a_missing_root_for_its_device_gives_a_backend_error(
        self, tmp_path: Path, ask: Callable[[LocalDirectory], object]
    ) -> None:
        with pytest.raises(BackendError):
            ask(LocalDirectory(tmp_path / "not mounted"))

    @pytest.mark.parametrize("ask", ["read", "size", "exists", "delete", "write", "list"])
    def test_errors_of_the_system_come_as_backend_errors(self, local: LocalDirectory, ask: str) -> None:
        """Here by a name longer than any file system takes."""
        key = "x" * 300
        operations: dict[str, Callable[[], object]] = {
            "read": lambda: local.read(key),
            "size": lambda: local.size(key),
            "exists": lambda: local.exists(key),
            "delete": lambda: local.delete(key),
            "write": lambda: local.write(key, [b""]),
            "list": lambda: list(local.list(key)),
        }
        with pytest.raises(BackendError):
            operations[ask]()

    def test_a_direct_write_passes_the_cache_where_the_file_system_can(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        modes: list[tuple[int, bool]] = []
        write = os.write

        def watch(fd: int, data: memoryview) -> int:
            modes.append((len(data), bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)))
            return write(fd, data)

        monkeypatch.setattr("manifests.localdirectory.os.write", watch)
        direct = _direct(tmp_path, monkeypatch)
        direct.write("k", [bytes((1 << 20) + 8192), b"tail"])
        assert sum(length for length, _ in modes) == (1 << 20) + 8196
        if modes[0][1]:
            assert modes == [(1 << 20, True), (8192, True), (4, False)]
        else:
            assert not any(is_direct for _, is_direct in modes)

    def test_a_file_system_without_direct_access_is_used_through_the_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused = []
        real_open, real_fcntl = os.open, fcntl.fcntl

        def refuse_open(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & os.O_DIRECT:
                refused.append("open")
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return real_open(path, flags, mode, dir_fd=dir_fd)

        def refuse_fcntl(fd: int, command: int, argument: int = 0) -> int:
            if command == fcntl.F_SETFL and argument & os.O_DIRECT:
                refused.append("fcntl")
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return real_fcntl(fd, command, argument)

        monkeypatch.setattr("manifests.localdirectory.os.open", refuse_open)
        monkeypatch.setattr("manifests.directdirectory.fcntl.fcntl", refuse_fcntl)
        direct = _direct(tmp_path, monkeypatch)
        direct.write("k", [bytes(10_000), b"tail"])
        assert direct.read_range("k", 9999, 10) == b"\0tail"
        assert set(refused) == {"open", "fcntl"}

    def test_a_write_over_a_folder_fails_and_leaves_no_temporary_file(self, local: LocalDirectory) -> None:
        local.write("log/k", [b"old"])
        with pytest.raises(BackendError):
            local.write("log", [b"new"])
        assert files_below(local.root) == ["log/k"]
        assert local.read("log/k") == b"old"

    def test_a_write_below_a_file_fails_and_keeps_it(self, local: LocalDirectory) -> None:
        local.write("log", [b"old"])
        with pytest.raises(BackendError):
            local.write("log/k", [b"new"])
        assert files_below(local.root) == ["log"]
        assert local.read("log") == b"old"

    @pytest.mark.parametrize("steps", one_in(2, [("write", "writev"), ("fsync",), ("link", "rename")]), ids="-".join)
    @pytest.mark.parametrize(
        ("number", "kind"), [(errno.ENOSPC, BackendFull), (errno.EDQUOT, BackendFull), (errno.EIO, BackendError)]
    )
    def test_a_write_that_fails_at_any_step_keeps_the_old_content(
        self,
        local: LocalDirectory,
        monkeypatch: pytest.MonkeyPatch,
        steps: tuple[str, ...],
        number: int,
        kind: type[BackendError],
    ) -> None:
        local.write("log/k", [b"old"])
        hits = []

        def fail(*args: object, **more: object) -> None:
            hits.append(args)
            raise OSError(number, os.strerror(number))

        before = open_descriptors()
        with monkeypatch.context() as patch:
            for step in steps:
                patch.setattr(f"manifests.localdirectory.os.{step}", fail)
            for key in ("log/k", "log/other"):
                with pytest.raises(BackendError) as caught:
                    local.write(key, [b"new"])
                assert type(caught.value) is kind
        assert len(hits) == 2
        assert open_descriptors() == before
        assert files_below(local.root) == ["log/k"]
        assert local.read("log/k") == b"old"

    def test_a_replacement_that_fails_at_the_rename_leaves_no_temporary_file(
        self, local: LocalDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        local.write("log/k", [b"old"])
        hits = []

        def fail(*args: object, **more: object) -> None:
            hits.append(args)
            raise OSError(errno.EIO, "scripted")

        with monkeypatch.context() as patch:
            patch.setattr("manifests.localdirectory.os.rename", fail)
            with pytest.raises(BackendError):
                local.write("log/k", [b"new"])
        assert len(hits) == 1
        assert files_below(local.root) == ["log/k"]
        assert local.read("log/k") == b"old"

    def test_short_writes_of_the_system_lose_nothing(
        self, local: LocalDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        short, write = [], os.write

        def write_little(fd: int, data: memoryview | list[memoryview]) -> int:
            data = data if isinstance(data, memoryview) else memoryview(b"".join(data))
            short.append(len(data))
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)  # which would refuse so odd a length
            count = write(fd, data[:1000])
            fcntl.fcntl(fd, fcntl.F_SETFL, flags)
            return count

        content = random.Random(1).randbytes(5500)
        with monkeypatch.context() as patch:
            patch.setattr("manifests.localdirectory.os.write", write_little)
            patch.setattr("manifests.localdirectory.os.writev", write_little)
            local.write("k", [content[:4096], content[4096:]])
        assert len(short) >= 6
        assert local.read("k") == content

    def test_a_write_is_durable_before_it_is_visible(
        self, local: LocalDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file is synced complete, before it has its name; its folder afterwards."""
        local.write("log/first", [b""])
        events: list[tuple[str, bool, int]] = []
        fsync = os.fsync

        def watch(fd: int) -> None:
            state = os.fstat(fd)
            folder = stat.S_ISDIR(state.st_mode)
            name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) if folder else "file"
            events.append((name, local.exists("log/k"), 0 if folder else state.st_size))
            fsync(fd)

        monkeypatch.setattr("manifests.localdirectory.os.fsync", watch)
        local.write("log/k", [b"abc", b"def"])
        assert events == [("file", False, 6), ("log", True, 0)]

    def test_new_folders_are_made_durable_from_the_top(
        self, local: LocalDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced = []
        fsync = os.fsync

        def watch(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), local.root))
            fsync(fd)

        monkeypatch.setattr("manifests.localdirectory.os.fsync", watch)
        local.write("packs/5f/a.0", [b"x"])
        assert synced == [".", "packs", "packs/5f"]

    def test_leftover_temporary_files_are_not_listed(self, local: LocalDirectory) -> None:
        local.write("packs/5f/a.0", [b"x"])
        (local.root / "packs/5f/.tmp-0123456789abcdef").write_bytes(b"half")
        (local.root / ".tmp-0123456789abcdef").write_bytes(b"half")
        assert list(local.list("")) == list(local.list("packs/5f")) == ["packs/5f/a.0"]

    def test_a_removed_folder_takes_its_temporary_files_along(self, local: LocalDirectory) -> None:
        for key in ("inflight/r1/marker.json", "inflight/r1/deep/k", "inflight/r2/marker.json"):
            local.write(key, [b"x"])
        (local.root / "inflight/r1/.tmp-00").write_bytes(b"half")
        local.remove_folder("inflight/r1")
        assert files_below(local.root) == ["inflight/r2/marker.json"]
        assert not (local.root / "inflight/r1").exists()
        local.remove_folder("inflight/absent")

    def test_what_is_no_file_is_neither_waited_for_nor_taken_for_one(self, local: LocalDirectory) -> None:
        os.mkfifo(local.root / "store.json")
        for ask in (local.read, local.size, local.exists, lambda key: local.read_range(key, 0, 1)):
            with pytest.raises(BackendError, match=r"store\.json: it is no regular file"):
                ask("store.json")

    def test_folders_of_any_depth_and_links_to_themselves_are_passed_over(self, local: LocalDirectory) -> None:
        local.write("packs/5f/a.0", [b"x"])
        (local.root / "packs/5f/loop").symlink_to("loop")
        folder = os.open(local.root / "packs", os.O_RDONLY)
        for _ in range(1200):
            os.mkdir("d", dir_fd=folder)
            inner = os.open("d", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = inner
        os.close(folder)
        assert list(local.list_sizes("packs")) == [("packs/5f/a.0", 1)]
        subprocess.run(["rm", "-rf", local.root / "packs/d"], check=True)  # deeper than Python removes

    def test_a_link_to_a_folder_is_removed_with_its_folder(self, local: LocalDirectory) -> None:
        local.write("inflight/r1/marker.json", [b"x"])
        local.write("packs/5f/a.0", [b"x"])
        (local.root / "inflight/r1/link").symlink_to(local.root / "packs")
        local.remove_folder("inflight/r1")
        assert files_below(local.root) == ["packs/5f/a.0"]

    def test_a_folder_that_was_removed_can_be_written_to_again(self, local: LocalDirectory) -> None:
        local.write("inflight/r1/marker.json", [b"1"])
        local.remove_folder("inflight/r1")
        local.write("inflight/r1/marker.json", [b"2"])
        assert local.read("inflight/r1/marker.json") == b"2"

    def test_a_folder_that_another_process_removed_can_be_written_to_again(self, local: LocalDirectory) -> None:
        local.write("packs/5f/a.0", [b"1"])
        other = LocalDirectory(local.root)
        other.delete("packs/5f/a.0")
        (local.root / "packs/5f").rmdir()
        local.write("packs/5f/b.0", [b"2"])
        assert local.read("packs/5f/b.0") == b"2"

    def test_no_descriptor_is_left_open(self, local: LocalDirectory) -> None:
        local.identity()
        before = open_descriptors()
        for number in range(5):
            local.write(f"a/{number}", [b"x"])
            local.read_range(f"a/{number}", 0, 1)
            with pytest.raises(KeyNotFound):
                local.read_range("a/absent", 0, 1)
            with pytest.raises(BackendError):
                local.write("a", [b"x"])
        next(listing := local.list(""))
        listing.close()  # type: ignore[attr-defined]
        assert open_descriptors() == before

    def test_nothing_is_written_to_a_directory_that_took_its_place(self, local: LocalDirectory, tmp_path: Path) -> None:
        local.write("log/a", [b"old"])
        local.root.rename(tmp_path / "elsewhere")
        local.root.mkdir()
        for key in ("log/b", "c"):
            with pytest.raises(BackendError, match="is not the directory any more"):
                local.write(key, [b"new"])
        with pytest.raises(BackendError, match="is not the directory any more"):
            local.require_in_place()
        assert files_below(local.root) == [] and files_below(tmp_path / "elsewhere") == ["log/a"]
        assert local.read("log/a") == b"old" and list(local.list("")) == ["log/a"] and local.local_path("log/a") is None

    def test_who_opens_it_elsewhere_must_find_the_same_directory(self, local: LocalDirectory, tmp_path: Path) -> None:
        place = place_of(local)
        local.root.rename(tmp_path / "elsewhere")
        local.root.mkdir()
        (local.root / "k").write_bytes(b"of another")
        with pytest.raises(BackendError, match="is not the directory any more"):
            place.open().read("k")

    def test_a_closed_backend_reaches_nothing(self, local: LocalDirectory) -> None:
        local.write("k", [b"x"])
        local.close()
        with pytest.raises(BackendError, match="closed"):
            local.read("k")

    @pytest.mark.parametrize("mask", [0o000, 0o027, 0o077, 0o777])
    @pytest.mark.parametrize("mode", [0o700, 0o750, 0o2770, 0o755])
    def test_files_are_as_open_as_the_backend_whatever_the_umask(
        self, local: LocalDirectory, mask: int, mode: int
    ) -> None:
        local.root.chmod(mode)
        old = os.umask(mask)
        try:
            local.write("packs/5f/a.0", [b"x"])
            local.write("k", [b"x"])
        finally:
            os.umask(old)
        modes = {str(path.relative_to(local.root)): oct(path.stat().st_mode & 0o7777) for path in local.root.rglob("*")}
        folder, file = oct(mode), oct(mode & 0o666)
        assert modes == {"packs": folder, "packs/5f": folder, "packs/5f/a.0": file, "k": file}

    def test_a_directory_that_is_made_is_open_to_nobody_else(self, local: LocalDirectory) -> None:
        old = os.umask(0)
        try:
            made = LocalDirectory(local.root / "above" / "place")
            made.make()
        finally:
            os.umask(old)
        assert made.access().mode == 0o700
        assert (local.root / "above").stat().st_mode & 0o777 == 0o700
        made.unmake()
        assert not (local.root / "above").exists()

    def test_undoing_gives_a_directory_that_was_there_its_mode_back(self, local: LocalDirectory) -> None:
        local.root.chmod(0o755)
        local.make()
        assert local.root.stat().st_mode & 0o777 == 0o700
        local.unmake()
        assert local.root.stat().st_mode & 0o777 == 0o755

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EIO])
    def test_a_file_system_that_can_not_sync_directories_is_used_as_it_is(
        self, local: LocalDirectory, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        fsync = os.fsync

        def refuse(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(fd)

        assert list(local.shortcomings()) == []
        monkeypatch.setattr("manifests.directory.os.fsync", refuse)
        if number == errno.EIO:
            with pytest.raises(BackendError):
                local.write("log/k", [b"x"])
            return
        local.write("log/k", [b"x"])
        assert local.read("log/k") == b"x"
        (lack,) = local.shortcomings()
        assert "power failure" in lack

    @pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
    def test_a_file_must_be_synced(self, local: LocalDirectory, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        def refuse(fd: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("manifests.directory.os.fsync", refuse)
        with pytest.raises(BackendError):
            local.write("k", [b"x"])
        assert not local.exists("k")

    def test_free_space_and_device_are_those_of_the_file_system(self, local: LocalDirectory, tmp_path: Path) -> None:
        system = os.statvfs(tmp_path)
        assert 0 < local.space().free <= local.space().total == system.f_blocks * system.f_frsize
        assert local.device() == f"device:{tmp_path.stat().st_dev}" == LocalDirectory(tmp_path).device()
        assert local.device() != LocalDirectory("/proc").device()


def test_a_memory_place_of_another_process_fails_aloud() -> None:
    """What a worker would write there were lost with it."""
    nowhere = MemoryBackend("/made by nobody")
    with pytest.raises(BackendError, match="inline only"):
        nowhere.write("k", [b"x"])
    with pytest.raises(KeyNotFound, match="inline only"):
        nowhere.read("k")
    assert not nowhere.exists("k") and list(nowhere.list("")) == []


def test_a_full_memory_place_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _memory(tmp_path, monkeypatch)
    PLACES[backend.location].capacity = 100
    backend.write("k", [bytes(90)])
    with pytest.raises(BackendFull, match="free some space"):
        backend.write("l", [bytes(11)])
    backend.write("k", [bytes(100)])
    assert backend.space() == (100, 0)


@pytest.mark.parametrize(
    ("written", "kind", "location"),
    [
        ("/a", "local", "/a"),
        ("/a/../b/", "local", "/b"),
        ("memory:/m", "memory", "/m"),
        ("local-direct:/a", "local-direct", "/a"),
        ("/odd:name", "local", "/odd:name"),
        (Path("/p"), "local", "/p"),
    ],
)
def test_a_place_is_a_directory_unless_it_begins_with_a_kind(written: str | Path, kind: str, location: str) -> None:
    assert parse_place(written) == (kind, location)


def test_a_kind_without_a_place_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="names no place"):
        parse_place("memory:")


def test_an_unknown_kind_of_backend_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="local"):
        open_backend("carrier-pigeon", str(tmp_path))


def test_opening_a_backend_touches_nothing(tmp_path: Path) -> None:
    place = tmp_path / "root"
    assert open_backend("local", str(place)).location == str(place)
    assert not place.exists()
