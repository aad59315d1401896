"""The verification worker: reads every cell of a pack once, decodes it, and checks every chunk id."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from manifests import format as fmt
from manifests.columns import Batch, HeapBuilder
from manifests.config import ECScheme
from manifests.contents import PIECE_DTYPE
from manifests.errors import DrystoneError
from manifests.ids import NIL
from pipeline import messages
from pipeline.fan import fan_station
from pipeline.packreader import PackPlace, PackReader, PackReaders
from pipeline.restore.work import BackendPlaces
from pipeline.station import Context, Station
from pipeline.topology import DECOMPRESS, FETCH, VERIFY
from pipeline.verify.contents import ContentVerifier
from stages.assemble import chunk_is_good
from stages.compress import Decoder
from stages.pack import parse_directory

#: A pack on its way to a worker.
PACK_TASK_DTYPE = np.dtype(
    [
        ("pack_id", "u1", (16,)),
        ("k", "u1"),
        ("m", "u1"),
        ("payload", "<u8"),
        ("shard_length", "<u8"),
        ("directory_offset", "<u8"),
        ("directory_stored", "<u4"),
        ("directory_raw", "<u4"),
        ("directory_codec", "u1"),
        ("chunks", "<u4"),
    ]
)
CHECKED, BAD_CELLS, MISSING_SHARD, LOST_CHUNK, LOST_PACK, WRONG_CONTENT = range(6)
#: A finding on its way home. CHECKED: `count` bytes read; BAD_CELLS: `count` cells of `shard`; WRONG_CONTENT:
#: `chunk_id` is the content's id, the reason says which digest.
FINDING_DTYPE = np.dtype(
    [
        ("kind", "u1"),
        ("pack_id", "u1", (16,)),
        ("shard", "u1"),
        ("count", "<u8"),
        ("chunk_id", "u1", (32,)),
        ("reason_at", "<u4"),
        ("reason_len", "<u4"),
    ]
)
FETCH_AT_ONCE = 8 << 20
CELLS_AT_ONCE = 256
FINDINGS_AT_ONCE = 512


@dataclass(frozen=True)
class VerifyOptions:
    index: int
    backends: BackendPlaces


@dataclass
class Finding:
    kind: int
    shard: int = 0
    count: int = 0
    chunk_id: bytes = bytes(32)
    reason: str = ""


@dataclass
class PackFindings:
    """What was found in one pack."""

    pack_id: bytes
    entries: list[Finding] = field(default_factory=list)

    def batches(self) -> Iterator[Batch]:
        for start in range(0, len(self.entries), FINDINGS_AT_ONCE):
            some = self.entries[start : start + FINDINGS_AT_ONCE]
            rows, heap = np.zeros(len(some), FINDING_DTYPE), HeapBuilder()
            rows["pack_id"] = np.frombuffer(self.pack_id, np.uint8)
            for name in ("kind", "shard", "count"):
                rows[name] = [getattr(entry, name) for entry in some]
            rows["chunk_id"] = np.frombuffer(b"".join(entry.chunk_id for entry in some), np.uint8).reshape(-1, 32)
            reasons = [entry.reason.encode()[:300] for entry in some]
            rows["reason_at"], rows["reason_len"] = heap.add_all(reasons)
            yield Batch(rows, heap.getvalue())


class PackVerifier:
    """Checks packs. Owned by one worker."""

    def __init__(self, context: Context, backends: BackendPlaces) -> None:
        self._clock = context.clock
        self._readers = PackReaders(backends.source(), capacity=1)
        self._decoder = Decoder()

    def verify(self, task: np.void) -> PackFindings:
        """Everything that is wrong with a pack; the first finding counts the bytes read."""
        findings = PackFindings(task["pack_id"].tobytes())
        place = PackPlace(
            uuid.UUID(bytes=findings.pack_id),
            ECScheme(int(task["k"]), int(task["m"])),
            int(task["payload"]),
            int(task["shard_length"]),
        )
        figures = self._readers.source.figures
        before = figures.bytes
        reader = self._readers.get(place)
        self._clock.switch(FETCH)
        for index in range(place.scheme.total_shards):
            reader.shard(index)
        try:
            self._check_chunks(reader, task, findings)
        except DrystoneError as error:
            findings.entries.append(Finding(LOST_PACK, reason=str(error)))
        self._check_rest(reader, place)
        for (_, shard), cells in sorted(figures.bad_cells.items()):
            findings.entries.append(Finding(BAD_CELLS, shard, len(cells)))
        for (_, shard), reason in sorted(figures.missing.items()):
            findings.entries.append(Finding(MISSING_SHARD, shard, reason=reason))
        figures.bad_cells.clear()
        figures.missing.clear()
        self._clock.count(FETCH, 1, figures.bytes - before)
        findings.entries.insert(0, Finding(CHECKED, count=figures.bytes - before))
        return findings

    def _check_chunks(self, reader: PackReader, task: np.void, findings: PackFindings) -> None:
        """Check each chunk of the pack against its id. Raises where the directory can't be read."""
        stored = reader.read(int(task["directory_offset"]), int(task["directory_stored"]))
        raw = bytes(self._decoder.decode(int(task["directory_codec"]), stored, int(task["directory_raw"])))
        blocks, chunks = parse_directory(raw)
        order = np.argsort(chunks["block"], kind="stable")
        chunks = chunks[order]
        borders = np.searchsorted(chunks["block"], np.arange(len(blocks) + 1))
        for first, last, data in self._fetched(reader, blocks, findings, chunks, borders):
            for number in range(first, last):
                self._check_block(
                    blocks[number],
                    data,
                    int(blocks[first]["offset"]),
                    chunks[borders[number] : borders[number + 1]],
                    findings,
                )
            self._clock.switch(FETCH)

    def _fetched(
        self, reader: PackReader, blocks: np.ndarray, findings: PackFindings, chunks: np.ndarray, borders: np.ndarray
    ) -> Iterator[tuple[int, int, memoryview]]:
        """Runs of blocks with their stored bytes; those that can't be read are noted as lost chunks."""
        first = 0
        while first < len(blocks):
            start, last = int(blocks[first]["offset"]), first + 1
            while (
                last < len(blocks)
                and int(blocks[last]["offset"]) + int(blocks[last]["stored"]) - start <= FETCH_AT_ONCE
            ):
                last += 1
            for begin, end in ((first, last), *((n, n + 1) for n in range(first, last))):
                at = int(blocks[begin]["offset"])
                length = int(blocks[end - 1]["offset"]) + int(blocks[end - 1]["stored"]) - at
                try:
                    yield begin, end, memoryview(reader.read(at, length))
                except DrystoneError as error:
                    if end - begin == 1:
                        self._lose(chunks[borders[begin] : borders[end]], str(error), findings)
                    continue
                if (begin, end) == (first, last):
                    break
            first = last

    def _check_block(
        self, block: np.void, data: memoryview, start: int, chunks: np.ndarray, findings: PackFindings
    ) -> None:
        at = int(block["offset"]) - start
        self._clock.switch(DECOMPRESS)
        try:
            raw = self._decoder.decode(int(block["codec"]), data[at : at + int(block["stored"])], int(block["raw"]))
        except DrystoneError as error:
            self._lose(chunks, str(error), findings)
            return
        self._clock.count(DECOMPRESS, 1, len(raw))
        self._clock.switch(VERIFY)
        ids = chunks["id"].tobytes()
        for number, (offset, length) in enumerate(
            zip(chunks["offset"].tolist(), chunks["length"].tolist(), strict=True)
        ):
            if not chunk_is_good(ids[number * 32 : number * 32 + 32], raw[offset : offset + length]):
                self._lose(chunks[number : number + 1], "its bytes do not match its id", findings)
        self._clock.count(VERIFY, len(chunks), len(raw))

    @staticmethod
    def _lose(chunks: np.ndarray, reason: str, findings: PackFindings) -> None:
        findings.entries.extend(Finding(LOST_CHUNK, chunk_id=bytes(chunk), reason=reason) for chunk in chunks["id"])

    @staticmethod
    def _check_rest(reader: PackReader, place: PackPlace) -> None:
        """The cells that no block lies in: parity, and padding behind the payload."""
        length, cells = place.shard_length, reader.cells
        for index in range(place.scheme.total_shards):
            used = max(0, min(length, place.payload - index * length)) if index < place.scheme.k else 0
            for first in range(-(-used // fmt.CELL_SIZE), cells, CELLS_AT_ONCE):
                reader.check(index, first, min(first + CELLS_AT_ONCE, cells))


def verify_station(context: Context, options: VerifyOptions) -> Station:
    """Takes TASK (one pack each), answers with FINDING_DTYPE reports."""
    context.clock.switch(FETCH)
    verifier, contents = PackVerifier(context, options.backends), ContentVerifier(context, options.backends)

    def work(kind: int, view: memoryview) -> Iterator[Batch]:
        if kind == messages.CONTENTS:
            wrong = contents.check(Batch.load(view, PIECE_DTYPE).copy())
            findings = [Finding(WRONG_CONTENT, chunk_id=each.content_id, reason=each.text) for each in wrong]
            return PackFindings(NIL.bytes, findings or [Finding(CHECKED)]).batches()
        task = Batch.load(view, PACK_TASK_DTYPE).rows.copy()[0]
        context.at(f"pack {uuid.UUID(bytes=task['pack_id'].tobytes())}")
        return verifier.verify(task).batches()

    return fan_station(context, options.index, work, lambda: 0)
