"""What a path that a user wrote means: what the kernel makes of it.

Taking `..` out of a path as text is wrong behind a symbolic link: `link/../x` lies beside the directory that the link
leads to, and not beside the link. So every path of a user is made absolute here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat

from manifests.errors import UsageError


def absolute_path(text: str | os.PathLike[str]) -> str:
    """The absolute path of a place that need not be there yet, without `.`, `..` and doubled slashes. Raises UsageError
    where it is empty or can't be followed."""
    written = os.fspath(text)
    if not written or "\0" in written:
        raise UsageError("an empty path names nothing" if not written else f"{written!r} holds a zero byte")
    path = from_current_directory(os.fsencode(written))
    try:
        return os.fsdecode(take_out_dots(path))
    except OSError as error:
        raise UsageError(f"{written}: {error.strerror}") from error


def from_current_directory(path: bytes) -> bytes:
    """`path`, behind the current directory if it is relative. Raises UsageError where it is, and that directory is
    gone: an absolute path needs none."""
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwdb(), path)
    except OSError as error:
        raise UsageError(
            f"{os.fsdecode(path)}: the current directory can't be found ({error.strerror}); give an absolute path, or "
            "change to a directory that is there"
        ) from error


def take_out_dots(path: bytes) -> bytes:
    """The absolute `path` without `.`, `..` and doubled slashes. A link stays as it is written, unless `..` follows it:
    then the path goes on from where the link leads. Raises OSError where `..` follows what is no directory; what is not
    there counts as one that is yet to be made."""
    if b"/.." not in path:
        return b"/" + os.path.normpath(path).lstrip(b"/")
    here = b""
    for part in path.split(b"/"):
        if part == b"..":
            here = _directory(here or b"/").rpartition(b"/")[0]
        elif part not in (b"", b"."):
            here += b"/" + part
    return here or b"/"


def _directory(path: bytes) -> bytes:
    """`path`, or what it leads to where it is a link."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return path
    if stat.S_ISLNK(info.st_mode):
        path = os.path.realpath(path, strict=True)
        info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return path


def asks_for_directory(path: bytes) -> bool:
    """Whether a path says that it names a directory, so that a link at its end is followed: `link/`, `link/.`."""
    return path.endswith((b"/", b"/."))
