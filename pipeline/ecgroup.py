"""A pack as its shards: where each is, and whether it is whole."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import cached_property

from manifests.catalog import Catalog
from manifests.config import ECScheme
from manifests.counts import counted
from manifests.errors import NotFound
from manifests.packs import pack_row
from manifests.store import Members
from pipeline.packreader import PackPlace, PackReader
from pipeline.restore.run import backend_places
from pipeline.verify.work import CELLS_AT_ONCE, frame_flaws
from stages.erasure import ErasureCoder
from stages.shard import file_size


@dataclass(frozen=True)
class ECShard:
    """A shard of a pack. `backend`: id of the backend that holds it, None where none that answers does; `size`: length
    of its file in bytes, as it should be; `healthy`: every byte of it is right; `trouble`: what is wrong.

    >>> ECShard(5, True, None, "", 4096, False, False, "it is on no backend that answers").present
    False
    """

    index: int
    is_parity: bool
    backend: uuid.UUID | None
    location: str
    size: int
    present: bool
    healthy: bool
    trouble: str = ""


@dataclass(frozen=True)
class ECGroup:
    """A pack and its shards, by index. `original_size`: its payload in bytes.

    >>> shards = tuple(ECShard(n, n > 1, None, "", 704, n != 1, n != 1) for n in range(3))
    >>> group = ECGroup(uuid.UUID(int=1), ECScheme(2, 1), 100, shards)
    >>> len(group.available_shards), [each.index for each in group.missing_shards], group.can_recover
    (2, [1], True)
    """

    pack_id: uuid.UUID
    scheme: ECScheme
    original_size: int
    shards: tuple[ECShard, ...]

    @cached_property
    def available_shards(self) -> tuple[ECShard, ...]:
        """Those that are there and whole."""
        return tuple(shard for shard in self.shards if shard.healthy)

    @cached_property
    def missing_shards(self) -> tuple[ECShard, ...]:
        """Those that are gone or damaged."""
        return tuple(shard for shard in self.shards if not shard.healthy)

    @cached_property
    def data_shards(self) -> tuple[ECShard, ...]:
        return self.shards[: self.scheme.k]

    @cached_property
    def parity_shards(self) -> tuple[ECShard, ...]:
        return self.shards[self.scheme.k :]

    @property
    def can_recover(self) -> bool:
        """Whether whole shards are enough. Where not, good cells of damaged ones may still be."""
        return len(self.available_shards) >= self.scheme.k


def ec_group(members: Members, catalog: Catalog, pack_id: uuid.UUID) -> ECGroup:
    """Read and check all shards of a pack. Raises NotFound, and Unreadable where the manifests make no sense of it."""
    row = pack_row(catalog, pack_id)
    if row is None:
        raise NotFound(f"the store has no pack {pack_id}{members.whereabouts()}")
    scheme = ECScheme(row["k"], row["m"])
    place = PackPlace(pack_id, scheme, row["payload"], row["shard_length"])
    reader = PackReader(backend_places(members).source(), place, ErasureCoder)
    ids = {member.storage.location: member.info.backend_id for member in members.readable}
    shards = tuple(_look_at(reader, index, ids) for index in range(scheme.total_shards))
    return ECGroup(pack_id, scheme, place.payload, shards)


def _look_at(reader: PackReader, index: int, ids: dict[str, uuid.UUID]) -> ECShard:
    place, figures = reader.place, reader.source.figures
    size, parity, identity = file_size(place.shard_length), index >= place.scheme.k, (place.pack_id, index)
    file = reader.shard(index)
    if file is None:
        trouble = figures.missing.get(identity, "it is on no backend that answers")
        return ECShard(index, parity, None, "", size, False, False, trouble)
    for first in range(0, reader.cells, CELLS_AT_ONCE):
        reader.check(index, first, min(first + CELLS_AT_ONCE, reader.cells))
    flaws = list(frame_flaws(reader.source, place, file))
    if not file.proven:
        flaws.append("both its records are lost")
    if bad := figures.bad_cells.get(identity):
        flaws.append(counted(len(bad), "bad cell"))
    location = file.storage.location
    return ECShard(index, parity, ids[location], location, size, True, not flaws, "; ".join(flaws))


__all__ = ["ECGroup", "ECShard", "ec_group"]
