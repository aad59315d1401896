"""The store's own directories: no run archives them, for a store that holds itself grows with every run.

A backend is known by device and inode, so also below a bind mount or behind a link. Inside a source it is left out; a
source that is one, or lies in one, makes no sense.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import PurePath

from manifests.errors import UsageError
from manifests.store import BACKEND_KEY, Members
from stages.scan import Source
from stages.select import Identity


def backend_directories(members: Members) -> dict[Identity, str]:
    """Device and inode → location of the backends that are directories on this machine and answer."""
    found = {}
    for member in members.present.values():
        identity = member.storage.local_path(BACKEND_KEY)
        if identity is not None:
            with suppress(OSError):  # it went this moment, and whoever writes to it says so
                info = os.stat(identity.parent)
                found[info.st_dev, info.st_ino] = member.storage.location
    return found


def require_outside(sources: Sequence[Source], own: dict[Identity, str]) -> None:
    """Raise UsageError where a source is one of the backends in `own`, or lies in one."""
    for source in sources:
        for identity in () if source.stream else _way_up(os.fsdecode(source.path)):
            if identity in own:
                raise UsageError(
                    f"{os.fsdecode(source.path)} is, or lies in, the backend {own[identity]} of this store; a store "
                    "is not archived into itself"
                )


def _way_up(path: str) -> Iterator[Identity]:
    """The directory `path`, unless it is a link, and the directories that it really lies in."""
    name = os.path.basename(path)
    above = os.path.realpath(os.path.dirname(path))
    for place in (os.path.join(above, name), above, *map(str, PurePath(above).parents)):
        with suppress(OSError):  # what can't be looked at is named by the scan
            info = os.lstat(place)
            if stat.S_ISDIR(info.st_mode):
                yield info.st_dev, info.st_ino
