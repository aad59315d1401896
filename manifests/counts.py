"""Numbers and their nouns in sentences for people."""

from __future__ import annotations


def counted(count: int, noun: str, many: str = "") -> str:
    """A number with its noun; `many`: the noun's plural where that is not just an s more.

    >>> counted(1, "pack"), counted(1234, "shard"), counted(0, "copy", "copies")
    ('1 pack', '1,234 shards', '0 copies')
    """
    return f"{count:,} {noun if count == 1 else many or f'{noun}s'}"


def any_of(count: int, total: int, noun: str, *, more: bool = False) -> str:
    """How many of all may go, whichever they are; `more`: some are gone already.

    >>> any_of(1, 3, "backend"), any_of(0, 1, "failure domain"), any_of(1, 6, "backend", more=True)
    ('any 1 of 3 backends', 'none of 1 failure domain', 'any 1 more of 6 backends')
    """
    return f"{f'any {count:,}' if count else 'none'}{' more' * more} of {counted(total, noun)}"


__all__ = ["any_of", "counted"]
