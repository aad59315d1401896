"""Numbers and their nouns in sentences for people."""

from __future__ import annotations


def counted(count: int, noun: str, many: str = "") -> str:
    """A number with its noun; `many`: the noun's plural where that is not just an s more.

    >>> counted(1, "pack"), counted(1234, "shard"), counted(0, "copy", "copies")
    ('1 pack', '1,234 shards', '0 copies')
    """
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


__all__ = ["counted"]
