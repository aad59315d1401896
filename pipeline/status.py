"""Is the store safe, what is amiss, and what to do next.

By the manifests and one listing of each backend: no data is read. What an earlier verification found is believed.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from manifests.catalog import Catalog
from manifests.config import shards_per_backend
from manifests.counts import counted
from manifests.errors import BackendError
from manifests.finding import REPLACED, UNANSWERED
from manifests.inflight import Unfinished, unfinished
from manifests.log import FOLDER as LOG_FOLDER
from manifests.log import Log, Run, State, Verification
from manifests.placement import shards_per_domain
from manifests.presence import Presence
from manifests.store import Member, Members, adding
from pipeline.backend import Backend, describe
from pipeline.openness import open_backends
from pipeline.presence import look_around

#: After so many days without one, a verification of all data is due.
VERIFY_DAYS = 90
#: Tables without which all can be given back.
HINTS = ("shards", "scrubs")
#: Files that are on no backend and are named.
NAMED_FILES = 10
#: A backend of which more is used is nearly full, in percent.
NEARLY_FULL = 95


@dataclass(frozen=True)
class BackendShare:
    """A backend, and what of the store lies on it: good shards, and their files' length in bytes. `lacking`: records
    and manifest files that it should hold and does not."""

    backend: Backend
    shards: int
    shard_bytes: int
    lacking: int


@dataclass(frozen=True)
class StoreStatus:
    """The state of a store. `known_loss`: what the last verification of all data found lost or wrong and nothing
    stored again since, empty where packs tell of the loss; `bears_backends`, `bears_domains`: how many backends, or
    failure domains, may be lost from now on, whichever they are, with nothing lost: −1 where something can't be given
    back by what answers;
    `should_bear`: backends, were all in order; `most_in_domain`: shards of a new pack that one failure domain gets;
    `frail_packs`: packs that would not survive the loss of some one domain; `short_packs`: packs that lack shards,
    `missing_shards` in all; `lost_packs`: those that can't be read whole; `spare_packs`: more of these, which nobody
    lacks, as all that lives in them was stored again; `unnamed_packs`: those that no manifest names, of runs that are
    under way or did not finish, `stranded_packs`: more of these, which no run can take over;
    `unfinished`: runs with traces that are not committed, and packs that they noted and no other run took over;
    `advice`: what to do next, the most urgent first; `notes`: what else the
    user should know. `presence` tells of single packs while the store is open."""

    bears_backends: int
    bears_domains: int
    should_bear: int
    domains: int
    most_in_domain: int
    packs: int
    frail_packs: int
    short_packs: int
    missing_shards: int
    lost_packs: int
    spare_packs: int
    known_loss: str
    last_run: Run | None
    last_verification: Verification | None
    last_data_verification: Verification | None
    backends: list[BackendShare]
    unnamed_packs: int
    stranded_packs: int
    unfinished: list[tuple[Unfinished, int]]
    troubles: list[str]
    advice: list[str]
    notes: list[str]
    presence: Presence = field(repr=False)

    @property
    def exit_code(self) -> int:
        """0 in order; 3 where something can't be given back by what answers, or could not when all was read and was not
        stored again since; 4 where something wants mending."""
        if self.bears_backends < 0:
            return 3
        return 4 if self.troubles else 0


@dataclass
class _Counted:
    """Sums over all packs."""

    packs: int = 0
    frail: int = 0
    short: int = 0
    missing: int = 0
    lost: int = 0
    spare: int = 0
    bears_backends: int | None = None
    bears_domains: int | None = None


def _count(presence: Presence, domains: Mapping[int, Hashable]) -> _Counted:
    counted = _Counted()
    for pattern in presence.patterns():
        missing = pattern.k + pattern.m - pattern.good
        counted.packs += pattern.packs
        counted.missing += missing * pattern.packs
        counted.short += pattern.packs * (missing > 0)
        if pattern.spare:
            counted.spare += pattern.packs
            continue
        counted.lost += pattern.packs * (not pattern.recoverable)
        backends, in_domains = pattern.bears({}), pattern.bears(domains)
        counted.frail += pattern.packs * (in_domains == 0)
        counted.bears_backends = _least(counted.bears_backends, backends)
        counted.bears_domains = _least(counted.bears_domains, in_domains)
    return counted


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def store_status(members: Members, log: Log, state: State, catalog: Catalog) -> StoreStatus:
    """The state of an open store. Raises Unreadable where the manifests don't tell which packs there are."""
    presence, unlisted = look_around(members, state, catalog)
    domains = {info.number: info.domain for info in members.all}
    counted = _count(presence, domains)
    copies, lacking, nowhere, unreadable = _copies(members, log, state)
    unlisted.update(unreadable)
    # Of a store without packs, or beyond what its scheme promises, records alone tell nothing.
    of_records = min(len(held) for held in copies) - 1
    of_domains = min(len({domains[number] for number in held}) for held in copies) - 1
    bears_backends = min(of_records, members.tolerance if counted.bears_backends is None else counted.bears_backends)
    bears_domains = min(of_domains, members.tolerance if counted.bears_domains is None else counted.bears_domains)
    last_data = next((each for each in reversed(state.verifications) if each.data), None)
    known_loss = ""
    if last_data is not None and last_data.found_loss and bears_backends >= 0:
        known_loss = _known_loss(last_data, presence, catalog)
        if known_loss:
            bears_backends = bears_domains = -1
    stored = presence.stored()
    shares = [
        BackendShare(describe(members, info), *stored.get(info.number, (0, 0)), lacking[info.number])
        for info in members.all
    ]
    runs, trouble = _unfinished(members, log, presence)
    unnamed, stranded = _unnamed(members, presence, [run for run, _ in runs])
    unlisted.update(trouble)
    found = StoreStatus(
        bears_backends=bears_backends,
        bears_domains=bears_domains,
        should_bear=members.tolerance,
        domains=len(set(domains.values())),
        most_in_domain=shards_per_domain(members.config.scheme, members.seats),
        packs=counted.packs,
        frail_packs=counted.frail,
        short_packs=counted.short,
        missing_shards=counted.missing,
        lost_packs=counted.lost,
        spare_packs=counted.spare,
        known_loss=known_loss,
        last_run=state.runs[-1] if state.runs else None,
        last_verification=state.verifications[-1] if state.verifications else None,
        last_data_verification=last_data,
        backends=shares,
        unnamed_packs=unnamed,
        stranded_packs=stranded,
        unfinished=runs,
        troubles=[],
        advice=[],
        notes=[*open_backends(members), *_shortcomings(members), *_whereabouts(members)],
        presence=presence,
    )
    found.troubles.extend(_troubles(found, members, unlisted))
    found.troubles.extend(f"{key} is on no backend that answers" for key in nowhere[:NAMED_FILES])
    found.troubles.extend(f"what the last verification found is lost: {reason}" for reason in presence.lost_notes)
    found.advice.extend(_advice(found, members))
    found.advice.extend(_shared_devices(members))
    return found


