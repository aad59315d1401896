"""What a store would lose with backends, and who would."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from manifests.counts import counted
from manifests.errors import StoreBusy, WouldLose
from manifests.ids import short_id
from manifests.inflight import Unfinished
from manifests.presence import Pattern, Presence
from manifests.store import BackendInfo, Members
from pipeline.ingest.adopt import locate


@dataclass(frozen=True)
class Removal:
    """Backends that leave, or would leave. `packs`: those with shards on them; `lost_packs`: those that what stays
    can't give back; `bears`: losses of backends that the store bears afterwards, −1 where some packs are lost;
    `unseen`: there may be records on those that leave, and do not answer, which are on no other backend: what they
    tell, as whole runs, is lost; `unknown`: why it can't be told what is lost, or empty; `unnoted`: why the store has
    no note of what is lost, or empty."""

    backends: tuple[BackendInfo, ...]
    packs: int
    lost_packs: int
    bears: int
    unseen: bool = False
    unknown: str = ""
    unnoted: str = ""

    @property
    def backend_id(self) -> uuid.UUID:
        """Of the first one."""
        return self.backends[0].backend_id

    @property
    def location(self) -> str:
        """Of the first one."""
        return self.backends[0].location


def require_no_runs(runs: Iterable[Unfinished]) -> None:
    """Raises StoreBusy where one of the runs, none of them committed, is not surely over: no manifest names its packs,
    so nobody can tell what would be lost of it."""
    for run in runs:
        if not run.over:
            host = "an unknown host" if run.process is None else f"host {run.process.host}"
            began = f", begun {run.time}," if run.time else ""
            certain = "is" if run.state == "running" else "may still be"
            raise StoreBusy(
                f"run {short_id(run.run_id)} of {host}{began} {certain} under way, and has packs that it may need the "
                "backend for. Nothing was changed: wait for its end, or, if it will never end, give --force"
            )


def noted_patterns(members: Members, presence: Presence, runs: Iterable[Unfinished]) -> Iterator[Pattern]:
    """Where the shards lie of packs that runs have journalled, that no manifest names, and that can be given back."""
    noted = sorted({pack_id for run in runs for pack_id in run.packs})
    named = presence.named(noted) if noted else set()
    for pack_id in noted:
        found = None if pack_id in named else locate(members, pack_id)
        if found is not None:
            record, backends = found
            pattern = Pattern(record.scheme.k, record.scheme.m, tuple(sorted(backends.items())), 1, pack_id)
            if pattern.good >= pattern.k:
                yield pattern


def weigh(presence: Presence, leaving: Sequence[BackendInfo], noted: Iterable[Pattern] = ()) -> Removal:
    """Count over all packs, those that manifests name and `noted` ones, what is left without backends."""
    packs = lost = 0
    bears: int | None = None
    gone = {info.number for info in leaving}
    for pattern in chain(presence.patterns(), noted):
        packs += pattern.packs * any(backend in gone for _, backend in pattern.placed)
        rest = pattern
        for number in gone:
            rest = rest.without(number)
        if pattern.spare:
            continue
        lost += pattern.packs * (rest.good < rest.k)
        bears = rest.bears({}) if bears is None else min(bears, rest.bears({}))
    return Removal(tuple(leaving), packs, lost, 0 if bears is None else bears)


def require_safe(removal: Removal, members: Members) -> None:
    """Raises WouldLose, with the reason, where what stays can't give all packs back."""
    if not removal.lost_packs:
        return
    packs = counted(removal.lost_packs, "pack")
    others = [info.location for info in members.absent() if info not in removal.backends]
    advice = f"; absent are also {', '.join(others)}: attach them first" if others else ""
    places = ", ".join(info.location for info in removal.backends)
    raise WouldLose(
        f"without {places}, {packs} could not be recovered from the backends that answer{advice}. Nothing was changed"
    )


__all__ = ["Removal", "noted_patterns", "require_no_runs", "require_safe", "weigh"]
