"""Trees for tests, and a comparator that is ours: names, kinds, bytes, modes, times."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path


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
    """Everything below `root` that a restore gives back, by path: mode, time, and bytes or target."""
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
                with open(path, "rb") as file:
                    content = file.read()
            found[os.path.relpath(path, top)] = (info.st_mode, info.st_mtime_ns, content)
    return found


def assert_equal_trees(left: Path, right: Path) -> None:
    """Both trees hold the same; names what differs."""
    one, other = describe(left), describe(right)
    assert one.keys() == other.keys(), f"names differ: {sorted(one.keys() ^ other.keys())[:5]}"
    different = [path for path in one if one[path] != other[path]]
    assert not different, f"these differ: {different[:5]}"
