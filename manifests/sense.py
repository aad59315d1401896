"""Objects of which the manifests make no sense: rules for restores and verifications. Only manifests that lie, or come
from a newer version, tell of such objects. They are named, and nothing is made of them.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from blake3 import blake3

from manifests import format as fmt
from manifests.places import CONTENT_KINDS, HAS_BYTES

if TYPE_CHECKING:
    from manifests.catalog import Catalog

#: Largest number of an object, far beyond what a run can have; those above are free for objects without one.
ROW_MAX = (1 << 62) - 1
_SIZE_MAX = (1 << 63) - 1
#: No user or group has this number: to the system it means that an owner stays what it is.
_NO_OWNER = (1 << 32) - 1
_DEVICE_MAX = (1 << 32) - 1
_TARGET_MAX = 4095

#: The number `size` as 16 hexadecimal digits, the lowest byte first.
_SIZE_HEX = r"regexp_replace(printf('%016X', size), '(..)(..)(..)(..)(..)(..)(..)(..)', '\8\7\6\5\4\3\2\1')"
#: What `path` has that no path of an archived tree has. As text, DuckDB writes a zero byte, and each backslash, with a
#: backslash in front. Keys of objects are no paths.
_BAD_PATH = r"created_ns IS NULL AND regexp_matches(path::VARCHAR, '(^|/)(|[.]|[.][.])(/|$)|\\x00')"
_S_IFMT = 0o170000
_FILE_TYPES = {
    "file": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "chardev": stat.S_IFCHR,
    "blockdev": stat.S_IFBLK,
}
_TYPES = " ".join(f"WHEN '{kind}' THEN {number}" for kind, number in _FILE_TYPES.items())
_KINDS = ", ".join(f"'{kind}'" for kind in fmt.KINDS)
_IS_WHOLE = "error IS NULL"
_BAD_DIGEST = " OR ".join(
    f"octet_length({'digest' if name == 'blake3' else name}) <> {length}" for name, length in fmt.DIGESTS.items()
)
#: Condition, and what the manifests say where it holds, in SQL. The first that holds counts.
_RULES: list[tuple[str, str]] = [
    ("run IS NULL OR octet_length(run) <> 16", "'do not say which run archived it'"),
    (f"row IS NULL OR row > {ROW_MAX}", "'give it no number that an object has'"),
    (f"path IS NULL OR {_BAD_PATH}", "'give it a path that no archived tree has'"),
    (
        f"kind IS NULL OR kind NOT IN ({_KINDS})",
        "'give it the kind ' || coalesce(left(kind, 100), 'null') || ', which this version does not know'",
    ),
    (
        f"kind IN ('socket', 'unknown') AND {_IS_WHOLE}",
        "'give it the kind ' || kind || ', which is never archived, and no error'",
    ),
    (
        f"{_IS_WHOLE} AND (mode IS NULL OR mode > 65535 OR (mode & {_S_IFMT}) <> CASE kind {_TYPES} END"
        f" OR kind = 'stream' AND (mode & {_S_IFMT}) IN ({stat.S_IFDIR}, {stat.S_IFLNK}))",
        "'give it the mode ' || coalesce(printf('%o', mode), 'null') || ', which no ' || kind || ' has'",
    ),
    (
        f"uid IS NULL OR gid IS NULL OR {_NO_OWNER} IN (uid, gid)",
        "'give it the owner ' || coalesce(uid::VARCHAR, 'null') || ':' || coalesce(gid::VARCHAR, 'null')"
        " || ', which nobody is'",
    ),
    (
        "contains(coalesce(user_name, ''), chr(0)) OR contains(coalesce(group_name, ''), chr(0))",
        "'give it an owner with a zero byte in the name'",
    ),
    ("mtime_ns IS NULL", "'give it no time'"),
    (
        f"kind = 'symlink' AND {_IS_WHOLE} AND coalesce(octet_length(target), 0) NOT BETWEEN 1 AND {_TARGET_MAX}"
        r" OR kind = 'symlink' AND contains(target::VARCHAR, '\x00')",
        "'give it a target that no symlink has'",
    ),
    (
        f"kind IN ('chardev', 'blockdev') AND coalesce(rdev, {_DEVICE_MAX + 1}) > {_DEVICE_MAX}",
        "'give it a device number that no node has'",
    ),
    (f"{HAS_BYTES} AND (size IS NULL OR size > {_SIZE_MAX})", "'give it no size that a file has'"),
    (_BAD_DIGEST, "'give it a digest of a wrong length'"),
    ("octet_length(holes) % 16 <> 0", "'give it holes that end in the middle of a number'"),
    (f"NOT {HAS_BYTES} OR error IS NOT NULL AND digest IS NULL", "NULL"),
    (
        f"content_kind IS NULL OR content_kind NOT IN {CONTENT_KINDS}",
        "'give it the content_kind ' || coalesce(content_kind::VARCHAR, 'null')"
        " || ', which this version does not know'",
    ),
    (
        f"content_kind <> {fmt.CONTENT_NONE} AND coalesce(octet_length(content_id), 0) <> 32",
        "'give it a content id that is not 32 bytes long'",
    ),
    (
        f"content_kind = {fmt.CONTENT_NONE} AND size > 0"
        f" AND (digest IS NULL OR holes IS DISTINCT FROM unhex('{'00' * 8}' || {_SIZE_HEX}))",
        "'give it a size and nothing that it consists of'",
    ),
    (f"content_kind <> {fmt.CONTENT_NONE} AND size = 0", "'give it a content and the size 0'"),
    (
        f"content_kind = {fmt.CONTENT_CHUNK} AND size > {fmt.CHUNK_MAX}",
        "'give it a size that is more than its one chunk can have'",
    ),
    (
        f"content_kind = {fmt.CONTENT_CHUNK} AND {_IS_WHOLE} AND digest <> content_id",
        "'give it another digest than that of its one chunk'",
    ),
]
#: Why an object can't be made, whatever its chunks hold, or null, of a row of table objects in the catalog. This is the
#: rule; the view `objects` has it as its column `nonsense`.
NONSENSE = " ".join(
    ["CASE", *(f"WHEN {condition} THEN 'the manifests ' || {words}" for condition, words in _RULES), "END"]
)
CONTRADICTION = "the manifests tell of different objects under its number"
NAMESAKE = "the manifests tell of another object at its path"
NOT_ITS_EXTENTS = "its extents are not those of its content id"
#: What tells objects of one path apart, and what those of one number.
_CONTENT = "kind, content_kind, content_id, size, digest, rdev, sha256(target)"
_OBJECT = f"sha256(path), mode, uid, gid, mtime_ns, sha256(xattrs), {_CONTENT}"
#: By what objects with one path are found, null for those that may have one.
PATH_HASH = "CASE WHEN created_ns IS NULL AND kind <> 'unknown' THEN hash(path) END"
#: Of table objects what `find_doubles` looks at.
SENSIBLE = f"(SELECT run, row, {PATH_HASH} AS path_hash FROM objects WHERE nonsense IS NULL)"


def find_doubles(catalog: Catalog, rows: str) -> bool:
    """Make tables (run, row) of those sensible objects (run, row, path_hash) whose number stands there more than once,
    `doubles`; of those of them of which the manifests tell different things, `contradicted`, for equal rows do no harm;
    and of those at whose path another one comes before, `namesakes`. Whether there are any doubles or namesakes."""
    execute = catalog.execute
    execute(f"CREATE OR REPLACE TABLE doubles AS SELECT run, row FROM {rows} GROUP BY run, row HAVING count(*) > 1")
    execute("CREATE OR REPLACE TABLE contradicted (run BLOB, row UBIGINT)")
    if catalog.one("SELECT count(*) AS n FROM doubles")["n"]:
        execute(
            f"""
            INSERT INTO contradicted SELECT run, row FROM objects SEMI JOIN doubles USING (run, row)
            WHERE nonsense IS NULL GROUP BY run, row HAVING count(DISTINCT ({_OBJECT})) > 1
            """
        )
    execute(
        f"""
        CREATE OR REPLACE TABLE alike AS SELECT run, path_hash FROM {rows}
        WHERE path_hash IS NOT NULL GROUP BY run, path_hash HAVING count(*) > 1
        """
    )
    execute("CREATE OR REPLACE TABLE namesakes (run BLOB, row UBIGINT)")
    if catalog.one("SELECT count(*) AS n FROM alike")["n"]:
        execute(
            f"""
            INSERT INTO namesakes
            WITH found AS (
                SELECT run, row, sha256(path) AS path, ({_CONTENT}) AS content
                FROM (SELECT *, {PATH_HASH} AS path_hash FROM objects WHERE nonsense IS NULL)
                SEMI JOIN alike USING (run, path_hash) ANTI JOIN contradicted USING (run, row))
            SELECT DISTINCT run, row FROM found JOIN (
                SELECT run, path, min(row) AS first FROM found GROUP BY run, path HAVING count(DISTINCT content) > 1
            ) USING (run, path) WHERE row > first
            """
        )
    tables = ("doubles", "namesakes")
    return any(catalog.one(f"SELECT count(*) AS n FROM {table}")["n"] for table in tables)


def not_their_extents(rows: Iterable[tuple[int, int, bytes, int | None, int | None, bytes | None]]) -> Iterator[int]:
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
        if offset is None or count is None or chunk_id is None or len(chunk_id) != 32:
            continue  # so the id is another
        if offset >= end:
            hasher.update(struct.pack("<QI", offset, count) + chunk_id)
        end = offset + count
    if number >= 0 and not _ends(hasher, size, wanted):
        yield number


def _ends(hasher: blake3, size: int, content_id: bytes) -> bool:
    digest: bytes = hasher.update(size.to_bytes(8, "little")).digest()
    return digest == content_id
