"""What a file that stands in its place has besides its content: compared with what was archived, and set on it.

The file is reached through a descriptor that opens nothing (O_PATH), so no link is followed and no device wakes up.
Without /proc, which such descriptors need, files and directories are opened for reading.
While its attributes change, it is open to nobody who may not use it before and after.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from manifests.xattrs import (
    pack_xattrs,
    proc_is_there,
    read_xattrs,
    set_xattrs,
    short_path,
    unpack_xattrs,
    xattr_difference,
)
from stages.attributes import Attributes, set_attributes_by_name

_NAMED = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_ACLS = b"system.posix_acl_"


class Differences(NamedTuple):
    """What differs. `surplus`: names of extended attributes that the archived object does not have; `lacking`: those
    that are missing or have other values."""

    mode: bool
    owner: bool
    surplus: tuple[bytes, ...]
    lacking: dict[bytes, bytes]

    def __bool__(self) -> bool:
        return self.mode or self.owner or bool(self.surplus or self.lacking)

    def __str__(self) -> str:
        """As `mode differs`."""
        found = {"mode": self.mode, "owner": self.owner, "extended attributes": self.surplus or self.lacking}
        names = [name for name, differs in found.items() if differs]
        return " and ".join(names) + (" differs" if names in (["mode"], ["owner"]) else " differ")


def differences(folder: int, name: bytes, info: os.stat_result, attributes: Attributes, owner: bool) -> Differences:
    """How the object `name` in the directory `folder`, of which `info` tells, differs from an archived one of its kind.
    Owners, and extended attributes that are root's to give, count only where `owner`; but a file that runs as its owner
    must be this user's own. Raises OSError."""
    is_link = stat.S_ISLNK(info.st_mode)
    if owner:
        other_owner = (info.st_uid, info.st_gid) != (attributes.uid, attributes.gid)
    else:
        other_owner = bool(attributes.mode & _SET_IDS) and not is_link and info.st_uid != os.geteuid()
    found = _xattrs(folder, name, info, attributes)
    same = found == attributes.xattrs
    surplus, lacking = ((), {}) if same else xattr_difference(found, attributes.xattrs, owner)
    other_mode = not is_link and stat.S_IMODE(info.st_mode) != stat.S_IMODE(attributes.mode)
    return Differences(other_mode, other_owner, surplus, lacking)


def set_differences(
    folder: int, name: bytes, info: os.stat_result, attributes: Attributes, differ: Differences, owner: bool
) -> str:
    """Give an object in its place the attributes that it lacks. Returns what could not be set. Raises OSError, and
    FileExistsError where the name has become that of something else."""
    has_proc = proc_is_there()
    if not has_proc and not _may_be_opened(info):
        return set_attributes_by_name(folder, name, attributes, owner)
    fd = os.open(name, _NAMED if has_proc else _READ, dir_fd=folder)
    try:
        if not os.path.samestat(os.fstat(fd), info):
            raise FileExistsError
        return _set(b"/proc/self/fd/%d" % fd if has_proc else fd, info, attributes, differ, owner)
    finally:
        os.close(fd)


def _may_be_opened(info: os.stat_result) -> bool:
    return stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)


def _xattrs(folder: int, name: bytes, info: os.stat_result, attributes: Attributes) -> bytes:
    """The packed attributes that an object has; where they can't be looked at, those that it is to have."""
    if path := short_path(folder, name):
        return read_xattrs(path)
    if not _may_be_opened(info):
        return attributes.xattrs
    fd = os.open(name, _READ, dir_fd=folder)
    try:
        return read_xattrs(fd)
    finally:
        os.close(fd)


def _set(path: bytes | int, info: os.stat_result, attributes: Attributes, differ: Differences, owner: bool) -> str:
    troubles, has_mode = list[str](), not stat.S_ISLNK(info.st_mode)
    mode = stat.S_IMODE(attributes.mode)

    def attempt(what: str, call: Callable[[], None]) -> bool:
        try:
            call()
        except OSError as error:
            troubles.append(f"its {what} could not be set: {error.strerror}")
            return False
        return True

    if has_mode:
        between = info.st_mode & mode & 0o777
        if any(each.startswith(_ACLS) for each in (*differ.surplus, *differ.lacking)):
            between &= ~0o070  # these bits mean one thing with an ACL and another without
        if not attempt("mode", lambda: os.chmod(path, between)):
            return troubles[0]
    for each in differ.surplus:
        attempt(f"extended attribute {each.decode(errors='backslashreplace')}", lambda: os.removexattr(path, each))  # noqa: B023
    if differ.owner and owner and not attempt("owner", lambda: os.chown(path, attributes.uid, attributes.gid)):
        mode &= ~_SET_IDS  # nobody else's file may become one that runs as whoever owns it now
    lacking = dict(differ.lacking)
    if differ.owner and owner:  # chown has cleared a capability that was right
        lacking |= {k: v for k, v in unpack_xattrs(attributes.xattrs).items() if k == b"security.capability"}
    if lacking and (trouble := set_xattrs(path, pack_xattrs(lacking), owner, follow=True)):
        troubles.append(trouble)
    if has_mode:
        attempt("mode", lambda: os.chmod(path, mode))
    return "; ".join(troubles)
