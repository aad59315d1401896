"""Lists of paths (`--files-from`): read, sorted by their parts, without holding them all in memory.

Sorted, a directory comes right before what lies in it: so each is made an object once, and what is named twice, or
below a directory that is named, goes in once. A sorted list is an unnamed temporary file of entries: the number of the
source and the path from it, ended by a NUL; or a mark and the path as given where it lies below no source, or can't be
followed.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import IO

from manifests.errors import DrystoneError, UsageError
from pipeline.ingest.below import Below
from pipeline.textfile import beginning
from stages.scan import ASTRAY, OUTSIDE, Listed, Source

#: Bytes of entries that are sorted at a time; with what Python adds to each, about four times that in memory.
SORTED_BYTES = 4 << 20
#: Read ahead from each sorted piece while they are merged.
PIECE_READ = 32 << 10
LONGEST = 1 << 20
_MARKS = {b"!": OUTSIDE, b"?": ASTRAY}


def sort_list(
    source: IO[bytes], sources: Sequence[Source], *, nul: bool, name: str = "the list of paths"
) -> tuple[IO[bytes], int]:
    """A sorted list of the entries of `source`, which end with newlines, or NUL bytes where `nul`, as a file that is
    the caller's; and how many of `sources`, from the first on, it needs. Relative paths count from the first; each
    entry belongs to the first that it lies below, as the kernel walks its path (below.py). Raises UsageError, and
    DrystoneError where reading or sorting fails."""
    needed, below = 1, Below(sources)

    def records() -> Iterator[bytes]:
        nonlocal needed
        for entry in _entries(source, b"\0" if nul else b"\n", name):
            number, record = _record(entry, below)
            needed = max(needed, number + 1)
            yield record

    try:
        with ExitStack() as stack:
            pieces = stack.enter_context(tempfile.TemporaryFile())
            places = list(_write_pieces(records(), pieces))
            if not places:
                where = "standard input" if name == "-" else name
                raise UsageError(f"{where} names nothing to archive; did what wrote the list fail?")
            if len(places) > 1:
                merged = stack.enter_context(tempfile.TemporaryFile())
                runs = [_read_piece(pieces.fileno(), start, end) for start, end in places]
                merged.writelines(record + b"\0" for record in heapq.merge(*runs, key=_sort_key))
                merged.flush()
                pieces.close()
                pieces = merged
            stack.pop_all()
            return pieces, needed
    except OSError as error:
        raise DrystoneError(f"reading and sorting the list of paths failed: {error.strerror}") from error


def read_list(fd: int) -> Iterator[Listed]:
    """The entries of a sorted list, in order; `fd` is closed at its end."""
    with open(fd, "rb") as file:
        file.seek(0)
        for record in _split(iter(lambda: file.read(256 << 10), b""), b"\0"):
            yield Listed(_MARKS.get(record[:1], record[0] - ord("0")), record[1:])


def _split(blocks: Iterable[bytes], end: bytes) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(end)
        yield from whole
        if len(rest) > LONGEST:
            raise UsageError(
                f"the list of paths holds an entry of more than {LONGEST} bytes; should -0 be given, or not?"
            )
    if rest:
        yield rest


def _entries(source: IO[bytes], end: bytes, name: str) -> Iterator[bytes]:
    first = beginning(source.read(256 << 10), name, nul=end == b"\0")
    for entry in _split(chain([first], iter(lambda: source.read(256 << 10), b"")), end):
        if b"\0" in entry:
            raise UsageError(f"{name} holds NUL bytes: give -0 with it, or, if it is UTF-16, write it as UTF-8")
        if entry:
            yield entry


def _record(entry: bytes, below: Below) -> tuple[int, bytes]:
    try:
        number, path = below.find(entry)
    except OSError:
        return ASTRAY, b"?" + entry
    return number, (b"!" + entry if number == OUTSIDE else b"%d" % number + path)


def _sort_key(record: bytes) -> bytes:
    """A NUL sorts before all that a name may hold, so a directory's entries stand together, right behind it."""
    return record.replace(b"/", b"\0")


def _write_pieces(records: Iterable[bytes], target: IO[bytes]) -> Iterator[tuple[int, int]]:
    """Write sorted pieces; yields where each begins and ends."""
    piece: list[bytes] = []
    size = start = 0

    def flush() -> tuple[int, int]:
        nonlocal piece, size, start
        piece.sort(key=_sort_key)
        target.write(b"".join(record + b"\0" for record in piece))
        begin, start = start, target.tell()
        piece, size = [], 0
        return begin, start

    for record in records:
        piece.append(record)
        size += len(record) + 64  # of a bytes object
        if size >= SORTED_BYTES:
            yield flush()
    if piece:
        yield flush()
    target.flush()


def _read_piece(fd: int, start: int, end: int) -> Iterator[bytes]:
    def blocks() -> Iterator[bytes]:
        for at in range(start, end, PIECE_READ):
            yield os.pread(fd, min(PIECE_READ, end - at), at)

    return _split(blocks(), b"\0")
