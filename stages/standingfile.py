"""What a file that stands in its place has besides its content: compared with what was archived, and set on it.

The file is reached through a descriptor that opens nothing (O_PATH), so no link is followed and no device wakes up.
While its attributes change, it is open to nobody who may not use it before and after.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from manifests.xattrs import pack_xattrs, read_xattrs, set_xattrs, unpack_xattrs, xattr_difference
from stages.attributes import Attributes

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
        found = {"mode": self.mode, "owner": self.owner, "extended attributes": self.surplus or self.lacking}
        return " and ".join(name for name, differs in found.items() if differs)


def differences(folder: int, name: bytes, info: os.stat_result, attributes: Attributes, owner: bool) -> Differences:
    """How the object `name` in the directory `folder`, of which `info` tells, differs from an archived one of its kind.
    Owners, and extended attributes that are root's to give, count only where `owner`; but a file that runs as its owner
    must be this user's own. Raises OSError."""
    is_link = stat.S_ISLNK(info.st_mode)
    if owner:
        other_owner = (info.st_uid, info.st_gid) != (attributes.uid, attributes.gid)
    else:
        other_owner = bool(attributes.mode & _SET_IDS) and not is_link and info.st_uid != os.geteuid()
    found = read_xattrs(b"/proc/self/fd/%d/%s" % (folder, name))
    same = found == attributes.xattrs
    surplus, lacking = ((), {}) if same else xattr_difference(found, attributes.xattrs, owner)
    other_mode = not is_link and stat.S_IMODE(info.st_mode) != stat.S_IMODE(attributes.mode)
    return Differences(other_mode, other_owner, surplus, lacking)


def set_differences(
    folder: int, name: bytes, info: os.stat_result, attributes: Attributes, differ: Differences, owner: bool
) -> str:
    """Give an object in its place the attributes that it lacks. Returns what could not be set. Raises OSError, and
    FileExistsError where the name has become that of something else."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not os.path.samestat(os.fstat(fd), info):
            raise FileExistsError
        return _set(b"/proc/self/fd/%d" % fd, info, attributes, differ, owner)
    finally:
        os.close(fd)


def _set(path: bytes, info: os.stat_result, attributes: Attributes, differ: Differences, owner: bool) -> str:
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
