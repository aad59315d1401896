"""Disk indexes in a store's cache directory: found, brought up to date, built anew.

For each table that makes something known (manifests/known.py) there is a folder:

    lock            held by whoever changes something here, and never waited for
    current.json    which generation counts, and how its file looked when it was whole
    <generation>/   an LMDB environment (manifests/diskindex.py)

An index notes the manifest files that it was built from. New ones are added; where one is gone, a verification found
packs that can't be read, or the file does not look as it was left (damaged, copied, from before a power loss), a new
generation is built from the manifests. While somebody else changes an index, it is read as it stands, and
what it lacks comes from the manifests.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from manifests.access import make_private
from manifests.diskindex import DATA_FILE, DiskIndex
from manifests.errors import DamagedIndex, IndexBusy, Unreadable
from manifests.index import ENTRY, MEMORY_BYTES, Entries
from manifests.known import KNOWN_OF, count_rows, read_tombstones
from manifests.log import State
from manifests.nocache import NoCache
from manifests.ordering import in_order
from manifests.oserrors import NO_ROOM, in_words
from manifests.ownfile import ForeignFile, open_own, read_own, remove, require_own, write_own
from manifests.processes import boot_id
from manifests.replicas import Replicas
from manifests.sizes import format_size

#: Changed when what lies in the folder is laid out in another way.
LAYOUT = 1
FOLDER = "index"
#: Tables that make chunks, and contents with extents, known.
TABLES = ("chunks", "extents")
#: Rows that are added file by file. More of them are put in order first: each page of the index is then changed once.
UNSORTED_ROWS = 256 << 10
#: Disk space of an entry while many are appended, with the inner nodes of the tree; and of an empty index.
ROW_BYTES = 31
LEAST_BYTES = 64 << 10
_POINTER = "current.json"
_GENERATION = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class CacheStatus:
    """An index as it stands. `condition`: current, behind (of new manifest files), stale (of files that are gone),
    damaged, absent, or busy: somebody changes it. `files`: manifest files that it covers; `missing`: that it lacks;
    `bytes`: sum of the lengths of its entries; `size`: bytes on disk."""

    condition: str
    entries: int = 0
    bytes: int = 0
    files: int = 0
    missing: int = 0
    size: int = 0


class UsableIndex:
    """An index to be looked up in: `folder` is None where there is none; `files` are the manifest files that it covers.
    `trouble`: why it could not be brought up to date, or empty. Kept from being removed until it is closed."""

    def __init__(self, cache: IndexCache, folder: Path | None, files: frozenset[str], trouble: str = "") -> None:
        self.folder, self.files, self.trouble = folder, files, trouble
        self._cache = cache
        self._held = None if folder is None else _hold(folder)

    def __enter__(self) -> UsableIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def distrust(self) -> None:
        """Who used it failed by it: it is built anew when it is needed next."""
        self._cache.forget()

    def close(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


class IndexCache:
    """The disk index of one table of one store."""

    def __init__(self, folder: Path, table: str) -> None:
        """`folder`: the store's own cache directory."""
        self._folder = folder / FOLDER / table
        self._table = table

    def bring_up_to_date(self, state: State, replicas: Replicas, check: Callable[[], None]) -> UsableIndex:
        """The index of all that the manifests of `state` make known, or of as much as can be had without waiting.
        `check` is called between batches and may raise. Raises Unreadable where a manifest is lost."""
        try:
            with self._words_for_no_room(state), self._lock() as held:
                if not held:
                    usable = self._as_it_stands(state)
                    if usable.folder is None and not self._is_writable():
                        usable.trouble = f"{self._folder} can't be written to"
                    return usable
                try:
                    return self._update(state, replicas, check)
                except IndexBusy:  # another store that this process has open uses it
                    return self._as_it_stands(state)
                except DamagedIndex:
                    self.forget()
                    return self._update(state, replicas, check)
        except OSError as error:
            # A cache that can't be written is done without.
            return UsableIndex(self, None, frozenset(), in_words(error))
        except DamagedIndex as error:
            return UsableIndex(self, None, frozenset(), str(error))

    def rebuild(self, state: State, replicas: Replicas) -> None:
        """Build the index anew. Raises IndexBusy, OSError, DamagedIndex, Unreadable."""
        with self._words_for_no_room(state), self._lock() as held:
            self._require(held)
            self.forget()
            self._update(state, replicas, lambda: None).close()

    def destroy(self) -> None:
        """Remove the index. Raises IndexBusy, OSError."""
        if self._folder.exists():
            with self._lock() as held:
                self._require(held)
                self.forget()
                shutil.rmtree(self._folder)

    def _require(self, held: bool) -> None:
        if not held and not self._is_writable():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self._folder))
        if not held:
            raise IndexBusy(f"the dedupe index in {self._folder} is being changed by another process; try again later")

    def forget(self) -> None:
        """Let no generation count any more."""
        remove(self._folder / _POINTER)

    def status(self, state: State) -> CacheStatus:
        """How the index stands; changes nothing."""
        if not os.path.lexists(self._folder / _POINTER):
            return CacheStatus("absent")
        with self._lock() as held:
            if not held and self._is_writable():
                return CacheStatus("busy")
            generation = self._whole_generation()
            if generation is None:
                return CacheStatus("damaged")
            try:
                index = DiskIndex(generation, read_only=True)
                try:
                    files, wanted = index.files(), self._wanted(state)
                    condition = "behind" if wanted - files else "current"
                    if self._is_stale(files, state):
                        condition = "stale"
                    size = (generation / DATA_FILE).stat().st_size
                    return CacheStatus(condition, len(index), index.total_bytes, len(files), len(wanted - files), size)
                finally:
                    index.close()
            except DamagedIndex:
                return CacheStatus("damaged")

    # --- bringing up to date -----------------------------------------------------------------------------------------

    def _update(self, state: State, replicas: Replicas, check: Callable[[], None]) -> UsableIndex:
        """With the lock held: add what is missing, or build anew."""
        wanted, generation = self._wanted(state), self._whole_generation()
        if generation is not None:
            index = DiskIndex(generation)
            try:
                files = index.files()
                if not self._is_stale(files, state):
                    if missing := wanted - files:
                        self._point_at(generation, whole=False)
                        self._fill(index, missing, state, replicas, check)
                    index.close()
                    if missing:
                        self._point_at(generation, whole=True)
                    self._remove_others(generation)
                    return UsableIndex(self, generation, frozenset(files | wanted))
            finally:
                index.close()
        self.forget()
        self._remove_others(None)
        self._require_room(state)
        generation = self._folder / secrets.token_hex(8)
        try:
            index = DiskIndex(generation)
            try:
                self._fill(index, wanted, state, replicas, check)
            finally:
                index.close()
        except BaseException:
            shutil.rmtree(generation, ignore_errors=True)
            raise
        self._point_at(generation, whole=True)
        self._remove_others(generation)
        return UsableIndex(self, generation, frozenset(wanted))

    def _require_room(self, state: State) -> None:
        """Raise OSError where an index that is built anew would not fit: it would fill the disk up first."""
        room = os.statvfs(self._folder)
        if room.f_bavail * room.f_frsize < self._room_taken(state):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))

    def _room_taken(self, state: State) -> int:
        """Bytes on disk that building takes, about. Of `extents` nobody knows how many contents they are of."""
        rows = count_rows(state, self._table) if self._table == "chunks" else 0
        return LEAST_BYTES + rows * (ROW_BYTES + (ENTRY.itemsize if rows > UNSORTED_ROWS else 0))

    @contextmanager
    def _words_for_no_room(self, state: State) -> Iterator[None]:
        """Errors for want of room tell how much it takes, and what to do."""
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            limit = "raise `ulimit -f`" if error.errno == errno.EFBIG else "make room there"
            raise OSError(
                error.errno,
                f"{error.strerror}; the dedupe index takes about {format_size(self._room_taken(state))}: {limit}, set "
                "DRYSTONE_CACHE to another directory, or use the kind memory (drystone index rebuild --kind memory)",
                str(self._folder),
            ) from error

    def _fill(
        self,
        index: DiskIndex,
        names: set[str],
        state: State,
        replicas: Replicas,
        check: Callable[[], None],
    ) -> None:
        index.note_files(names, whole=False)
        if names & self._tombstone_names(state):
            self._bury(index, names, state, replicas)
        files = [file for file in state.files(self._table) if file.name in names]
        lost: list[str] = []
        known = _checked(KNOWN_OF[self._table](state, replicas, lost, self._wanted(state) - names), check)
        if sum(file.rows for file in files) > UNSORTED_ROWS:
            for entries in _checked(in_order(known, self._folder), check):
                index.put_batch(entries["key"], entries["length"])
        else:
            for rows in known:
                index.put_batch(rows["id"], rows["length"])
        if lost:
            raise Unreadable("; ".join(lost))
        index.note_files(names, whole=True)
        index.sync()

    def _bury(self, index: DiskIndex, names: set[str], state: State, replicas: Replicas) -> None:
        """Forget chunks that were deleted since. A copy that was stored later and is known already goes with them: it
        is stored once more, or known again with its own file."""
        lost: list[str] = []
        dead = read_tombstones(state, replicas, lost, names)
        if dead is None:
            raise Unreadable("; ".join(lost))
        index.delete(dead.ids())

    def _as_it_stands(self, state: State) -> UsableIndex:
        """Somebody else changes the index. What it held whole when that began is there for readers, whose transactions
        see no half of a change; while it is built anew, nothing is."""
        pointer, nothing = self._read_pointer(), UsableIndex(self, None, frozenset())
        generation = self._folder / str(pointer.get("generation"))
        # Marked as being changed by a process of this boot, it is whole for readers, even if that one died; after a
        # power loss nothing is known.
        same_boot = pointer.get("boot") == boot_id() != ""
        if pointer.get("mark", ()) != (None if same_boot else _mark(generation)):
            return nothing
        try:
            index = DiskIndex(generation, read_only=True)
            try:
                files, begun = index.files(), index.files(begun=True)
            finally:
                index.close()
            if self._is_stale(begun, state) or self._tombstone_names(state) - files:
                return nothing
            return UsableIndex(self, generation, frozenset(files))
        except (DamagedIndex, OSError):
            return nothing

    def _wanted(self, state: State) -> set[str]:
        names = {file.name for file in state.files(self._table)}
        return names | self._tombstone_names(state) | self._unreadable_names(state)

    def _tombstone_names(self, state: State) -> set[str]:
        """Files that say what is not known any more: of chunks, of which the index is made, too."""
        return {file.name for file in state.files("tombstones")} if self._table == "chunks" else set()

    def _unreadable_names(self, state: State) -> set[str]:
        """Files that name packs of which no chunk is known any more, or may be again. Which chunks these are only all
        the manifests tell, so an index was built with such a file, or is built anew."""
        return {file.name for file in state.unreadable_notes()} if self._table == "chunks" else set()

    def _is_stale(self, files: set[str], state: State) -> bool:
        """Whether an index that covers `files` holds what is not known any more, or lacks what adding won't bring: one
        of them is gone, not just newer than `state`, or it knows nothing of a note of unreadable packs."""
        if self._unreadable_names(state) - files:
            return True
        for name in files - self._wanted(state):
            try:
                owner = uuid.UUID(name[:36])
            except ValueError:
                return True
            if owner.int <= state.newest.int:
                return True
        return False

    # --- files -------------------------------------------------------------------------------------------------------

    def _is_writable(self) -> bool:
        return os.access(self._folder, os.W_OK)

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Whether this process may change the folder: nobody else does, and it can be written to."""
        try:
            make_private(self._folder)
            fd = self._open_lock()
        except OSError as error:
            if isinstance(error, ForeignFile) or error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise
            yield False
            return
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(fd)

    def _open_lock(self) -> int:
        """A descriptor of the file that is locked. What is no file of this user's makes room for one."""
        path = self._folder / "lock"
        try:
            return open_own(path, os.O_RDWR | os.O_CREAT)
        except (ForeignFile, IsADirectoryError):
            remove(path)
            return open_own(path, os.O_RDWR | os.O_CREAT)

    def _read_pointer(self) -> dict[str, Any]:
        try:
            pointer = json.loads(read_own(self._folder / _POINTER))
        except (OSError, ValueError):
            return {}
        is_ours = isinstance(pointer, dict) and pointer.get("layout") == LAYOUT
        return pointer if is_ours and _GENERATION.fullmatch(str(pointer.get("generation"))) else {}

    def _whole_generation(self) -> Path | None:
        """With the lock held: the generation that counts, if its file is as it was left."""
        pointer = self._read_pointer()
        generation = self._folder / str(pointer.get("generation"))
        return generation if pointer.get("mark") is not None and pointer["mark"] == _mark(generation) else None

    def _point_at(self, generation: Path, *, whole: bool) -> None:
        """Let `generation` count, durably. Where it is not whole, it is about to be changed: should that never end, it
        is not used again."""
        pointer = {
            "layout": LAYOUT,
            "generation": generation.name,
            "mark": _mark(generation) if whole else None,
            "boot": None if whole else boot_id(),
        }
        write_own(self._folder / _POINTER, json.dumps(pointer).encode(), durable=True)

    def _remove_others(self, generation: Path | None) -> None:
        """Remove all generations but this one that nobody uses any more."""
        for folder in self._folder.iterdir():
            if folder == generation or not folder.is_dir():
                continue
            if folder.is_symlink():
                folder.unlink()
                continue
            try:
                fd = open_own(folder / DATA_FILE, os.O_RDWR)  # for writing, to lock it on NFS
            except (FileNotFoundError, ForeignFile):
                shutil.rmtree(folder)
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            except BlockingIOError:
                continue  # by the next one who looks
            finally:
                os.close(fd)


