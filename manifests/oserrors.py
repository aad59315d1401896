"""What the system refused, in words for people."""

from __future__ import annotations

import errno
import os

#: No room: on the disk, by a quota, or for this process (`ulimit -f`).
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def in_words(error: OSError) -> str:
    """`PLACE: what is wrong`, without Python's number and quotes; without the place where the error names none."""
    what = error.strerror or str(error) or type(error).__name__
    if isinstance(error.filename, str | bytes | os.PathLike):
        return f"{os.fsdecode(error.filename)}: {what}"
    return what
