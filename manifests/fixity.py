"""What was recorded of an object's content, in one column for those who check it.

A fixity is bytes: for each digest that is to be checked a tag (its place in fmt.DIGESTS) and the digest. Where the
BLAKE3 of the content follows from what is checked anyway, because the content is one chunk or empty, it is left out.
"""

from __future__ import annotations

from blake3 import blake3

from manifests import format as fmt


def digest_column(name: str) -> str:
    """The column of table objects that holds the digest `name`."""
    return "digest" if name == "blake3" else name


def _sql() -> str:
    implied = f"CASE content_kind WHEN {fmt.CONTENT_CHUNK} THEN content_id WHEN {fmt.CONTENT_NONE} THEN "
    implied += f"unhex('{blake3(b'').hexdigest()}') END"
    parts = []
    for tag, name in enumerate(fmt.DIGESTS):
        column = digest_column(name)
        known = f"coalesce(digest = {implied}, false) OR " if name == "blake3" else ""
        parts.append(f"CASE WHEN {known}{column} IS NULL THEN ''::BLOB ELSE '\\x{tag:02X}'::BLOB || {column} END")
    return f"({' || '.join(parts)})"


#: The fixity of a row of table objects, never null.
FIXITY = _sql()


def parse_fixity(fixity: bytes) -> list[tuple[str, bytes]]:
    """(name, digest) of each digest in a fixity."""
    names, found, at = list(fmt.DIGESTS), [], 0
    while at < len(fixity):
        name = names[fixity[at]]
        found.append((name, fixity[at + 1 : at + 1 + fmt.DIGESTS[name]]))
        at += 1 + fmt.DIGESTS[name]
    return found
