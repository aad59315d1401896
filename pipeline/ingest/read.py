"""The reader: hosts the stages read and chunk.

It reads files straight into a data slot, many small ones to a slot, cuts and names their chunks there, and sends the
slot on. A file longer than a slot goes on in the next one (lanes.py). Objects and extents travel beside, as rows, when
their content ids are known.

It is one long file because it is one state: objects, contents and chunks share the slot's fill and its table.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from manifests import format as fmt
from manifests.columns import OBJECT_DTYPE, Batch, cut_batch, with_fields
from manifests.config import ChunkerSpec
from manifests.fitting import put
from manifests.xattrs import UnreadXattrs, read_xattrs
from pipeline import messages
from pipeline.arena import Message
from pipeline.handles import FdHandle
from pipeline.ingest.carry import Carrier, CarryOptions
from pipeline.ingest.chunktable import ChunkTable, OpenContent, extent_rows
from pipeline.ingest.lanes import Lanes, Part
from pipeline.station import Acquire, Context, Station, Steps, Take, Want
from pipeline.topology import CHUNK, EXTENTS_PER_SLOT, READ, SLOT_FILES, UNCHANGED
from stages.chunk import Chunker, ContentHasher, chunk_id, chunk_ids
from stages.digest import Digester, digest_all
from stages.pagecache import LARGE_FILE, LargeFile
from stages.read import (
    QUIET_NS,
    changed,
    data_between,
    fill,
    find_holes,
    growth_limit,
    is_same_file,
    kernel_makes,
)
from stages.scan import KIND, NO_LIMIT, Source
from stages.sourcefolders import REPLACED, Identity, Replaced, SourceFolders

#: Columns that say which file it is, and where a stat has them.
_IDENTITY_COLUMNS: list[tuple[str, Callable[[os.stat_result], int]]] = [
    ("uid", attrgetter("st_uid")),
    ("gid", attrgetter("st_gid")),
    ("links", attrgetter("st_nlink")),
    ("device", attrgetter("st_dev")),
    ("inode", attrgetter("st_ino")),
]
#: Of a file: the number of its source, its path from there, and the directory that it was found in.
Place = tuple[int, bytes, Identity]
NOT_REGULAR = "it is no regular file any more"
#: Extended attributes and holes of the rows in one message, about, in bytes.
EXTRA_BYTES = 512 << 10
_EMPTY_DIGEST = np.frombuffer(blake3(b"").digest(), np.uint8)


@dataclass(frozen=True)
class ReadOptions:
    """`stream`: standard input, for sources that are streams; `digests`: those to compute besides BLAKE3;
    `carry`: where files that did not change since an earlier run are found."""

    index: int
    sources: tuple[Source, ...]
    chunker: ChunkerSpec
    seed: int
    payload: int
    stream: FdHandle | None = None
    digests: tuple[str, ...] = ()
    carry: CarryOptions | None = None


class Reader:
    """State of one reader station. Owns the slots that it fills until it sends them: one, and of a long content also
    the two before, while they are cut and named."""

    def __init__(self, context: Context, options: ReadOptions) -> None:
        self._context = context
        self._options = options
        self._chunker = Chunker(options.chunker, options.seed)
        self._minimum = options.chunker.minimum
        self._folders = SourceFolders([source.path for source in options.sources])
        self._carrier = None if options.carry is None else Carrier(options.carry, options.sources, self._folders)
        self._skips = [len(source.name) + 1 for source in options.sources]
        self._data, self._rows_pool = f"data/{options.index}", f"rows/{options.index}"
        self._slot = -1
        self._view = memoryview(b"")
        self._fill = 0
        self._large: LargeFile | None = None
        self._table = ChunkTable()
        self._lanes = Lanes(self._chunker)
        self._head = options.chunker.maximum
        self._segments: list[tuple[int, int, int]] = []
        self._extents: list[npt.NDArray[np.void]] = []
        self._extent_rows = 0
        self._rows: npt.NDArray[np.void] = np.empty(0, OBJECT_DTYPE)
        self._errors: dict[int, str] = {}
        self._digests: dict[int, bytes] = {}
        self._xattrs: dict[int, bytes] = {}
        self._holes: dict[int, bytes] = {}
        self._extra_bytes = 0
        self._stats: dict[int, os.stat_result] = {}
        self._sizes: dict[int, int] = {}
        self._began_ns = 0

    # --- slots -------------------------------------------------------------------------------------------------------

    def _open_slot(self) -> Steps:
        self._slot = yield Acquire(self._data)
        self._view = self._context.slot(self._data, self._slot)
        self._fill = 0

    def _send_slot(self) -> None:
        """Send the open slot, whose segments are all cut."""
        self._send_data(self._slot, self._view, self._fill, self._table)
        self._slot = -1

    def _send_data(self, slot: int, view: memoryview, size: int, table: ChunkTable) -> None:
        """Seal a slot and send it to the dedupe stage; give it back where no chunk lies in it."""
        if not len(table):
            view.release()
            self._context.release(self._data, slot)
            return
        count, refs = len(table), table.take().tobytes()
        payload = self._options.payload
        view[payload : payload + len(refs)] = refs
        view.release()
        self._context.seal(self._data, slot)
        self._context.clock.count(CHUNK, count, size)
        self._context.send(self._data, Message(messages.DATA, slot, amount=count, first=self._options.index))

    def close_slot(self) -> None:
        """Send what is in the slot, if anything."""
        if self._slot < 0:
            return
        self._cut_segments()
        self._send_slot()

    # --- objects -----------------------------------------------------------------------------------------------------

    def objects(self, batch: Batch, paths: list[bytes]) -> Steps:
        """Read the files of a batch (rows writable, owned by the reader) and send its rows: all at once, unless
        extended attributes and holes make them too long for a slot."""
        while paths:
            done = yield from self._some_objects(batch, paths)
            batch, paths = cut_batch(batch, done, len(paths)), paths[done:]

    def _some_objects(self, batch: Batch, paths: list[bytes]) -> Generator[Want, Any, int]:
        """Read the files of the first rows of a batch, and send these rows; returns how many."""
        self._rows, self._errors, self._digests = batch.rows, {}, {}
        self._xattrs, self._holes, self._extra_bytes = {}, {}, 0
        self._stats, self._sizes = {}, {}
        done = len(paths)
        self._began_ns = time.time_ns()
        self._context.clock.switch(READ)
        carried = {} if self._carrier is None else self._carrier.carry(batch, paths)
        wanted = np.isin(batch.rows["kind"], (KIND["file"], KIND["stream"]))
        wanted &= (batch.rows["error_len"] == 0) | (batch.rows["misfit"] != 0)
        wanted &= batch.rows["unchanged"] == 0
        wanted[list(carried)] = True
        names = ("source", "kind", "size", "mtime_ns", "mode", "ctime_ns", "folder_device", "folder_inode")
        columns = [batch.rows[name].tolist() for name in names]
        read = size = 0
        for number in np.flatnonzero(wanted).tolist():
            source, kind, expected, mtime, mode, ctime, folder, inode = (column[number] for column in columns)
            if number in carried:
                self._note_carried(number, *carried[number])
            elif kind == KIND["stream"]:
                yield from self._stream(number)
            else:
                place = source, paths[number][self._skips[source] :], (folder, inode)
                length = self._small_file(number, place, expected, mtime, mode, ctime)
                if length is None:
                    yield from self._file(number, place)
                else:
                    read, size = read + 1, size + length
            if self._extra_bytes > EXTRA_BYTES:
                done = number + 1
                break
        self._context.clock.count(READ, read, size)
        unchanged = batch.rows["unchanged"][:done] != 0
        self._context.clock.count(UNCHANGED, int(unchanged.sum()), int(batch.rows["size"][:done][unchanged].sum()))
        self._cut_segments()
        self._note_stats()
        if self._errors:
            self._size_what_failed()
        yield from self._send_extents(everything=True)
        yield from self._send_objects(batch, done)
        return done

    def _small_file(self, number: int, place: Place, expected: int, mtime: int, mode: int, ctime: int) -> int | None:
        """Read a file that fits into the open slot, with as few system calls as the kernel allows: its stat from the
        scan is the one before the reading. None when it does not fit or anything is out of the ordinary: then nothing
        has happened, and the long way is taken."""
        start, payload = self._fill, self._options.payload
        if self._slot < 0 or expected >= payload - start or len(self._table) + len(self._segments) >= SLOT_FILES:
            return None
        try:
            fd = self._folders.open(*place)
        except OSError:
            return None
        try:
            length = os.readv(fd, [self._view[start:payload]])
            xattrs = read_xattrs(fd)
            info = os.fstat(fd)
            if info.st_blocks * 512 < length and find_holes(fd, info):
                return None
        except OSError:
            return None
        finally:
            os.close(fd)
        found = (length, info.st_size, info.st_mtime_ns, info.st_mode, info.st_ctime_ns)
        if found != (expected, expected, mtime, mode, ctime) or not expected:
            return None
        if xattrs:
            self._note_xattrs(number, xattrs)
        self._stats[number] = info
        self._segments.append((number, start, length))
        self._fill = start + length
        return length

    def _note_carried(self, number: int, xattrs: bytes, holes: bytes, digests: bytes) -> None:
        """Variable fields of an unchanged file."""
        for fields, value in ((self._xattrs, xattrs), (self._holes, holes), (self._digests, digests)):
            if value:
                fields[number] = value
                self._extra_bytes += len(value)

    def _note_xattrs(self, number: int, packed: bytes) -> None:
        self._xattrs[number] = packed
        self._extra_bytes += len(packed)

    def _note_stats(self) -> None:
        """Put what stat said behind the reading into the rows; clean are those that were quiet before it, too."""
        if not self._stats:
            return
        numbers, infos = list(self._stats), list(self._stats.values())
        rows = self._rows
        rows["size"][numbers] = [self._sizes.get(number, info.st_size) for number, info in self._stats.items()]
        rows["mode"][numbers] = [info.st_mode for info in infos]
        misfits = put(rows, "ctime_ns", numbers, [info.st_ctime_ns for info in infos])
        misfits |= put(rows, "mtime_ns", numbers, [info.st_mtime_ns for info in infos])
        newest = np.maximum(rows["mtime_ns"][numbers], rows["ctime_ns"][numbers])
        rows["clean"][numbers] = newest < self._began_ns - QUIET_NS
        # The name may stand for another file than when it was scanned: then all is this one's.
        long_way = [(number, self._stats[number]) for number in self._sizes]
        for name, get in _IDENTITY_COLUMNS:
            misfits |= put(rows, name, list(self._sizes), [get(info) for _, info in long_way])
        for number, info in long_way:
            # What the kernel makes up (stages/read.py) has another length than stat says, and may change unseen.
            if self._sizes[number] != info.st_size:
                rows[number]["clean"] = 0
        self._errors = misfits | self._errors
        if self._errors:
            rows["clean"][list(self._errors)] = 0

    def _size_what_failed(self) -> None:
        """A size is that of the bytes that are archived: 0 where there are none, whatever stat said."""
        failed = np.array(list(self._errors), np.int64)
        self._rows["size"][failed[self._rows["content_kind"][failed] == fmt.CONTENT_NONE]] = 0

    def _file(self, number: int, place: Place) -> Steps:
        source, below, folder = place
        path = os.path.join(self._options.sources[source].path, below) if below else self._options.sources[source].path
        try:
            fd = self._folders.open(source, below)
        except Replaced:
            self._errors[number] = REPLACED
            return
        except OSError as error:
            gone = error.errno in (errno.ELOOP, errno.ENXIO)  # a symlink, a socket
            self._errors[number] = NOT_REGULAR if gone else f"opening it failed: {error.strerror}"
            return
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                self._errors[number] = NOT_REGULAR
                return
            if not self._folders.is_in(folder) and not self._is_as_scanned(number, fd, before):
                self._errors[number] = REPLACED
                return
            made_up = kernel_makes(fd, before)
            if before.st_size >= LARGE_FILE and not made_up:
                self._large = LargeFile(fd)
            holes = [] if made_up else find_holes(fd, before)
            if holes:
                self._context.at(os.fsdecode(path))
                size = yield from self._sparse_content(fd, number, before.st_size, holes)
            else:
                size = yield from self._content(fd, number, before.st_size, path, growth_limit(before, made_up))
            trouble = self._long_xattrs(fd, number)
            after = os.fstat(fd)
            trouble = changed(before, after, size, made_up) or trouble
            if trouble:
                self._errors[number] = trouble
            self._stats[number] = after
            self._sizes[number] = size
        except OSError as error:
            self._errors[number] = f"reading it failed: {error.strerror}"
            self._rows[number]["content_kind"] = fmt.CONTENT_NONE
        finally:
            if self._large is not None:
                self._large.close()
                self._large = None
            os.close(fd)

    def _is_as_scanned(self, number: int, fd: int, now: os.stat_result) -> bool:
        """Whether an open file is the one that the scan met. Raises OSError."""
        row = self._rows[number]
        looks = int(row["size"]), int(row["mtime_ns"]), int(row["ctime_ns"]), int(row["mode"])
        return is_same_file(fd, now, int(row["device"]), int(row["inode"]), looks)

    def _fill_from(self, fd: int, target: memoryview) -> tuple[int, bool]:
        """Read until `target` is full or the file ends: (bytes, ended). Raises OSError."""
        return fill(fd, target) if self._large is None else self._large.fill(target)

    def _long_xattrs(self, fd: int, number: int) -> str:
        """Note the extended attributes of a file; returns why that failed, or an empty string."""
        packed, trouble = b"", ""
        try:
            packed = read_xattrs(fd)
        except OSError as error:
            packed = error.others if isinstance(error, UnreadXattrs) else b""
            trouble = f"reading its extended attributes failed: {error.strerror}"
        if packed:
            self._note_xattrs(number, packed)
        return trouble

    def _stream(self, number: int) -> Steps:
        if self._options.stream is None:
            self._errors[number] = "no standard input was handed over"
            return
        fd = self._options.stream.detach()
        try:
            size = yield from self._content(fd, number, 0, b"standard input", NO_LIMIT)
            row = self._rows[number]
            row["size"], row["mode"] = size, stat.S_IFREG | 0o600
            self._errors |= put(self._rows, "mtime_ns", [number], [time.time_ns()])
            row["uid"], row["gid"] = os.getuid(), os.getgid()
        except OSError as error:
            self._errors[number] = f"reading it failed: {error.strerror}"
            self._rows[number]["content_kind"] = fmt.CONTENT_NONE
        finally:
            os.close(fd)

    def _content(self, fd: int, number: int, expected: int, path: bytes, limit: int) -> Generator[Want, Any, int]:
        """Read a content to its end, or until there are `limit` bytes or more; returns its length. Small ones are cut
        later, with their neighbours."""
        room = self._options.payload - self._fill
        if (
            self._slot >= 0
            and self._fill
            and (expected >= room or len(self._table) + len(self._segments) >= SLOT_FILES)
        ):
            self.close_slot()
        if self._slot < 0:
            yield from self._open_slot()
        clock, start = self._context.clock, self._fill
        clock.switch(READ)
        length, ended = self._fill_from(fd, self._view[start : self._options.payload])
        clock.count(READ, 1, length)
        if ended:
            self._segments.append((number, start, length))
            self._fill += length
            return length
        self._context.at(os.fsdecode(path))
        return (yield from self._long_content(fd, number, start, limit))

    def _long_content(self, fd: int, number: int, start: int, limit: int) -> Generator[Want, Any, int]:
        """The rest of a content that does not end in the slot where it begins at `start`."""
        self._cut_segments()
        content = OpenContent(number, Digester(self._options.digests))
        size = yield from self._read_on(fd, content, start, self._options.payload, False, limit)
        # A file that grew at the end of a slot may still be one chunk, and is then recorded as one.
        whole = content.chunks == 1
        self._finish(number, content.first_id if whole else content.hasher.content_id(size), not whole, content.hasher)
        self._finish_digests(content)
        return size

    def _sparse_content(
        self, fd: int, number: int, size: int, holes: list[tuple[int, int]]
    ) -> Generator[Want, Any, int]:
        """Read what lies between the larger holes of a content; returns its length, which is `size` unless it ends
        early. A content that is one hole has no chunks."""
        self.close_slot()
        yield from self._open_slot()
        content = OpenContent(number, Digester(self._options.digests))
        reached = 0
        for start, end in data_between(holes, size):
            content.add_zeros(start - reached)
            content.offset = start
            os.lseek(fd, start, os.SEEK_SET)
            self._context.clock.switch(READ)
            room = self._view[self._fill : min(self._options.payload, self._fill + end - start)]
            length, ended = self._fill_from(fd, room)
            first, filled = self._fill, self._fill + length
            ended = ended or length == end - start
            reached = yield from self._read_on(fd, content, first, filled, ended, end)
            if reached < end:
                break
        else:
            content.add_zeros(size - reached)
            reached = size
        if content.chunks:
            self._finish(number, content.hasher.content_id(reached), True, content.hasher)
        else:
            self._note_digest(number, content.hasher)
        self._finish_digests(content)
        inside = [(offset, min(length, reached - offset)) for offset, length in holes if offset < reached]
        self._holes[number] = np.array(inside, "<u8").tobytes()
        self._extra_bytes += len(self._holes[number])
        return reached

    def _read_on(
        self, fd: int, content: OpenContent, start: int, end: int, ended: bool, limit: int
    ) -> Generator[Want, Any, int]:
        """Cut what lies from `start` to `end` in the slot, and read and cut on until the file ends, or `limit` bytes of
        the content are there; `ended`: that is so already. Returns how far the content was read."""
        reached = content.offset + end - start
        part = Part(content, self._slot, self._view, self._table, start, end)
        before = deque[Part]()
        self._lanes.begin_read(part, ended)
        try:
            while not ended:
                before.append(part)
                self._slot, self._table = -1, ChunkTable()
                yield from self._open_slot()
                self._context.clock.switch(READ)
                most = min(self._options.payload, self._head + limit - reached)
                part = Part(content, self._slot, self._view, self._table, self._head, most)
                self._lanes.begin(part, before[-1], partial(self._fill_until, fd, limit - reached))
                if len(before) > 1:
                    self._send_part(before.popleft())
                    yield from self._send_extents(everything=False)
                ended = part.read.result()
                self._context.clock.count(READ, 0, part.end - self._head)
                reached += part.end - self._head
        finally:
            while before:
                self._send_part(before.popleft())
        self._settle(part)
        self._fill = part.end
        return content.offset

    def _fill_until(self, fd: int, limit: int, target: memoryview) -> tuple[int, bool]:
        """Fill as above, and end when there are `limit` bytes or more."""
        length, ended = self._fill_from(fd, target)
        return length, ended or length >= limit

    def _send_part(self, part: Part) -> None:
        """Wait for the names of a part, and send its slot."""
        self._settle(part)
        self._send_data(part.slot, part.view, part.behind, part.table)

    def _settle(self, part: Part) -> None:
        """Take the names of a part, and note its extents."""
        self._context.clock.switch(CHUNK)
        ids, content = part.named.result(), part.content
        content.first_id = content.first_id or b"".join(ids[:1])
        part.table.add_run(part.start, part.lengths, ids)
        self._note_extents(content.number, content.offset, part.lengths, ids, content.hasher)
        content.offset += part.behind - part.start
        content.chunks += len(ids)

    def _finish(self, number: int, content_id: bytes, has_extents: bool, hasher: ContentHasher) -> None:
        row = self._rows[number]
        row["content_kind"] = fmt.CONTENT_EXTENTS if has_extents else fmt.CONTENT_CHUNK
        row["content_id"] = np.frombuffer(content_id, np.uint8)
        self._note_digest(number, hasher)

    def _note_digest(self, number: int, hasher: ContentHasher) -> None:
        row = self._rows[number]
        row["digest"] = np.frombuffer(hasher.digest(), np.uint8)
        row["has_digest"] = 1

    def _finish_digests(self, content: OpenContent) -> None:
        if self._options.digests:
            self._digests[content.number] = b"".join(content.more.digests())

    # --- chunks ------------------------------------------------------------------------------------------------------

    def _note_extents(
        self, number: int, offset: int, lengths: list[int], ids: list[bytes], hasher: ContentHasher
    ) -> None:
        """Note extents of the object of row `number`, the first at `offset` of its content, and add them to
        `hasher`."""
        extents = extent_rows(int(self._rows["row"][number]), offset, lengths, ids)
        self._extents.append(extents)
        self._extent_rows += len(extents)
        hasher.add_extents(extents)

    def _cut_segments(self) -> None:
        """Cut and name the chunks of the contents that lie whole in the slot."""
        if not self._segments:
            return
        self._context.clock.switch(CHUNK)
        view, table, minimum = self._view, self._table, self._minimum
        single: list[int] = []
        first = len(table)
        rows = self._rows
        if self._options.digests:
            for number, start, length in self._segments:
                self._digests[number] = digest_all(self._options.digests, view[start : start + length])
        for number, start, length in self._segments:
            if length <= minimum:
                if not length:
                    rows["digest"][number] = _EMPTY_DIGEST
                    rows["has_digest"][number] = 1
                    continue
                lengths = [length]
            else:
                lengths = self._chunker.cut(view[start : start + length], True)
            if len(lengths) == 1:
                single.append(number)
                table.ids.append(chunk_id(view[start : start + length]))
                table.offsets.append(start)
                table.lengths.append(length)
                continue
            first = self._settle_single(single, first)
            hasher = ContentHasher()
            ids = chunk_ids(view[start : start + length], lengths)
            hasher.add_bytes(view[start : start + length])
            table.add_run(start, lengths, ids)
            self._note_extents(number, 0, lengths, ids, hasher)
            self._finish(number, hasher.content_id(length), True, hasher)
            first = len(table)
        self._settle_single(single, first)
        self._segments = []

    def _settle_single(self, numbers: list[int], first: int) -> int:
        """Content ids of objects that are one chunk, the last ones of the table from `first`."""
        if numbers:
            ids = np.frombuffer(b"".join(self._table.ids[first:]), np.uint8).reshape(-1, 32)
            self._rows["content_kind"][numbers] = fmt.CONTENT_CHUNK
            self._rows["content_id"][numbers] = ids
            self._rows["digest"][numbers] = ids
            self._rows["has_digest"][numbers] = 1
            numbers.clear()
        return len(self._table)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _send_extents(self, everything: bool) -> Steps:
        while self._extent_rows >= EXTENTS_PER_SLOT or (everything and self._extent_rows):
            extents = np.concatenate(self._extents)
            now, later = extents[:EXTENTS_PER_SLOT], extents[EXTENTS_PER_SLOT:]
            self._extents, self._extent_rows = ([later] if len(later) else []), len(later)
            slot = yield Acquire(self._rows_pool)
            with self._context.slot(self._rows_pool, slot) as view:
                view[: now.nbytes] = now.tobytes()
            self._send_rows(messages.EXTENTS, slot, len(now))

    def _send_objects(self, batch: Batch, count: int) -> Steps:
        """Send the first `count` rows of a batch."""
        batch = batch if count == len(batch.rows) else cut_batch(batch, 0, count)
        errors = {number: text.encode() for number, text in self._errors.items()}
        fields = {"error": errors, "digests": self._digests, "xattrs": self._xattrs, "holes": self._holes}
        if any(fields.values()):
            batch = with_fields(batch, fields)
        slot = yield Acquire(self._rows_pool)
        with self._context.slot(self._rows_pool, slot) as view:
            batch.store(view)
        self._send_rows(messages.OBJECTS, slot, len(batch.rows))

    def _send_rows(self, kind: int, slot: int, count: int) -> None:
        self._context.seal(self._rows_pool, slot)
        self._context.send(self._data, Message(kind, slot, amount=count, first=self._options.index))

    def close(self) -> None:
        self.close_slot()
        self._lanes.close()
        self._folders.close()
        if self._carrier is not None:
            self._carrier.close()


def read_station(context: Context, options: ReadOptions) -> Station:
    """Takes ENTRIES, sends DATA, EXTENTS and OBJECTS on data/<index>."""
    context.clock.switch(READ)
    if options.carry is not None:
        yield Take((f"parent/{options.index}",))
    reader = Reader(context, options)
    ring = f"entries/{options.index}"
    while True:
        _, message = yield Take((ring,))
        if message.kind == messages.END:
            break
        with context.slot(ring, message.slot) as view:
            batch = Batch.load(view, OBJECT_DTYPE).copy()
        context.release(ring, message.slot)
        paths = batch.all_bytes("path")
        context.at(os.fsdecode(paths[0]))
        yield from reader.objects(batch, paths)
    reader.close()
    context.send(f"data/{options.index}", Message(messages.END))
