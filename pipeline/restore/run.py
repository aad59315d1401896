"""One restore from beginning to end: plan, directories, workers, attributes of directories."""

from __future__ import annotations

import os
import secrets
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.catalog import Catalog
from manifests.columns import Batch
from manifests.errors import BackendError, DrystoneError, NotFound, Unreadable, UsageError
from manifests.owners import renumbered
from manifests.plan import PlanTotals, RestorePlan
from manifests.store import Members
from pipeline.budget import DEFAULT_MEMORY, DUCKDB_MEMORY, available_cores
from pipeline.fan import fan_workers
from pipeline.outcome import NamedError, StageFigures, stage_figures
from pipeline.restore.plan import RestoreHome
from pipeline.restore.work import BackendPlaces, RestoreOptions, restore_station
from pipeline.runner import run_stations
from pipeline.supervisor import SignalWatch
from pipeline.topology import RESTORE_STAGES, FanShape, fan_shape
from stages.errors import StageError
from stages.target import STAGING_MARK, Attributes, Target, TargetOptions

#: Fetched blocks, a decoder's buffer and pieces of rows under decoding.
RESTORE_WORKER_MEMORY = 40 << 20
OVERWRITE = ("never", "if-changed", "always")


@dataclass(frozen=True)
class RestoreRequest:
    """What to restore and how. `workers`: None for one a core; `memory`: bytes of all processes together;
    `numeric_ids`: owners by number, where the names of owners would have other numbers on this machine."""

    to: str
    overwrite: str = "never"
    workers: int | None = None
    memory: int = DEFAULT_MEMORY
    inline: bool = False
    numeric_ids: bool = False


@dataclass(frozen=True)
class RestoreResult:
    """What a restore did. `failures`: (path, reason) of objects that are not restored whole, the first of them;
    `healed_records`: records, tables of checksums and manifests that armour or another copy gave back;
    `lost_manifests`: manifest files of which no copy nor mixture of copies is whole;
    `left_to_root`: objects whose owner, or attributes that only root may set, were passed over."""

    files: int
    bytes: int
    failed: int
    failures: list[NamedError]
    healed_cells: int
    healed_records: int
    lost_manifests: list[str]
    left_to_root: int
    seconds: float
    stages: list[StageFigures]

    @property
    def exit_code(self) -> int:
        return 3 if self.failed or self.lost_manifests else 0


