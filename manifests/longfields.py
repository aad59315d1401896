"""Fields that are too long for DuckDB's tables: paths, targets, extended attributes and holes of any length.

DuckDB works on vectors of 2,048 values, which it can't part: of 60 KB each they are more than all of its memory. So
tables, joins and sorts hold fields up to SHORT bytes alone. An object with a longer one has them all in a file without
a name, as a record, and its row has the place of that; whoever needs them reads one record after the other. How they
are left out of tables, and read later, is in longcolumns.py.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from manifests.errors import Unreadable

#: Longest field in a table, in bytes. Two thousand of them are 2 MiB.
SHORT = 1024
NAMES = ("path", "target", "xattrs", "holes")
_LENGTHS = struct.Struct("<4Q")


class Fields(NamedTuple):
    """The fields of an object, empty where it has none."""

    path: bytes
    target: bytes
    xattrs: bytes
    holes: bytes


def short_form(value: bytes) -> bytes:
    """What stands for a field where it is joined or compared: itself, or its beginning and a digest, which no short one
    equals. They sort as fields do as far as the first SHORT bytes tell."""
    return value if len(value) <= SHORT else value[:SHORT] + hashlib.sha256(value).digest()


class LongFields:
    """Records in a file without a name. Owned by the process that makes it; workers read it by its descriptor."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="drystone-fields-")  # noqa: SIM115 - closed by close
        self._size = 0

    def __enter__(self) -> LongFields:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        return self._file.fileno()

    def add(self, fields: Sequence[bytes | None]) -> int:
        """The place of a new record, which is never 0; it can be read at once. Raises OSError."""
        values = [value or b"" for value in fields]
        place, data = self._size, memoryview(b"".join((_LENGTHS.pack(*map(len, values)), *values)))
        self._size += len(data)
        at = place
        while data:
            count = os.pwrite(self.fd, data, at)
            data, at = data[count:], at + count
        return place + 1

    def read(self, place: int) -> Fields:
        """The record of a place."""
        return read_fields(self.fd, place)

    def close(self) -> None:
        self._file.close()


def read_fields(fd: int, place: int) -> Fields:
    """The record of a place, by the descriptor of the file. Raises OSError, Unreadable."""
    lengths = _LENGTHS.unpack(_read(fd, place - 1, _LENGTHS.size))
    data, at = _read(fd, place - 1 + _LENGTHS.size, sum(lengths)), 0
    values = []
    for length in lengths:
        values.append(data[at : at + length])
        at += length
    return Fields(*values)


def _read(fd: int, at: int, length: int) -> bytes:
    data = os.pread(fd, length, at)
    while len(data) < length:
        piece = os.pread(fd, length - len(data), at + len(data))
        if not piece:
            raise Unreadable("the temporary file of long paths and attributes is cut short; is its disk full?")
        data += piece
    return data
