"""Files that stand in their place with the archived content, and differ in what they have besides."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest, RestoreResult
from tests.sampling import one_in

INLINE = IngestOptions(inline=True, workers=1)
NAMES = ("plain", "large", "empty", "linked", "folder/linked", "folder/fifo", "folder/symlink")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="giving files away takes root")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "plain").write_bytes(b"content")
    (tree / "large").write_bytes(os.urandom(5_000_000))
    (tree / "empty").touch()
    (tree / "linked").write_bytes(b"linked")
    (tree / "folder" / "linked").hardlink_to(tree / "linked")
    (tree / "folder" / "symlink").symlink_to("nowhere")
    os.mkfifo(tree / "folder" / "fifo")
    for name in ("plain", "large", "empty", "linked", "folder/fifo"):
        (tree / name).chmod(0o640)
    os.setxattr(tree / "plain", "user.kind", b"right")
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    assert restore(tmp_path).exit_code == 0
    return tmp_path


def restore(place: Path, overwrite: str = "never") -> RestoreResult:
    with FileStore.open(place / "store", cache=place / "cache") as opened:
        request = RestoreRequest("", overwrite, inline=True, workers=1)
        return opened.restore("latest", place / "out", request=request)


def state(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in NAMES:
        info = (root / name).lstat()
        xattrs = {each: os.getxattr(root / name, each, follow_symlinks=False)
                  for each in os.listxattr(root / name, follow_symlinks=False)}  # fmt: skip
        found[name] = (oct(info.st_mode), info.st_uid, info.st_gid, info.st_size, info.st_nlink, xattrs)
    return found


def spoil_mode(out: Path) -> set[str]:
    for name in ("plain", "large", "empty", "folder/fifo"):
        (out / name).chmod(0o4777)
    return {"plain", "large", "empty", "folder/fifo"}


def spoil_owner(out: Path) -> set[str]:
    for name in ("plain", "folder/symlink"):
        os.chown(out / name, 65534, 65534, follow_symlinks=False)
    return {"plain", "folder/symlink"}


def spoil_xattrs(out: Path) -> set[str]:
    os.setxattr(out / "plain", "user.kind", b"wrong")
    os.setxattr(out / "large", "user.more", b"surplus")
    return {"plain", "large"}


def spoil_links(out: Path) -> set[str]:
    info = (out / "linked").stat()
    (out / "folder" / "linked").unlink()
    (out / "folder" / "linked").write_bytes(b"linked")
    (out / "folder" / "linked").chmod(0o640)
    os.utime(out / "folder" / "linked", ns=(info.st_mtime_ns, info.st_mtime_ns))
    return {"folder/linked"}


def spoil_linked_mode(out: Path) -> set[str]:
    (out / "linked").chmod(0o4777)
    return {"linked", "folder/linked"}


SPOILERS = {
    "mode": spoil_mode,
    "extended attributes": spoil_xattrs,
    "hardlink": spoil_links,
    "linked mode": spoil_linked_mode,
}


@pytest.mark.parametrize("what", [*one_in(2, SPOILERS), pytest.param("owner", marks=as_root)])
def test_what_a_file_in_place_lacks_is_named_or_set(place: Path, what: str) -> None:
    out = place / "out" / "tree"
    spoiled = {**SPOILERS, "owner": spoil_owner}[what](out)
    before, inode = state(out), (out / "plain").stat().st_ino
    kept = restore(place)
    assert kept.exit_code == 3 and state(out) == before
    assert {os.fsdecode(path).removeprefix("tree/") for path, _ in kept.failures} == spoiled
    for path, reason in kept.failures:
        named = "hardlink" if path.endswith(b"folder/linked") else what.removeprefix("linked ")
        assert named in reason and "was kept; see --overwrite" in reason
    mended = restore(place, "if-changed")
    assert (mended.exit_code, mended.failures) == (0, [])
    assert state(out) == state(place / "tree")
    assert (out / "linked").samefile(out / "folder" / "linked")
    assert (out / "plain").stat().st_ino == inode, "it was not set in place"
    again = restore(place)
    assert (again.exit_code, again.in_place) == (0, again.files)


def test_another_file_that_is_linked_in_place_is_left_alone(place: Path) -> None:
    """Setting attributes on a name would set them on what has that name besides."""
    other = place / "other"
    other.hardlink_to(place / "out" / "tree" / "plain")
    other.chmod(0o600)
    assert restore(place, "if-changed").exit_code == 0
    assert state(place / "out" / "tree") == state(place / "tree")
    assert stat.S_IMODE(other.stat().st_mode) == 0o600


@as_root
def test_no_moment_is_more_open_than_before_or_after(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, seen = place / "out" / "tree" / "plain", list[int]()
    plain.chmod(0o4604)
    os.chown(plain, 65534, 65534)

    def chown(*arguments: object, **more: object) -> None:
        seen.append(stat.S_IMODE(plain.stat().st_mode))
        real(*arguments, **more)  # type: ignore[arg-type]

    real = os.chown
    monkeypatch.setattr(os, "chown", chown)
    assert restore(place, "if-changed").exit_code == 0
    assert seen == [0o600]


@as_root
def test_another_device_is_not_in_place(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    try:
        os.mknod(tmp_path / "tree" / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no device can be made here")
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
    assert restore(tmp_path).exit_code == 0
    node = tmp_path / "out" / "tree" / "node"
    time = node.stat().st_mtime_ns
    node.unlink()
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.utime(node, ns=(time, time))
    assert restore(tmp_path).exit_code == 3
    assert restore(tmp_path, "if-changed").exit_code == 0
    assert node.stat().st_rdev == os.makedev(1, 3)
