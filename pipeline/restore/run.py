"""One restore from beginning to end: plan, directories, workers, attributes of directories."""

from __future__ import annotations

import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.backends import place_of
from manifests.catalog import Catalog
from manifests.columns import Batch
from manifests.copies import OtherPlaces
from manifests.errors import BackendError, DrystoneError, Unreadable, UsageError
from manifests.finding import why_absent_by_number
from manifests.longfields import LongFields
from manifests.objects import no_such_object
from manifests.owners import renumbered
from manifests.plan import PlanTotals, RestorePlan
from manifests.recorded import log_text
from manifests.store import Members
from pipeline.budget import DEFAULT_MEMORY, DUCKDB_MEMORY, available_cores
from pipeline.fan import fan_workers
from pipeline.handles import FdHandle
from pipeline.outcome import NamedError, StageFigures, stage_figures
from pipeline.owndirectories import OwnDirectories, backend_directories, require_target_outside
from pipeline.restore.plan import RestoreHome
from pipeline.restore.work import BackendPlaces, RestoreOptions, restore_station
from pipeline.runner import run_stations
from pipeline.signalwatch import QueryWatch, SignalWatch
from pipeline.topology import RESTORE_STAGES, FanShape, fan_shape
from stages.attributes import Attributes
from stages.closedfolders import is_closed, opened_mode
from stages.durable import sync_file_system
from stages.errors import StageError
from stages.inheritance import passes_on
from stages.staging import Leftovers, Staging, remove_leftovers
from stages.target import Target, TargetOptions
from stages.targetfolders import Taken

#: Fetched blocks, a decoder's buffer and pieces of rows under decoding.
RESTORE_WORKER_MEMORY = 40 << 20
#: Objects that are named at once, of those that could not be restored whole.
NAMED_FAILURES = 1000
_IN_ITS_PLACE = "the backend {} of this store is in its place, and nothing is restored there"
OVERWRITE = ("never", "if-changed", "always")


@dataclass(frozen=True)
class RestoreRequest:
    """What to restore and how. `workers`: None for one a core; `memory`: bytes of all processes together;
    `numeric_ids`: owners by number, where the names of owners would have other numbers on this machine; `fsync`: what
    replaces something is on disk before it does, and all is when the restore has ended; None: all, if anything was
    replaced."""

    to: str
    overwrite: str = "never"
    workers: int | None = None
    memory: int = DEFAULT_MEMORY
    inline: bool = False
    numeric_ids: bool = False
    fsync: bool | None = None


@dataclass(frozen=True)
class RestoreResult:
    """What a restore did. `in_place`: of the `files`, those that stood there already, by size and time, and were not
    read, with `in_place_bytes` of the `bytes`; `replaced`: objects that replaced something; `failures`: (path, reason)
    of objects that are not restored whole, the first NAMED_FAILURES of them; `every_failure` gives all, as long as
    nothing else is asked of the store; `healed_records`: records, tables of checksums and manifests that armour or
    another copy gave back; `elsewhere`: chunks that another place than the first one gave back; `absent`: backends that
    do not answer, and why; `troubles`: what ails backends of which reads failed; `lost_manifests`: manifest files of
    which no copy nor mixture of copies is whole, and that the manifests have not all objects of the run;
    `left_to_root`: objects whose owner, or attributes that only root may set, were passed over;
    `incomplete`: objects that were skipped or incomplete when they were archived, of which all came back that the
    archive has, with the first NAMED_FAILURES and why; `leftovers`: of killed restores, that were found in the
    target."""

    files: int
    in_place: int
    in_place_bytes: int
    replaced: int
    bytes: int
    failed: int
    failures: list[NamedError]
    every_failure: Callable[[], Iterator[NamedError]] = field(repr=False, compare=False)
    healed_cells: int
    healed_records: int
    elsewhere: int
    lost_manifests: list[str]
    absent: list[str]
    troubles: list[str]
    left_to_root: int
    incomplete: int
    named_incomplete: list[NamedError]
    leftovers: Leftovers
    left_behind: str
    seconds: float
    stages: list[StageFigures]

    @property
    def exit_code(self) -> int:
        return 3 if self.failed or self.lost_manifests else 0


def backend_places(members: Members) -> BackendPlaces:
    """The backends of an open store, for workers."""
    return BackendPlaces(
        members.config.shard_stores,
        tuple((m.number, place_of(m.storage)) for m in members.readable),
        tuple(info.seat for info in members.all),
    )


