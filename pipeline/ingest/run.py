"""One ingest from beginning to end: marker, workers, manifests, log record."""

from __future__ import annotations

import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import IO, TYPE_CHECKING, Any

from manifests.config import CodecSpec, shards_per_backend
from manifests.errors import Unsettled
from manifests.finding import why_absent
from manifests.ids import new_id, short_id
from manifests.inflight import Inflight
from manifests.joined import give_to_joined
from manifests.log import State, make_record, utc_now, write_record
from manifests.membership import drop_removed
from manifests.parent import ParentFiles
from manifests.recorded import log_text
from manifests.replicas import Replicas
from manifests.store import Members
from manifests.tombstones import require_no_new_deletions
from pipeline.budget import DEFAULT_MEMORY, DUCKDB_MEMORY, available_cores
from pipeline.handles import FdHandle
from pipeline.ingest.adopt import Adoption
from pipeline.ingest.carry import CarryOptions
from pipeline.ingest.checksums import ChecksumFile, ChecksumResult, Checksums
from pipeline.ingest.collect import Collector, Tally
from pipeline.ingest.command import FeedingCommand
from pipeline.ingest.compress import CompressOptions, compress_station
from pipeline.ingest.dedupe import DedupeOptions, dedupe_station
from pipeline.ingest.indexes import RunIndexes
from pipeline.ingest.mix import observed_mix
from pipeline.ingest.parent import ParentBuilder, ParentOptions, choose_parent
from pipeline.ingest.read import ReadOptions, read_station
from pipeline.ingest.scan import ScanOptions, scan_station
from pipeline.ingest.write import WriteOptions, write_station
from pipeline.outcome import Counters, StageFigures, stage_figures
from pipeline.owndirectories import backend_directories, require_sources_outside
from pipeline.packwriter import pack_options, require_still_safe, shards_left
from pipeline.runner import run_stations
from pipeline.signalwatch import SignalWatch
from pipeline.standing import standing
from pipeline.station import Context, Station
from pipeline.supervisor import WorkerSpec
from pipeline.topology import ENCODE, HOME_MEMORY, INGEST_STAGES, LEFT_OUT, UNCHANGED, IngestShape, ingest_shape
from stages.scan import Source
from stages.select import EVERYTHING, REASONS, Identity, Selection, SelectOptions

if TYPE_CHECKING:
    from manifests.runrows import RunRows


@dataclass(frozen=True)
class IngestOptions:
    """How to ingest. `workers`: compressors, None for one a core; `memory`: bytes of all processes together; `stream`:
    descriptor that sources with `stream` are read from; `inline`: all stages in this process; `select`: what to leave
    out; `files_from`: a file that lists what to archive, `-` for standard input, its entries ended by NUL where `nul`;
    `command`: program and arguments whose output is the one source; `digests`: whole-content digests besides BLAKE3,
    names of fmt.DIGESTS; `checksums`: lists that the run is compared with; `parent`: what need not be read again."""

    codec: CodecSpec | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    workers: int | None = None
    memory: int = DEFAULT_MEMORY
    stream: int = 0
    inline: bool = False
    select: SelectOptions = EVERYTHING
    files_from: str = ""
    nul: bool = False
    command: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    checksums: tuple[ChecksumFile, ...] = ()
    parent: ParentOptions = field(default_factory=ParentOptions)


