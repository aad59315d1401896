"""Backends as programs see them."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from enum import StrEnum

from manifests.errors import BackendError
from manifests.finding import why_absent
from manifests.storage import Space
from manifests.store import BackendInfo, Member, Members


class StorageType(StrEnum):
    """Kinds of backends, by their name in manifests/backends.py.

    >>> StorageType("local") is StorageType.LOCAL
    True
    """

    LOCAL = "local"
    LOCAL_DIRECT = "local-direct"
    MEMORY = "memory"


class MediaType(StrEnum):
    """What a backend lies on, as far as the system tells.

    >>> MediaType.of("/proc")
    <MediaType.UNKNOWN: 'unknown'>
    """

    HDD = "hdd"
    SSD = "ssd"
    MEMORY = "memory"
    UNKNOWN = "unknown"

    @classmethod
    def of(cls, directory: str) -> MediaType:
        """The medium of a directory; UNKNOWN on a file system without a disk of its own, as those of networks."""
        try:
            device = os.stat(directory).st_dev
            block = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
            for place in (block, os.path.dirname(block)):  # of a partition, the disk tells
                if os.path.exists(f"{place}/queue/rotational"):
                    with open(f"{place}/queue/rotational") as file:
                        return cls.HDD if file.read().strip() == "1" else cls.SSD
        except OSError:
            return cls.UNKNOWN
        return cls.UNKNOWN


@dataclass(frozen=True)
class Backend:
    """A backend of a store. `path`: where it is, or, while it does not answer, where it was; sizes in bytes, of the
    file system that it lies on, 0 where it does not tell; `endpoint`, `bucket`, `region` and `credentials` (a name,
    never a secret) are those of object stores, empty for others; `failure_domain`: backends of one may be lost at
    once; `present`: it answers; `trouble`: why it is not used, or read only for now.

    >>> backend = Backend(uuid.UUID(int=7), 0, StorageType.MEMORY, MediaType.MEMORY, "/a", 1000, 400, "rack 1")
    >>> backend.used_bytes, backend.usage_percent
    (600, 60.0)
    """

    id: uuid.UUID
    number: int
    type: StorageType
    media_type: MediaType
    path: str
    total_bytes: int
    free_bytes: int
    failure_domain: str
    read_only: bool = False
    present: bool = True
    trouble: str = ""
    endpoint: str = ""
    bucket: str = ""
    region: str = ""
    credentials: str = ""

    @property
    def used_bytes(self) -> int:
        """What is not free, whoever uses it."""
        return self.total_bytes - self.free_bytes

    @property
    def usage_percent(self) -> float:
        return 100 * self.used_bytes / self.total_bytes if self.total_bytes else 0.0


def describe(members: Members, info: BackendInfo) -> Backend:
    """A backend of an open store as it is now. What fails is its `trouble`."""
    member = members.present.get(info.number)
    trouble = members.failed.get(info.number) or members.unsure.get(info.number, "")
    room = Space(0, 0)
    if member is None:
        trouble = trouble or why_absent(info)
    else:
        try:
            room = member.storage.space()
        except BackendError as error:
            trouble = trouble or str(error)
    return Backend(
        info.backend_id,
        info.number,
        StorageType(info.type),
        _medium(member),
        member.storage.location if member else info.location,
        room.total,
        room.free,
        info.domain,
        info.read_only,
        member is not None,
        trouble,
    )


def _medium(member: Member | None) -> MediaType:
    if member is None:
        return MediaType.UNKNOWN
    return MediaType.MEMORY if member.info.type == "memory" else MediaType.of(member.storage.location)


__all__ = ["Backend", "MediaType", "StorageType", "describe"]
