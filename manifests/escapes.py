"""Escapes for what must not be printed as it is."""

from __future__ import annotations

import re

_UNDECODED = re.compile("[\udc80-\udcff]")


def shown(outside: str | bytes) -> str:
    """Text or a path as a person sees it on one line. Escapes, as `\\x1b`, `\\u202e` or `\\xff`, stand for control
    characters (C0, C1, DEL), line separators, marks that change the direction of writing, unusual blanks, and bytes
    that are not UTF-8. What is printed so can be given back: manifests/printednames.py."""
    text = outside.decode(errors="surrogateescape") if isinstance(outside, bytes) else outside
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def shown_in_ascii(outside: str | bytes) -> str:
    """The same where ASCII is all that can be printed."""
    return shown(outside).encode("ascii", "backslashreplace").decode("ascii")


def _escaped(char: str) -> str:
    if _UNDECODED.fullmatch(char):
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
