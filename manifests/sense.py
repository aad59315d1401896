"""Objects of which the manifests make no sense: rules for restores and verifications. Only manifests that lie, or come
from a newer version, tell of such objects. They are named, and nothing is made of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from blake3 import blake3

from manifests import format as fmt
from manifests.catalog import Catalog
from manifests.places import CONTENT_KINDS, HAS_BYTES

#: The number `size` as 16 hexadecimal digits, the lowest byte first.
_SIZE_HEX = r"regexp_replace(printf('%016X', size), '(..)(..)(..)(..)(..)(..)(..)(..)', '\8\7\6\5\4\3\2\1')"
#: Why an object can't be made, whatever its chunks hold, or null. This is the rule.
NONSENSE = f"""
    CASE WHEN kind IS NULL OR kind NOT IN ({", ".join(f"'{kind}'" for kind in fmt.KINDS)})
         THEN 'the manifests give it the kind ' || coalesce(kind, 'null') || ', which this version does not know'
         WHEN kind IN ('socket', 'unknown') AND error IS NULL
         THEN 'the manifests give it the kind ' || kind || ', which is never archived, and no error'
         WHEN NOT {HAS_BYTES} OR error IS NOT NULL AND digest IS NULL THEN NULL
         WHEN content_kind IS NULL OR content_kind NOT IN {CONTENT_KINDS}
         THEN 'the manifests give it the content_kind ' || coalesce(content_kind::VARCHAR, 'null')
              || ', which this version does not know'
         WHEN content_kind <> {fmt.CONTENT_NONE} AND coalesce(octet_length(content_id), 0) <> 32
         THEN 'the manifests give it a content id that is not 32 bytes long'
         WHEN content_kind = {fmt.CONTENT_NONE} AND size > 0
              AND (digest IS NULL OR holes IS DISTINCT FROM unhex('{"00" * 8}' || {_SIZE_HEX}))
         THEN 'the manifests give it a size and nothing that it consists of'
    END
"""
CONTRADICTION = "the manifests tell of different objects under its number"
NOT_ITS_EXTENTS = "its extents are not those of its content id"
#: What tells objects of one number apart.
_OBJECT = "(sha256(path), kind, content_kind, content_id, size, digest)"


def find_doubles(catalog: Catalog, objects: str) -> bool:
    """Make the table `contradicted` of those objects (run, row) of the table `objects` of which the manifests tell
    different things. Whether a number stands there more than once at all: equal rows do no harm."""
    catalog.execute(
        f"CREATE OR REPLACE TABLE doubles AS SELECT run, row FROM {objects} GROUP BY run, row HAVING count(*) > 1"
    )
    catalog.execute("CREATE OR REPLACE TABLE contradicted (run BLOB, row UBIGINT)")
    if not catalog.one("SELECT count(*) AS n FROM doubles")["n"]:
        return False
    catalog.execute(
        f"""
        INSERT INTO contradicted SELECT run, row FROM objects SEMI JOIN doubles USING (run, row)
        GROUP BY run, row HAVING count(DISTINCT {_OBJECT}) > 1
        """
    )
    return True


def not_their_extents(rows: Iterable[tuple[int, int, bytes, int, int, bytes]]) -> Iterator[int]:
    """Of contents that no digest vouches for, those whose extents, all of them, are not those of the content id. Rows
    are number, size and id of a content, and offset, length and chunk id of an extent, in order of number and offset.
    """
    number, wanted, size, end = -1, b"", 0, 0
    hasher = blake3()
    for content, length, content_id, offset, count, chunk_id in rows:
        if content != number:
            if number >= 0 and not _ends(hasher, size, wanted):
                yield number
            number, size, wanted, end = content, length, content_id, 0
            hasher = blake3(fmt.CONTENT_DOMAIN)
        if offset >= end and len(chunk_id) == 32:  # else the id is another
            hasher.update(struct.pack("<QI", offset, count) + chunk_id)
        end = offset + count
    if number >= 0 and not _ends(hasher, size, wanted):
        yield number


def _ends(hasher: blake3, size: int, content_id: bytes) -> bool:
    digest: bytes = hasher.update(size.to_bytes(8, "little")).digest()
    return digest == content_id
