"""The dedupe index on disk: an LMDB environment in a directory of its own.

LMDB maps its file, so what is read is the kernel's page cache; a transaction changes at most TXN_KEYS entries, so that
the pages that it holds in memory stay few. It writes the file with calls, which say so where there is no room. Only its
table of readers is written through a mapping, so that gets its room first. Nothing is durable before `sync`; who keeps
an index over power losses notes when it was whole (manifests/indexcache.py).

Nothing is done per id in Python but making a list of keys: LMDB's binding takes whole batches.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import compress, islice, pairwise
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from manifests.directory import UNABLE
from manifests.errors import DamagedIndex, DrystoneError, IndexBusy
from manifests.index import ENTRY, KEY_BYTES, Entries, Ids, Lengths, Mask, accepted, keys_of
from manifests.oserrors import NO_ROOM, in_words
from manifests.ownfile import ForeignFile, open_own, require_own

DATA_FILE = "data.mdb"
_LOCK_FILE = "lock.mdb"
#: Length of LMDB's table of readers, for the 126 that it has room for.
_LOCK_BYTES = 8192
#: Room that a write of LMDB's which is cut short leaves at most.
_NEARLY_FULL = 1 << 20
#: Entries that one transaction changes: each may lie on a page of its own, of which the transaction holds a copy.
TXN_KEYS = 4096
#: Entries looked up, or given out, at a time.
BATCH = 32 << 10
#: Address space for the map, which costs nothing; room for some billions of entries.
MAP_SIZE = 256 << 30
_UNKNOWN = bytes(4)
_TOTAL = b"bytes"
_BEGUN, _WHOLE = b"begun", b"whole"


@dataclass
class _Environment:
    """An open LMDB environment with its databases. `users`: indexes that are open on it."""

    lmdb: Any
    databases: tuple[Any, ...]
    users: int = 0


#: By directory, what this process has open: LMDB must not open one twice in a process. Changed under the lock.
_OPEN: dict[str, _Environment] = {}
_OPENING = threading.Lock()


class DiskIndex:
    """An index (manifests/index.py) of kind `disk`. One process at a time may write; any number may read meanwhile, and
    see what was committed. Raises DamagedIndex, and OSError where there is no room."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open the index in `folder`, made where it is not there yet unless `read_only`. To write, raises IndexBusy
        where this process has it open already."""
        self._folder, self._named = folder, True
        self._open(read_only, lock=True)

    @classmethod
    def unnamed(cls) -> DiskIndex:
        """A new index in the directory for temporary files, whose files lose their names at once: they go when it is
        closed, or the process dies."""
        index = cls.__new__(cls)
        index._folder, index._named = Path(tempfile.mkdtemp(prefix="drystone-index-")), False
        try:
            index._open(False, lock=False)
        finally:
            shutil.rmtree(index._folder)
        return index

    def _open(self, read_only: bool, *, lock: bool) -> None:
        self._key = os.path.realpath(self._folder)
        with _OPENING:
            opened = _OPEN.get(self._key)
            if opened is not None and not read_only:
                raise IndexBusy(f"the dedupe index {self._folder} is in use by this process; try again later")
            if opened is None:
                opened = _OPEN[self._key] = self._opened(read_only, lock=lock)
            opened.users += 1
        self._closed, self._environment = False, opened.lmdb
        self._ids, self._files, self._sums = opened.databases

    def _opened(self, read_only: bool, *, lock: bool) -> _Environment:
        if not read_only:
            self._folder.mkdir(0o700, exist_ok=True)
        self._require_own_files(lock)
        try:
            environment = lmdb.open(
                os.fsencode(self._folder),
                map_size=MAP_SIZE,
                readonly=read_only,
                lock=lock,
                max_dbs=3,
                sync=False,
                metasync=False,
                readahead=False,
                mode=0o600,
            )
            if lock and not read_only:
                environment.reader_check()  # readers that were killed would keep old pages from being used again
        except lmdb.Error as error:
            raise self._failed(error) from error
        try:
            names = (b"ids", b"files", b"sums")
            return _Environment(environment, tuple(environment.open_db(name, create=not read_only) for name in names))
        except lmdb.Error as error:
            environment.close()
            raise self._failed(error) from error

    def _require_own_files(self, lock: bool) -> None:
        """Raise DamagedIndex where LMDB would open anything else than files of this user's; OSError where the table of
        readers has no room: LMDB would be killed for writing into it."""
        try:
            with suppress(FileNotFoundError):
                require_own(self._folder / DATA_FILE)
            if lock:
                with suppress(PermissionError, FileNotFoundError):  # LMDB says whether it can do without
                    _make_room(self._folder / _LOCK_FILE)
        except ForeignFile as error:
            raise DamagedIndex(f"the dedupe index can't be used: {in_words(error)}") from error
        except OSError as error:
            if error.errno != errno.EROFS:
                raise

    def _failed(self, error: lmdb.Error) -> DrystoneError | OSError:
        """The error that one of LMDB is raised as."""
        number = next((each for each in NO_ROOM if os.strerror(each) in str(error)), 0)
        if os.strerror(errno.EIO) in str(error):  # which LMDB also says of a write that was cut short
            number = self._cut_short_by()
        if number:
            return OSError(number, os.strerror(number), self._place)
        if isinstance(error, lmdb.MapFullError):
            return DrystoneError(f"the dedupe index {self._place} is full: {error}; use the kind memory")
        return DamagedIndex(
            f"the dedupe index {self._place} can't be used: {error}; run it again, and it is built anew"
        )

    def _cut_short_by(self) -> int:
        """Why a write is cut short: ENOSPC or EFBIG, or 0 where neither is near."""
        with suppress(OSError):
            room, limit = os.statvfs(self._place), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            if room.f_bavail * room.f_frsize < _NEARLY_FULL:
                return errno.ENOSPC
            if 0 <= limit < (self._folder / DATA_FILE).stat().st_size + _NEARLY_FULL:
                return errno.EFBIG
        return 0

    @property
    def _place(self) -> str:
        """What people know of it: an index without a name lies in the directory for temporary files."""
        return str(self._folder if self._named else self._folder.parent)

    @contextmanager
    def _begin(self, *, write: bool = False) -> Iterator[Any]:
        try:
            with self._environment.begin(write=write) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise self._failed(error) from error

    def __len__(self) -> int:
        with self._begin() as transaction:
            return int(transaction.stat(self._ids)["entries"])

    @property
    def total_bytes(self) -> int:
        with self._begin() as transaction:
            return self._total(transaction)

    def _total(self, transaction: Any) -> int:
        return int.from_bytes(transaction.get(_TOTAL, db=self._sums) or b"", "little")

    def _add_total(self, transaction: Any, size: int) -> None:
        transaction.put(_TOTAL, (self._total(transaction) + size).to_bytes(8, "little"), db=self._sums)

    def get_batch(self, ids: Ids) -> Lengths:
        keys, lengths = _keys(ids), np.empty(len(ids), np.uint32)
        with self._begin() as transaction, transaction.cursor(self._ids) as cursor:
            for start in range(0, len(keys), BATCH):
                some = keys[start : start + BATCH]
                found = dict(cursor.getmulti(some))
                values = b"".join([found.get(key, _UNKNOWN) for key in some]) if found else bytes(4 * len(some))
                lengths[start : start + len(some)] = np.frombuffer(values, "<u4")
        return lengths

    def put_batch(self, ids: Ids, lengths: Lengths) -> Mask:
        new = np.zeros(len(ids), bool)
        order = _order(ids)
        for start in range(0, len(order), TXN_KEYS):
            some = order[start : start + TXN_KEYS]
            new[some] = self._put_sorted(_keys(ids[some]), lengths[some])
        return new

    def _put_sorted(self, keys: list[bytes], lengths: Lengths) -> Mask:
        fresh = np.array([True, *(one != other for one, other in pairwise(keys))])
        with self._begin(write=True) as transaction, transaction.cursor(self._ids) as cursor:
            # Behind all that is there, entries are appended, without a look: that is how an index is built.
            behind = not cursor.last() or keys[0] > cursor.key()
            if not behind and (known := dict(cursor.getmulti(keys))):
                fresh &= [key not in known for key in keys]
            values = lengths.astype("<u4").view("V4").tolist()
            cursor.putmulti(compress(zip(keys, values, strict=True), fresh.tolist()), append=behind)
            self._add_total(transaction, int(lengths[fresh].sum(dtype=np.uint64)))
        return fresh

    def delete(self, ids: Ids) -> int:
        deleted = 0
        keys = _keys(ids)
        for start in range(0, len(keys), TXN_KEYS):
            with self._begin(write=True) as transaction:
                popped = [transaction.pop(key, db=self._ids) for key in keys[start : start + TXN_KEYS]]
                gone = [int.from_bytes(value, "little") for value in popped if value is not None]
                self._add_total(transaction, -sum(gone))
                deleted += len(gone)
        return deleted

    def iterate(self) -> Iterator[Entries]:
        # A transaction for each batch: one that lasts would keep the writer from using old pages again.
        start = b""
        while True:
            with self._begin() as transaction, transaction.cursor(self._ids) as cursor:
                found = list(islice(cursor.iternext(), BATCH)) if cursor.set_range(start) else []
            if not found:
                return
            entries = np.empty(len(found), ENTRY)
            entries["key"] = np.frombuffer(b"".join([key for key, _ in found]), np.uint8).reshape(-1, KEY_BYTES)
            entries["length"] = np.frombuffer(b"".join([value for _, value in found]), "<u4")
            yield entries
            start = found[-1][0] + b"\0"

    def stream(self, accept: Callable[[Entries], Mask]) -> Iterator[Entries]:
        return accepted(self.iterate(), accept)

    def files(self, *, begun: bool = False) -> set[str]:
        """Names of the manifest files of which the index holds all; with `begun`, also of those of which it may hold
        some."""
        with self._begin() as transaction, transaction.cursor(self._files) as cursor:
            return {name.decode() for name, state in cursor if begun or state == _WHOLE}

    def note_files(self, names: set[str], *, whole: bool) -> None:
        """The index holds all that these manifest files name; not `whole`: from now on it may hold some of it."""
        with self._begin(write=True) as transaction:
            for name in sorted(names):
                transaction.put(name.encode(), _WHOLE if whole else _BEGUN, db=self._files)

    def sync(self) -> None:
        try:
            self._environment.sync(True)
        except lmdb.Error as error:
            raise self._failed(error) from error

    def destroy(self) -> None:
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def close(self) -> None:
        with _OPENING:
            if self._closed:
                return
            self._closed = True
            opened = _OPEN[self._key]
            opened.users -= 1
            if not opened.users:
                del _OPEN[self._key]
                opened.lmdb.close()


def _make_room(lock: Path) -> None:
    """Give LMDB's table of readers its room, which it keeps. Raises OSError."""
    fd = open_own(lock, os.O_RDWR | os.O_CREAT)
    try:
        try:
            os.posix_fallocate(fd, 0, _LOCK_BYTES)
        except OSError as error:
            if error.errno not in UNABLE:
                raise OSError(error.errno, error.strerror, str(lock)) from error
            if os.fstat(fd).st_size < _LOCK_BYTES:  # no LMDB has been at it
                os.pwrite(fd, bytes(_LOCK_BYTES), 0)
    finally:
        os.close(fd)


def _keys(ids: Ids) -> list[bytes]:
    """The keys of ids as LMDB's binding takes them."""
    keys: list[bytes] = keys_of(ids).view(f"V{KEY_BYTES}").ravel().tolist()
    return keys


def _order(ids: Ids) -> Any:
    """The order that sorts ids by their keys as LMDB does; equal ones stay as they are."""
    words = keys_of(ids).view(">u8").astype(np.uint64)
    return np.lexsort((words[:, 1], words[:, 0]))
