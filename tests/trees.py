"""Trees for tests, and a comparator that is ours: names, kinds, bytes, modes, times."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

from blake3 import blake3


def make_tree(root: Path, seed: int = 0, files: int = 60, largest: int = 300_000) -> Path:
    """A tree with small and large, empty, equal and incompressible files, links, deep and empty directories and names
    that are not UTF-8."""
    chance = random.Random(seed)
    root.mkdir(parents=True)
    words = [chance.randbytes(chance.randint(2, 9)) for _ in range(200)]
    folders = [root]
    for number in range(files):
        folder = chance.choice(folders)
        if chance.random() < 0.2:
            folder = folder / f"dir{number}"
            folder.mkdir()
            folders.append(folder)
        size = chance.choice([0, 1, 100, 5_000, 20_000, largest])
        if chance.random() < 0.3:
            data = chance.randbytes(size)
        else:
            data = b" ".join(chance.choices(words, k=size // 6 + 1))[:size]
        path = folder / f"file{number}"
        path.write_bytes(data)
        if chance.random() < 0.2:
            (folder / f"copy{number}").write_bytes(data)
        os.chmod(path, chance.choice([0o644, 0o600, 0o755, 0o444]))
        os.utime(path, ns=(1, chance.randint(0, 2 * 10**18)))
    (root / "empty").mkdir()
    (root / "link").symlink_to("file0")
    (root / "dangling").symlink_to("/nowhere/at all")
    (root / "to-folder").symlink_to("empty")
    os.mkfifo(root / "pipe", 0o640)
    os.utime(root / "pipe", ns=(1, 10**18))
    with open(os.fsencode(root) + b"/not-utf8-\xff\xfe\n", "wb") as file:
        file.write(b"name")
    for folder in folders:
        os.utime(folder, ns=(1, 1_600_000_000_123_456_789))
    return root


def describe(root: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything below `root` that a restore gives back, by path: kind and mode, owner, time, device number, extended
    attributes, and bytes or target (the digest of what is longer than a few MiB)."""
    found: dict[bytes, tuple[object, ...]] = {}
    top = os.fsencode(root)
    for folder, names, files in os.walk(top):
        for name in [b".", *names, *files]:
            path = os.path.normpath(os.path.join(folder, name))
            info = os.lstat(path)
            content: bytes | None = None
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode):
                content = _content(path, info.st_size)
            attributes = {
                each: os.getxattr(path, each, follow_symlinks=False)
                for each in os.listxattr(path, follow_symlinks=False)
            }
            owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else ()
            device = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
            relative = os.path.relpath(path, top)
            found[relative] = (info.st_mode, owner, info.st_mtime_ns, device, attributes, content)
    return found


def _content(path: bytes, size: int) -> bytes:
    with open(path, "rb") as file:
        if size <= 16 << 20:
            return file.read()
        hasher = blake3()
        at = 0
        for start, end in data_map(path):
            hasher.update(start.to_bytes(8, "little"))
            file.seek(start)
            while start < end:
                piece = file.read(min(1 << 20, end - start))
                # Where data ends and a hole begins is for data_map; here all zeros are equal.
                hasher.update(piece)
                start += len(piece)
            at = end
        return hasher.digest() + at.to_bytes(8, "little")


def data_map(path: Path | bytes) -> list[tuple[int, int]]:
    """(start, end) of the data of a file; what lies between are holes."""
    found, at = [], 0
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        while at < size:
            try:
                start = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(fd, start, os.SEEK_HOLE)
            found.append((start, at))
    finally:
        os.close(fd)
    return found


def link_groups(root: Path) -> set[frozenset[str]]:
    """Names below `root` that are names of one object, by group."""
    groups: dict[int, set[str]] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            info = os.lstat(os.path.join(folder, name))
            if info.st_nlink > 1:
                groups.setdefault(info.st_ino, set()).add(os.path.relpath(os.path.join(folder, name), root))
    return {frozenset(names) for names in groups.values() if len(names) > 1}


def assert_equal_trees(left: Path, right: Path) -> None:
    """Both trees hold the same; names what differs."""
    one, other = describe(left), describe(right)
    assert one.keys() == other.keys(), f"names differ: {sorted(one.keys() ^ other.keys())[:5]}"
    different = [path for path in one if one[path] != other[path]]
    assert not different, f"these differ: {different[:5]}"
