"""What a tree holds besides bytes comes back: attributes, links, holes, nodes, names of every kind."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from manifests.errors import CorruptRecord
from manifests.xattrs import XATTRS_MOST, pack_xattrs, read_xattrs, unpack_xattrs
from pipeline.filestore import FileStore
from pipeline.ingest.parent import ParentOptions
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest, RestoreResult
from stages.assemble import ByteRange
from tests.forge import forge_run
from tests.trees import assert_equal_trees, data_map, link_groups, make_tree

INLINE = IngestOptions(inline=True, workers=1)
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="only root may do this")
MIB = 1 << 20


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory for a tree, on a file system that knows extended attributes of users."""
    (tmp_path / "probe").touch()
    try:
        os.setxattr(tmp_path / "probe", "user.drystone", b"1")
    except OSError:
        pytest.fail("the file system of the tests' temporary directory knows no extended attributes; set TMPDIR")
    (tmp_path / "probe").unlink()
    (tmp_path / "tree").mkdir()
    return tmp_path


def archive(place: Path, *, inline: bool = True) -> FileStore:
    store = FileStore.create([place / "store"], cache=place / "cache")
    options = INLINE if inline else IngestOptions(workers=2)
    assert store.ingest([str(place / "tree")], options=options).exit_code == 0
    return store


def restore(store: FileStore, to: Path, selection: str = "latest", **more: object) -> RestoreResult:
    request = RestoreRequest("", inline=True, workers=1, **more)  # type: ignore[arg-type]
    return store.restore(selection, to, request=request)


def round_trip(place: Path) -> Path:
    """The tree, archived, verified and restored; the restored one."""
    with archive(place) as store:
        result = restore(store, place / "out")
        assert (result.exit_code, result.failures) == (0, [])
        assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    assert_equal_trees(place / "tree", place / "out" / "tree")
    return place / "out" / "tree"


# --- extended attributes ---------------------------------------------------------------------------------------------


def test_extended_attributes_of_everything(place: Path) -> None:
    tree = place / "tree"
    (tree / "small").write_bytes(b"small")
    (tree / "empty").touch()
    (tree / "large").write_bytes(os.urandom(9 * MIB))
    (tree / "folder").mkdir()
    for name in ("small", "empty", "large", "folder", ""):
        os.setxattr(tree / name, "user.note", f"of {name}".encode())
        os.setxattr(tree / name, "user.binary", bytes(range(256)))
        os.setxattr(tree / name, "user.empty", b"")
    out = round_trip(place)
    assert os.getxattr(out / "large", "user.note") == b"of large"
    assert os.getxattr(out / "folder", "user.binary") == bytes(range(256))


def test_many_and_long_attributes_need_more_than_one_message(place: Path) -> None:
    for number in range(300):
        path = place / "tree" / f"file{number:03}"
        path.write_bytes(b"%d" % number)
        try:
            os.setxattr(path, "user.long", os.urandom(3500))
        except OSError:
            pytest.skip("the file system takes no attributes of 3,500 bytes")
    round_trip(place)


