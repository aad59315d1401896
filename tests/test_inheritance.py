"""Restored objects have what they had, and nothing that the target would pass on: ACLs, groups, flags."""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
import threading
from pathlib import Path

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from stages import inheritance
from tests.sampling import one_in

INLINE = IngestOptions(inline=True, workers=1)
ANY = 0xFFFFFFFF
#: user::rwx, user:4321:rwx, group::rwx, mask::rwx, other::rwx
OPEN = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry) for entry in [(1, 7, ANY), (2, 7, 4321), (4, 7, ANY), (16, 7, ANY), (32, 7, ANY)]
)
_NODUMP, _NOATIME = 0x40, 0x80
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other groups")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "folder" / "inner").mkdir(parents=True)
    (tree / "secret").write_bytes(b"secret")
    (tree / "folder" / "secret").write_bytes(os.urandom(100_000))
    (tree / "folder" / "large").write_bytes(os.urandom(6 << 20))
    (tree / "folder" / "inner" / "empty").touch()
    (tree / "link").symlink_to("secret")
    os.link(tree / "secret", tree / "folder" / "inner" / "linked")
    os.mkfifo(tree / "fifo", 0o600)
    for path in (tree, *tree.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o750 if path.is_dir() else 0o640)
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as made:
        assert made.ingest([str(tree)], options=INLINE).exit_code == 0
    return tmp_path / "store"


def restore(store: Path, to: Path, *, inline: bool = True, overwrite: str = "never") -> None:
    with FileStore.open(store, cache=store.parent / "cache") as opened:
        request = RestoreRequest("", overwrite, inline=inline, workers=1 if inline else 2)
        result = opened.restore("latest", to, request=request)
    assert (result.exit_code, result.failures) == (0, [])


def give_acl(folder: Path) -> None:
    try:
        os.setxattr(folder, inheritance.DEFAULT_ACL, OPEN)
    except OSError as error:
        pytest.skip(f"the file system takes no ACLs: {error}")


def everything(out: Path) -> list[Path]:
    return [out / "tree", *(out / "tree").rglob("*")]


@pytest.mark.parametrize("inline", one_in(2, [True, False]))
@pytest.mark.parametrize("stands", [False, True])
def test_a_default_acl_of_the_target_opens_nothing(store: Path, tmp_path: Path, inline: bool, stands: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    give_acl(out)
    if stands:
        (out / "tree" / "folder").mkdir(parents=True)
        (out / "other").touch()
    restore(store, out, inline=inline)
    for path in everything(out):
        assert not [name for name in os.listxattr(path, follow_symlinks=False) if "acl" in name], path
        if not path.is_symlink():
            assert stat.S_IMODE(path.stat().st_mode) == (0o750 if path.is_dir() else 0o640), path


def test_nothing_is_open_at_any_moment(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    give_acl(out)
    seen: set[Path] = set()
    troubles: list[str] = []
    done = threading.Event()

    def watch() -> None:
        last = False
        while not last:
            last = done.is_set()
            for folder, names, files in os.walk(out):
                for name in (*names, *files):
                    path = Path(folder, name)
                    if name == "whose.json":
                        continue  # the record of the restore holds nothing of an object
                    try:
                        info = path.lstat()
                        acls = [
                            each for each in os.listxattr(path, follow_symlinks=False) if "posix_acl_access" in each
                        ]
                    except OSError:
                        continue
                    seen.add(path)
                    if stat.S_ISREG(info.st_mode) and (acls or info.st_mode & 0o007):
                        troubles.append(f"{path} {info.st_mode:o} {acls}")

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        restore(store, out, inline=False)
    finally:
        done.set()
        watcher.join()
    assert seen and not troubles


@needs_root
@pytest.mark.parametrize("stands", [False, True])
def test_the_group_of_a_setgid_directory_is_not_inherited(store: Path, tmp_path: Path, stands: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if stands:
        (out / "other").touch()
    os.chown(out, -1, 4321)
    out.chmod(0o2777)
    # As a user without rights, who may not choose groups, restores it.
    child = os.fork()
    if not child:
        code = 1
        try:
            for path in (tmp_path, *tmp_path.parents, *store.rglob("*"), store):
                path.chmod(path.stat().st_mode | 0o755)
            os.setgroups([4321])
            os.setgid(1234)
            os.setuid(1234)
            with FileStore.open(store, cache=out / ".cache") as opened:
                result = opened.restore("latest", out, request=RestoreRequest("", inline=True, workers=1))
            code = 0 if result.exit_code == 0 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for path in everything(out):
        info = path.lstat()
        assert info.st_gid == 1234, path
        assert stat.S_ISLNK(info.st_mode) or not info.st_mode & stat.S_ISGID


def flags(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return inheritance._flags(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("stands", [False, True])
def test_flags_of_chattr_are_not_inherited(store: Path, tmp_path: Path, stands: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fd = os.open(out, os.O_RDONLY)
    try:
        wanted = inheritance._flags(fd) | _NODUMP | _NOATIME
        fcntl.ioctl(fd, inheritance._SET_FLAGS, struct.pack("i4x", wanted))
    except OSError as error:
        pytest.skip(f"the file system takes no flags: {error}")
    finally:
        os.close(fd)
    (out / "probe").touch()
    if not flags(out / "probe") & (_NODUMP | _NOATIME):
        pytest.skip("the file system lets nobody inherit flags")
    if not stands:
        (out / "probe").unlink()
    restore(store, out)
    for path in everything(out):
        if path.is_file() or path.is_dir():
            assert not flags(path) & (_NODUMP | _NOATIME), path
    assert flags(out) & _NODUMP


def test_an_archived_acl_comes_back_all_the_same(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    (tree / "shared").mkdir(parents=True)
    give_acl(tree / "shared")
    (tree / "shared" / "file").write_bytes(b"x")
    out.mkdir()
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as made:
        made.ingest([str(tree)], options=INLINE)
    for _ in range(2):
        restore(tmp_path / "store", out)
        for name in ("shared", "shared/file"):
            one, other = (
                {each: os.getxattr(top / name, each) for each in os.listxattr(top / name)}
                for top in (tree, out / "tree")
            )
            assert one == other and one


def test_the_numbers_of_the_requests_are_the_kernels() -> None:
    assert ctypes.sizeof(ctypes.c_long) != 8 or (inheritance._GET_FLAGS, inheritance._SET_FLAGS) == (
        0x80086601,
        0x40086602,
    )
