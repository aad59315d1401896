"""The directory in which objects are made before they get their names, beside where they are going.

It holds a record of whose it is, which its restore keeps locked while it lives. So the next restore knows what a killed
one left behind: a directory whose record names it, by name and inode, and that nobody holds. The record goes last, so
that a removal that is cut short is completed by the next restore, too.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from stages.inheritance import disinherit

STAGING_MARK = ".drystone-restore-"
_NAME = re.compile(re.escape(STAGING_MARK) + "[0-9a-f]{16}")
_RECORD, _OBJECTS = "whose.json", "objects"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class Staging:
    """A staging directory. Call `close` once."""

    def __init__(self, folder: str, *, bequeath: bool = False) -> None:
        """Make it in the directory `folder`. What is made in it inherits nothing from there, unless `bequeath`. Raises
        OSError."""
        self.name = f"{STAGING_MARK}{secrets.token_hex(8)}"
        self.path = os.path.join(folder, self.name)
        #: Where objects are made.
        self.objects = os.path.join(self.path, _OBJECTS)
        self._record = -1
        os.mkdir(self.path, 0o700)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if not bequeath:
                    disinherit(fd)
                self._claim(fd)
                os.mkdir(_OBJECTS, 0o700, dir_fd=fd)
            finally:
                os.close(fd)
        except BaseException:
            self.close()
            raise

    @property
    def cleanup(self) -> tuple[str, ...]:
        """The directories that go, in this order, when the restore has ended."""
        return (self.objects, self.path)

    def _claim(self, folder: int) -> None:
        self._record = os.open(_RECORD, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(self._record, fcntl.LOCK_EX)  # before it says anything
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        whose = {
            "made_by": "drystone restore",
            "name": self.name,
            "inode": os.fstat(folder).st_ino,
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "pid": os.getpid(),
        }
        os.write(self._record, json.dumps(whose).encode())

    def close(self) -> None:
        """Remove it with all that is left in it."""
        for path in self.cleanup:
            shutil.rmtree(path, ignore_errors=True)
        if self._record >= 0:
            os.close(self._record)


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
    for name in sorted(filter(_NAME.fullmatch, os.listdir(folder))):
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
    try:
        record = os.open(os.path.join(path, _RECORD), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        os.lstat(path)
        return "it has no record of its restore"
    try:
        locked = True
        try:
            fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            locked = False
        whose = _parsed(os.read(record, 4096))
        if whose.get("name") != name or whose.get("inode") != found.st_ino:
            return "its record is not that of this directory"
        host, boot = whose.get("host"), whose.get("boot")
        if boot != _boot_id() and host != socket.gethostname():
            return f"it was made on the host {host!r}, which alone can tell whether its restore still runs"
        if not locked and boot == _boot_id():
            return f"the file system has no locks to tell whether process {whose.get('pid')} still runs"
        if os.path.lexists(objects := os.path.join(path, _OBJECTS)):
            shutil.rmtree(objects)
        shutil.rmtree(path)
    finally:
        os.close(record)
    return ""


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        whose = json.loads(text)
    except ValueError:
        return {}
    return whose if isinstance(whose, dict) else {}


def _boot_id() -> str:
    with suppress(OSError), open(_BOOT_ID) as file:
        return file.read().strip()
    return ""
