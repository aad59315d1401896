"""What a store would lose with a backend."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from manifests.errors import WouldLose
from manifests.presence import Presence
from manifests.store import BackendInfo, Members


@dataclass(frozen=True)
class Removal:
    """A backend that leaves, or would leave. `packs`: those with shards on it; `lost_packs`: those that what stays
    can't give back; `bears`: losses of backends that the store bears afterwards, −1 where some packs are lost."""

    backend_id: uuid.UUID
    location: str
    packs: int
    lost_packs: int
    bears: int


def weigh(presence: Presence, leaving: BackendInfo) -> Removal:
    """Count over all packs what is left without a backend."""
    packs = lost = 0
    bears: int | None = None
    for pattern in presence.patterns():
        packs += pattern.packs * any(backend == leaving.number for _, backend in pattern.placed)
        rest = pattern.without(leaving.number)
        if pattern.spare:
            continue
        lost += pattern.packs * (rest.good < rest.k)
        bears = rest.bears({}) if bears is None else min(bears, rest.bears({}))
    return Removal(leaving.backend_id, leaving.location, packs, lost, 0 if bears is None else bears)


def require_safe(removal: Removal, members: Members, leaving: BackendInfo) -> None:
    """Raises WouldLose, with the reason, where what stays can't give all packs back."""
    if not removal.lost_packs:
        return
    packs = "1 pack" if removal.lost_packs == 1 else f"{removal.lost_packs:,} packs"
    others = [info.location for info in members.absent() if info != leaving]
    advice = f"; absent are also {', '.join(others)}: attach them first" if others else ""
    raise WouldLose(
        f"without {leaving.location}, {packs} could not be recovered from the backends that answer{advice}. "
        "Nothing was changed"
    )


__all__ = ["Removal", "require_safe", "weigh"]
