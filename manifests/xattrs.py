"""Extended attributes: read, packed into one value of the objects table, and set again.

Packed, per attribute and sorted by name: length of the name u16, length of the value u32, name, value. POSIX ACLs and
capabilities ride in them, as the kernel writes them (system.posix_acl_access, security.capability).
"""

from __future__ import annotations

import errno
import functools
import os
import struct
from collections.abc import Mapping

from manifests.errors import CorruptRecord

_HEAD = struct.Struct("<HI")
#: What the kernel takes of a name, and of a value.
_NAME_MOST, _VALUE_MOST = 255, 64 << 10
#: Packed attributes of one object beyond this are not archived: rows travel in slots of bounded size.
XATTRS_MOST = 256 << 10
#: What a user may set on files of their own; all else is root's.
FOR_EVERYBODY = (b"user.", b"system.posix_acl_")
#: XFS shows a POSIX ACL a second time under the first of these, IRIX had the second; bcachefs shows what a file takes
#: over from directories above. Of what is in system., POSIX ACLs alone mean something elsewhere (system.nfs4_acl,
#: system.cifs_acl and the like are what one server makes of a mode and an ACL).
_INTERNAL = (b"trusted.SGI_", b"xfsroot.", b"bcachefs_effective.")
#: What overlayfs notes of the inodes and file handles of one place. What else it notes says which files there are.
_OVERLAY_NOTES = {b"origin", b"impure", b"nlink", b"upper", b"uuid"}
#: Attributes that a message names.
_NAMED = 5
#: What nobody has but by somebody's doing. Labels and the like come from the system itself.
_GIVEN = (*FOR_EVERYBODY, b"security.capability")


def pack_xattrs(attributes: Mapping[bytes, bytes]) -> bytes:
    """The column's value; empty when there are no attributes."""
    return b"".join(_HEAD.pack(len(name), len(value)) + name + value for name, value in sorted(attributes.items()))


def unpack_xattrs(packed: bytes) -> dict[bytes, bytes]:
    """Name → value, without internal ones, which older archives may hold. Raises CorruptRecord where the lengths do not
    add up, or are beyond what the kernel has."""
    found, at = dict[bytes, bytes](), 0
    while at < len(packed):
        if at + _HEAD.size > len(packed):
            raise CorruptRecord("extended attributes end in the middle of a length")
        name_length, value_length = _HEAD.unpack_from(packed, at)
        at += _HEAD.size
        end = at + name_length + value_length
        if not name_length or end > len(packed):
            raise CorruptRecord(f"an extended attribute ends at {end} of {len(packed)} bytes")
        name = packed[at : at + name_length]
        if b"\0" in name or name_length > _NAME_MOST or value_length > _VALUE_MOST:
            raise CorruptRecord("an extended attribute has a name or a length that no file has")
        if not is_internal(name):
            found[name] = packed[at + name_length : end]
        at = end
    return found


def short_path(folder: int, name: bytes) -> bytes:
    """A path for the object `name` in an open directory, for calls that take no descriptor of a directory: short, and
    right whatever happens to the directories above. Empty without /proc."""
    return b"/proc/self/fd/%d/%s" % (folder, name) if proc_is_there() else b""


@functools.cache
def proc_is_there() -> bool:
    """Whether descriptors have paths."""
    return os.path.exists("/proc/self/fd")


class UnreadXattrs(OSError):
    """Some attributes of an object could not be read. `others`: those that could, packed."""

    def __init__(self, unread: Mapping[bytes, OSError], others: bytes) -> None:
        named = [f"{_text(name)}: {error.strerror}" for name, error in sorted(unread.items())[:_NAMED]]
        more = f" and {len(unread) - _NAMED} more" if len(unread) > _NAMED else ""
        super().__init__(next(iter(unread.values())).errno, ", ".join(named) + more)
        self.others = others


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def is_internal(name: bytes) -> bool:
    """Whether a file system shows under this name what is archived otherwise, or what it notes for itself: such an
    attribute is neither archived nor set, for elsewhere it is nothing, or contradicts what is. This is the rule."""
    if name.startswith((b"user.", b"security.")) and not name.startswith(b"user.overlay."):
        return False
    if name.startswith(b"system."):
        return not name.startswith(FOR_EVERYBODY)
    if name.startswith(_INTERNAL):
        return True
    space, _, overlay = name.partition(b".overlay.")
    return space in (b"trusted", b"user") and overlay in _OVERLAY_NOTES


def read_xattrs(of: int | bytes) -> bytes:
    """The packed attributes of an open file, or of the object at a path, which is not followed; without internal ones.
    Raises UnreadXattrs where some could not be read, OSError where none could."""
    follow = isinstance(of, int)
    try:
        names = os.listxattr(of, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):  # its file system, or its kind, has none
            return b""
        raise
    if not names:
        return b""
    found, unread = dict[bytes, bytes](), dict[bytes, OSError]()
    for each in names:
        name = os.fsencode(each)
        if is_internal(name):
            continue
        try:
            found[name] = os.getxattr(of, each, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                unread[name] = error
    packed = pack_xattrs(found)
    if len(packed) > XATTRS_MOST:
        raise OSError(errno.E2BIG, f"they take {len(packed)} bytes, more than {XATTRS_MOST}")
    if unread:
        raise UnreadXattrs(unread, packed)
    return packed


def read_xattrs_of(folder: int, name: bytes, path: bytes) -> bytes:
    """The packed attributes of the object `name` in an open directory, which is neither opened nor followed. Without
    /proc they are read by its `path`, which must lead to this object before and after. Raises OSError."""
    if short := short_path(folder, name):
        return read_xattrs(short)
    here = os.stat(name, dir_fd=folder, follow_symlinks=False)
    _require_same(path, here)
    packed = read_xattrs(path)
    _require_same(path, here)
    return packed


def _require_same(path: bytes, info: os.stat_result) -> None:
    if not os.path.samestat(os.lstat(path), info):
        raise OSError(errno.ESTALE, "its path leads elsewhere by now")


def set_xattrs(of: int | bytes, packed: bytes, privileged: bool, *, follow: bool = False) -> str:
    """Set packed attributes on an open file, or on the object at a path, which is followed only where told; those that
    are root's only where `privileged`. Returns what could not be set and why, or an empty string. Raises
    CorruptRecord."""
    troubles = []
    for name, value in unpack_xattrs(packed).items():
        if not privileged and not name.startswith(FOR_EVERYBODY):
            continue
        try:
            os.setxattr(of, name, value, follow_symlinks=follow or isinstance(of, int))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            troubles.append(f"{_text(name)}: {reason}")
    return f"extended attributes could not be set: {', '.join(troubles)}" if troubles else ""


def xattr_difference(found: bytes, wanted: bytes, privileged: bool) -> tuple[tuple[bytes, ...], dict[bytes, bytes]]:
    """What tells packed attributes that were found from those that are wanted: the names of those to remove, and those
    to set. What the system gives by itself may stay; what is root's to give counts only where `privileged`. Raises
    CorruptRecord."""
    there, due = unpack_xattrs(found), unpack_xattrs(wanted)
    lacking = {
        name: value
        for name, value in due.items()
        if there.get(name) != value and (privileged or name.startswith(FOR_EVERYBODY))
    }
    return tuple(name for name in there if name not in due and name.startswith(_GIVEN)), lacking
