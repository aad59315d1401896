"""Where the bytes of objects lie: rules in SQL for whoever plans a restore, reads a range or verifies. Which of several
places is tried first is in copies.py."""

from __future__ import annotations

from typing import NamedTuple

from manifests import format as fmt

#: Condition on a chunk's place (pl), its block (b) and its pack (pk): nothing lies outside of what holds it, or is
#: longer than the format allows. A place that is not sound counts as none. Queries over many rows select it as a
#: column, `sound`, for `sound_rows`: in a WHERE clause, DuckDB would take a comparison of two tables for a reason to
#: join these two first, in a nested loop.
SOUND = f"""
    (pl.length BETWEEN 1 AND {fmt.CHUNK_MAX} AND b.raw BETWEEN 1 AND {fmt.BLOCK_MAX}
     AND pl.chunk_offset::BIGINT + pl.length <= b.raw AND b.stored BETWEEN 1 AND b.raw
     AND pk.payload <= {fmt.PACK_MAX} AND b."offset"::HUGEINT + b.stored <= pk.payload)
"""
#: The block (b) and the pack (pk) of places (pl), null where there is none; blocks of other packs are not looked at.
BLOCK_AND_PACK = """
    LEFT JOIN (SELECT DISTINCT ON (pack_id, block) * FROM blocks
               WHERE pack_id IN (SELECT pack_id FROM places)) b ON b.pack_id = pl.pack_id AND b.block = pl.block
    LEFT JOIN (SELECT DISTINCT ON (pack_id) * FROM packs) pk ON pk.pack_id = pl.pack_id
"""

#: Behind a table with chunk_id and pack_id: only the copies of chunks are left that are not deleted. This is the rule;
#: tombstones.py has it for who reads manifests without SQL.
ALIVE = "ANTI JOIN tombstones USING (chunk_id, pack_id)"

CONTENT_KINDS = (fmt.CONTENT_NONE, fmt.CONTENT_CHUNK, fmt.CONTENT_EXTENTS)
#: Objects that consist of bytes; whatever the others say of a content is passed over.
HAS_BYTES = "kind IN ('file', 'stream')"


class ChunkPlace(NamedTuple):
    """Where a chunk lies: pack (its lengths in bytes), block, place in it; and where it belongs in its content."""

    pack_id: bytes
    k: int
    m: int
    payload: int
    shard_length: int
    block: int
    block_offset: int
    stored: int
    raw: int
    codec: int
    chunk_offset: int
    length: int
    chunk_id: bytes
    file_offset: int