def restore(
    members: Members,
    catalog: Catalog,
    run: uuid.UUID,
    path: bytes,
    request: RestoreRequest,
    on_plan: Callable[[PlanTotals], None] | None = None,
    on_tick: Callable[[npt.NDArray[np.uint64]], None] | None = None,
) -> RestoreResult:
    """Restore the objects at and below `path` of a run. Raises NotFound when there is none, UsageError, Interrupted,
    and what workers raise; objects that can't be restored whole are in the result."""
    started = time.monotonic()
    if request.overwrite not in OVERWRITE:
        raise UsageError(f"--overwrite {request.overwrite}: one of {', '.join(OVERWRITE)}")
    own = backend_directories(members)
    require_target_outside(request.to, own)
    shape = fan_shape(
        FanShape,
        "restore",
        len(RESTORE_STAGES),
        RESTORE_WORKER_MEMORY,
        available_cores(),
        request.memory,
        request.workers,
    )
    catalog.limit_memory(DUCKDB_MEMORY + request.memory - shape.memory)  # what is left of it
    with (
        _without_empty_directories(request.to),
        _open_for_owner(request.to),
        SignalWatch() as signals,
        QueryWatch(signals, catalog.stop, catalog.go_on) as queries,
        LongFields() as long_fields,
        OtherPlaces() as others,
    ):
        staging, leftovers = _make_places(request.to)
        try:
            target = Target(options := _target_options(path, request, staging, leftovers, own), "home")
            try:
                # DuckDB plans in a thread while the fork server starts the workers, which is waiting for the most part.
                with ThreadPoolExecutor(1, "plan") as planner:
                    planned = planner.submit(
                        _planned, catalog, run, path, long_fields, others, target, request, on_plan
                    )
                    home = RestoreHome(shape.count, planned.result)
                    places, fields = backend_places(members), FdHandle(long_fields.fd)
                    elsewhere = FdHandle(others.fd)
                    counters = run_stations(
                        shape.layout().with_meters(members.numbers),
                        fan_workers(
                            shape, restore_station, lambda i: RestoreOptions(i, places, options, fields, elsewhere)
                        ),
                        {"plan": home.plan_station, "reports": home.reports_station},
                        inline=request.inline,
                        signals=signals,
                        cleanup=(staging.cleanup, partial(shutil.rmtree, catalog.temp_directory, ignore_errors=True)),
                        on_tick=on_tick,
                        queries=queries,
                    )
                plan = home.plan
                for missing in plan.missing():
                    plan.failed.note(missing["row"], missing["reason"])
                for row, reason in _finish_folders(plan, target):
                    plan.failed.note(row, reason)
            except BaseException as error:
                for trouble in target.folders.close_again():
                    error.add_note(trouble)
                raise
            else:
                incomplete, named_incomplete = plan.incomplete(NAMED_FAILURES)
                left_to_root = 0 if options.owner else plan.needs_root(os.geteuid(), os.getegid())
            finally:
                target.close()
        finally:
            reason = staging.close()
            left_behind = f"{staging.path}: {reason}" if reason else ""
        replaced = home.tally.replaced + target.folders.replaced
        if request.fsync or (request.fsync is None and replaced):
            _sync(request.to)
    seconds = time.monotonic() - started
    return RestoreResult(
        home.tally.files,
        home.tally.in_place,
        home.tally.in_place_bytes,
        replaced,
        home.tally.bytes,
        plan.failed.count(),
        list(islice(plan.failures(), NAMED_FAILURES)),
        plan.failures,
        sum(home.tally.healed_cells.values()),
        sum(home.tally.healed_records.values()) + members.healed + catalog.replicas.healed,
        home.tally.elsewhere,
        [*catalog.lost, *([] if path else catalog.short_runs(run))],
        list(why_absent_by_number(members).values()),
        home.troubles(),
        left_to_root,
        incomplete,
        named_incomplete,
        leftovers,
        left_behind,
        seconds,
        stage_figures(counters, RESTORE_STAGES, seconds),
    )


def _planned(
    catalog: Catalog,
    run: uuid.UUID,
    path: bytes,
    long_fields: LongFields,
    others: OtherPlaces,
    target: Target,
    request: RestoreRequest,
    on_plan: Callable[[PlanTotals], None] | None,
) -> tuple[RestorePlan, list[tuple[int, str]]]:
    """The plan, with its directories made, and those that could not be made. Raises NotFound."""
    plan = RestorePlan(catalog, run, path, long_fields)
    if not plan.count and catalog.lost:
        raise Unreadable("; ".join(catalog.lost))
    if not plan.count:
        raise no_such_object(catalog, run, path)
    if os.geteuid() == 0 and not request.numeric_ids and (elsewhere := renumbered(plan.owners())):
        plan.renumber(elsewhere)
    with ThreadPoolExecutor(1, "locate") as beside:
        located = beside.submit(plan.locate, others)
        problems, taken = _make_folders(plan, target, request.overwrite == "always")
        located.result()
    plan.leave_out(taken)
    if on_plan is not None:
        on_plan(plan.totals())
    return plan, problems


@contextmanager
def _without_empty_directories(to: str) -> Iterator[None]:
    """Where an error leaves the block, directories on the way to `to` go that were not there before and are empty."""
    made = []
    while not os.path.lexists(to):
        made.append(to)
        to = os.path.dirname(to)
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # it is not empty, or was never made
                os.rmdir(folder)
        raise


