"""What a new object takes over from the directory that it is made in: a default ACL, the group, flags of chattr.

An archived object comes back with what it had. So what it would inherit is taken from the staging directory, where
files are made, and from each new directory, before anything is in them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress

ACCESS_ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
#: FS_IOC_GETFLAGS and FS_IOC_SETFLAGS as most machines number them; elsewhere they are no request that is known.
_GET_FLAGS = 0x80006601 | struct.calcsize("l") << 16
_SET_FLAGS = 0x40006602 | struct.calcsize("l") << 16
#: The inherited flags of chattr that say how a file is kept: s u c S d A m j t D C, of ext4, btrfs and xfs. The flags
#: that say where it is counted and how its names compare (projects, case folding) belong to the place, and stay.
_FLAGS = 0x1 | 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x400 | 0x4000 | 0x8000 | 0x10000 | 0x800000
_WORD = struct.Struct("i4x")
_ABSENT = {errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def passes_on(fd: int) -> bool:
    """Whether new objects in the open directory inherit something. Raises OSError."""
    if os.fstat(fd).st_mode & stat.S_ISGID or _flags(fd) & _FLAGS:
        return True
    try:
        os.getxattr(fd, DEFAULT_ACL)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise
    return True


def disinherit(fd: int) -> None:
    """Take from a new directory of our own what it inherited. It is open for its owner alone. Raises OSError."""
    drop_acls(fd)
    if (flags := _flags(fd)) & _FLAGS:
        with suppress(OSError):  # some only root may take away
            fcntl.ioctl(fd, _SET_FLAGS, _WORD.pack(flags & ~_FLAGS))
    with suppress(PermissionError):  # a file system may know no owners or modes but those that it was mounted with
        if os.fstat(fd).st_gid != os.getegid():
            os.fchown(fd, -1, os.getegid())
        os.fchmod(fd, 0o700)


def drop_acls(fd: int) -> None:
    """Leave an open directory with nothing but its mode. Raises OSError."""
    for name in (DEFAULT_ACL, ACCESS_ACL):
        try:
            os.removexattr(fd, name)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise


def _flags(fd: int) -> int:
    """Flags of chattr; 0 where the file system has none."""
    try:
        found: int = _WORD.unpack(fcntl.ioctl(fd, _GET_FLAGS, _WORD.pack(0)))[0]
    except OSError:
        return 0
    return found
