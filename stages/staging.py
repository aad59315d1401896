"""The directory in which objects are made before they get their names, beside where they are going.

It holds a record of whose it is, which its restore keeps locked while it lives. So the next one that writes there knows
what a killed one left behind: a directory whose record names it, by name and inode, and whose process is gone
(manifests/processes.py). The record goes last, so that a removal that is cut short is completed by the next one, too.

The directory around it may be somebody else's, who can put another one in its place. So it is opened once, and all that
is done in it goes through that descriptor; those who open it again compare its identity.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple

from manifests.processes import ProcessMark, boot_id
from stages.inheritance import disinherit

STAGING_MARK = ".drystone-restore-"
#: How often a new directory may be taken away before it is given up.
_ATTEMPTS = 5
_NAME = re.compile(re.escape(STAGING_MARK) + "[0-9a-f]{16}")
_RECORD, _OBJECTS = "whose.json", "objects"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY}
#: Seconds that a file which is closed may take to be gone.
_LINGERS = 2.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Identity(NamedTuple):
    """Which directory it is, whatever leads to it."""

    device: int
    inode: int
    uid: int

    @classmethod
    def of(cls, fd: int) -> Identity:
        found = os.fstat(fd)
        return cls(found.st_dev, found.st_ino, found.st_uid)


class Exchanged(OSError):
    """Another directory is where one of ours was."""

    @classmethod
    def at(cls, path: str) -> Exchanged:
        return cls(
            errno.ESTALE,
            f"another directory took the place of {os.path.basename(path)}; write where nobody else can rename things",
            path,
        )


def open_own(path: str, identity: Identity) -> int:
    """Descriptor of the directory at `path`. Raises Exchanged if it is another one, OSError."""
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise Exchanged.at(path) from None
    if Identity.of(fd) != identity:
        os.close(fd)
        raise Exchanged.at(path)
    return fd


def remove_orphaned(path: str, identity: Identity) -> None:
    """Remove the staging directory at `path`, if it is still that one, whoever else does so at the same time. What
    can't be removed is left to the next restore."""
    with suppress(OSError), ExitStack() as stack:
        stack.callback(os.close, way := open_own(path, identity))
        stack.callback(os.close, folder := os.open(os.curdir, _FOLDER, dir_fd=way))
        shutil.rmtree(_OBJECTS, ignore_errors=True, dir_fd=folder)
        with suppress(FileNotFoundError):
            os.unlink(_RECORD, dir_fd=folder)
        os.rmdir(path)


class Staging:
    """A staging directory. Call `close` once."""

    def __init__(self, folder: str) -> None:
        """Make it in the directory `folder`. What is made in it inherits nothing from there. Raises OSError."""
        for attempt in count(1):
            self.name = f"{STAGING_MARK}{secrets.token_hex(8)}"
            self.path = os.path.join(folder, self.name)
            #: Where objects are made.
            self.objects = os.path.join(self.path, _OBJECTS)
            self._record = self._folder = -1
            os.mkdir(self.path, 0o700)
            try:
                self._fill()
                return
            except FileNotFoundError:
                # As long as its record says nothing, another restore takes it for one that a killed restore left.
                if attempt == _ATTEMPTS:
                    raise

    def _fill(self) -> None:
        """Put into the new directory what belongs there. Raises OSError, when nothing is left of it."""
        try:
            self._folder = os.open(self.path, _FOLDER)
            self._claim(self._folder)
            disinherit(self._folder)
            os.mkdir(_OBJECTS, 0o700, dir_fd=self._folder)
            objects = os.open(_OBJECTS, _FOLDER, dir_fd=self._folder)
            try:
                #: Of `objects`, for those who open it.
                self.identity = Identity.of(objects)
            finally:
                os.close(objects)
        except BaseException:
            self.close()
            raise

    @property
    def cleanup(self) -> Callable[[], None]:
        """What removes it in other processes, should this one be killed."""
        return partial(remove_orphaned, self.path, Identity.of(self._folder))

    def _claim(self, folder: int) -> None:
        record = os.open(_RECORD, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        self._record = record
        # What we make has our owner, or the one that the file system gives to everything.
        if os.fstat(record).st_uid != os.fstat(folder).st_uid:
            os.unlink(_RECORD, dir_fd=folder)
            self._folder = -1
            os.close(folder)
            raise Exchanged.at(self.path)
        try:
            fcntl.flock(record, fcntl.LOCK_EX)  # before it says anything
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        whose = {
            "made_by": "drystone restore",
            "name": self.name,
            "inode": os.fstat(folder).st_ino,
            **ProcessMark.here().to_record(),
        }
        os.write(record, json.dumps(whose).encode())

    def close(self) -> str:
        """Remove it with all that is left in it. Returns why it stays, if it does."""
        record, folder = self._record, self._folder
        self._record = self._folder = -1
        try:
            if folder < 0:  # not opened, or not ours
                _close_record(record)
                os.rmdir(self.path)
            else:
                shutil.rmtree(_OBJECTS, ignore_errors=True, dir_fd=folder)
                _remove(folder, self.path, record)
        except FileNotFoundError:
            pass
        except OSError as error:
            return error.strerror or str(error)
        finally:
            if folder >= 0:
                os.close(folder)
        return ""


@dataclass(frozen=True)
class Leftovers:
    """Staging directories that were found, by name: those of killed restores, which were `removed`; (name, reason) of
    those that were left; those of restores that are `at_work`."""

    removed: tuple[str, ...] = ()
    left: tuple[tuple[str, str], ...] = ()
    at_work: tuple[str, ...] = ()


def remove_leftovers(folder: str) -> Leftovers:
    """Remove what killed restores left in the directory `folder`. Raises OSError where it can't be listed."""
    removed, left, at_work = [], [], []
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _NAME.fullmatch(entry.name))
    for name in names:
        try:
            reason = _removed(os.path.join(folder, name), name)
        except BlockingIOError:
            at_work.append(name)
        except FileNotFoundError:
            continue  # its restore has ended just now
        except OSError as error:
            left.append((name, error.strerror or str(error)))
        else:
            (left.append((name, reason)) if reason else removed.append(name))
    return Leftovers(tuple(removed), tuple(left), tuple(at_work))