def backend_places(members: Members) -> BackendPlaces:
    """The backends of an open store, for workers."""
    return BackendPlaces(
        members.config.store_id,
        tuple((m.number, m.info.type, m.storage.location) for m in members.readable),
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
    with SignalWatch() as signals:
        staging, fresh = _make_places(request.to)
        try:
            folder, slash, _ = path.rpartition(b"/")
            options = TargetOptions(
                request.to, str(staging), len(folder + slash), request.overwrite, os.geteuid() == 0, fresh
            )
            target = Target(options, "home")
            try:
                # DuckDB plans in a thread while the fork server starts the workers, which is waiting for the most part.
                with ThreadPoolExecutor(1, "plan") as planner:
                    planned = planner.submit(_planned, catalog, run, path, target, request, on_plan)
                    home = RestoreHome(shape.count, planned.result)
                    places = backend_places(members)
                    counters = run_stations(
                        shape.layout().with_meters(members.numbers),
                        fan_workers(shape, restore_station, lambda index: RestoreOptions(index, places, options)),
                        {"plan": home.plan_station, "reports": home.reports_station},
                        inline=request.inline,
                        signals=signals,
                        cleanup=(str(staging), str(catalog.temp_directory)),
                        on_tick=on_tick,
                    )
                plan = home.plan
                for missing in plan.missing():
                    home.tally.fail(missing["row"], missing["reason"])
                for row, reason in _finish_folders(plan, target):
                    home.tally.fail(row, reason)
                left_to_root = 0 if options.owner else plan.needs_root(os.geteuid(), os.getegid())
            finally:
                target.close()
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    names = plan.paths(list(home.tally.failures))
    failures = [(names.get(row, b"?"), reason) for row, reason in sorted(home.tally.failures.items())]
    seconds = time.monotonic() - started
    return RestoreResult(
        home.tally.files,
        home.tally.bytes,
        home.tally.failed,
        failures,
        sum(home.tally.healed_cells.values()),
        sum(home.tally.healed_records.values()) + members.healed + catalog.replicas.healed,
        list(catalog.lost),
        left_to_root,
        seconds,
        stage_figures(counters, RESTORE_STAGES, seconds),
    )


def _planned(
    catalog: Catalog,
    run: uuid.UUID,
    path: bytes,
    target: Target,
    request: RestoreRequest,
    on_plan: Callable[[PlanTotals], None] | None,
) -> tuple[RestorePlan, list[tuple[int, str]]]:
    """The plan, with its directories made, and those that could not be made. Raises NotFound."""
    plan = RestorePlan(catalog, run, path)
    if not plan.count and catalog.lost:
        raise Unreadable("; ".join(catalog.lost))
    if not plan.count:
        raise NotFound(f"the run holds no object {os.fsdecode(path)!r}; see: drystone ls")
    if os.geteuid() == 0 and not request.numeric_ids and (elsewhere := renumbered(plan.owners())):
        plan.renumber(elsewhere)
    with ThreadPoolExecutor(1, "locate") as beside:
        located = beside.submit(plan.locate)
        problems = _make_folders(plan, target)
        located.result()
    if on_plan is not None:
        on_plan(plan.totals())
    return plan, problems


def _make_places(to: str) -> tuple[Path, bool]:
    """The target directory, and in it a staging directory of this restore's own; whether the target was empty."""
    staging = Path(to) / f"{STAGING_MARK}{secrets.token_hex(6)}"
    try:
        Path(to).mkdir(parents=True, exist_ok=True)
        fresh = not os.listdir(to)
        staging.mkdir(mode=0o700)
    except OSError as error:
        raise BackendError(f"making {error.filename}: {error.strerror}") from error
    return staging, fresh


def leftovers(to: str | Path) -> list[str]:
    """Staging directories in `to` of restores that were killed, or still run."""
    return sorted(name for name in os.listdir(to) if name.startswith(STAGING_MARK))


def _each_folder(plan: RestorePlan, backwards: bool) -> Any:
    for batch in plan.items(("directory",), backwards=backwards):
        yield from _rows(batch)


def _rows(batch: Batch) -> Any:
    columns = [batch.rows[name].tolist() for name in ("row", "mode", "uid", "gid", "mtime_ns", "size")]
    for (row, mode, uid, gid, mtime, size), path, xattrs in zip(
        zip(*columns, strict=True), batch.all_bytes("path"), batch.all_bytes("xattrs"), strict=True
    ):
        yield row, path, Attributes(mode, uid, gid, mtime, size, xattrs)


def _make_folders(plan: RestorePlan, target: Target) -> list[tuple[int, str]]:
    problems = []
    for row, path, _ in _each_folder(plan, backwards=False):
        try:
            target.make_folder(path)
        except OSError as error:
            problems.append((row, f"making it failed: {error.strerror}"))
        except StageError as error:
            problems.append((row, str(error)))
    return problems


def _finish_folders(plan: RestorePlan, target: Target) -> list[tuple[int, str]]:
    """Attributes of directories, the inner ones first: writing into a directory changes its time."""
    problems = []
    for row, path, attributes in _each_folder(plan, backwards=True):
        try:
            trouble = target.finish_folder(path, attributes)
        except OSError as error:
            trouble = f"setting its attributes failed: {error.strerror}"
        except DrystoneError as error:
            trouble = str(error)
        if trouble:
            problems.append((row, trouble))
    return problems
