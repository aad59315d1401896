"""Errors of the ground floor, and the root of all of Drystone's errors.

    DrystoneError
    ├── UsageError            what was asked makes no sense: sizes, ranges, schemes, names
    ├── NotFound              no such store, run, object, chunk
    │   └── ObjectDeleted     the object was deleted
    ├── StoreExists           the place is a store already, or not empty
    ├── UnsupportedFormat     a flag that this version does not know
    ├── CopiedStore           the store is a copy of one that still answers; nothing was written
    ├── TooFewBackends        not enough backends answer for what was asked
    │   └── Unsettled         a record lies on some backends, and on too few to count
    ├── StoreBusy             a run, or another change of the backends, is under way; nothing was changed
    ├── CorruptRecord         a record whose armour can't heal it
    ├── WouldLose             what was asked would make data unrecoverable
    │   └── ChunkInUse        objects that are not deleted consist of the chunk
    ├── WrongChunk            bytes that are not the chunk that they are said to be
    ├── Superseded            somebody deleted chunks while this was being written; nothing was committed
    ├── Unreadable            bytes that no copy or parity can give back
    ├── DamagedIndex          a dedupe index whose file can't be used; it is built anew from the manifests
    ├── IndexBusy             a dedupe index that another process changes just now
    └── BackendError          a backend failed: what, where
        ├── KeyNotFound       no such key on the backend
        └── BackendFull       no space left

Each says what, where and what to do; `exit_code` is what the command line ends with.
"""

from __future__ import annotations


class DrystoneError(Exception):
    """Root of all errors that Drystone raises on purpose."""

    exit_code = 1


class UsageError(DrystoneError):
    """The request itself makes no sense; nothing was touched."""

    exit_code = 2


class NotFound(DrystoneError):
    """No such store, run or object."""


class ObjectDeleted(NotFound):
    """The object was deleted; its data goes with the next gc."""


class StoreExists(DrystoneError):
    """`init` would write where something lies already."""


class UnsupportedFormat(DrystoneError):
    """The store uses a feature that this version does not know."""


class CopiedStore(DrystoneError):
    """The store is a copy whose original still answers, so nothing is written to it until it has ids of its own."""


class TooFewBackends(DrystoneError):
    """Fewer backends answer than the operation needs."""


class Unsettled(TooFewBackends):
    """A record lies, or may lie, on fewer backends than it takes: what it records is not acknowledged, and becomes true
    with the next command that writes and finds it."""


class WouldLose(DrystoneError):
    """What was asked would make data unrecoverable; nothing was changed."""


class ChunkInUse(WouldLose):
    """A chunk that objects consist of."""


class WrongChunk(DrystoneError):
    """Bytes whose digest is not the id that came with them."""


class Superseded(DrystoneError):
    """What was written builds on chunks that may have been deleted meanwhile; do it again."""


class StoreBusy(DrystoneError):
    """A run, or another change of the backends, is under way, or may be; nothing was changed."""


class CorruptRecord(DrystoneError):
    """A record is damaged beyond what its armour heals."""


class Unreadable(DrystoneError):
    """Bytes of the store that can't be given back from what is left."""


class DamagedIndex(DrystoneError):
    """A dedupe index on disk that can't be used."""


class IndexBusy(DrystoneError):
    """A dedupe index that another process changes."""


class BackendError(DrystoneError):
    """An operation on a backend failed."""


class KeyNotFound(BackendError):
    """The backend holds no such key."""


class BackendFull(BackendError):
    """The backend has no space left."""
