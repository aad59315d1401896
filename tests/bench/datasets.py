"""The data that is measured with: from what any machine has, and generated.

What has to be made is made once, in a folder that is kept, and is the same on every machine where it is generated.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.bench.measure import tree_bytes

MIB = 1 << 20
#: The piece in which data is generated.
_PIECE = 16 * MIB
Words = npt.NDArray[np.uint64]


class Missing(Exception):
    """A data set or a tool is not on this machine; the text says how to get it."""


@dataclass(frozen=True)
class DataSet:
    """A file or a tree. `versions`: what it becomes later, each archived as a run of its own."""

    name: str
    path: Path
    files: int
    bytes: int
    versions: tuple[Path, ...] = ()

    @classmethod
    def of(cls, name: str, path: Path, versions: tuple[Path, ...] = ()) -> DataSet:
        files = 1 if path.is_file() else sum(len(names) for _, _, names in os.walk(path))
        return cls(name, path, files, tree_bytes(path), versions)

    @property
    def latest(self) -> Path:
        return (self.path, *self.versions)[-1]


@dataclass(frozen=True)
class Places:
    """Where data comes from: `folder` for what is made; `linux` and `tar` where the user named them. `short`: a
    sixteenth of the size."""

    folder: Path
    linux: Path | None = None
    tar: Path | None = None
    short: bool = False

    def size(self, full: int) -> int:
        return full // 16 if self.short else full

    def made(self, name: str, size: int, write: Callable[[Path], None]) -> Path:
        """The file or folder `name`, written by `write` unless that was done before for this `size`."""
        path = self.folder / f"{name}-{size}"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            half = path.with_name(f"{path.name}.part")
            subprocess.run(["rm", "-rf", half], check=True)
            write(half)
            half.rename(path)
        return path


def linux(places: Places) -> DataSet:
    """The kernel's source: many small files."""
    found = places.linux
    if found is None:
        archives = sorted(Path("/usr/src").glob("linux-source-*.tar.*"))
        trees = [path for path in sorted(Path("/usr/src").glob("linux-source-*")) if path.is_dir()]
        if trees:
            found = trees[-1]
        elif archives:
            archive = archives[-1]

            def unpack(target: Path) -> None:
                target.mkdir()
                subprocess.run(["tar", "xf", archive, "-C", target], check=True)

            found = places.made("linux", archive.stat().st_size, unpack)
        else:
            raise Missing("the kernel's source: apt-get install linux-source, or --linux DIR")
    if not found.is_dir():
        raise Missing(f"{found} is not a directory; --linux names the kernel's source tree")
    return DataSet.of("linux", found)


def python(places: Places) -> DataSet:
    """Python's standard library: small files, sources and compiled ones."""
    return DataSet.of("python", Path(sysconfig.get_path("stdlib")))


def usr(places: Places) -> DataSet:
    """/usr/share: small files of all kinds."""
    return DataSet.of("usr", Path("/usr/share"))


def tar(places: Places) -> DataSet:
    """One large file of binaries: a tar of /usr/lib, 4 GB at most."""
    if places.tar is not None:
        if not places.tar.is_file():
            raise Missing(f"{places.tar} is not a file; --tar names one large file of binaries")
        return DataSet.of("tar", places.tar)
    most = places.size(4096 * MIB)
    path = places.made("usr-lib.tar", most, lambda target: _archive(target, most))
    if path.stat().st_size < most // 4:
        raise Missing(
            f"a tar of /usr/lib has only {path.stat().st_size // MIB} MiB here: --tar FILE names a larger one"
        )
    return DataSet.of("tar", path)


def _archive(target: Path, most: int) -> None:
    # tar dies of a closed pipe where there is more than is wanted, and complains of files that change; both are fine.
    command = f"tar cf - --sort=name -C / usr/lib 2>/dev/null | head -c {most}"
    with open(target, "wb") as out:
        subprocess.run(["sh", "-c", command], stdout=out, check=True)


def random(places: Places) -> DataSet:
    """One file that does not shrink."""
    size = places.size(2048 * MIB)

    def write(target: Path) -> None:
        chance = np.random.Generator(np.random.SFC64(1))
        with open(target, "wb") as out:
            for at in range(0, size, _PIECE):
                out.write(chance.bytes(min(_PIECE, size - at)))

    return DataSet.of("random", places.made("random", size, write))


def versions(places: Places) -> DataSet:
    """One large file, and what it becomes by edits in many places: bytes replaced, put in and taken out."""
    size = places.size(1024 * MIB)
    path = places.made("versions", size, lambda target: _write_versions(target, size, count=4, edits=64))
    first, *others = sorted(path.iterdir())
    return DataSet.of("versions", first, tuple(others))


def _write_versions(target: Path, size: int, count: int, edits: int) -> None:
    chance = np.random.Generator(np.random.SFC64(2))
    data = bytearray().join(text(size, seed=3))
    for number in range(1, count + 1):
        folder = target / f"v{number}"
        folder.mkdir(parents=True)
        (folder / "disk.img").write_bytes(data)
        for at in chance.integers(0, size // 2, edits).tolist():
            data[at : at + int(chance.integers(0, 4096))] = chance.bytes(int(chance.integers(1, 4096)))


def text(size: int, seed: int = 0) -> Iterator[bytes]:
    """`size` bytes that shrink to about a fifth and never repeat, in pieces; made as fast as memory is read, so that
    making them does not slow down who reads them from a pipe."""
    chance = np.random.Generator(np.random.SFC64(seed))
    words: Words = chance.integers(0, 1 << 63, 4096, np.uint64)
    piece = words[chance.integers(0, len(words), _PIECE // 8)]
    shift = np.uint64(0x9E3779B97F4A7C15)  # odd, so that all sums differ
    for at in range(0, size, _PIECE):
        piece += shift
        yield piece.tobytes()[: size - at]


def text_command(size: int) -> list[str]:
    """The command that writes `text` of that size to standard output."""
    return [sys.executable, "-m", "tests.bench.datasets", str(size)]


def many_files(root: Path, count: int) -> None:
    """A tree of `count` small distinct files below `root`, 1000 to a directory."""
    chance = np.random.Generator(np.random.SFC64(4))
    words = chance.integers(0, 1 << 63, 512, np.uint64)
    for first in range(0, count, 1000):
        folder = root / f"{first // 1000:04}"
        folder.mkdir(parents=True)
        lengths = chance.integers(16, 512, min(1000, count - first)).tolist()
        for number, length in enumerate(lengths):
            body = words[chance.integers(0, len(words), length)]
            (folder / f"{number:03}.txt").write_bytes(b"%d\n" % (first + number) + body.tobytes())


#: By name, in the order in which they are measured.
DATASETS: dict[str, Callable[[Places], DataSet]] = {
    "linux": linux,
    "python": python,
    "usr": usr,
    "tar": tar,
    "random": random,
    "versions": versions,
}

if __name__ == "__main__":
    for each in text(int(sys.argv[1])):
        sys.stdout.buffer.write(each)
