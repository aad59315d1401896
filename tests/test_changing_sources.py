"""Sources that change while they are archived, that can't be read, or that are no ordinary files: each is a row that
says so, the rest goes in, no length is wrong, and no mixture goes without a mark."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from pipeline.filestore import FileStore
from pipeline.ingest.parent import ParentOptions
from pipeline.ingest.read import NOT_REGULAR
from pipeline.ingest.run import IngestOptions, IngestResult
from stages import read as stage
from stages.parent import Comparison
from stages.sourcefolders import ANY_FOLDER, REPLACED, Identity, SourceFolders
from tests.sampling import one_in
from tests.test_bad_input import drystone

MakeStore = Callable[..., FileStore]
INLINE = IngestOptions(inline=True, workers=1)
SMALL, LARGE = 50_000, 13_000_000  # less than a slot, and several
CHANGED = "it changed while it was read"


class Moments:
    """What is done to the file `target`, and when: at its `after`-th read (0: before anything of it was read), or
    right before it is opened. Must be hit."""

    def __init__(self, target: Path, act: Callable[[Path], None], after: int | None) -> None:
        self.target, self._act, self._after = target, act, after
        self._reads = self.hits = 0
        self._read, self._open = os.readv, SourceFolders.open

    def _do(self) -> None:
        self.hits += 1
        if self.hits == 1:
            self._act(self.target)

    def readv(self, fd: int, buffers: list[memoryview]) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") != str(self.target):
            return self._read(fd, buffers)
        # Small pieces, so that every content is read in several: between them the file changes.
        count = self._read(fd, [buffers[0][: 20_000 if len(buffers[0]) < 6_000_000 else 1_000_000]])
        self._reads += 1
        if self._after is not None and self._reads == self._after:
            self._do()
        return count

    def open(self, folders: SourceFolders, source: int, below: bytes, folder: Identity = ANY_FOLDER) -> int:
        if self._after is None and os.fsencode(self.target).endswith(b"/" + below):
            self._do()
        return self._open(folders, source, below, folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory of a few files; the one called `target` is to be changed. The first opens a slot."""
    (tmp_path / "source").mkdir()
    for name in ("first", "target", "untouched"):
        (tmp_path / "source" / name).write_bytes(name.encode() * 100)
    return tmp_path / "source"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Moments]]:
    """A function that says what happens to a file, and when."""
    made: list[Moments] = []

    def arm(target: Path, act: Callable[[Path], None], after: int | None) -> Moments:
        moments = Moments(target, act, after)
        monkeypatch.setattr(os, "readv", moments.readv)
        monkeypatch.setattr(SourceFolders, "open", lambda *arguments: moments.open(*arguments))
        made.append(moments)
        return moments

    yield arm
    assert made and all(moments.hits for moments in made), "what was to happen did not"


def check(store: FileStore, result: IngestResult, errors: dict[str, str]) -> dict[str, bytes]:
    """The run's rows have these errors and no others, sizes and digests are those of the contents, and the untouched
    files are there; returns the contents."""
    contents: dict[str, bytes] = {}
    found: dict[str, str] = {}
    for info in store.list(recursive=True):
        name = info.path.decode().partition("/")[2]
        if info.error is not None:
            found[name] = info.error
        if info.digest is not None:
            contents[name] = b"".join(store.open_range(f"latest:{info.path.decode()}"))
            assert info.size == len(contents[name]), name
            assert info.digest == blake3(contents[name]).digest(), name
        else:
            assert info.size == 0, name
    assert found == errors
    assert result.exit_code == (3 if errors else 0) and result.tally.errors == len(errors)
    assert result.tally.bytes == sum(map(len, contents.values()))
    assert contents["first"] == b"first" * 100 and contents["untouched"] == b"untouched" * 100
    return contents


def append(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"more" * 10_000)


def shrink(path: Path) -> None:
    os.truncate(path, 30_000)