def _checked(batches: Iterator[Entries], check: Callable[[], None]) -> Iterator[Entries]:
    """`batches`, with a call of `check` after each."""
    for batch in batches:
        yield batch
        check()


def _hold(generation: Path) -> int:
    """A descriptor that keeps `generation` from being removed. Raises FileNotFoundError where it is gone."""
    fd = open_own(generation / DATA_FILE)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        os.stat(generation / DATA_FILE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mark(generation: Path) -> list[int] | None:
    """How the file of an index looks, None where there is none of this user's: whoever changes it leaves another mark,
    also where only bytes differ."""
    try:
        stat = require_own(generation / DATA_FILE)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


@dataclass(frozen=True)
class IndexStatus:
    """The dedupe index of a store in one cache directory. `chunks` and `contents` are as the kind `disk` stands; of the
    kind `memory` nothing is kept. `rows`: chunks in the manifests, `memory`: bytes that the kind `memory` takes for
    them at most."""

    kind: str
    location: str
    rows: int
    memory: int
    chunks: CacheStatus | None = None
    contents: CacheStatus | None = None


def index_status(state: State, replicas: Replicas) -> IndexStatus:
    """The index of the store of `state` in its own cache directory. Raises OSError."""
    rows = count_rows(state, "chunks")
    if state.index != "disk":
        return IndexStatus(state.index, "", rows, rows * MEMORY_BYTES)
    try:
        chunks, contents = (IndexCache(replicas.cache, table).status(state) for table in TABLES)
    except NoCache:
        absent = CacheStatus("absent")
        return IndexStatus(state.index, "", rows, rows * MEMORY_BYTES, absent, absent)
    return IndexStatus(state.index, str(replicas.cache / FOLDER), rows, rows * MEMORY_BYTES, chunks, contents)


def rebuild_indexes(state: State, replicas: Replicas) -> None:
    """Build both disk indexes anew. Raises IndexBusy, OSError, DamagedIndex, Unreadable."""
    for table in TABLES:
        IndexCache(replicas.cache, table).rebuild(state, replicas)


def destroy_indexes(replicas: Replicas) -> None:
    """Remove both disk indexes. Raises IndexBusy, OSError."""
    with suppress(NoCache):
        for table in TABLES:
            IndexCache(replicas.cache, table).destroy()
