"""Names as they are printed, and back.

What is printed must not command a terminal, so escapes stand for some characters (`shown`). Somebody who copies such a
name from a listing means the object. Several names may be printed alike: `\\n` may be a line feed, or a backslash and
an n. So a printed name is not decoded, but looked up among the names that there are.
"""

from __future__ import annotations

import re
import uuid

from manifests.catalog import Catalog, path_filter
from manifests.errors import UsageError
from manifests.escapes import shown, shown_in_ascii
from manifests.ids import object_id, short_id

#: Objects that are named where one printed name stands for several.
_NAMED = 5
_LAST_BYTES = re.compile(b"\xff*\\Z")


def meant_path(catalog: Catalog, run: uuid.UUID, path: bytes) -> bytes:
    """The path of a run that a user means by `path`: that very one, if there is any object at or below it; else the one
    that is printed so, of several the one with the most parts that are called so; else, as there is none, the one that
    was given. Raises UsageError where several are left."""
    if b"\\" not in path:
        return path
    catalog.use("objects", spare=True)
    condition, parameters = path_filter(path)
    query = f"SELECT row FROM objects WHERE run = ? AND {condition} LIMIT 1"
    if next(catalog.tuples(query, [run.bytes, *parameters]), None) is not None:
        return path
    found = _most_literal(_printed_alike(catalog, run, path), path)
    if len(found) > 1:
        ids = ", ".join(sorted(found.values())[:_NAMED])
        raise UsageError(
            f"{len(found)} objects of run {short_id(run)} are printed as {shown(path)}; name one by its id: {ids}"
        )
    return next(iter(found), path)


def _printed_alike(catalog: Catalog, run: uuid.UUID, path: bytes) -> dict[bytes, str]:
    """The paths of a run that are printed as `path`, with their objects' ids; else those that would be in ASCII, which
    is all that some terminals have."""
    # Escapes are longer than what they stand for, and hold no slash; what stands before the first one is no escape.
    start = path[: path.index(b"\\")]
    condition, parameters = "path >= ?", [start]
    if end := _behind(start):
        condition, parameters = f"{condition} AND path < ?", [start, end]
    query = f"""
        SELECT path, row FROM objects WHERE run = ? AND {condition} AND octet_length(path) <= {len(path)}
            AND length(path::VARCHAR) - length(replace(path::VARCHAR, '/', '')) = {path.count(b"/")}
    """
    exact, loose = dict[bytes, str](), dict[bytes, str]()
    text, plain = shown(path), shown_in_ascii(path)
    for found, row in catalog.tuples(query, [run.bytes, *parameters]):
        if shown_in_ascii(found) == plain:
            (exact if shown(found) == text else loose)[found] = object_id(run, row)
    return exact or loose


def _most_literal(found: dict[bytes, str], path: bytes) -> dict[bytes, str]:
    """Those of the paths that have the most parts as they are written in `path`."""
    parts = path.split(b"/")
    literal = {each: sum(map(bytes.__eq__, each.split(b"/"), parts)) for each in found}
    most = max(literal.values(), default=0)
    return {each: found[each] for each in found if literal[each] == most}


def _behind(start: bytes) -> bytes:
    """The first byte string behind all that begin with `start`; empty where there is none."""
    head = _LAST_BYTES.sub(b"", start)
    return head[:-1] + bytes([head[-1] + 1]) if head else b""