def _removed(path: str, name: str) -> str:
    """Remove the staging directory of a killed restore; else why not. Raises BlockingIOError where its restore lives,
    and OSError."""
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        return "it belongs to somebody else"
    with ExitStack() as stack:
        folder = os.open(path, _FOLDER)
        stack.callback(os.close, folder)
        if not os.path.samestat(os.fstat(folder), found):
            return "it belongs to somebody else"
        try:
            # For writing, which NFS wants of whoever locks a file.
            record = os.open(_RECORD, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            # Nobody loses anything by it: who has made it just now makes another one.
            return _unless_full(path, "it has no record of its restore")
        held = stack.enter_context(ExitStack())
        held.callback(_close_record, record)
        locked = True
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            locked = False
        text = os.read(record, 4096)
        if not text and locked and os.listdir(folder) == [_RECORD]:
            os.unlink(_RECORD, dir_fd=folder)
            return _unless_full(path, "its record says nothing")
        whose = _parsed(text)
        try:
            process = ProcessMark.from_record(whose)
        except (KeyError, TypeError, ValueError):
            process = None
        if process is None or whose.get("name") != name or whose.get("inode") != found.st_ino:
            return "its record is not that of this directory"
        # Whoever made it holds the lock while he lives, which the same kernel sees, in whatever container.
        released = locked and process.boot == boot_id() != ""
        if not released and process.is_gone() is not True:
            return (
                f"process {process.pid} on the host {process.host!r} may still use it, which can't be told from here; "
                "remove it once that has ended"
            )
        held.pop_all()
        _remove(folder, path, record)
    return ""


def _unless_full(path: str, reason: str) -> str:
    """Remove a directory if it is empty, else return the reason for which it stays. Raises OSError."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
        return reason
    return ""


def _remove(folder: int, path: str, record: int) -> None:
    """Remove the open staging directory at `path`, its record last, which is closed. Raises OSError."""
    try:
        _take_apart(folder, path)
        return
    except OSError as error:
        if error.errno not in _NOT_EMPTY:
            raise
    finally:
        _close_record(record)
    # NFS and FUSE keep a deleted file under another name until it is closed, and some time longer.
    until = time.monotonic() + _LINGERS
    while True:
        try:
            _take_apart(folder, path)
            return
        except OSError as error:
            if error.errno not in _NOT_EMPTY or time.monotonic() > until:
                raise
        time.sleep(0.02)


def _close_record(record: int) -> None:
    if record >= 0:
        with suppress(OSError):  # it is no longer needed, whether it was written or not
            os.close(record)


def _take_apart(folder: int, path: str) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(_OBJECTS, dir_fd=folder)
    with suppress(FileNotFoundError):
        os.unlink(_RECORD, dir_fd=folder)
    os.rmdir(path)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        whose = json.loads(text)
    except ValueError:
        return {}
    return whose if isinstance(whose, dict) else {}
