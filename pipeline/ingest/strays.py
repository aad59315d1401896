"""Packs that lie on backends and that nobody may have noted: what a run stored after its last journal file.

It costs a listing of the backends, so it is done only where a run is over that left traces, once for each.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from manifests.config import shards_per_backend
from manifests.errors import BackendError
from manifests.ids import time_ms
from manifests.store import Member, Members

_FOLDERS = [f"packs/{number:02x}" for number in range(256)]
_SHARD = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.[0-9]{1,3}")
#: How far back a clock may have been set while the run was under way.
_CLOCK_MS = 24 * 3600 * 1000


def stray_packs(members: Members, since: uuid.UUID) -> set[uuid.UUID]:
    """The packs with ids of the time of `since` or later whose shards are all there, but for those that backends which
    are absent may hold. A backend that can't be listed counts as empty: whoever writes to it names it."""
    # Ids begin with their time, so their texts sort by it: the first 13 characters are the milliseconds.
    least = str(uuid.UUID(int=max(0, time_ms(since) - _CLOCK_MS) << 80))[:13]
    scheme, found = members.config.scheme, set[uuid.UUID]()
    hidden = shards_per_backend(scheme, max(1, len(members.seats))) * len(members.absent())
    least_count = max(scheme.k, scheme.total_shards - hidden)
    asked = list(members.present.values())
    with ThreadPoolExecutor(max(1, min(16, len(asked)))) as threads:
        for folder in _FOLDERS:
            shards = set[str]().union(*threads.map(_names, asked, repeat(folder), repeat(least)))
            counts = Counter(name[:36] for name in shards)
            found.update(uuid.UUID(pack) for pack, count in counts.items() if count >= least_count)
    return found


def _names(member: Member, folder: str, least: str) -> list[str]:
    try:
        names = [key.rpartition("/")[2] for key in member.storage.list(folder)]
    except BackendError:
        return []
    return [name for name in names if name[:13] >= least and _SHARD.fullmatch(name)]
