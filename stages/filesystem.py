"""Which file system a file lies on; see statfs(2)."""

from __future__ import annotations

import ctypes
import os

#: f_type of /proc, /sys, debugfs, tracefs, securityfs, cgroup and cgroup2: the kernel makes up what their files hold.
MADE_UP = {0x9FA0, 0x62656572, 0x64626720, 0x74726163, 0x73636673, 0x27E0EB, 0x63677270}
#: f_type of FAT, exFAT, FUSE, CIFS, SMB2 and 9P: a file may get another inode number when the kernel meets it again.
NUMBERED_ANEW = {0x4D44, 0x2011BAB0, 0x65735546, 0xFF534D42, 0xFE534D42, 0x01021997}
#: f_type of tmpfs, ramfs and hugetlbfs: their pages are the files.
KEPT_IN_MEMORY = {0x01021994, 0x858458F6, 0x958458F6}


def file_system(fd: int) -> int:
    """The f_type of an open file's file system. Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return ctypes.c_long.from_buffer(buffer).value