@contextmanager
def _open_for_owner(to: str) -> Iterator[None]:
    """The directory `to` itself, which is not the restore's to change, is open for its owner within the block."""
    mode = None
    with suppress(OSError):  # it is not there yet, or stays as it is: whoever writes there says so
        found = os.stat(to)
        if stat.S_ISDIR(found.st_mode) and is_closed(None, to, found):
            os.chmod(to, opened_mode(found))
            mode = stat.S_IMODE(found.st_mode)
    try:
        yield
    finally:
        if mode is not None:
            try:
                os.chmod(to, mode)
            except OSError as error:
                now = opened_mode(found)
                raise BackendError(
                    f"{to} has the mode {now:04o} and had {mode:04o}: setting it failed: {error.strerror}"
                ) from error


def _make_places(to: str) -> tuple[Staging, Leftovers]:
    """The target directory, rid of what killed restores left in it, and a staging directory of this restore's own."""
    try:
        os.makedirs(to, exist_ok=True)
        leftovers = remove_leftovers(to)
        return Staging(to), leftovers
    except (FileExistsError, NotADirectoryError) as error:
        raise BackendError(f"{to} is no directory; name one to restore into") from error
    except OSError as error:
        raise BackendError(f"making {error.filename or to} failed: {error.strerror}") from error


def _target_options(
    path: bytes, request: RestoreRequest, staging: Staging, leftovers: Leftovers, own: OwnDirectories
) -> TargetOptions:
    """Options that follow from what the target is like before anything is restored. `own`: the store's backends."""
    folder, slash, _ = path.rpartition(b"/")
    reasons = {place: _IN_ITS_PLACE.format(log_text(os.fsencode(place))) for place in set(own.values())}
    known = {staging.name, *leftovers.at_work}
    try:
        with os.scandir(request.to) as entries:
            fresh = all(entry.name in known for entry in entries)
        fd = os.open(request.to, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            inherited = not fresh or passes_on(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise BackendError(f"looking at {request.to}: {error.strerror}") from error
    return TargetOptions(
        request.to,
        staging.objects,
        staging.identity,
        len(folder + slash),
        request.overwrite,
        owner=os.geteuid() == 0,
        fresh=fresh,
        passes_on=inherited,
        durable=request.fsync is not False,
        # Only what may replace something makes the restore wait for the disk, unless it was told to.
        all_durable=(not fresh and request.overwrite != "never") if request.fsync is None else request.fsync,
        forbidden={identity: reasons[place] for identity, place in own.items()},
    )


def _sync(to: str) -> None:
    """Have all that was restored on disk."""
    try:
        fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_file_system(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise BackendError(
            f"bringing what was restored in {to} to disk failed: {error.strerror}; look after that file system, and "
            "restore again"
        ) from error


def _each_folder(plan: RestorePlan, backwards: bool) -> Any:
    for batch in plan.items(("directory",), backwards=backwards):
        yield from _rows(batch, plan.long_fields)


def _rows(batch: Batch, long_fields: LongFields) -> Any:
    columns = [batch.rows[name].tolist() for name in ("row", "mode", "uid", "gid", "mtime_ns", "size", "long")]
    for (row, mode, uid, gid, mtime, size, long), path, xattrs in zip(
        zip(*columns, strict=True), batch.all_bytes("path"), batch.all_bytes("xattrs"), strict=True
    ):
        if long:
            path, _, xattrs, _ = long_fields.read(long)
        yield row, path, Attributes(mode, uid, gid, mtime, size, xattrs)


def _make_folders(
    plan: RestorePlan, target: Target, replace: bool
) -> tuple[list[tuple[int, str]], list[tuple[bytes, str]]]:
    """Make the plan's directories. Returns (row, reason) of those that could not be made, and (path, reason) of those
    whose names are taken: what lies below them must not go into what has their names."""
    problems, taken = [], list[tuple[bytes, str]]()
    target.folders.note_standing()
    closed = set[bytes]()
    for row, path, _ in _each_folder(plan, backwards=False):
        if closed and path.rpartition(b"/")[0] in closed:
            closed.add(path)
            continue
        try:
            target.folders.make(path, replace=replace)
        except Taken as error:
            closed.add(path)
            taken.append((path, str(error)))
        except OSError as error:
            problems.append((row, f"making it failed: {error.strerror}"))
        except StageError as error:
            problems.append((row, str(error)))
    return problems, taken


def _finish_folders(plan: RestorePlan, target: Target) -> list[tuple[int, str]]:
    """Attributes of directories, the inner ones first: writing into a directory changes its time."""
    problems = []
    for row, path, attributes in _each_folder(plan, backwards=True):
        try:
            trouble = target.folders.finish(path, attributes, os.geteuid() == 0)
        except OSError as error:
            trouble = f"setting its attributes failed: {error.strerror}"
        except DrystoneError as error:
            trouble = str(error)
        if trouble:
            problems.append((row, trouble))
    return problems
