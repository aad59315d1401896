"""Ids: UUIDv7 (RFC 9562), which sort by the time of their making."""

from __future__ import annotations

import os
import re
import time
import uuid

NIL = uuid.UUID(int=0)
_OBJECT_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-(0|[1-9][0-9]{0,18})")


def time_ms(identity: uuid.UUID) -> int:
    """Milliseconds since 1970 that `identity` carries; for ordering only, never for a safety rule."""
    return identity.int >> 80


def short_id(identity: uuid.UUID, *, whole: bool = False) -> str:
    """How people see an id, unless they want it `whole`: by its last 8 hex digits. They are random; the first ones tell
    the time."""
    return str(identity) if whole else identity.hex[-8:]


def object_id(run: uuid.UUID, row: int) -> str:
    """The id of an object, as programs write it."""
    return f"{run}-{row}"


def is_object_id(text: str) -> bool:
    """Whether a text may be the id of an object; it may be a key that looks like one."""
    return _OBJECT_ID.fullmatch(text) is not None


def split_object_id(text: str) -> tuple[uuid.UUID, int]:
    """Run and row of an object's id. Raises ValueError."""
    match = _OBJECT_ID.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no id of an object")
    return uuid.UUID(match[1]), int(match[2])


def new_id(newest_seen: uuid.UUID = NIL) -> uuid.UUID:
    """A UUIDv7 whose time is max(now, `newest_seen` + 1 ms), so that it sorts after all that the caller has seen
    also when the clock stands wrong."""
    millis = max(time.time_ns() // 1_000_000, time_ms(newest_seen) + 1)
    random = int.from_bytes(os.urandom(10), "big")
    value = (millis << 80) | random
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=value)