def _known_loss(last: Verification, presence: Presence, catalog: Catalog) -> str:
    """What of the findings of the `last` verification of all data is lost or wrong still: what was stored again is
    not. All chunks are looked at, so it is asked only where something was found, and packs tell of no loss."""
    if last.wrong:
        return f"{last.wrong:,} objects are not what was recorded of them"
    if presence.lost_notes:
        return "what the last verification of all data found lost is not known any more"
    count, _ = presence.losses().objects(0)
    if catalog.lost:
        return f"manifests are lost: {'; '.join(catalog.lost)}"
    return f"{count:,} objects can't be given back" if count else ""


def _copies(
    members: Members, log: Log, state: State
) -> tuple[list[frozenset[int]], Counter[int], list[str], dict[int, str]]:
    """The distinct sets of backends that hold a record or a manifest file in its length, of those without which
    something can't be given back; how many of all each backend lacks; those that are on none; and backends that could
    not be listed."""
    held: dict[str, set[int]] = {key: set() for key in log.records}
    sizes = {file.key: file.size for table in state.manifests for file in state.files(table)}
    held |= {key: set() for key in sizes}
    trouble: dict[int, str] = {}
    for member in members.present.values():
        try:
            for folder in (LOG_FOLDER, "manifests"):
                for key, size in member.storage.list_sizes(folder):
                    if key in held and sizes.get(key, size) == size:
                        held[key].add(member.number)
        except BackendError as error:
            trouble[member.number] = str(error)
    lacking = Counter[int]()
    for numbers in held.values():
        for member in members.writable:
            lacking[member.number] += member.number not in numbers
    hints = {file.key for table in HINTS for file in state.files(table)}
    sets = {frozenset(numbers) for key, numbers in held.items() if key not in hints}
    return list(sets), lacking, sorted(key for key, numbers in held.items() if not numbers), trouble


