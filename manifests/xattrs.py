"""Extended attributes as one value of the objects table.

Per attribute, sorted by name: length of the name u16, length of the value u32, name, value. POSIX ACLs and capabilities
ride in them, as the kernel writes them (system.posix_acl_access, security.capability).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from manifests.errors import CorruptRecord

_HEAD = struct.Struct("<HI")


def pack_xattrs(attributes: Mapping[bytes, bytes]) -> bytes:
    """The column's value; empty when there are no attributes."""
    return b"".join(_HEAD.pack(len(name), len(value)) + name + value for name, value in sorted(attributes.items()))


def unpack_xattrs(packed: bytes) -> dict[bytes, bytes]:
    """Name → value. Raises CorruptRecord where the lengths do not add up."""
    found, at = dict[bytes, bytes](), 0
    while at < len(packed):
        if at + _HEAD.size > len(packed):
            raise CorruptRecord("extended attributes end in the middle of a length")
        name_length, value_length = _HEAD.unpack_from(packed, at)
        at += _HEAD.size
        end = at + name_length + value_length
        if not name_length or end > len(packed):
            raise CorruptRecord(f"an extended attribute ends at {end} of {len(packed)} bytes")
        found[packed[at : at + name_length]] = packed[at + name_length : end]
        at = end
    return found
