"""Which contents a verification reads in order, to check the digests that were recorded of them.

Only those whose digests do not follow from the ids of their chunks: contents of several chunks, and those with more
digests than BLAKE3. Each distinct content once, in the order in which packs lie.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests import format as fmt
from manifests.arrowrows import to_batch
from manifests.catalog import Catalog
from manifests.columns import PIECE_DTYPE, Batch, cut_batch, join_batches
from manifests.copies import OtherPlaces, place_chunks
from manifests.fixity import FIXITY, digest_column
from manifests.longcolumns import name_objects
from manifests.places import BLOCK_AND_PACK, HAS_BYTES, SOUND

#: A content of more chunks than this is put together by all workers, and its blocks need be read by nobody else; the
#: others are several to a task, each read by one worker.
LARGE = 32
#: Pieces of contents that are sorted at a time, about.
GROUP_ROWS = 32 << 10
#: Blocks of a pack that may be told to who checks it: more than a pack has.
COVERED_BLOCKS = 32 << 10
_MOST = 1 << 62

_WRONG = pa.schema(
    [
        ("content_id", pa.binary()),
        ("content_kind", pa.uint8()),
        ("size", pa.uint64()),
        ("name", pa.string()),
        ("digest", pa.binary()),
    ]
)


class WrongContent(NamedTuple):
    """A content that has not the digest `name`, `digest`; all objects that have it are meant where the name is empty.
    Contents of the same id that objects tell of differently are several."""

    content_id: bytes | None
    content_kind: int
    size: int
    name: str
    digest: bytes


class ContentsPlan:
    """The contents of a whole store. Uses the catalog's connection alone while it lives."""

    def __init__(self, catalog: Catalog, others: OtherPlaces) -> None:
        """`others` gets the places of chunks that have several."""
        self._catalog = catalog
        catalog.use("objects", "extents", "chunks", "blocks", "packs", spare=True)
        execute = catalog.execute
        # Runs with and without more digests share contents: the longer fixity begins with the shorter one.
        execute(
            f"""
            CREATE OR REPLACE TABLE fixities AS
            WITH found AS (
                SELECT content_id, content_kind, size, {FIXITY} AS fixity, bool_or(holes IS NOT NULL) AS has_holes
                FROM objects
                WHERE {HAS_BYTES} AND nonsense IS NULL
                  AND (content_kind = {fmt.CONTENT_EXTENTS} OR digest IS NOT NULL)
                GROUP BY content_id, content_kind, size, fixity),
            longest AS (
                SELECT content_id, content_kind, size, max(fixity) AS most, bool_or(has_holes) AS has_holes
                FROM found GROUP BY content_id, content_kind, size)
            SELECT found.* EXCLUDE (has_holes), longest.has_holes FROM found JOIN longest
              ON found.content_id IS NOT DISTINCT FROM longest.content_id
             AND found.content_kind = longest.content_kind AND found.size = longest.size
            WHERE (fixity <> ''::BLOB OR found.content_kind = {fmt.CONTENT_EXTENTS})
              AND (fixity = most OR NOT starts_with(hex(most), hex(fixity)))
            """
        )
        execute(
            f"""
            CREATE OR REPLACE TABLE content_pieces AS
            SELECT DISTINCT content_id, content_kind, 0::UBIGINT AS file_offset, content_id AS chunk_id
            FROM fixities WHERE content_kind = {fmt.CONTENT_CHUNK}
            UNION ALL
            SELECT DISTINCT content_id, {fmt.CONTENT_EXTENTS}::UTINYINT, "offset", chunk_id FROM extents
            WHERE content_id IN (SELECT content_id FROM fixities WHERE content_kind = {fmt.CONTENT_EXTENTS})
            """
        )
        place_chunks(catalog, "content_pieces", "content_places", others)
        execute(
            """
            CREATE OR REPLACE TABLE contents AS
            WITH sums AS (
                SELECT content_id, content_kind, count(*) AS parts, max(file_offset) AS last_offset,
                       arg_min(chunk_id, file_offset) AS first_chunk
                FROM content_pieces GROUP BY content_id, content_kind)
            SELECT row_number() OVER (ORDER BY pack_id, block, chunk_offset, content_id, fixity) AS content,
                   f.*, coalesce(parts, 0) AS parts, coalesce(last_offset, 0) AS last_offset
            FROM fixities f LEFT JOIN sums USING (content_id, content_kind)
            LEFT JOIN content_places p ON p.chunk_id = first_chunk
            """
        )
        self._cover()

    def _cover(self) -> None:
        """The tables `judged`, for each chunk that only the larger contents check the piece that does, and `covered`,
        the blocks that consist of such chunks."""
        execute = self._catalog.execute
        execute(
            f"""
            CREATE OR REPLACE TABLE judged AS
            SELECT chunk_id, min({{content: content, file_offset: file_offset}}) AS piece
            FROM contents JOIN content_pieces USING (content_id, content_kind) WHERE parts > {LARGE} GROUP BY chunk_id
            """
        )
        execute(
            f"""
            CREATE OR REPLACE TABLE covered AS
            WITH places AS (SELECT * FROM content_places SEMI JOIN judged USING (chunk_id)),
            placed AS (
                SELECT pack_id, block, count(*) AS chunks FROM (
                    SELECT pl.pack_id, pl.block, {SOUND} AS sound FROM places pl {BLOCK_AND_PACK})
                WHERE block < {COVERED_BLOCKS} GROUP BY pack_id, block HAVING bool_and(coalesce(sound, false))),
            listed AS (
                SELECT pack_id, block, count(*) AS chunks FROM (
                    SELECT DISTINCT chunk_id, pack_id, block, "offset", length FROM chunks
                    WHERE pack_id IN (SELECT pack_id FROM placed)) GROUP BY pack_id, block)
            SELECT pack_id, block FROM placed SEMI JOIN listed USING (pack_id, block, chunks)
            """
        )
        execute(
            """
            DELETE FROM judged WHERE chunk_id NOT IN (
                SELECT chunk_id FROM content_places SEMI JOIN covered USING (pack_id, block))
            """
        )

    def small(self) -> Iterator[Batch]:
        """PIECE_DTYPE batches of whole contents, of at most LARGE pieces each."""
        held: Batch | None = None
        for batch in chain.from_iterable(self._pieces(*group) for group in self._groups(0, LARGE)):
            whole = batch if held is None else join_batches(held, batch)
            start = int(np.argmax(whole.rows["content"] == whole.rows["content"][-1]))
            if start:
                yield cut_batch(whole, 0, start)
            held = cut_batch(whole, start, len(whole.rows))
        if held is not None:
            yield held

    def large(self) -> Iterator[Iterator[Batch]]:
        """For groups of larger contents, or one that is as large, PIECE_DTYPE batches in order."""
        return (self._pieces(*group) for group in self._groups(LARGE + 1, _MOST))

    def _groups(self, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        """Runs of contents of `low` to `high` pieces, of about GROUP_ROWS pieces, for `_pieces`: sorting all at once
        would take memory without a bound."""
        first, last, count = 0, -1, 0
        query = "SELECT content, parts FROM contents WHERE parts BETWEEN ? AND ? ORDER BY content"
        for row in self._catalog.rows(query, [low, high]):
            last, count = row["content"], count + max(1, row["parts"])
            if count >= GROUP_ROWS:
                yield first, last, low, high
                first, count = last + 1, 0
        if last >= first:
            yield first, last, low, high

    def _pieces(self, first: int, last: int, low: int, high: int) -> Iterator[Batch]:
        """PIECE_DTYPE batches of the contents `first` to `last`, in order; of those with `low` to `high` pieces."""
        query = f"""
            WITH c AS (SELECT * FROM contents WHERE content BETWEEN ? AND ? AND parts BETWEEN ? AND ?)
            SELECT c.content, c.content_kind, {_or_zeros("c.content_id", 32)}, c.size,
                   coalesce(pc.file_offset, 0) = c.last_offset AS is_last, {_or_zeros("pk.pack_id", 16)}, pk.k, pk.m,
                   pk.payload, pk.shard_length, pl.block, b."offset" AS block_offset, b.stored, b.raw, b.codec,
                   pl.chunk_offset, pl.length, {_or_zeros("pc.chunk_id", 32)}, pc.file_offset, c.has_holes, c.fixity,
                   coalesce(j.piece = {{content: c.content, file_offset: pc.file_offset}}, false) AS judges
            FROM c LEFT JOIN content_pieces pc USING (content_id, content_kind)
            LEFT JOIN content_places pl USING (chunk_id)
            LEFT JOIN judged j USING (chunk_id)
            LEFT JOIN (SELECT DISTINCT ON (pack_id, block) * FROM blocks
                       WHERE pack_id IN (SELECT pack_id FROM content_places)) b
              ON b.pack_id = pl.pack_id AND b.block = pl.block
            LEFT JOIN (SELECT DISTINCT ON (pack_id) * FROM packs) pk ON pk.pack_id = pl.pack_id
            ORDER BY c.content, pc.file_offset
        """
        for batch in self._catalog.batches(query, [first, last, low, high]):
            if batch.num_rows:
                yield to_batch(batch, PIECE_DTYPE, {"fixity": "fixity"})

    def covered(self, packs: Sequence[bytes]) -> dict[bytes, npt.NDArray[np.uint32]]:
        """Of some packs the blocks, by number, that consist of chunks that the larger contents check: of all these the
        manifests say so, and each is a piece that `judges`."""
        query = """
            SELECT pack_id, list(block ORDER BY block) AS blocks FROM covered
            WHERE pack_id IN (SELECT unnest(?::BLOB[])) GROUP BY pack_id
        """
        return {row["pack_id"]: np.array(row["blocks"], np.uint32) for row in self._catalog.rows(query, [list(packs)])}


def _or_zeros(column: str, size: int) -> str:
    """SQL for a column of ids that may be null."""
    return f"coalesce({column}, unhex('{'00' * size}')) AS {column.partition('.')[2]}"


def objects_of(catalog: Catalog, wrong: Sequence[WrongContent], limit: int) -> tuple[int, list[dict[str, Any]]]:
    """Objects that are not what the manifests say: those of wrong contents, or of contents that have no extents, and
    those of another size than their one chunk. How many, without those that are lost already or in the table
    `senseless_objects`, and the first `limit` of them as run and path."""
    catalog.use("objects", "chunks", "extents", spare=True)
    catalog.replace("wrong_contents", _WRONG)
    catalog.append("wrong_contents", pa.Table.from_pylist([each._asdict() for each in wrong], schema=_WRONG))
    columns = " ".join(f"WHEN '{name}' THEN o.{digest_column(name)}" for name in fmt.DIGESTS)
    catalog.execute("CREATE TABLE IF NOT EXISTS lost_objects (run BLOB, row UBIGINT)")
    catalog.execute(
        f"""
        CREATE OR REPLACE TABLE wrong_objects AS
        WITH sound AS (SELECT * FROM objects WHERE {HAS_BYTES} AND nonsense IS NULL)
        SELECT DISTINCT o.run, o.row FROM (
            SELECT run, row FROM sound o JOIN wrong_contents w
              ON w.content_id IS NOT DISTINCT FROM o.content_id AND w.content_kind = o.content_kind AND w.size = o.size
             AND (w.name = '' OR CASE w.name {columns} END = w.digest)
            UNION ALL
            SELECT run, row FROM sound SEMI JOIN chunks ON content_id = chunk_id
            WHERE content_kind = {fmt.CONTENT_CHUNK}
              AND NOT EXISTS (SELECT 1 FROM chunks WHERE chunk_id = content_id AND length = size)
            UNION ALL
            SELECT run, row FROM sound ANTI JOIN extents ON extents.content_id = sound.content_id
            WHERE content_kind = {fmt.CONTENT_EXTENTS}
        ) o ANTI JOIN lost_objects USING (run, row) ANTI JOIN senseless_objects USING (run, row)
        """
    )
    return name_objects(catalog, "wrong_objects", limit)


def wrong_runs(catalog: Catalog) -> list[uuid.UUID]:
    """After `objects_of`, the runs of the objects that it found, and of the `senseless_objects`."""
    query = """
        SELECT run FROM (SELECT run FROM wrong_objects UNION SELECT run FROM senseless_objects)
        WHERE octet_length(run) = 16 ORDER BY run
    """
    return [uuid.UUID(bytes=run) for (run,) in catalog.tuples(query)]
