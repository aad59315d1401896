"""Setting what an object has besides its content. What can't be set is told, and the object is there all the same."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

from manifests.xattrs import set_xattrs, short_path


class Attributes(NamedTuple):
    """What is set on an object besides its content. Times in ns, `xattrs` packed (manifests/xattrs.py). (A named tuple,
    for one is made for each file.)"""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    xattrs: bytes = b""


def set_attributes(fd: int, attributes: Attributes, owner: bool) -> str:
    """Set all attributes of an open file or directory; its owner, and extended attributes that are root's to give, only
    where `owner`. Returns what could not be set."""
    mode, troubles = stat.S_IMODE(attributes.mode), list[str]()
    if owner:
        _try(troubles, "owner", os.fchown, fd, attributes.uid, attributes.gid)
        if troubles:  # nobody else's file may become one that runs as whoever owns it now
            mode &= ~(stat.S_ISUID | stat.S_ISGID)
    # chown clears setuid and capabilities, and chmod changes an ACL's mask, so they come in this order.
    _try(troubles, "mode", os.fchmod, fd, mode)
    if attributes.xattrs and (trouble := set_xattrs(fd, attributes.xattrs, owner)):
        troubles.append(trouble)
    if trouble := set_time(fd, attributes):
        troubles.append(trouble)
    return "; ".join(troubles)


def set_time(fd: int, attributes: Attributes) -> str:
    """Set the time of an open object. Returns why it could not be set."""
    try:
        os.utime(fd, ns=(attributes.mtime_ns, attributes.mtime_ns))
    except OSError as error:
        return f"its time could not be set: {error.strerror}"
    return ""


def set_attributes_by_name(folder: int, name: bytes, attributes: Attributes, owner: bool) -> str:
    """The same for a symlink or a node in the directory `folder`; neither is opened. Returns what could not be set."""
    troubles = list[str]()
    if owner:
        args = (name, attributes.uid, attributes.gid)
        _try(troubles, "owner", os.chown, *args, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISLNK(attributes.mode):
        _try(troubles, "mode", change_mode, folder, name, stat.S_IMODE(attributes.mode))
    if attributes.xattrs:
        path = short_path(folder, name)
        if not path:
            troubles.append("its extended attributes could not be set: that takes /proc, which is not mounted here")
        elif trouble := set_xattrs(path, attributes.xattrs, owner):
            troubles.append(trouble)
    _try(
        troubles,
        "time",
        os.utime,
        name,
        ns=(attributes.mtime_ns, attributes.mtime_ns),
        dir_fd=folder,
        follow_symlinks=False,
    )
    return "; ".join(troubles)


def change_mode(folder: int, name: bytes, mode: int) -> None:
    """Set the mode of what `name` is in the directory `folder`; no link is followed, nothing is opened. Raises OSError,
    for a symlink, too."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)
        except FileNotFoundError:  # no /proc: by name, which is the nearest
            os.chmod(name, mode, dir_fd=folder)
    finally:
        os.close(fd)


def _try(troubles: list[str], what: str, call: Callable[..., None], *arguments: Any, **more: Any) -> None:
    try:
        call(*arguments, **more)
    except OSError as error:
        troubles.append(f"its {what} could not be set: {error.strerror}")
