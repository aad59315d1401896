"""What is known to be unreadable on backends, so that a failing disk is not asked for the same again and again.

Each failing read of a disk may cost seconds. What failed is remembered by the range; a shard of which most reads fail
is given up, and so is a backend. Given up means read last: what can't be decoded without it is still tried, range by
range.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from manifests.errors import BackendError

#: Failed reads, less those that went well, after which a shard, or a backend, is given up: one bad sector costs about
#: ten failed reads to find, and as many go well beside them.
SHARD_BALANCE, BACKEND_BALANCE = 12, 24
#: Failed reads after which they are, whatever went well.
SHARD_MOST, BACKEND_MOST = 64, 256
#: Shards with unreadable ranges that are remembered; the oldest is forgotten first.
REMEMBERED = 4096
#: What keeps a file from being read at any place of it: parts of it need not be tried.
_EVERYWHERE = {
    errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip


def is_everywhere(error: BackendError) -> bool:
    """Whether what failed at one place of a file would fail at every other."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in _EVERYWHERE


@dataclass
class _Balance:
    failed: int = 0
    good: int = 0

    def is_over(self, balance: int, most: int) -> bool:
        return self.failed - self.good >= balance or self.failed >= most


@dataclass
class _Shard(_Balance):
    """A shard file with unreadable ranges, disjoint and sorted."""

    bad: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Trouble(_Balance):
    """What ails a backend: how many reads of it `failed`, and why the first did."""

    reason: str = ""

    @property
    def given_up(self) -> bool:
        return self.is_over(BACKEND_BALANCE, BACKEND_MOST)


class BadMedia:
    """Of one process, for any of its threads. Backends are known by their location."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shards: dict[tuple[str, str], _Shard] = {}
        self.troubles: dict[str, Trouble] = {}

    def failed(self, location: str, key: str, error: BackendError) -> None:
        """A read of a shard failed."""
        with self._lock:
            shard = self._shard(location, key)
            shard.failed += 1
            trouble = self.troubles.setdefault(location, Trouble(reason=str(error)))
            trouble.failed += 1

    def went_well(self, location: str, key: str) -> None:
        """A read of a shard, of a backend that has troubles, went well."""
        with self._lock:
            trouble = self.troubles[location]
            trouble.good = min(trouble.good + 1, trouble.failed)
            shard = self._shards.get((location, key))
            if shard is not None:
                shard.good = min(shard.good + 1, shard.failed)

    def note(self, location: str, key: str, start: int, end: int) -> None:
        """This range of a shard can't be read."""
        with self._lock:
            shard = self._shard(location, key)
            apart = [each for each in shard.bad if each[1] < start or each[0] > end]
            touching = [each for each in shard.bad if each[1] >= start and each[0] <= end]
            whole = (min([start, *(each[0] for each in touching)]), max([end, *(each[1] for each in touching)]))
            shard.bad = sorted([*apart, whole])

    def _shard(self, location: str, key: str) -> _Shard:
        shard = self._shards.get((location, key))
        if shard is None:
            shard = self._shards[location, key] = _Shard()
            while len(self._shards) > REMEMBERED:
                del self._shards[next(iter(self._shards))]
        return shard

    def gave_up(self, location: str, key: str = "") -> bool:
        """Whether a backend, or a shard on it, was given up."""
        trouble = self.troubles.get(location)
        if trouble is None:
            return False
        shard = self._shards.get((location, key))
        return trouble.given_up or (shard is not None and shard.is_over(SHARD_BALANCE, SHARD_MOST))

    def why(self, location: str) -> str:
        """Why a backend, or a shard on it, was given up."""
        trouble = self.troubles[location]
        return f"given up after {trouble.failed} failed reads of {location}, the first: {trouble.reason}"

    def known(self, location: str, key: str, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of a range of a shard that are known to be unreadable, in order."""
        shard = self._shards.get((location, key))
        if shard is None:
            return []
        return [(max(start, a), min(end, b)) for a, b in shard.bad if a < end and b > start]

    def lines(self) -> Iterator[str]:
        """What ails each backend, for people."""
        for location, trouble in sorted(self.troubles.items()):
            yield trouble_line(location, trouble.failed, trouble.given_up, trouble.reason)


def trouble_line(location: str, failed: int, given_up: bool, reason: str) -> str:
    """What ails a backend, for people."""
    how = ", so that it was given up" if given_up else ""
    return f"{location}: {failed:,} read{'s' * (failed != 1)} failed{how}; the first: {reason}"
