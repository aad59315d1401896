"""Digests over whole contents: BLAKE3, which every object carries, and those that a user asked for."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from blake3 import blake3

from manifests import format as fmt
from manifests.errors import UsageError
from manifests.fixity import parse_fixity

#: As people write them.
SPELLED = {"blake3": "BLAKE3", "md5": "MD5", "sha1": "SHA-1", "sha256": "SHA-256", "sha512": "SHA-512"}
ALGORITHMS: dict[str, Callable[[], Any]] = {
    "blake3": blake3,
    **{name: partial(hashlib.new, name, usedforsecurity=False) for name in fmt.DIGESTS if name != "blake3"},
}
#: Files are hashed in pieces of this size: from a reused buffer that stays in the cache BLAKE3 takes 4.5 GB/s, from a
#: map of the file 3.2.
PIECE = 1 << 20
_ZEROS = memoryview(bytes(PIECE))
#: A restored file of this length is hashed by all cores at once, in longer pieces: it is often the last thing that a
#: restore does. It is not mapped, for then all of it would count as the process's memory.
SPREAD, SPREAD_PIECE = 64 << 20, 8 << 20


def parse_digests(text: str) -> tuple[str, ...]:
    """`sha256,md5` → the names in the order of the format, each once, without BLAKE3, which is always computed. Raises
    UsageError."""
    names = {name.strip().lower().replace("-", "") for name in text.split(",") if name.strip()}
    unknown = sorted(names - fmt.DIGESTS.keys())
    if unknown or not names:
        raise UsageError(f"{text!r} names no digest that is known; there are {', '.join(fmt.DIGESTS)}")
    return join_digests([names])


def join_digests(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Several lists of names as one, in the order of the format, each once, without BLAKE3."""
    names = {name for group in groups for name in group}
    return tuple(name for name in fmt.DIGESTS if name in names and name != "blake3")


class Digester:
    """Several digests of one content while it goes by."""

    def __init__(self, names: Sequence[str], threads: int = 1) -> None:
        """`threads`: for BLAKE3, which makes use of them in pieces of SPREAD_PIECE; blake3.AUTO for all cores."""
        self._hashers = [blake3(max_threads=threads) if name == "blake3" else ALGORITHMS[name]() for name in names]

    def update(self, data: bytes | memoryview) -> None:
        for hasher in self._hashers:
            hasher.update(data)

    def digests(self) -> list[bytes]:
        """In the order of the names."""
        return [hasher.digest() for hasher in self._hashers]


def digest_all(names: Sequence[str], data: bytes | memoryview) -> bytes:
    """The digests `names` of `data`, one after the other."""
    digester = Digester(names)
    digester.update(data)
    return b"".join(digester.digests())


class FixityCheck:
    """Compares a content with what was recorded of it (`fixity`, as in manifests/fixity.py) while it goes by."""

    def __init__(self, fixity: bytes, begun: Digester | None = None) -> None:
        """`begun`: a digester of the digests in `fixity` that has taken the beginning of the content."""
        self._expected = parse_fixity(fixity)
        self._digester = begun or Digester([name for name, _ in self._expected])

    def update(self, data: bytes | memoryview) -> None:
        self._digester.update(data)

    def read(self, fd: int, start: int = 0) -> None:
        """Take a file from `start`, up to where it was taken already, to its end. Raises OSError."""
        large = not start and os.fstat(fd).st_size >= SPREAD
        if large:
            self._digester = Digester([name for name, _ in self._expected], blake3.AUTO)
        for piece in read_pieces(fd, SPREAD_PIECE if large else PIECE, start):
            self._digester.update(piece)

    def wrong(self) -> list[tuple[str, bytes]]:
        """Name and recorded digest of those that differ."""
        pairs = zip(self._expected, self._digester.digests(), strict=True)
        return [recorded for recorded, found in pairs if found != recorded[1]]

    def trouble(self) -> str:
        """What differs, as the reason why the content is not the archived one; empty when nothing does."""
        wrong = [SPELLED[name] for name, _ in self.wrong()]
        return f"its {' and '.join(wrong)} is not what was recorded when it was archived" if wrong else ""


def read_pieces(fd: int, longest: int = PIECE, start: int = 0, end_at: int | None = None) -> Iterator[memoryview]:
    """A file from `start` to `end_at`, or to its end, in pieces of `longest` bytes; each is valid until the next is
    asked for. Holes are not read: that would fill memory with their zeros. Raises OSError."""
    size, at = os.fstat(fd).st_size if end_at is None else end_at, start
    buffer = memoryview(bytearray(max(4096, min(longest, size + 1))))
    while at < size:
        try:
            data = min(size, os.lseek(fd, at, os.SEEK_DATA))
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data from there on
                raise
            data = size
        while at < data:
            piece = _ZEROS[: data - at]
            yield piece
            at += len(piece)
        end = min(size, os.lseek(fd, at, os.SEEK_HOLE)) if at < size else size
        while at < end:
            count = os.preadv(fd, [buffer[: end - at]], at)
            if not count:
                return
            yield buffer[:count]
            at += count