def _unfinished(members: Members, log: Log, presence: Presence) -> tuple[list[tuple[Unfinished, int]], dict[int, str]]:
    """Runs with traces and without a record, and backends whose traces can't be seen."""
    runs, troubles = unfinished(members)
    committed = {record.record_id for record in log.records.values()}
    return [
        (run, len(set(run.packs) - presence.named(run.packs))) for run in runs if run.run_id not in committed
    ], troubles


def _lack(share: BackendShare) -> str:
    files = counted(share.lacking, "record or manifest file", "records and manifest files")
    return f"{share.backend.path} lacks {files}"


def _unnamed(members: Members, presence: Presence, runs: list[Unfinished]) -> tuple[int, int]:
    """Packs that no manifest names: those that some run may still need or take over, and those that none will. A run
    takes over what the traces of another one lead to, if enough of its shards are there."""
    scheme, packs = members.config.scheme, sum(presence.unnamed.values())
    if not runs:
        return 0, packs
    if members.absent() or not all(run.over for run in runs):
        return packs, 0
    spare = scheme.m >= shards_per_backend(scheme, max(1, len(members.seats)))
    stranded = sum(count for shards, count in presence.unnamed.items() if shards < scheme.k + spare)
    return packs - stranded, stranded


def _troubles(found: StoreStatus, members: Members, unlisted: dict[int, str]) -> list[str]:
    """What wants mending."""
    troubles = [f"{share.backend.path}: {share.backend.trouble}" for share in found.backends if share.backend.trouble]
    troubles += unlisted.values()
    if members.copied:
        troubles.append(members.copied)
    if found.lost_packs:
        troubles.append(f"{counted(found.lost_packs, 'pack')} can't be given back by the backends that answer")
    if found.missing_shards:
        are = "is" if found.missing_shards == 1 else "are"
        shards, packs = counted(found.missing_shards, "shard"), counted(found.short_packs, "pack")
        troubles.append(f"{shards} of {packs} {are} missing or damaged")
    for share in found.backends:
        if share.lacking and share.backend.present:
            troubles.append(_lack(share))
    if members.healed > len(members.unsure):
        troubles.append("records were rotten on opening, and were healed")
    return troubles + _found_before(found)


def _advice(found: StoreStatus, members: Members) -> list[str]:
    """What to do next, the most urgent first."""
    advice = list(_attaching(found, members))
    absent = [share.backend for share in found.backends if not share.backend.present]
    if not members.copied:
        incomplete = [share.backend.path for share in found.backends if share.lacking and not share.backend.trouble]
        advice += [f"give {path} what it lacks: {adding(path)}" for path in incomplete]
    if found.lost_packs and not absent:
        advice.append(
            "name what is lost: drystone verify --data; then drystone ingest SOURCE stores again what is still there"
        )
    elif not absent and _are_unnamed(found, members):
        advice.append("name what is damaged: drystone verify -v")
    elif found.last_verification is not None and found.troubles == _found_before(found) != []:
        advice.append("look whether that is mended: drystone verify" + " --data" * found.last_verification.data)
    if found.missing_shards and not found.lost_packs and not absent and not members.copied:
        advice.append(
            "no command brings back shards that are missing yet; what is archived from now on gets all of its shards. "
            "To have all of it so, restore it, and ingest it into a new store"
        )
    if found.last_run is None:
        advice.append("archive something: drystone ingest SOURCE")
    left = [(run, packs) for run, packs in found.unfinished if run.state != "running"]
    if any(packs for _, packs in left) or (found.unnamed_packs and left):
        advice.append("let the next ingest take over what unfinished runs stored: drystone ingest SOURCE")
    if found.packs and (_is_due(found.last_data_verification) or found.presence.lost_notes):
        advice.append("read everything once: drystone verify --data")
    full = [share.backend for share in found.backends if share.backend.usage_percent > NEARLY_FULL]
    for backend in full:
        advice.append(f"{backend.path} is nearly full: drystone backend add DIR")
    if found.packs and found.should_bear and found.bears_backends >= 0:
        advice.extend(_about_domains(found, members))
    if not found.troubles and found.bears_backends < found.should_bear:
        advice.append(
            "packs of before there were so many backends share some: ingest into a new store to spread them all"
        )
    return advice


