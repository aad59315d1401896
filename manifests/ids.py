"""Ids: UUIDv7 (RFC 9562), which sort by the time of their making."""

from __future__ import annotations

import os
import time
import uuid

NIL = uuid.UUID(int=0)


def time_ms(identity: uuid.UUID) -> int:
    """Milliseconds since 1970 that `identity` carries; for ordering only, never for a safety rule."""
    return identity.int >> 80


def new_id(newest_seen: uuid.UUID = NIL) -> uuid.UUID:
    """A UUIDv7 whose time is max(now, `newest_seen` + 1 ms), so that it sorts after all that the caller has seen
    also when the clock stands wrong."""
    millis = max(time.time_ns() // 1_000_000, time_ms(newest_seen) + 1)
    random = int.from_bytes(os.urandom(10), "big")
    value = (millis << 80) | random
    value = (value & ~(0xF << 76)) | (0x7 << 76)
    value = (value & ~(0x3 << 62)) | (0x2 << 62)
    return uuid.UUID(int=value)
