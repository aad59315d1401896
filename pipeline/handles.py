"""Descriptors on their way to a worker: its arguments are pickled, and the descriptors in them travel beside."""

from __future__ import annotations

import io
import os
import pickle
from typing import Any


class FdHandle:
    """A descriptor among a worker's arguments. The process that makes the handle keeps its descriptor; the worker gets
    one of its own."""

    def __init__(self, fd: int, *, arrived: bool = False) -> None:
        self.fd = fd
        self._arrived = arrived

    def detach(self) -> int:
        """The descriptor, which the caller now owns. To be called once."""
        return self.fd if self._arrived else os.dup(self.fd)


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.fds: list[int] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, FdHandle):
            return None
        self.fds.append(value.fd)
        return len(self.fds) - 1


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, fds: list[int]) -> None:
        super().__init__(file)
        self._fds = fds

    def persistent_load(self, number: int) -> FdHandle:
        return FdHandle(self._fds[number], arrived=True)


def pack(value: Any) -> tuple[bytes, list[int]]:
    """`value` pickled, and the descriptors of the handles in it, which still belong to the caller."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(value)
    return file.getvalue(), packer.fds


def unpack(packed: bytes, fds: list[int]) -> Any:
    """What `pack` was given, in the process that received `fds`."""
    return _Unpacker(io.BytesIO(packed), fds).load()
