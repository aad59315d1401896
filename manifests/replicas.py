"""Reading manifest files from backends: nothing is queried before its BLAKE3, from the log, was checked.

What was checked is remembered by (path, size, mtime, ctime, inode) in a disposable cache. When no copy is whole, one is
put together from the slices that are good on any backend: in the cache or, where that can't be written, among the files
that go with the store.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from manifests import format as fmt
from manifests.access import make_private
from manifests.backends import BackendStorage
from manifests.errors import BackendError, DrystoneError, KeyNotFound, Unreadable
from manifests.log import ManifestFile
from manifests.nocache import NoCache
from manifests.ownfile import ForeignFile, open_own, read_own, write_own
from manifests.scratch import Scratch
from manifests.sizes import format_size
from manifests.store import Members

_SECTOR = 4096


class CheckedFiles:
    """Remembers which local files, with the digest that the log names, were checked. Losing it costs time only."""

    def __init__(self, directory: Path | None, name: str) -> None:
        """`directory`: None where nothing can be remembered."""
        self._path = None if directory is None else directory / name
        self._changed = False
        try:
            loaded = {} if self._path is None else json.loads(read_own(self._path))
            self._seen: dict[str, list[object]] = loaded if isinstance(loaded, dict) else {}
        except (OSError, ValueError):
            self._seen = {}

    @staticmethod
    def _mark(path: Path, file: ManifestFile) -> list[object]:
        stat = os.stat(path)
        return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, file.blake3.hex()]

    def has(self, path: Path, file: ManifestFile) -> bool:
        return self._seen.get(str(path)) == self._mark(path, file)

    def add(self, path: Path, file: ManifestFile) -> None:
        self._seen[str(path)] = self._mark(path, file)
        self._changed = True

    def drop(self, path: Path) -> None:
        self._changed |= self._seen.pop(str(path), None) is not None

    def save(self) -> None:
        """Write the memory out; a cache that can't be written is done without."""
        if self._changed and self._path is not None:
            with suppress(OSError):
                make_private(self._path.parent)
                write_own(self._path, json.dumps(self._seen).encode())
        self._changed = False


