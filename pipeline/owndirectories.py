"""The store's own directories: no run archives them, for a store that holds itself grows with every run, and nothing
that a user names as a target is written into them.

A backend, and each directory in it, is known by device and inode, so also behind a link, or below a bind mount of a
part of it. Inside a source they are left out; a source or a target that is one, or lies in one, makes no sense.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePath

from manifests.errors import UsageError
from manifests.inflight import FOLDER
from manifests.store import BACKEND_KEY, Members
from stages.scan import Source
from stages.select import Identity

#: Directories of a backend that hold directories. A log may be long, and holds none.
_WITH_DIRECTORIES = ("packs", "manifests", FOLDER)
#: Device and inode of each backend that is a directory here, and of the directories in it → the backend's location.
OwnDirectories = Mapping[Identity, str]


def backend_directories(members: Members) -> dict[Identity, str]:
    """The backends that are directories on this machine and answer, with the directories in them."""
    found = {}
    for member in members.readable:
        identity = member.storage.local_path(BACKEND_KEY)
        if identity is not None:
            with suppress(OSError):  # it went this moment, and whoever writes to it says so
                for each in _directories(identity.parent):
                    found[each] = member.storage.location
    return found


def _directories(backend: PurePath) -> Iterator[Identity]:
    """A backend and the directories in it. What lies two levels down, 256 of packs alone, is known from the listing.
    Raises OSError."""
    info = os.stat(backend)
    yield info.st_dev, info.st_ino
    with os.scandir(backend) as parts:
        for part in parts:
            if part.is_dir(follow_symlinks=False):
                info = part.stat(follow_symlinks=False)
                yield info.st_dev, info.st_ino
                if part.name in _WITH_DIRECTORIES:
                    with os.scandir(part) as inner:
                        for each in inner:
                            if each.is_dir(follow_symlinks=False):
                                yield info.st_dev, each.inode()


def require_sources_outside(sources: Sequence[Source], own: OwnDirectories) -> None:
    """Raise UsageError where a source is one of the backends in `own`, or lies in one."""
    for source in sources:
        if source.stream:
            continue
        place = os.fsdecode(source.path)
        folder, name = os.path.split(place)
        holder = _holder(os.path.join(os.path.realpath(folder), name), own)
        if holder:
            raise UsageError(
                f"{place} is, or lies in, the backend {holder} of this store; a store is not archived into itself"
            )


def require_target_outside(target: str, own: OwnDirectories) -> None:
    """Raise UsageError where the place `target`, which need not be there yet, is one of the backends in `own`, or lies
    in one: what is written there may replace the store's files."""
    holder = _holder(os.path.realpath(target), own)
    if holder:
        raise UsageError(
            f"{target} is, or lies in, the backend {holder} of this store, where nothing but the store itself writes; "
            "name another place"
        )


def _holder(place: str, own: OwnDirectories) -> str:
    """Location of the backend that `place` is or lies in, or empty. Only its last part may be a link."""
    return next((own[identity] for identity in _way_up(place) if identity in own), "")


def _way_up(place: str) -> Iterator[Identity]:
    """The directory `place`, unless it is a link, and the directories that it lies in, as far as they are there."""
    for each in (place, *map(str, PurePath(place).parents)):
        with suppress(OSError):  # what can't be looked at is named by who reads or writes there
            info = os.lstat(each)
            if stat.S_ISDIR(info.st_mode):
                yield info.st_dev, info.st_ino