def _found_before(found: StoreStatus) -> list[str]:
    """What the last verification says to be mended."""
    last = found.last_verification
    return [f"the verification of {last.time} found damage"] if last is not None and last.exit_code else []


def _are_unnamed(found: StoreStatus, members: Members) -> bool:
    """Whether something wants mending that neither the last verification nor other advice names."""
    named = {members.copied, *(_lack(share) for share in found.backends)}  # a copy may be whole
    return not _found_before(found) and bool(set(found.troubles) - named)


def _attaching(found: StoreStatus, members: Members) -> Iterator[str]:
    """What to do about backends that do not answer."""
    absent = [share.backend for share in found.backends if not share.backend.present]
    if members.copied:
        if absent:
            yield "copy the backends that are absent, too, or restore from the original"
        return
    away = [backend.path for backend in absent if backend.trouble == UNANSWERED]
    if away:
        yield (
            f"attach {', '.join(away)} again; if mounted elsewhere now, name a directory above all backends: drystone "
            "-s DIR status"
        )
    for backend in absent:
        if backend.trouble not in (UNANSWERED, REPLACED):
            yield f"see why {backend.path} can't be read"
    if absent and not members.sees_all:
        removed = " ".join(str(backend.id) for backend in absent)
        yield (
            "nothing can be written until then; only if all that are absent are gone for good, with all that is on "
            f"them alone: drystone backend remove {removed} --force"
        )
        return
    for backend in absent:
        # Of backends without which something can't be given back, none may be removed.
        if found.bears_backends >= 0:
            was = f"the backend that was at {backend.path}" if backend.trouble == REPLACED else backend.path
            yield f"only if {was} is gone for good: drystone backend remove {backend.id}"


def _about_domains(found: StoreStatus, members: Members) -> Iterator[str]:
    """What the loss of one failure domain would mean, and why."""
    scheme = members.config.scheme
    if found.domains == 1:
        domain = next(iter(members.all)).domain
        yield (
            f"all backends are in one failure domain, {domain}, and its loss loses everything: put backends on disks "
            "of their own"
        )
    elif found.most_in_domain > scheme.m:
        yield (
            f"one failure domain holds {counted(found.most_in_domain, 'shard')} of a pack and {scheme.m} may be lost, "
            "so the loss of that domain loses data: put backends on more disks"
        )
    elif found.frail_packs:
        lack = ("lacks" if found.frail_packs == 1 else "lack") + " shards, and " if found.short_packs else ""
        yield (
            f"{counted(found.frail_packs, 'pack')} {lack}would not survive the loss of some one failure domain; which: "
            "drystone status --risk"
        )


def _whereabouts(members: Members) -> Iterator[str]:
    """Backends that the log knows elsewhere, and that no command notes by itself."""
    for place in members.unrecorded:
        yield f"the log knows {place} at another place; unless it is a copy, to have it noted: {adding(place)}"


def _shared_devices(members: Members) -> Iterator[str]:
    """Backends that lie on one device now, though they are in different failure domains."""
    on = dict[str, list[Member]]()
    for member in members.present.values():
        with suppress(BackendError):  # who can't tell its device has other troubles, which are named
            on.setdefault(member.storage.device(), []).append(member)
    for together in on.values():
        if len({member.info.domain for member in together}) > 1:
            places = ", ".join(member.storage.location for member in together)
            yield f"one device holds {places}, which count as several domains: see drystone backend add --domain"


def _shortcomings(members: Members) -> Iterator[str]:
    """What the file systems of backends can't do."""
    lacking = dict[str, list[str]]()
    for member in members.present.values():
        with suppress(BackendError):  # as above
            for lack in member.storage.shortcomings():
                lacking.setdefault(lack, []).append(member.storage.location)
    for lack, places in lacking.items():
        yield f"the file system of {', '.join(places)}: {lack}"


def _is_due(last: Verification | None) -> bool:
    return last is None or age(last.time) > datetime.timedelta(days=VERIFY_DAYS)


def age(time: str) -> datetime.timedelta:
    """How long ago a time of the log was, by this machine's clock; never less than nothing."""
    then = datetime.datetime.fromisoformat(time)
    return max(datetime.timedelta(), datetime.datetime.now(datetime.UTC) - then)


__all__ = ["BackendShare", "StoreStatus", "age", "store_status"]