class Replicas:
    """Whole local copies of manifest files. `healed` counts those for which a copy was rotten or missing."""

    def __init__(self, members: Members, cache: Path | None, scratch: Scratch) -> None:
        """`cache`: directory for what was checked and mended; made when needed, disposable; None where there is none.
        `scratch`: room for what is mended instead, the caller's."""
        self._members = members
        self._cache = cache
        self._scratch = scratch
        self._spare: Path | None = None
        self._checked = CheckedFiles(cache, "checked.json")
        self._fitting = CheckedFiles(cache, "columns.json")
        self.healed = 0

    def over(self, members: Members) -> Replicas:
        """The same, of other members."""
        return Replicas(members, self._cache, self._scratch)

    @property
    def cache(self) -> Path:
        """The directory in the cache. Raises NoCache."""
        if self._cache is None:
            raise NoCache
        return self._cache

    @property
    def away(self) -> str:
        """Which backends are absent, and what to do, as the end of a sentence about what is not there."""
        return self._members.whereabouts()

    def paths(self, files: list[ManifestFile]) -> list[str]:
        """A checked local path for each file. Raises Unreadable where no copy nor mixture of copies is whole."""
        found = [self.path(file) for file in files]
        self.save()
        return found

    def path(self, file: ManifestFile) -> str:
        """A checked local path for one file; `save` when there are no more. Raises Unreadable."""
        return str(self._path(file))

    def fits(self, path: str, file: ManifestFile) -> bool:
        """Whether `note_fit` was told of the file at a checked path before."""
        return self._fitting.has(Path(path), file)

    def note_fit(self, path: str, file: ManifestFile) -> None:
        """Remember that the file at a checked path has the columns of its table."""
        self._fitting.add(Path(path), file)

    def save(self) -> None:
        """Remember what was checked."""
        self._fitting.save()
        self._checked.save()

    def forget(self, location: str, key: str) -> None:
        """Check a copy again before it is used: somebody saw that it is rotten."""
        self._checked.drop(Path(location) / key)

    def _path(self, file: ManifestFile) -> Path:
        missed = False
        for member in self._members.readable:
            path = member.storage.local_path(file.key)
            if path is None:
                continue
            try:
                if not self._checked.has(path, file):
                    if _digest(member.storage, file.key) != file.blake3:
                        missed = True
                        continue
                    self._checked.add(path, file)
            except (OSError, BackendError):
                missed = True
                continue
            self.healed += missed
            return path
        # A copy of a manifest that lies on no file system of this machine is no healing.
        elsewhere = any(member.storage.local_path(file.key) is None for member in self._members.readable)
        self.healed += missed or not elsewhere
        return self._fetch(file)

    def _fetch(self, file: ManifestFile) -> Path:
        """A whole copy, put together from the good slices of any backend. Raises Unreadable, and DrystoneError where
        there is no room for it."""
        troubles = []
        for place in self._rooms():
            target = place / "mended" / file.table / file.name
            try:
                if not _is_whole(target, file):
                    make_private(target.parent)
                    self._mend(file, target)
                return target
            except OSError as error:
                troubles.append(f"{target.parent}: {error.strerror or error}")
        raise DrystoneError(
            f"{file.key} has no whole copy, and one of {format_size(file.size)} can't be put together: "
            f"{'; '.join(troubles)}; make room there, or set DRYSTONE_CACHE or TMPDIR to another directory"
        )

    def _rooms(self) -> Iterator[Path]:
        """Where whole copies may be put, best first."""
        if self._cache is not None:
            yield self._cache
        self._spare = self._spare or self._scratch.folder()
        yield self._spare

    def _mend(self, file: ManifestFile, target: Path) -> None:
        temp = target.with_name(f"{target.name}.{os.urandom(4).hex()}")
        try:
            with open(open_own(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as out:
                for number, offset in enumerate(range(0, file.size, fmt.SLICE_SIZE)):
                    out.write(self._good_slice(file, number, offset))
            os.replace(temp, target)
        finally:
            with suppress(OSError):  # it has its name, or could not be made
                temp.unlink()

    def _good_slice(self, file: ManifestFile, number: int, offset: int) -> bytes:
        wanted = file.slices[number * fmt.SLICE_DIGEST : (number + 1) * fmt.SLICE_DIGEST]
        length = min(fmt.SLICE_SIZE, file.size - offset)

        def is_right(piece: bytes) -> bool:
            return blake3(piece).digest(fmt.SLICE_DIGEST) == wanted

        copies = []
        for member in self._members.readable:
            piece = _readable(member.storage, file.key, offset, length)
            if is_right(piece):
                return piece
            if piece:
                copies.append(piece)
        from manifests.vote import mend_by_vote  # brings NumPy along

        mended = mend_by_vote(copies, length, is_right)
        if mended is None:
            raise Unreadable(
                f"{file.key}: bytes {offset} to {offset + length} are damaged or missing on every backend that "
                "answers, and no mixture of the copies is whole"
            )
        return mended


def _readable(storage: BackendStorage, key: str, offset: int, length: int) -> bytes:
    """A range of a file with zeros for the sectors that can't be read; empty where nothing can."""
    try:
        return storage.read_range(key, offset, length)
    except KeyNotFound:
        return b""
    except BackendError:
        pieces = []
        for at in range(offset, offset + length, _SECTOR):
            try:
                pieces.append(storage.read_range(key, at, min(_SECTOR, offset + length - at)).ljust(_SECTOR, b"\0"))
            except BackendError:
                pieces.append(bytes(_SECTOR))
        return b"".join(pieces)[:length] if any(map(any, pieces)) else b""


def _digest(storage: BackendStorage, key: str) -> bytes:
    """BLAKE3 of a file, read piece by piece: of a mapped one, a sector that can't be read would kill the process."""
    hasher, offset = blake3(), 0
    while piece := storage.read_range(key, offset, fmt.SLICE_SIZE):
        hasher.update(piece)
        offset += len(piece)
    return hasher.digest()


def _is_whole(path: Path, file: ManifestFile) -> bool:
    """Whether a copy that was put together is there as it was. Raises OSError."""
    hasher = blake3()
    try:
        with open(open_own(path), "rb") as copy:
            while piece := copy.read(fmt.SLICE_SIZE):
                hasher.update(piece)
    except (FileNotFoundError, ForeignFile):
        return False
    return hasher.digest() == file.blake3