@dataclass(frozen=True)
class IngestResult:
    """A committed run. `tally` in bytes and objects, `began` in RFC 3339, `seconds` from then to commit; `left_out`:
    reason → objects and bytes that were not wanted; `may_lose`: backends of `backends` that may be lost, or may rot,
    from now on, with nothing lost, −1 where something is lost already, or can't be told; `short`: packs, of this run or
    of earlier ones, are known to lack shards; `unseen`: there are earlier ones, taken to be as they are recorded;
    `behind`: which backends lack records of earlier runs; `lost_backends`: what each backend lacks of this run, and
    why; `parent`: the run from which unchanged files took their contents, `ignored`: what of their stat was not
    compared; `lost_manifests`: why manifest files could not be read, so that what they alone told was stored again;
    `index_trouble`: why the index on disk could not be used, or empty; `memory_wanted`: bytes for one compressor a
    core, where the memory was room for `compressors` only, else 0."""

    run_id: uuid.UUID
    sources: list[str]
    host: str
    began: str
    tally: Tally
    seconds: float
    stages: list[StageFigures]
    lost_backends: list[str]
    left_out: dict[str, tuple[int, int]]
    may_lose: int
    backends: int
    checksums: ChecksumResult | None = None
    parent: uuid.UUID | None = None
    ignored: tuple[str, ...] = ()
    lost_manifests: tuple[str, ...] = ()
    index_trouble: str = ""
    compressors: int = 0
    memory_wanted: int = 0
    short: bool = False
    unseen: bool = False
    behind: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 3 when items were skipped, differ from a list, are missing, or redundancy is short."""
        missing = self.checksums is not None and self.checksums.missing
        return 3 if self.tally.errors or self.tally.missing_shards or self.lost_backends or missing else 0


def _specs(
    shape: IngestShape,
    members: Members,
    state: State,
    indexes: RunIndexes,
    sources: tuple[Source, ...],
    options: IngestOptions,
    stream: FdHandle | None,
    listed: FdHandle | None,
    carry: CarryOptions | None,
    own: tuple[Identity, ...],
) -> list[WorkerSpec]:
    config = members.config.with_codec(options.codec)
    readers, compressors, writers = range(shape.readers), range(shape.compressors), range(shape.writers)
    data = tuple(f"data/{i}" for i in readers)
    specs = [
        WorkerSpec(
            name="scan",
            station=scan_station,
            options=ScanOptions(sources, shape.readers, options.select, listed, own),
            rings=tuple(f"entries/{i}" for i in readers),
            pools=tuple(f"entries/{i}" for i in readers),
        )
    ]
    specs += [
        WorkerSpec(
            name=f"read-{i}",
            station=read_station,
            options=ReadOptions(i, sources, config.chunker, config.seed, shape.payload, stream, options.digests, carry),
            rings=(f"entries/{i}", f"data/{i}", f"parent/{i}"),
            pools=(f"entries/{i}", f"data/{i}", f"rows/{i}"),
        )
        for i in readers
    ]
    specs.append(
        WorkerSpec(
            name="dedupe",
            station=dedupe_station,
            options=DedupeOptions(
                shape.readers,
                shape.compressors,
                shape.payload,
                indexes.chunks,
                indexes.contents,
            ),
            rings=("known", "rows", *data, *(f"fresh/{i}" for i in compressors)),
            pools=("known", "verdict", *data),
        )
    )
    specs += [
        WorkerSpec(
            name=f"compress-{i}",
            station=compress_station,
            options=CompressOptions(i, shape.writers, shape.payload, shape.max_blocks, config.codec),
            rings=(f"fresh/{i}", *(f"blocks/{i}/{w}" for w in writers)),
            pools=("verdict", f"blocks/{i}", *data),
        )
        for i in compressors
    ]
    specs += [
        WorkerSpec(
            name=f"write-{i}",
            station=write_station,
            options=WriteOptions(i, shape.compressors, shape.payload, pack_options(members, state, shape, config)),
            rings=(f"packs/{i}", *(f"blocks/{c}/{i}" for c in compressors)),
            pools=(f"packs/{i}", *(f"blocks/{c}" for c in compressors)),
        )
        for i in writers
    ]
    return specs


def ingest(
    members: Members,
    state: State,
    replicas: Replicas,
    sources: tuple[Source, ...],
    options: IngestOptions,
    on_tick: Callable[[Counters], None] | None = None,
    listed: IO[bytes] | None = None,
) -> IngestResult:
    """Archive `sources`, or only what is `listed` below them (filelist.py), as one run: committed whole, or not at all.
    Raises what the workers raise, CommandFailed, Interrupted, and UsageError before anything was written, also for a
    list of digests that makes no sense."""
    with Checksums.opened(options.checksums, sources, options.digests) as checksums:
        if checksums is not None:
            options = replace(options, digests=checksums.digests)
        return _ingest(members, state, replicas, sources, options, checksums, on_tick, listed)


def _ingest(
    members: Members,
    state: State,
    replicas: Replicas,
    sources: tuple[Source, ...],
    options: IngestOptions,
    checksums: Checksums | None,
    on_tick: Callable[[Counters], None] | None,
    listed: IO[bytes] | None,
) -> IngestResult:
    started, began = time.monotonic(), utc_now()
    members.require_writable()
    Selection(options.select)  # what makes no sense is refused here, not in a worker
    own = backend_directories(members)
    require_sources_outside(sources, own)
    codec = options.codec or members.config.codec
    host = options.host or socket.gethostname()
    mix = observed_mix(state.runs, host, str(codec))
    # Lists of checksums are DuckDB's to look up.
    supervisor = HOME_MEMORY + (0 if checksums is None else DUCKDB_MEMORY)
    wanted = partial(ingest_shape, members.config, available_cores(), mix=mix, home=supervisor)
    shape = wanted(options.memory, options.workers)
    whole = shape if options.workers else wanted(sys.maxsize, None)
    run_id = new_id(state.newest)
    inflight = Inflight(members, run_id)
    parent, lost = choose_parent(state, options.parent, host, sources, listed is not None), list[str]()
    progress = _Progress(on_tick)
    adoption = Adoption(members, state, replicas, lost)
    collector = Collector(
        lambda: _new_rows(run_id, members, options),
        inflight,
        members.config.scheme,
        shape.readers,
        shape.writers,
        checksums,
    )
    with standing("nothing was committed") as done, SignalWatch() as signals, ExitStack() as stack:
        command = stack.enter_context(FeedingCommand(options.command)) if options.command else None
        if parent is not None:
            known_files = ParentFiles(state, replicas, parent, options.digests, lost)
            collector.parent = stack.enter_context(ParentBuilder.opened(known_files, shape.readers))
        stream = command.fd if command is not None else options.stream
        try:
            inflight.begin()
            indexes = stack.enter_context(RunIndexes.opened(state, replicas, signals.check, lost))
            home: dict[str, Callable[[Context], Station]] = {
                "known": lambda context: collector.known_station(
                    context,
                    chain(indexes.known_chunks(), collector.adopt(adoption.packs())),
                    indexes.known_contents(),
                ),
                "rows": collector.rows_station,
                "packs": collector.packs_station,
            }
            specs = _specs(
                shape, members, state, indexes, sources, options,
                FdHandle(stream) if any(source.stream for source in sources) else None,
                None if listed is None else FdHandle(listed.fileno()),
                None if collector.parent is None
                else CarryOptions(FdHandle(collector.parent.file.fileno()), options.parent.comparison),
                tuple(own),
            )  # fmt: skip
            counters = run_stations(
                shape.layout().with_meters(members.numbers),
                specs,
                home,
                inline=options.inline,
                signals=signals,
                cleanup=(partial(shutil.rmtree, checksums.temp_directory, True),) if checksums is not None else (),
                on_tick=progress,
            )
            signals.check()
            if command is not None:
                # The end of its output says nothing: only its exit code tells whether that was all.
                command.require_success(signals)
            inflight.flush()
            files = collector.rows.finish()
            seconds = time.monotonic() - started
            result = IngestResult(
                run_id=run_id,
                sources=[log_text(source.path) for source in sources],
                host=host,
                began=began,
                tally=collector.tally,
                seconds=seconds,
                stages=stage_figures(counters, INGEST_STAGES, seconds),
                lost_backends=_lost(members, collector),
                left_out=_left_out(counters),
                may_lose=_may_lose(members, collector),
                backends=members.count,
                checksums=None if checksums is None else checksums.result(),
                parent=None if parent is None else parent.run_id,
                ignored=() if parent is None else options.parent.comparison.ignored,
                lost_manifests=tuple(lost),
                index_trouble=indexes.trouble,
                compressors=shape.compressors,
                memory_wanted=whole.memory if shape.compressors < whole.compressors else 0,
            )
            signals.check()
            summary = _summary(result, sources, options, str(codec), listed is not None)
            require_no_new_deletions(members, state)
            require_still_safe(members, collector.lacking, collector.tally.most_missing)
            record = make_record(run_id, "ingest", {"run": summary}, files)
            write_record(members, record)
        except BaseException as error:
            if isinstance(error, Unsettled):
                done.append(f"run {short_id(run_id)} is not acknowledged, and is committed then")
            collector.close()
            # What was stored stays for the next ingest; a run that stored nothing leaves no trace.
            if progress.packs or collector.tally.packs or collector.tally.adopted_packs:
                inflight.give_up()
            else:
                inflight.end()
            raise
        done.append(committed(run_id))
        # As long as the marker is there, so that whoever removes a backend sees the run or its record.
        drop_removed(members)
        missed = give_to_joined(members, record)
        inflight.end()
        adoption.clear()
        # A backend may have failed at the record itself, or have been removed.
        return replace(
            result,
            lost_backends=[*_lost(members, collector), *missed],
            may_lose=_may_lose(members, collector),
            backends=members.count - len(members.removed),
        )


def committed(run_id: uuid.UUID) -> str:
    """What errors say that come after the commit."""
    return f"run {short_id(run_id)} is committed"


@dataclass
class _Progress:
    """Passes the counters on, and notes how many packs the writers have begun: on its way home a pack may be lost."""

    on_tick: Callable[[Counters], None] | None
    packs: int = 0

    def __call__(self, counters: Counters) -> None:
        self.packs = int(counters[:, ENCODE, 0].sum())
        if self.on_tick is not None:
            self.on_tick(counters)


def _new_rows(run_id: uuid.UUID, members: Members, options: IngestOptions) -> RunRows:
    from manifests.runrows import RunRows  # brings pyarrow along

    return RunRows(run_id, members, options.digests)


def _left_out(counters: Counters) -> dict[str, tuple[int, int]]:
    sums = counters[:, LEFT_OUT:UNCHANGED, :2].sum(axis=0)
    return {reason: (int(objects), int(size)) for reason, (objects, size) in zip(REASONS, sums, strict=True) if objects}


def _may_lose(members: Members, collector: Collector) -> int:
    """Backends that may still be lost, as far as this run knows: each that does not answer counts as one, and so do
    those whose shards a pack of this run lacks. −1 where backends vanished that a pack may not do without."""
    tally, scheme = collector.tally, members.config.scheme
    if members.vanished and sum(shards_left(members, collector.lacking, tally.most_missing)) < scheme.k:
        return -1
    lacking = -(-tally.most_missing // shards_per_backend(scheme, len(members.seats)))
    return max(0, members.tolerance - max(lacking, len(members.absent())))


def _lost(members: Members, collector: Collector) -> list[str]:
    """What each backend that failed or does not answer lacks of the run, and why."""
    found = []
    for info in members.all:
        lacking, number = collector.lacking[info.number], info.number
        reason = members.failed.get(number) or collector.troubles.get(number)
        if reason is None and number in members.present and not lacking:
            continue
        reason = reason or why_absent(info)
        member = members.present.get(number) or members.dropped.get(number)
        location = info.location if member is None else member.storage.location
        where = "" if location in reason else f"{location}: "
        shards = f"; it lacks {lacking:,} shard{'s' * (lacking != 1)} of this run" if lacking else ""
        found.append(f"{where}{reason}{shards}")
    if missing := collector.tally.adopted_missing:
        found.append(f"packs that an unfinished run left behind lack {missing:,} shard{'s' * (missing != 1)}")
    return found


def _summary(
    result: IngestResult, sources: tuple[Source, ...], options: IngestOptions, codec: str, listed: bool
) -> dict[str, Any]:
    tally = result.tally
    return {
        "host": result.host,
        "tags": dict(options.tags),
        "parent": None if result.parent is None else str(result.parent),
        "ignored": list(result.ignored),
        "listed": listed,
        "sources": result.sources,
        "names": [log_text(source.name) for source in sources],
        "files": tally.files,
        "directories": tally.directories,
        "others": tally.others,
        "bytes": tally.bytes,
        "unchanged": tally.unchanged,
        "unchanged_bytes": tally.unchanged_bytes,
        "new_chunks": tally.new_chunks,
        "new_bytes": tally.new_bytes,
        "stored": tally.stored,
        "parity": tally.parity,
        "packs": tally.packs,
        "adopted_packs": tally.adopted_packs,
        "adopted_bytes": tally.adopted_bytes,
        "errors": tally.errors,
        "left_out": {reason: objects for reason, (objects, _) in result.left_out.items()},
        "missing_shards": tally.missing_shards,
        "began": result.began,
        "digests": ["blake3", *options.digests],
        "checksums": None if result.checksums is None else result.checksums.counts,
        "seconds": round(result.seconds, 3),
        "compression": codec,
        "busy": {each.stage: round(each.busy, 3) for each in result.stages},
    }


__all__ = ["IngestOptions", "IngestResult", "ingest"]