@needs_root
def test_acls_and_capabilities(place: Path) -> None:
    tree = place / "tree"
    program = tree / "program"
    program.write_bytes(b"#!/bin/true\n")
    os.chown(program, 1234, 4321)
    program.chmod(0o4755)
    # Version 2 of struct vfs_cap_data: CAP_NET_RAW, permitted and effective.
    os.setxattr(program, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
    (tree / "shared").mkdir()
    shutil.copy(program, tree / "shared" / "file")
    # user::rwx, user:1234:r-x, group::r-x, mask::rwx, other::---
    entries = [(1, 7, 0xFFFFFFFF), (2, 5, 1234), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(tree / "shared", "system.posix_acl_access", acl)
        os.setxattr(tree / "shared", "system.posix_acl_default", acl)
        os.setxattr(tree / "shared" / "file", "system.posix_acl_access", acl)
    except OSError as error:
        pytest.skip(f"the file system takes no ACLs: {error}")
    out = round_trip(place)
    assert os.getxattr(out / "program", "security.capability")
    assert os.getxattr(out / "shared", "system.posix_acl_default") == acl
    assert stat.S_IMODE(os.stat(out / "program").st_mode) == 0o4755


def test_attributes_that_cannot_be_set_are_named_and_the_rest_is_there(place: Path) -> None:
    (place / "tree" / "file").write_bytes(b"content")
    (place / "tree" / "other").write_bytes(b"other")
    with archive(place) as store:
        store.close()
    packed = pack_xattrs({b"user.good": b"1", b"nonsense.name": b"2"})
    forge_run(
        place / "store",
        place / "cache",
        lambda rows: [{**row, "xattrs": packed} if row["path"] == b"tree/file" else row for row in rows],
    )
    with FileStore.open(place / "store", cache=place / "cache") as store:
        result = restore(store, place / "out")
    if ROOT:
        assert result.exit_code == 3
        assert [path for path, _ in result.failures] == [b"tree/file"]
        assert "nonsense.name" in result.failures[0][1]
    assert (place / "out" / "tree" / "file").read_bytes() == b"content"
    assert os.getxattr(place / "out" / "tree" / "file", "user.good") == b"1"
    assert (place / "out" / "tree" / "other").read_bytes() == b"other"


def test_packed_attributes_come_apart_again_and_lies_are_refused() -> None:
    attributes = {b"user.b": b"", b"user.a": bytes(1000), b"user.\xff": b"\0"}
    packed = pack_xattrs(attributes)
    assert unpack_xattrs(packed) == attributes
    assert pack_xattrs({}) == b""
    for length in range(1, len(packed)):
        try:
            found = unpack_xattrs(packed[:length])
        except CorruptRecord:
            continue
        assert pack_xattrs(found) == packed[:length]
    with pytest.raises(CorruptRecord):
        unpack_xattrs(struct.pack("<HI", 6, 1 << 31) + b"user.x")


INTERNAL = [
    "trusted.SGI_ACL_FILE",
    "trusted.SGI_ACL_DEFAULT",
    "trusted.overlay.origin",
    "trusted.overlay.impure",
    "trusted.overlay.nlink",
    "user.overlay.upper",
]


@needs_root
def test_what_a_file_system_shows_or_notes_for_itself_is_neither_archived_nor_set(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second name of an ACL would bring back one that was taken away meanwhile. Older archives hold such names."""
    tree = place / "tree"
    (tree / "folder").mkdir()
    (tree / "file").write_bytes(b"1")
    (tree / "link").symlink_to("file")
    kept = {"trusted.overlay.opaque": b"y", "user.SGI_ACL_FILE": b"mine", "trusted.other": b"1"}
    for path in (tree, tree / "folder", tree / "file"):
        for name, value in (dict.fromkeys(INTERNAL, b"stale") | kept).items():
            os.setxattr(path, name, value)
    for name in ("trusted.SGI_ACL_FILE", "trusted.other"):
        os.setxattr(tree / "link", name, b"1", follow_symlinks=False)
    with archive(place) as store:
        store.catalog.use_all()
        for (packed,) in store.catalog.connection.execute("SELECT xattrs FROM objects").fetchall():
            assert b"trusted.other" in packed and b"stale" not in packed and b"trusted.SGI" not in packed
        assert list(store.compare("latest:tree", tree)) == []
        monkeypatch.setattr("manifests.xattrs.is_internal", lambda name: False)  # as older versions archived
        assert store.ingest([str(tree)], options=replace(INLINE, parent=ParentOptions(force=True))).exit_code == 0
        monkeypatch.undo()
        result = restore(store, place / "out")
        assert (result.exit_code, result.failures) == (0, [])
        for name in (".", "folder", "file"):
            found = {
                each: os.getxattr(place / "out" / "tree" / name, each)
                for each in os.listxattr(place / "out" / "tree" / name)
                if not each.startswith("security.")
            }
            assert found == kept, name
        assert os.listxattr(place / "out" / "tree" / "link", follow_symlinks=False) == ["trusted.other"]
        assert list(store.compare("latest:tree", place / "out" / "tree")) == []
        for overwrite in ("never", "if-changed"):
            again = restore(store, place / "out", overwrite=overwrite)
            assert (again.exit_code, again.failures) == (0, [])


def test_of_the_names_in_system_only_acls_are_archived() -> None:
    """Other servers and file systems show what they make of modes and ACLs there: it can't be set elsewhere."""
    acls = ["system.posix_acl_access", "system.posix_acl_default"]
    others = ["system.nfs4_acl", "system.cifs_acl", "system.ntfs_acl", "bcachefs_effective.compression"]
    kept = [*acls, "user.x", "security.selinux", "security.capability", "btrfs.compression", "trusted.overlay.redirect"]
    packed = pack_xattrs({name.encode(): b"1" for name in (*others, *kept)})
    assert sorted(unpack_xattrs(packed)) == sorted(name.encode() for name in kept)


def test_an_attribute_that_cannot_be_read_is_named_and_the_others_are_archived(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = place / "tree"
    (tree / "folder").mkdir()
    (tree / "file").write_bytes(b"1")
    for path in (tree / "folder", tree / "file"):
        for name in ("user.bad", "user.good", "user.worse"):
            os.setxattr(path, name, name.encode())
    reading = os.getxattr

    def getxattr(of: int | bytes, name: str, *, follow_symlinks: bool = True) -> bytes:
        if name in ("user.bad", "user.worse"):
            number = errno.EIO if name == "user.bad" else errno.EACCES
            raise OSError(number, os.strerror(number))
        return reading(of, name, follow_symlinks=follow_symlinks)

    store = FileStore.create([place / "store"], cache=place / "cache")
    with store:
        monkeypatch.setattr(os, "getxattr", getxattr)
        assert store.ingest([str(tree)], options=INLINE).exit_code == 3
        found = {info.path: info.error for info in store.list(recursive=True) if info.error}
        reason = "reading its extended attributes failed: user.bad: Input/output error, user.worse: Permission denied"
        assert found == {b"tree/file": reason, b"tree/folder": reason}
        assert [info.size for info in store.list("latest:tree/file")] == [1]
        compared = {found.path: found for found in store.compare("latest:tree", tree)}
        assert {found.verdict for found in compared.values()} == {"incomplete"}
        monkeypatch.undo()
        restore(store, place / "out")
        for name in ("folder", "file"):
            found_names = [each for each in os.listxattr(place / "out" / "tree" / name) if each.startswith("user.")]
            assert found_names == ["user.good"]
            assert os.getxattr(place / "out" / "tree" / name, "user.good") == b"user.good"


def test_attributes_beyond_the_bound_are_an_error_and_not_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "listxattr", lambda *_, **__: [f"user.{n}" for n in range(5)])
    monkeypatch.setattr(os, "getxattr", lambda *_, **__: bytes(60_000))
    with pytest.raises(OSError, match=str(XATTRS_MOST)):
        read_xattrs(os.fsencode(tmp_path / "file"))


# --- hardlinks -------------------------------------------------------------------------------------------------------


def make_links(tree: Path) -> None:
    (tree / "a" / "deep").mkdir(parents=True)
    (tree / "b").mkdir()
    (tree / "a" / "first").write_bytes(b"one file, three names")
    os.link(tree / "a" / "first", tree / "a" / "deep" / "second")
    os.link(tree / "a" / "first", tree / "b" / "third")
    (tree / "b" / "large").write_bytes(os.urandom(6 * MIB))
    os.link(tree / "b" / "large", tree / "a" / "large-too")
    (tree / "empty").touch()
    os.link(tree / "empty", tree / "b" / "empty-too")
    os.symlink("a/first", tree / "link")
    os.link(tree / "link", tree / "b" / "link-too", follow_symlinks=False)
    os.mkfifo(tree / "fifo")
    os.link(tree / "fifo", tree / "b" / "fifo-too")
    (tree / "twin").write_bytes(b"one file, three names")


@pytest.mark.parametrize("inline", [True, False])
def test_names_of_one_file_are_names_of_one_file_again(place: Path, inline: bool) -> None:
    make_links(place / "tree")
    with archive(place, inline=inline) as store:
        request = RestoreRequest("", inline=inline, workers=None if not inline else 1)
        result = store.restore("latest", place / "out", request=request)
    assert (result.exit_code, result.failures) == (0, [])
    assert_equal_trees(place / "tree", place / "out" / "tree")
    groups = link_groups(place / "out" / "tree")
    assert groups == link_groups(place / "tree")
    assert len(groups) == 5 and max(map(len, groups)) == 3


def test_one_name_of_a_group_alone_comes_back_as_a_file(place: Path) -> None:
    make_links(place / "tree")
    with archive(place) as store:
        assert restore(store, place / "one", "latest:tree/b/third").exit_code == 0
        assert restore(store, place / "some", "latest:tree/b").exit_code == 0
    assert (place / "one" / "third").read_bytes() == b"one file, three names"
    assert os.stat(place / "one" / "third").st_nlink == 1
    assert sorted(os.listdir(place / "some" / "b")) == sorted(os.listdir(place / "tree" / "b"))


@pytest.mark.parametrize("overwrite", ["never", "if-changed", "always"])
def test_links_over_what_is_there_already(place: Path, overwrite: str) -> None:
    make_links(place / "tree")
    with archive(place) as store:
        assert restore(store, place / "out").exit_code == 0
        (place / "out" / "tree" / "b" / "third").unlink()
        (place / "out" / "tree" / "b" / "third").write_bytes(b"in the way")
        result = restore(store, place / "out", overwrite=overwrite)
    kept = overwrite == "never"
    assert result.exit_code == (3 if kept else 0)
    assert (place / "out" / "tree" / "b" / "third").read_bytes() == (
        b"in the way" if kept else b"one file, three names"
    )
    if not kept:
        assert link_groups(place / "out" / "tree") == link_groups(place / "tree")


def test_a_name_is_never_linked_to_what_is_not_the_archived_file(place: Path) -> None:
    make_links(place / "tree")
    out = place / "out" / "tree"
    (out / "a").mkdir(parents=True)
    (out / "a" / "first").write_bytes(b"somebody else's")
    with archive(place) as store:
        result = restore(store, place / "out")
    assert result.exit_code == 3
    names = {path for path, _ in result.failures}
    assert b"tree/a/first" in names
    assert (out / "a" / "first").read_bytes() == b"somebody else's"
    for name in ("a/deep/second", "b/third"):
        assert os.fsencode(f"tree/{name}") in names or (out / name).read_bytes() == b"one file, three names"


def test_where_no_link_can_be_made_there_is_a_copy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_links(place / "tree")
    asked = []

    def no_links(*names: object, **_: object) -> None:
        asked.append(names)
        raise PermissionError(1, "Operation not permitted")

    with archive(place) as store:
        monkeypatch.setattr(os, "link", no_links)
        result = restore(store, place / "out")
    assert asked
    out = place / "out" / "tree"
    assert (out / "b" / "third").read_bytes() == b"one file, three names"
    assert (out / "a" / "large-too").read_bytes() == (place / "tree" / "b" / "large").read_bytes()
    assert {path for path, _ in result.failures} <= {b"tree/link", b"tree/b/link-too", b"tree/fifo", b"tree/b/fifo-too"}


# --- holes -----------------------------------------------------------------------------------------------------------


def write_sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    with open(path, "wb") as file:
        file.truncate(size)
        for offset, data in pieces.items():
            file.seek(offset)
            file.write(data)


SPARSE = {
    "one hole": (7 * MIB + 123, {}),
    "hole first": (5 * MIB, {4 * MIB: b"end" * 1000}),
    "hole last": (30 * MIB + 1, {0: os.urandom(3 * MIB)}),
    "islands": (64 * MIB, {n * 3 * MIB: os.urandom(200_000 + n) for n in range(20)}),
    "small holes": (4 * MIB, {n * 65536: os.urandom(4096) for n in range(64)}),
    "one page": (1 << 31, {12345 * 4096: b"x"}),
    "to the end": (20 * MIB, {20 * MIB - 100: bytes(range(100))}),
}


@pytest.fixture
def sparse(place: Path) -> Path:
    for name, (size, pieces) in SPARSE.items():
        write_sparse(place / "tree" / name, size, pieces)
        if name != "one page":
            os.utime(place / "tree" / name, ns=(1, 10**18))
    if not data_map(place / "tree" / "one page"):
        pytest.skip("the file system makes no holes")
    return place


def test_holes_are_holes_again(sparse: Path) -> None:
    out = round_trip(sparse)
    for name in SPARSE:
        assert data_map(out / name) == data_map(sparse / "tree" / name), name
        assert os.stat(out / name).st_blocks <= os.stat(sparse / "tree" / name).st_blocks + 64, name


def test_ranges_and_digests_of_sparse_objects(sparse: Path) -> None:
    with archive(sparse, inline=False) as store:
        for info in store.list("latest:tree"):
            if info.kind != "file" or info.size > 1 << 30:
                continue
            data = (sparse / "tree" / os.fsdecode(info.path).removeprefix("tree/")).read_bytes()
            assert info.digest == blake3(data).digest()
            for start, end in ((0, 10), (len(data) - 7, len(data)), (MIB - 5, 4 * MIB + 5), (0, len(data))):
                piece = b"".join(store.open_range(f"latest:{os.fsdecode(info.path)}", ByteRange(start, end - 1)))
                assert piece == data[start:end], (info.path, start, end)


def test_a_large_hole_costs_nothing_to_keep(place: Path) -> None:
    write_sparse(place / "tree" / "disk", 4 << 30, {1 << 30: b"data" * 1000})
    with archive(place) as store:
        stats = store.stats()
    assert stats.unique < MIB and stats.logical == 4 << 30


def test_a_size_without_anything_that_it_consists_of_is_refused(place: Path) -> None:
    write_sparse(place / "tree" / "hole", 3 * MIB, {})
    with archive(place) as store:
        store.close()
    forge_run(
        place / "store",
        place / "cache",
        lambda rows: [{**row, "holes": None} if row["path"] == b"tree/hole" else row for row in rows],
    )
    with FileStore.open(place / "store", cache=place / "cache") as store:
        result = restore(store, place / "out")
    assert result.exit_code == 3
    assert [path for path, _ in result.failures] == [b"tree/hole"]
    assert not (place / "out" / "tree" / "hole").exists()


# --- nodes, modes, owners --------------------------------------------------------------------------------------------


@needs_root
def test_nodes_modes_and_owners(place: Path) -> None:
    tree = place / "tree"
    try:
        os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(tree / "disk", stat.S_IFBLK | 0o640, os.makedev(7, 200))
    except PermissionError:
        pytest.skip("this root may make no devices")
    os.mkfifo(tree / "fifo", 0o622)
    for number, mode in enumerate((0o4711, 0o2750, 0o6777, 0o000, 0o444)):
        path = tree / f"mode{number}"
        path.write_bytes(b"x" * number)
        os.chown(path, 1000 + number, 2000 + number)
        path.chmod(mode)
        os.utime(path, ns=(1, 1_234_567_890_123_456_789 + number))
    os.symlink("nowhere", tree / "link")
    os.chown(tree / "link", 77, 88, follow_symlinks=False)
    os.utime(tree / "link", ns=(1, 987_654_321_000_000_001), follow_symlinks=False)
    (tree / "sticky").mkdir()
    os.chown(tree / "sticky", 5, 6)
    (tree / "sticky").chmod(0o3777)
    round_trip(place)


@needs_root
def test_owners_go_by_name_unless_numbers_are_asked_for(place: Path) -> None:
    (place / "tree" / "file").write_bytes(b"x")
    with archive(place) as store:
        store.close()
    forge_run(
        place / "store",
        place / "cache",
        lambda rows: [
            {**row, "uid": 54321, "user_name": "daemon", "gid": 54322, "group_name": "no such group"} for row in rows
        ],
    )
    import pwd

    with FileStore.open(place / "store", cache=place / "cache") as store:
        assert restore(store, place / "names").exit_code == 0
        assert restore(store, place / "numbers", numeric_ids=True).exit_code == 0
    by_name, by_number = (os.stat(place / kind / "tree" / "file") for kind in ("names", "numbers"))
    assert (by_name.st_uid, by_name.st_gid) == (pwd.getpwnam("daemon").pw_uid, 54322)
    assert (by_number.st_uid, by_number.st_gid) == (54321, 54322)


@needs_root
def test_somebody_else_restores_all_but_what_is_roots_and_counts_it(place: Path) -> None:
    tree = place / "tree"
    (tree / "file").write_bytes(b"content")
    os.setxattr(tree / "file", "user.note", b"1")
    os.setxattr(tree / "file", "trusted.note", b"2")
    os.chown(tree / "file", 1234, 1234)
    archive(place).close()
    for path in (place, place / "store", *(place / "store").rglob("*"), *place.parents):
        path.chmod(path.stat().st_mode | 0o755)
    (place / "out").mkdir()
    os.chown(place / "out", 65534, 65534)
    child = os.fork()
    if child == 0:  # a process that gives its rights up for good; it has all modules loaded already
        try:
            os.setgid(65534)
            os.setuid(65534)
            with FileStore.open(place / "store", cache=place / "out" / "cache") as store:
                result = restore(store, place / "out")
            os._exit(0 if (result.exit_code, result.left_to_root) == (0, 2) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    out = place / "out" / "tree" / "file"
    assert out.read_bytes() == b"content"
    assert os.stat(out).st_uid == 65534
    assert os.listxattr(out) == ["user.note"]


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_of_every_kind(place: Path) -> None:
    tree = os.fsencode(place / "tree")
    names = [b"\xff\xfe", b"new\nline", b" ", b"\x01\x7f", b"x" * 255, "ünï".encode(), b"a\\b", b"*", b"-rf", b"'\""]
    for name in names:
        with open(tree + b"/" + name, "wb") as file:
            file.write(name)
        os.mkdir(tree + b"/d" + name[:254])
    out = round_trip(place)
    assert set(os.listdir(os.fsencode(out))) == set(os.listdir(tree))


def make_deep(top: Path, part: str, depth: int) -> None:
    """Directories in one another, with a file at each hundredth and at the bottom, beyond what a path may be long."""
    fd = os.open(top, os.O_RDONLY)
    for level in range(depth):
        os.mkdir(part, dir_fd=fd)
        inner = os.open(part, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
        if level % 100 == 99 or level == depth - 1:
            file = os.open(f"file{level}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd)
            os.write(file, b"at level %d" % level)
            os.close(file)
    os.close(fd)


@pytest.mark.parametrize(("part", "depth"), [("d" * 250, 25), ("d", 2100)])
def test_paths_beyond_what_the_kernel_takes_at_once(place: Path, part: str, depth: int) -> None:
    make_deep(place / "tree", part, depth)
    try:
        with archive(place) as store:
            listed = [info.path for info in store.list("latest", recursive=True)]
            assert max(map(len, listed)) > 4096
            assert restore(store, place / "out").exit_code == 0
        fd = os.open(place / "out" / "tree", os.O_RDONLY)
        for level in range(depth):
            inner = os.open(part, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
            if level % 100 == 99 or level == depth - 1:
                file = os.open(f"file{level}", os.O_RDONLY, dir_fd=fd)
                assert os.read(file, 100) == b"at level %d" % level
                os.close(file)
        os.close(fd)
    finally:
        for name in ("tree", "out"):
            subprocess.run(["rm", "-rf", str(place / name)], check=True)


# --- all together ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed; .ci/run installs it")
def test_rsync_finds_no_difference(place: Path) -> None:
    shutil.rmtree(place / "tree")
    tree = make_tree(place / "tree", seed=3)
    make_links(tree / "empty")
    write_sparse(tree / "sparse", 9 * MIB, {5 * MIB: b"x" * 10_000})
    os.setxattr(tree / "file0", "user.note", b"x")
    if ROOT:
        os.chown(tree / "file1", 12, 34)
    with archive(place, inline=False) as store:
        assert store.restore("latest", place / "out").exit_code == 0
    done = subprocess.run(
        ["rsync", "-aHAXnic", "--delete", f"{tree}/", f"{place / 'out' / 'tree'}/"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
