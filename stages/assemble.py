"""Putting chunks back together: verifying their ids and cutting byte ranges."""

from __future__ import annotations

import re
from dataclasses import dataclass

from blake3 import blake3

from manifests.errors import UsageError


def chunk_is_good(chunk_id: bytes, data: bytes | memoryview) -> bool:
    """Whether `data` is the chunk of this id. Everything that Drystone gives back has passed here."""
    return blake3(data).digest() == chunk_id


@dataclass(frozen=True)
class ByteRange:
    """A range as HTTP writes it (RFC 9110, 14.1.2, without `bytes=`): `0-99`, `100-`, `-500`. Ends are inclusive."""

    first: int | None
    last: int | None

    @classmethod
    def parse(cls, text: str) -> ByteRange:
        match = re.fullmatch(r"(\d{0,40})-(\d{0,40})", text.strip())
        if match is None or match[0] == "-" or not (match[1] or match[2]):
            raise UsageError(f"{text!r} is not a range; write 0-99, 100- or -500")
        first = int(match[1]) if match[1] else None
        last = int(match[2]) if match[2] else None
        if first is not None and last is not None and last < first:
            raise UsageError(f"the range {text} ends before it begins")
        return cls(first, last)

    def __str__(self) -> str:
        return f"{'' if self.first is None else self.first}-{'' if self.last is None else self.last}"

    def resolve(self, size: int) -> tuple[int, int]:
        """(offset, length) within an object of `size` bytes. Raises UsageError where it begins past the end."""
        if self.first is None:
            length = min(self.last or 0, size)
            return size - length, length
        if self.first >= size and not (self.first == 0 and size == 0):
            raise UsageError(f"the range begins at {self.first}, but the object has {size} bytes")
        end = size if self.last is None else min(self.last + 1, size)
        return self.first, end - self.first
