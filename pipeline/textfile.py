"""Text files that a user names: lists of paths, of patterns, of digests."""

from __future__ import annotations

from manifests.errors import UsageError

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def beginning(data: bytes, name: str, *, nul: bool = False) -> bytes:
    """The first bytes of the file `name` without the byte order mark of UTF-8, which editors put there. `nul`: its
    entries end with NUL, and no editor has been at it. Raises UsageError where it is UTF-16 or UTF-32."""
    if nul:
        return data
    if data.startswith(_UTF16_MARKS) and b"\0" in data:
        raise UsageError(f"{name} is UTF-16; write it as UTF-8: iconv -f UTF-16 -t UTF-8")
    return data.removeprefix(_UTF8_MARK)