def keep_time(act: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same, with the modification time set back behind it."""

    def acting(path: Path) -> None:
        before = os.stat(path)
        act(path)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    acting.__name__ = f"{act.__name__}_in_secret"
    return acting


def rewrite(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(b"n" * size)


CHANGES = [append, shrink, rewrite, keep_time(append), keep_time(shrink), keep_time(rewrite)]


@pytest.mark.parametrize("act", CHANGES, ids=lambda act: act.__name__)
@pytest.mark.parametrize(("size", "after"), one_in(2, [(SMALL, 3), (LARGE, 2), (LARGE, 9)], several=True))
def test_a_file_that_changes_while_it_is_read_is_marked(
    make_store: MakeStore, source: Path, at: Callable[..., Moments], act: Callable[[Path], None], size: int, after: int
) -> None:
    (source / "target").write_bytes(b"o" * size)
    store = make_store(chunker="fastcdc:16KiB")
    at(source / "target", act, after)
    content = check(store, store.ingest([str(source)], options=INLINE), {"target": CHANGED})["target"]
    assert set(content) <= set(b"onmre\0")


@pytest.mark.parametrize("act", CHANGES, ids=lambda act: act.__name__)
def test_a_small_file_that_changed_before_it_was_read_is_read_as_it_is(
    make_store: MakeStore, source: Path, at: Callable[..., Moments], act: Callable[[Path], None]
) -> None:
    """It has the length, and perhaps the time, that the scan saw; its change time sends it the long way."""
    target = source / "target"
    target.write_bytes(b"o" * 18_000 + bytes(20_000))
    store = make_store()
    at(target, act, None)
    assert check(store, store.ingest([str(source)], options=INLINE), {})["target"] == target.read_bytes()


def replace_by(kind: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        path.unlink()
        if kind == "symlink":
            path.symlink_to("first")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            path.mkdir()
        elif kind == "socket":
            here = os.open(path.parent, os.O_PATH)
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(f"/proc/self/fd/{here}/{path.name}")
            os.close(here)

    return act


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("kind", one_in(2, ["nothing", "symlink", "fifo", "directory", "socket"]))
def test_a_file_that_is_something_else_when_it_is_to_be_read(
    make_store: MakeStore, source: Path, at: Callable[..., Moments], kind: str, size: int
) -> None:
    (source / "target").write_bytes(b"o" * size)
    store = make_store()
    at(source / "target", replace_by(kind), None)
    reason = "opening it failed: No such file or directory" if kind == "nothing" else NOT_REGULAR
    assert "target" not in check(store, store.ingest([str(source)], options=INLINE), {"target": reason})


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_another_file_of_the_same_name_goes_in_as_itself(
    make_store: MakeStore, source: Path, at: Callable[..., Moments], size: int
) -> None:
    """Same length, same time, same mode: only the change time and the inode tell."""
    target = source / "target"
    target.write_bytes(b"o" * size)
    other = source.with_name("other")

    def swap(path: Path) -> None:
        os.rename(other, path)

    other.write_bytes(b"n" * size)
    os.utime(other, ns=(1, target.stat().st_mtime_ns))
    inode = other.stat().st_ino
    store = make_store()
    at(target, swap, None)
    assert check(store, store.ingest([str(source)], options=INLINE), {})["target"] == b"n" * size
    store.catalog.use_all()
    query = "SELECT inode, ctime_ns FROM objects WHERE decode(path) = 'source/target'"
    assert store.catalog.connection.execute(query).fetchall() == [(inode, target.stat().st_ctime_ns)]


# --- directories that something else takes the place of --------------------------------------------------------------


def swap_folder(inner: str, by_link: bool) -> Callable[[Path], None]:
    """What puts the tree `elsewhere`, beside the source, in the place of the source's directory `inner`."""

    def act(path: Path) -> None:
        source = next(folder for folder in path.parents if folder.name == "source")
        elsewhere = source.with_name("elsewhere")
        os.rename(source / inner, source.with_name("taken_away"))
        if by_link:
            (source / inner).symlink_to(elsewhere)
        else:
            os.rename(elsewhere, source / inner)

    return act


def make_twins(folder: Path, deep: str, size: int) -> None:
    """Two trees that differ in the bytes of one file alone: `source`/inner, and `elsewhere` beside the source."""
    for place, letter in ((folder / "source" / "inner", b"o"), (folder / "elsewhere", b"n")):
        (place / deep).mkdir(parents=True)
        (place / deep / "target").write_bytes(letter * size)
        os.utime(place / deep / "target", ns=(1, 1))


@pytest.mark.parametrize("by_link", [True, False], ids=["link", "folder"])
@pytest.mark.parametrize("deep", one_in(2, [".", "a/b", "/".join(["d"] * 150)]), ids=["here", "below", "deep"])
@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_nothing_is_read_out_of_a_directory_that_took_the_place_of_another(
    make_store: MakeStore, source: Path, at: Callable[..., Moments], by_link: bool, deep: str, size: int
) -> None:
    make_twins(source.parent, deep, size)
    target = source / "inner" / deep / "target"
    store = make_store()
    at(target, swap_folder("inner", by_link), None)
    name = os.path.relpath(target, source)
    assert name not in check(store, store.ingest([str(source)], options=INLINE), {name: REPLACED})


def test_a_file_that_moved_with_its_directory_to_where_another_was_goes_in(
    make_store: MakeStore, source: Path, at: Callable[..., Moments]
) -> None:
    """The directory is another one, but the file is the one that was scanned."""
    make_twins(source.parent, ".", SMALL)
    target = source / "inner" / "target"

    def act(path: Path) -> None:
        os.rename(path, source.with_name("elsewhere") / "target")
        swap_folder("inner", False)(path)

    store = make_store()
    at(target, act, None)
    assert check(store, store.ingest([str(source)], options=INLINE), {})["inner/target"] == b"o" * SMALL


@pytest.mark.parametrize("listed", [False, True])
def test_workers_read_nothing_through_a_link_that_took_the_place_of_a_directory(tmp_path: Path, listed: bool) -> None:
    """The reader is stopped while it reads the first file, which the scan is long past."""
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "first", "wb") as file:
        for _ in range(240):
            file.write(b"1" * (1 << 20))
    make_twins(tmp_path, ".", SMALL)
    drystone("init", tmp_path / "store")
    command = [str(Path(sys.executable).with_name("drystone")), "-s", tmp_path / "store", "ingest", source]
    if listed:
        (tmp_path / "list").write_text("first\ninner/target\n")
        command += ["--files-from", tmp_path / "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        reader = wait_for_reader(process, source / "first")
        swap_folder("inner", True)(source / "inner" / "target")
        os.kill(reader, signal.SIGCONT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert said.splitlines() == [f"skipped or incomplete: source/inner/target: {REPLACED}"]
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        assert [(info.path, info.size) for info in store.list(recursive=True) if info.error] == [
            (b"source/inner/target", 0)
        ]


def wait_for_reader(process: subprocess.Popen[str], path: Path) -> int:
    """The process of the ingest that has this file open; it is stopped."""
    while process.poll() is None:
        for pid in descendants(process.pid):
            if has_open(pid, path):
                os.kill(pid, signal.SIGSTOP)
                assert has_open(pid, path), "it was read before it could be stopped"
                return pid
    raise AssertionError("no process has opened it")


def descendants(pid: int) -> Iterator[int]:
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield child
        with suppress(OSError):
            yield from descendants(child)


def has_open(pid: int, path: Path) -> bool:
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == str(path):
                    return True
    return False


def test_a_directory_that_became_another_before_it_was_walked_goes_in_as_that(
    make_store: MakeStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its attributes are those of the one whose files go in: they may be more open than these files should be."""
    make_twins(source.parent, ".", SMALL)
    (source.parent / "elsewhere").chmod(0o700)
    opening, hits = os.open, [0]

    def open_(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"inner" and not hits[0]:
            hits[0] += 1
            swap_folder("inner", False)(source / "inner" / "target")
        return opening(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_)
    store = make_store()
    content = check(store, store.ingest([str(source)], options=INLINE), {})["inner/target"]
    assert content == b"n" * SMALL and hits[0] == 1
    store.catalog.use_all()
    query = "SELECT mode FROM objects WHERE decode(path) = 'source/inner'"
    ((mode,),) = store.catalog.connection.execute(query).fetchall()
    assert stat.S_IMODE(mode) == 0o700


@pytest.mark.parametrize("by_link", [True, False], ids=["link", "folder"])
def test_the_attributes_of_an_unchanged_file_are_not_read_out_of_another_directory(
    make_store: MakeStore, source: Path, monkeypatch: pytest.MonkeyPatch, by_link: bool
) -> None:
    """Where change times are ignored, attributes of unchanged files are looked at by name."""
    make_twins(source.parent, ".", SMALL)
    target = source / "inner" / "target"
    try:
        os.setxattr(source.parent / "elsewhere" / "target", "user.secret", b"1")
    except OSError as error:
        pytest.skip(f"extended attributes: {error.strerror}")
    store = make_store()
    monkeypatch.setattr("pipeline.ingest.read.QUIET_NS", -(10**9))  # as if all had been quiet for long
    quiet = replace(INLINE, parent=ParentOptions(comparison=Comparison(ctime=False)))
    store.ingest([str(source)], options=quiet)
    os.chmod(target, 0o600)
    reading, hits = SourceFolders.xattrs, [0]

    def xattrs(folders: SourceFolders, source_number: int, below: bytes, folder: Identity) -> bytes:
        if below == b"inner/target":
            hits[0] += 1
            swap_folder("inner", by_link)(target)
        return reading(folders, source_number, below, folder)

    monkeypatch.setattr(SourceFolders, "xattrs", xattrs)
    check(store, store.ingest([str(source)], options=quiet), {"inner/target": REPLACED})
    assert hits[0] == 1


@pytest.mark.parametrize("by_link", [True, False], ids=["link", "folder"])
def test_a_comparison_follows_no_link_below_its_directory(
    make_store: MakeStore, source: Path, monkeypatch: pytest.MonkeyPatch, by_link: bool
) -> None:
    make_twins(source.parent, ".", SMALL)
    store = make_store()
    store.ingest([str(source)], options=INLINE)
    reading, hits = SourceFolders.xattrs, [0]

    def xattrs(folders: SourceFolders, number: int, below: bytes, folder: Identity) -> bytes:
        if below == b"inner/target":
            hits[0] += 1
            swap_folder("inner", by_link)(source / "inner" / "target")
        return reading(folders, number, below, folder)

    monkeypatch.setattr(SourceFolders, "xattrs", xattrs)
    (found,) = store.compare("latest:source", source, data=False)
    assert (found.path, found.verdict) == (b"source/inner/target", "unreadable") and REPLACED in found.what[0]
    assert hits[0] == 1


@pytest.mark.parametrize(("size", "after"), [(SMALL, 1), (LARGE, 1), (LARGE, 8)])
def test_a_disk_that_fails_while_a_file_is_read(
    make_store: MakeStore, source: Path, at: Callable[..., Moments], size: int, after: int
) -> None:
    (source / "target").write_bytes(os.urandom(size))

    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = make_store()
    at(source / "target", fail, after)
    result = store.ingest([str(source)], options=INLINE)
    if size == SMALL:  # the short way failed, the long way read on
        check(store, result, {})
    else:
        assert "target" not in check(store, result, {"target": "reading it failed: Input/output error"})


def test_a_file_that_never_ends_is_cut_and_marked(
    make_store: MakeStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "GROWTH", 9_000_000)
    target, read, grown = source / "target", os.readv, [0]

    def readv(fd: int, buffers: list[memoryview]) -> int:
        count = read(fd, buffers)
        if os.readlink(f"/proc/self/fd/{fd}") == str(target):
            grown[0] += 1
            assert grown[0] < 100, "it is read for ever"
            with open(target, "ab") as file:
                file.write(bytes(3_000_000))
        return count

    target.write_bytes(bytes(3_000_000))
    monkeypatch.setattr(os, "readv", readv)
    store = make_store()
    content = check(store, store.ingest([str(source)], options=INLINE), {"target": CHANGED})["target"]
    assert 12_000_000 <= len(content) < 20_000_000 and grown[0] > 2


def test_a_directory_that_vanishes_is_named(
    make_store: MakeStore, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "gone").mkdir()
    (source / "gone" / "file").write_bytes(b"1")
    opening, hits = os.open, [0]

    def open_(path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == b"gone":
            hits[0] += 1
            shutil.rmtree(source / "gone")
        return opening(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_)
    store = make_store()
    check(store, store.ingest([str(source)], options=INLINE), {"gone": "listing it failed: No such file or directory"})
    assert hits[0] == 1


def test_what_may_not_be_read_is_named_and_the_rest_goes_in(source: Path, tmp_path: Path) -> None:
    """As nobody: in a user namespace of which no file's owner is a member, even root's rights end at the mode."""
    (source / "closed").mkdir()
    (source / "closed" / "file").write_bytes(b"1")
    os.chmod(source / "target", 0)
    os.chmod(source / "closed", 0)
    drystone("init", tmp_path / "store")
    command = [str(Path(sys.executable).with_name("drystone")), "-s", tmp_path / "store", "ingest", source]
    done = subprocess.run(["unshare", "--user", *command], capture_output=True, text=True, timeout=60)
    os.chmod(source / "closed", 0o700)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines() == [
        "skipped or incomplete: source/target: opening it failed: Permission denied",
        "skipped or incomplete: source/closed: listing it failed: Permission denied",
    ]
    for line in ("1  opening it failed: Permission denied", "exit code 3: done, but items were skipped"):
        assert line in done.stdout
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        assert b"".join(store.open_range("latest:source/untouched")) == b"untouched" * 100


# --- files that are no ordinary files --------------------------------------------------------------------------------


def test_files_that_the_kernel_makes_up_have_their_true_length(make_store: MakeStore, tmp_path: Path) -> None:
    switch = next(
        path for path in map(Path, ("/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/uevent_seqnum"))
        if path.exists()
    )  # fmt: skip
    store = make_store()
    result = store.ingest(["/proc/version", str(switch)], options=INLINE)
    assert result.exit_code == 0
    for path in (Path("/proc/version"), switch):
        expected = path.read_bytes()
        info = next(iter(store.list(f"latest:{path.name}")))
        assert info.size == len(expected) != path.stat().st_size
        assert b"".join(store.open_range(f"latest:{path.name}")) == expected
    store.catalog.use_all()
    assert store.catalog.connection.execute("SELECT bool_or(clean) FROM objects").fetchall() == [(False,)]


def test_a_file_that_the_kernel_makes_up_without_end_is_marked(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    info = os.stat(tmp_path / "empty")
    assert stage.changed(info, info, 1 << 20) == ""
    assert stage.changed(info, info, stage.GROWTH) == "it goes on and on; the first part is archived"


def test_a_process_in_proc_has_an_end(make_store: MakeStore) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        store = make_store()
        result = store.ingest([f"/proc/{process.pid}"], options=INLINE)
        process.kill()
    assert result.exit_code == 3, "some of its files refuse to be read"
    assert b"".join(store.open_range(f"latest:{process.pid}/cmdline")) == b"sleep\x0060\0"
    assert result.tally.files > 50


def test_fifos_and_devices_by_name_are_not_opened(make_store: MakeStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = make_store()
    assert store.ingest([str(tmp_path / "pipe"), "/dev/zero"], options=INLINE).exit_code == 0
    assert [(info.path, info.kind, info.size) for info in store.list()] == [
        (b"pipe", "fifo", 0),
        (b"zero", "chardev", 0),
    ]
