"""Listing the shards of all backends: one listing a backend, the backends side by side."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from manifests.catalog import Catalog
from manifests.errors import BackendError
from manifests.log import State
from manifests.presence import Presence
from manifests.store import Member, Members

#: Shards lie in 256 folders, by the last two digits of the pack id. Of each backend so many are listed at a time:
#: little of a listing is held, and threads seldom wait for one another.
_AT_ONCE = 16
_PARTS = [[f"packs/{number:02x}" for number in range(at, at + _AT_ONCE)] for at in range(0, 256, _AT_ONCE)]
_THREADS = 16


def look_around(members: Members, state: State, catalog: Catalog) -> tuple[Presence, dict[int, str]]:
    """What the backends that answer hold, and which of them could not be listed, and why: what those hold counts as
    missing. Raises Unreadable where the manifests don't tell which packs there are."""
    presence, unlisted = Presence(catalog, state), dict[int, str]()
    with ThreadPoolExecutor(max(1, min(_THREADS, len(members.present)))) as threads:
        for folders in _PARTS:
            asked = [member for member in members.present.values() if member.number not in unlisted]
            for member, (names, sizes, trouble) in zip(
                asked, threads.map(_list, asked, [folders] * len(asked)), strict=True
            ):
                if trouble:
                    unlisted[member.number] = trouble
                presence.add(names, sizes, member.number)
    presence.finish()
    return presence, unlisted


def _list(member: Member, folders: list[str]) -> tuple[list[str], list[int], str]:
    """Names and sizes of the files in some folders of a backend, and what kept it from being listed further."""
    names, sizes = [], []
    try:
        for folder in folders:
            for key, size in member.storage.list_sizes(folder):
                names.append(key.rpartition("/")[2])
                sizes.append(size)
    except BackendError as error:
        return names, sizes, str(error)
    return names, sizes, ""


__all__ = ["look_around"]
