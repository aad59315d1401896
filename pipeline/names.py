"""Names that users give to sources. On its own, for the command line reads them before anything else is loaded."""

from __future__ import annotations

import os

from manifests.errors import UsageError

_LONGEST = 255


def parse_name(text: str) -> str:
    """What a source is to be called. Raises UsageError on what is no single part of a path."""
    if text in ("", ".", "..") or "/" in text or "\0" in text or len(os.fsencode(text)) > _LONGEST:
        raise UsageError(
            f"{text!r} is no name for a source: it must be a single part of a path, of 1 to {_LONGEST} bytes without "
            "'/', and neither '.' nor '..'"
        )
    return text
