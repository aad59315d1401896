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
#: What nobody has but by somebody's doing. Labels and the like come from the system itself.
_GIVEN = (*FOR_EVERYBODY, b"security.capability")


def pack_xattrs(attributes: Mapping[bytes, bytes]) -> bytes:
    """The column's value; empty when there are no attributes."""
    return b"".join(_HEAD.pack(len(name), len(value)) + name + value for name, value in sorted(attributes.items()))


def unpack_xattrs(packed: bytes) -> dict[bytes, bytes]:
    """Name → value. Raises CorruptRecord where the lengths do not add up, or are beyond what the kernel has."""
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
        found[name] = packed[at + name_length : end]
        at = end
    return found


def short_path(folder: int, name: bytes, path: bytes) -> bytes:
    """A path for the object `name` in an open directory, for calls that take no descriptor of a directory: short, and
    right whatever happens to the directories above. Without /proc it is `path`, by which the object was found."""
    return b"/proc/self/fd/%d/%s" % (folder, name) if proc_is_there() else path


@functools.cache
def proc_is_there() -> bool:
    """Whether descriptors have paths."""
    return os.path.exists("/proc/self/fd")


def read_xattrs(of: int | bytes) -> bytes:
    """The packed attributes of an open file, or of the object at a path, which is not followed. Raises OSError."""
    follow = isinstance(of, int)
    try:
        names = os.listxattr(of, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):  # its file system, or its kind, has none
            return b""
        raise
    if not names:
        return b""
    found = {}
    for name in names:
        try:
            found[os.fsencode(name)] = os.getxattr(of, name, follow_symlinks=follow)
        except OSError as error:
            if error.errno != errno.ENODATA:  # removed since it was listed
                raise
    packed = pack_xattrs(found)
    if len(packed) > XATTRS_MOST:
        raise OSError(errno.E2BIG, f"they take {len(packed)} bytes, more than {XATTRS_MOST}")
    return packed


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
            troubles.append(f"{name.decode(errors='backslashreplace')}: {reason}")
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
