"""FileStore: every operation of a store, for programs, notebooks and the command line.

with FileStore.create(["archive"]) as store:
    run = store.ingest(["/usr/share/doc"])
    store.restore(f"{run.run_id}:doc/bash", "restored")

Each operation imports what it needs: `drystone runs` is over before DuckDB, pyarrow and NumPy would be loaded. It is
one long file because it is one face: thin methods, whose work is in the modules that they import.
"""

from __future__ import annotations

import os
import pwd
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from manifests import log as storelog
from manifests.access import PRIVATE, Access
from manifests.backends import BackendStorage, parse_place
from manifests.choice import RunFilter, find_run
from manifests.config import DEFAULT_INDEX, ChunkerSpec, CodecSpec, ECScheme, StoreConfig, require_index_kind
from manifests.creation import create
from manifests.errors import BackendError, DrystoneError, NotFound, Unreadable, UnsupportedFormat, UsageError
from manifests.ids import is_object_id
from manifests.limits import LimitReached
from manifests.log import Run, State
from manifests.membership import complete_onto, find_info, join, joining, lacking, leave, require_may_leave, without
from manifests.openfolders import OpenFolders
from manifests.opening import open_store, reopen_store
from manifests.oserrors import in_words
from manifests.paths import absolute_path
from manifests.recorded import path_in_run
from manifests.replicas import Replicas
from manifests.scratch import Scratch
from manifests.store import Members
from manifests.totals import chunk_totals
from pipeline.backend import Backend, describe
from pipeline.budget import DEFAULT_MEMORY, DUCKDB_MEMORY, available_cores
from pipeline.errors import PipelineError
from pipeline.metrics.figures import StoreFigures
from pipeline.objects.operations import ObjectOperations
from pipeline.standing import standing

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from manifests.catalog import Catalog
    from manifests.indexcache import IndexStatus
    from manifests.inspect import StoreStats
    from manifests.longfields import LongFields
    from manifests.objects import ObjectInfo
    from manifests.plan import PlanTotals
    from manifests.scrubs import ShardFinding
    from pipeline.compare import Comparison
    from pipeline.ecgroup import ECGroup
    from pipeline.ingest.run import IngestOptions, IngestResult
    from pipeline.ingest.survey import Survey
    from pipeline.metrics.healing import HealingCounter
    from pipeline.packreader import ReadFigures
    from pipeline.removal import Removal
    from pipeline.restore.run import RestoreRequest, RestoreResult
    from pipeline.status import StoreStatus
    from pipeline.verify.run import VerifyResult
    from stages.assemble import ByteRange

    Tick = Callable[[npt.NDArray[np.uint64]], None]


@dataclass(frozen=True)
class Selection:
    """What `RUN[:PATH]` names, as `str` writes it. `path` as it is written, empty for everything; `within` says what it
    is in a run."""

    run: str = "latest"
    path: bytes = b""

    @classmethod
    def parse(cls, text: str) -> Selection:
        """`RUN`, `RUN:PATH` or `:PATH`; RUN is what `FileStore.run` takes.

        >>> Selection.parse(":data/notes")
        Selection(run='latest', path=b'data/notes')
        """
        run, _, path = text.partition(":")
        return cls(run or "latest", os.fsencode(path))

    def __str__(self) -> str:
        return f"{self.run}:{os.fsdecode(self.path)}"

    def within(self, run: Run) -> bytes:
        """The path in the archive, empty for everything: an absolute one is what was archived from there."""
        return path_in_run(run, self.path)


def default_cache() -> Path | None:
    """Where disposable caches lie unless told: the user's cache directory. None where the user has no home, by HOME or
    the password database."""
    home = os.environ.get("HOME", "")
    if not os.path.isabs(home):
        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(home) / ".cache" / "drystone" if os.path.isabs(home) else None


class FileStore(ObjectOperations):
    """An open store. Operations on objects and chunks (pipeline/objects) may be called from any thread;
    others are for one thread, and writes wait for one another. `close` (or leaving the `with`) releases what it holds
    and may be called twice; then all but what is known already raises UsageError. Methods raise DrystoneError and its
    kinds."""

    def __init__(
        self,
        members: Members,
        log: storelog.Log,
        state: State,
        location: str,
        cache: Path | None,
        figures: StoreFigures | None = None,
    ) -> None:
        """Use `create` or `open` instead."""
        super().__init__()
        #: Where the user looked for the store, as `KIND:PLACE`: the current directory may change.
        self._location = location
        self.members = members
        self.log = log
        self.state = state
        self.figures = figures or StoreFigures()
        self._metered = figures is not None
        self._note_store()
        own = None if cache is None else cache / str(members.config.store_id)
        self._scratch = Scratch(own)
        self.replicas = Replicas(members, own, self._scratch)
        self._folders = OpenFolders()
        self._long_fields: LongFields | None = None
        self._catalog: Catalog | None = None

    # --- life --------------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        directories: Sequence[str | Path],
        *,
        scheme: ECScheme | None = None,
        chunker: ChunkerSpec | None = None,
        codec: CodecSpec | None = None,
        pack_size: int = 32 << 20,
        index: str = DEFAULT_INDEX,
        etags: bool = True,
        access: Access = PRIVATE,
        cache: Path | None = None,
    ) -> FileStore:
        """Make a new store: one directory gets k+m backends as subdirectories, several become the backends. `index`:
        kind of its dedupe index, memory or disk; `etags`: whether puts compute MD5 unless they are told; `access`: who
        may use it besides its owner (manifests/access.py). Where anything fails, nothing is left of it.

        >>> with FileStore.create(["a", "b", "c"], scheme=ECScheme(2, 1)) as store:
        ...     [backend.present for backend in store.list_backends()]
        [True, True, True]
        """
        require_index_kind(index)
        config = StoreConfig(
            uuid.uuid4(),
            int.from_bytes(os.urandom(8), "little") >> 1,
            scheme or ECScheme(),
            chunker or ChunkerSpec(),
            codec or CodecSpec(),
            pack_size,
            etags=etags,
        )
        cache = cache or default_cache()
        members = create(config, directories, index, access)
        first = next(iter(members.present.values())).storage
        where = f"{first.type}:{first.location}"
        return cls(*reopen_store(where, members), where, cache or default_cache())

    @classmethod
    def open(
        cls,
        location: str | Path,
        *,
        cache: Path | None = None,
        figures: StoreFigures | None = None,
        adopt_copy: bool = False,
    ) -> FileStore:
        """Open a store from its directory or any one backend. `cache`: directory for disposable caches; `figures`, when
        given, count all that the store does, also what this process asks of backends (pipeline/metrics). A copy of a
        store that answers elsewhere is read alone, and not written to; with `adopt_copy` it gets ids of its own first,
        and is a store like any other from then on. Raises NotFound, UsageError, UnsupportedFormat, CorruptRecord.

        >>> with FileStore.open("archive/backend-0") as store:
        ...     store.get_object("photos/cat").size
        4
        """
        if adopt_copy:
            from manifests.adoption import adopt_copy as adopt

            adopt(location)
        where = ":".join(parse_place(location))
        members, log, state = open_store(where)
        return cls(members, log, state, where, cache or default_cache(), figures)

    def __enter__(self) -> FileStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release DuckDB, indexes, temporary files and the backends, whose disks may be unmounted then. Waits for a
        write of another thread; an open batch is given up.

        >>> store = FileStore.create(["memory:/closed"])
        >>> store.close(); store.close()
        """
        with self._turn:
            if self._batch is not None:
                self._give_up(self._batch, UsageError("the store is closed"))
            with self._lock:
                self._closed = True
                self._forget()
                if self._catalog is not None:
                    self._catalog.close()
                    self._catalog = None
        if self._long_fields is not None:
            self._long_fields.close()
        self._folders.close()
        self._scratch.close()
        self.members.close()

    def _reopen(self) -> None:
        """Find the members anew: they are others now."""
        found = reopen_store(self._location, self.members)
        with self._lock:
            self.members, self.log, self.state = found
            self._note_store()
            self.replicas = self.replicas.over(self.members)
            self._drop_catalog()
            self._forget()

    def _drop_catalog(self) -> None:
        """Use another catalog from now on. Threads that still read from this one keep it alive, so it is not closed."""
        with self._lock:
            self._catalog = None

    def _note_store(self) -> None:
        """Tell the figures what the store holds, and let them count what is asked of its members."""
        self.figures.held = chunk_totals(self.state)
        if self._metered:
            self.figures.meter(self.members)

    @property
    def config(self) -> StoreConfig:
        """What the store was made with.

        >>> store.config.etags
        True
        """
        return self.members.config

    @property
    def catalog(self) -> Catalog:
        """DuckDB over the manifests; `catalog.use_all()` makes a view of each table. It stays the store's, and shows
        what was committed before it was asked for.

        >>> store.catalog.use_all()
        >>> store.catalog.connection.sql("SELECT count(*) FROM objects WHERE kind = 'file'").fetchall()
        [(2,)]
        """
        with self._lock:
            self._require_open()
            if self._catalog is None:
                from manifests.catalog import Catalog

                self._catalog = Catalog(
                    self.state,
                    self.replicas,
                    self._folders,
                    memory_limit=DUCKDB_MEMORY,
                    threads=min(4, available_cores()),
                    temp_directory=self._scratch.folder(),
                )
            return self._catalog

    def stop_queries(self) -> None:
        """End the queries of all threads, which raise DrystoneError, until `resume_queries`; from any thread.

        >>> store.stop_queries(); store.resume_queries()
        """
        catalog = self._catalog
        if catalog is not None:
            catalog.stop()

    def resume_queries(self) -> None:
        """Let queries run again.

        >>> store.resume_queries()
        """
        catalog = self._catalog
        if catalog is not None:
            catalog.go_on()

    def _reload(self) -> None:
        self._look_again()
        with self._lock:
            records = storelog.Log.read((number, member.storage) for number, member in self.members.present.items())
            self.log, self.state = records, storelog.fold(records.records.values())
            if {info.backend_id for info in self.state.backends} != {info.backend_id for info in self.members.all}:
                self._reopen()
            self.figures.held = chunk_totals(self.state)
            self._drop_catalog()
            self._forget()

    # --- backends ----------------------------------------------------------------------------------------------------

    def list_backends(self) -> list[Backend]:
        """All backends, also those that do not answer, in their order of joining.

        >>> [backend.number for backend in store.list_backends() if backend.present]
        [0, 1, 2, 3, 4, 5]
        """
        return [describe(self.members, info) for info in self.members.all]

    def get_backend(self, name: str | uuid.UUID) -> Backend:
        """The backend of an id, a unique prefix of one, or a directory. Raises NotFound.

        >>> 0 < store.get_backend("archive/backend-1").usage_percent <= 100
        True
        """
        return describe(self.members, find_info(self.members, str(name)))

    def get_default_backend(self) -> Backend:
        """The first in the order of joining that answers and may be written to. Raises NotFound.

        >>> store.get_default_backend().number
        0
        """
        for member in self.members.writable:
            if member.number not in self.members.unsure:
                return describe(self.members, member.info)
        raise NotFound("no backend that answers may be written to; see: drystone backend list")

    def get_backend_storage(self, name: str | uuid.UUID) -> BackendStorage:
        """The files of a backend; the storage stays the store's. Raises NotFound, BackendError where it does not
        answer.

        >>> store.get_backend_storage("archive/backend-1").exists("store.json")
        True
        """
        info = find_info(self.members, str(name))
        member = self.members.present.get(info.number)
        if member is None:
            raise BackendError(f"backend {info.backend_id} at {info.location} does not answer; is it mounted?")
        return member.storage

    def add_backend(
        self,
        place: str | Path,
        *,
        backend_id: uuid.UUID | None = None,
        domain: str = "",
        read_only: bool = False,
        dry_run: bool = False,
        on_lacking: Callable[[int], None] | None = None,
    ) -> Backend:
        """Make an empty or new directory (or `KIND:PLACE`) a backend; on one that is a backend already, change its
        `domain` and whether it is `read_only`, and give it the records and manifest files that it lacks: `on_lacking`
        hears how many. `domain`: what fails together with it, its device unless told. Raises StoreExists, UsageError,
        TooFewBackends.

        >>> store.add_backend("shelf/g", domain="shelf 2").failure_domain
        'shelf 2'
        """
        self._require_writable_format()
        with self._alone():
            self._reload()
            with self._changing("backend add", dry_run):
                self._reopen()
                if not dry_run:
                    self._complete()
                new = joining(
                    self.members, self.state, place,
                    backend_id=backend_id, domain=domain, read_only=read_only, dry_run=dry_run,
                )  # fmt: skip
                if on_lacking is not None and new.known and not new.info.read_only:
                    files, records = lacking(new.storage, self.log, self.state)
                    on_lacking(len(files) + len(records))
                if not dry_run:
                    join(self.members, self.log, self.state, self.replicas, new)
                    self._reopen()
                    # What others wrote in the meantime counts on fewer backends, and the new one may lack it.
                    self.log.complete(self.members)
                    member = self.members.present.get(new.info.number)
                    if member is not None and not member.info.read_only:
                        complete_onto(member, self.log, self.state, self.replicas)
                    return self.get_backend(new.info.backend_id)
        return describe(Members(self.config, [new.info], {}), new.info)

    def remove_backend(
        self, name: str | uuid.UUID, *more: str | uuid.UUID, force: bool = False, dry_run: bool = False
    ) -> Removal:
        """Take one or more backends out of the store; their files stay where they are. Raises WouldLose where packs
        could not be recovered without them, StoreBusy where a run may be under way, and TooFewBackends where so few
        backends answer that nobody may write, unless `force`: that is the user's word that backends which do not answer
        never will, and what was recorded on them alone is lost. StoreBusy also where somebody else changes the
        backends; NotFound, UsageError.

        >>> store.remove_backend("archive/backend-1", dry_run=True).lost_packs
        0
        """
        from manifests.inflight import unfinished
        from pipeline.presence import look_around
        from pipeline.removal import Removal, noted_patterns, require_no_runs, require_safe, weigh

        self._require_writable_format()
        with self._alone():
            self._reload()
            with self._changing("backend remove", dry_run, forced=force):
                # A run that ends between the two looks is seen by its marker or by its record.
                traces, _ = unfinished(self.members)
                self._reopen()
                if not dry_run and (self.members.sees_all or not force):
                    self._complete()
                committed = {record.record_id for record in self.log.records.values()}
                runs = [run for run in traces if run.run_id not in committed]
                leaving = list(dict.fromkeys(find_info(self.members, str(each)) for each in (name, *more)))
                left = without(self.members, leaving)
                require_may_leave(self.members, leaving, forced=force)
                if not force:
                    require_no_runs(runs)
                try:
                    presence, _ = look_around(self.members, self.state, self.catalog)
                    removal = weigh(presence, leaving, noted_patterns(self.members, presence, runs))
                except Unreadable as error:
                    if not force:
                        raise
                    removal = Removal(tuple(leaving), 0, 0, -1, unknown=str(error))
                if not force:
                    require_safe(removal, self.members)
                removal = replace(removal, unseen=not self.members.sees_all)
                if not dry_run:
                    leave(self.members, self.log, self.state, self.replicas, leaving)
                    self.members = left
                    self._reopen()
            if (removal.lost_packs or removal.unknown) and not dry_run and self.members.sees_all:
                # What is lost is noted, so that the next ingest does not take it for known.
                removal = replace(removal, unnoted=self.verify(inline=True).unnoted)
            return removal

    def _changing(self, what: str, dry_run: bool, *, forced: bool = False) -> AbstractContextManager[None]:
        """Nobody else changes the backends meanwhile; a dry run only looks whether somebody does. A `forced` change
        marks what answers, however little that is."""
        from functools import partial

        from manifests.changing import changing, require_no_change

        if not dry_run and not forced:
            self.members.require_writable()
        places = [member.storage for member in self.members.present.values()]
        if dry_run:
            require_no_change(places)
            return nullcontext()
        write = self.members.put_everywhere
        return changing(what, places, partial(write, needed=1) if forced else write)

    def get_ec_group(self, pack_id: uuid.UUID) -> ECGroup:
        """A pack and its shards, each read and checked. Raises NotFound.

        >>> group = store.get_ec_group(store.get_chunk_info(chunk_id).pack_id)
        >>> str(group.scheme), len(group.available_shards), group.can_recover
        ('4+2', 6, True)
        """
        from pipeline.ecgroup import ec_group

        return ec_group(self.members, self.catalog, pack_id)

    def status(self) -> StoreStatus:
        """Is it safe, what is amiss, and what to do: by the manifests and one listing of each backend; no data is read.

        >>> store.status().bears_backends
        2
        """
        from pipeline.status import store_status

        self._look_again()
        return store_status(self.members, self.log, self.state, self.catalog)

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("the store is closed; open it again")

    def _require_writable_format(self) -> None:
        if self.config.read_only:
            raise UnsupportedFormat("a newer version made this store; this one may read it, but not write to it")

    # --- operations --------------------------------------------------------------------------------------------------

    def ingest(
        self,
        paths: Sequence[str],
        *,
        name: str = "",
        options: IngestOptions | None = None,
        on_tick: Tick | None = None,
    ) -> IngestResult:
        """Archive files, directories or standard input (`-`) as one run. Raises what kept it from being committed;
        skipped items are in the result.

        >>> store.ingest(["data"], options=IngestOptions(inline=True)).tally.files
        1
        """
        from pipeline.ingest.run import IngestOptions, committed, ingest
        from pipeline.ingest.sources import gather
        from pipeline.topology import INGEST_COUNTERS

        tick = self.figures.watch(INGEST_COUNTERS, on_tick)
        self._require_writable_format()
        options = options or IngestOptions()
        with standing() as done, self._alone():
            self._release_known()  # it opens the indexes itself
            with gather(
                paths, name, options.files_from, command=options.command, nul=options.nul, stream=options.stream
            ) as inputs:
                self._prepare_to_write()
                behind, earlier = self.log.behind(self.members), bool(self.state.files("packs"))
                result = ingest(self.members, self.state, self.replicas, inputs.sources, options, tick, inputs.listed)
                done.append(committed(result.run_id))
            removed = bool(self.members.removed)
            self._reload()
            short = bool(behind) or self.state.known_short()
            result = replace(result, behind=behind, unseen=earlier)
            if short or removed:
                result = replace(result, short=short, unseen=False, may_lose=min(result.may_lose, self._bears()))
        return result

    def _bears(self) -> int:
        """How many backends may be lost with nothing lost, by all that is known; −1 also where it can't be told."""
        try:
            return self.status().bears_backends
        except (DrystoneError, LimitReached):
            return -1

    def survey(
        self,
        paths: Sequence[str],
        *,
        name: str = "",
        options: IngestOptions | None = None,
        on_left_out: Callable[[bytes, str], None] | None = None,
    ) -> Survey:
        """What `ingest` with the same arguments would archive; neither reads files nor writes anything. `on_left_out`
        hears of each path that is left out, and why.

        >>> store.survey(["data"]).tally.bytes
        19
        """
        from pipeline.ingest.run import IngestOptions
        from pipeline.ingest.sources import gather
        from pipeline.ingest.survey import survey
        from pipeline.owndirectories import backend_directories, require_sources_outside

        options = options or IngestOptions()
        with gather(
            paths, name, options.files_from, command=options.command, nul=options.nul, stream=options.stream
        ) as inputs:
            self.members.require_writable()
            own = backend_directories(self.members)
            require_sources_outside(inputs.sources, own)
            return survey(inputs.sources, options.select, inputs.listed, on_left_out, own)

    def runs(self) -> list[Run]:
        """Committed runs, the oldest first.

        >>> [run.summary["files"] for run in store.runs()]
        [1]
        """
        return list(self.state.runs)

    def run(self, name: str = "latest", which: RunFilter | None = None, *, path: bytes = b"") -> Run:
        """The run of an id, a short id, a unique beginning or end of an id, or `latest`; among those that `which` fits.
        The latest of a `path` is the latest with a source that it lies in. Raises NotFound.

        >>> store.run("latest") == store.runs()[-1] == store.run(which=RunFilter(sources=("data",)))
        True
        """
        return find_run(self.state.runs, name, which, path, self.members.whereabouts())

    def run_of(self, directory: str | Path, which: RunFilter | None = None) -> Selection:
        """What `directory` is to be compared with, unless told: the latest run that holds it, and its path in that run.
        Where none does, as none holds what was restored, the latest run whose sources lie in the directory, or else the
        latest; and all of it. Runs of this host come first, and such as took whole sources. Raises NotFound.

        >>> store.ingest(["data"], options=IngestOptions(inline=True)).tally.files
        1
        >>> store.run_of("data").path
        b'data'
        """
        from pipeline.origin import run_of

        run, path = run_of(self.catalog, self.state.runs, os.fspath(directory), which)
        return Selection(str(run.run_id), path)

    def _meant_path(self, chosen: Selection, run: Run) -> bytes:
        """The path in a run that a selection means; also where it is written as it is printed."""
        path = chosen.within(run)
        if b"\\" not in path:
            return path
        from manifests.printednames import meant_path

        return meant_path(self.catalog, run.run_id, path)

    def list(self, selection: str = "", *, recursive: bool = False) -> Iterator[ObjectInfo]:
        """Objects at and below `RUN[:PATH]`, streamed, or that of an id. Raises NotFound when there is none.

        >>> [info.path for info in store.list("latest:data")]
        [b'data', b'data/todo.txt']
        """
        from manifests.objects import list_objects, no_such_object

        if is_object_id(selection):
            yield self._find(selection, "")[1]
            return
        chosen = Selection.parse(selection)
        run = self.run(chosen.run, path=chosen.path)
        path, found = self._meant_path(chosen, run), False
        for info in list_objects(self.catalog, run.run_id, path, recursive):
            found = True
            yield info
        if not found and path:
            raise no_such_object(self.catalog, run.run_id, path)

    def find(self, selection: str) -> ObjectInfo:
        """One object: `RUN:PATH`, or its id. Raises NotFound.

        >>> store.find("latest:data/todo.txt").kind
        'file'
        """
        from manifests.objects import find_object

        if is_object_id(selection):
            return self._find(selection, "")[1]
        chosen = Selection.parse(selection)
        run = self.run(chosen.run, path=chosen.path)
        return find_object(self.catalog, run.run_id, self._meant_path(chosen, run))

    def digests(self, selection: str = "", name: str = "blake3") -> Iterator[tuple[bytes, bytes | None]]:
        """(path, digest) of the files at and below `RUN[:PATH]`, streamed; `name` as in fmt.DIGESTS. None where the run
        did not record it; `senseless` tells of those that are left out. Raises NotFound when there is no such path.

        >>> [(path, digest.hex()[:8]) for path, digest in store.digests("latest:data")]
        [(b'data/todo.txt', 'c33aa120')]
        """
        from manifests.objects import find_object, object_digests

        chosen = Selection.parse(selection)
        run = self.run(chosen.run, path=chosen.path)
        path = self._meant_path(chosen, run)
        if path:
            find_object(self.catalog, run.run_id, path)
        return object_digests(self.catalog, run.run_id, path, name)

    def senseless(self, selection: str = "") -> Iterator[tuple[bytes, str]]:
        """(path, reason) of the objects at and below `RUN[:PATH]` of which the manifests make no sense, so that nothing
        is made of them, streamed.

        >>> list(store.senseless("latest:data"))
        []
        """
        from manifests.objects import senseless

        chosen = Selection.parse(selection)
        run = self.run(chosen.run, path=chosen.path)
        return senseless(self.catalog, run.run_id, chosen.within(run))

    def restore(
        self,
        selection: str,
        to: str | Path,
        *,
        request: RestoreRequest | None = None,
        on_plan: Callable[[PlanTotals], None] | None = None,
        on_tick: Tick | None = None,
    ) -> RestoreResult:
        """Restore `RUN[:PATH]` into the directory `to`: `RUN` makes `to/<base>`, `RUN:<base>/x` makes `to/x`. What
        could not be restored whole is in the result. Raises NotFound.

        >>> store.restore("latest:data", "back", request=RestoreRequest("", inline=True)).bytes
        19
        >>> Path("back/data/todo.txt").read_text().strip()
        'order more stones.'
        """
        from pipeline.restore.run import RestoreRequest, restore
        from pipeline.topology import RESTORE_COUNTERS

        chosen = Selection.parse(selection)
        request = replace(request or RestoreRequest(""), to=absolute_path(to))
        run = self.run(chosen.run, path=chosen.path)
        path = self._meant_path(chosen, run)
        tick = self.figures.watch(RESTORE_COUNTERS, on_tick)
        try:
            return restore(self.members, self.catalog, run.run_id, path, request, on_plan, tick)
        except PipelineError as error:
            error.add_note(f"what was restored stays in {request.to}: run it again for the rest")
            raise

    def open_range(
        self, selection: str | ObjectInfo, byte_range: ByteRange | None = None, figures: ReadFigures | None = None
    ) -> Iterator[bytes]:
        """The bytes of one object (as `find` takes or gives it), or of a range of it, piece by piece; only the blocks
        that hold them are read.
        `figures`, when given, counts the reads. Raises NotFound, UsageError, Unreadable.

        >>> b"".join(store.open_range("latest:data/todo.txt", ByteRange.parse("0-4")))
        b'order'
        """
        from functools import partial

        from manifests.copies import places_of_chunk
        from manifests.objects import places_of_range, require_content
        from pipeline.chunkreader import ChunkReader
        from pipeline.metrics.codec import MeteredDecoder
        from pipeline.metrics.healing import HealingCounter
        from pipeline.ranges import RangeReader
        from pipeline.shardfiles import ShardSource
        from stages.assemble import ByteRange

        info = self.find(selection) if isinstance(selection, str) else selection
        require_content(info)
        offset, length = (byte_range or ByteRange(0, None)).resolve(info.size)
        storages = {member.number: member.storage for member in self.members.readable}
        source = ShardSource(self.config.shard_stores, storages, tuple(info.seat for info in self.members.all))
        if figures is not None:
            source.figures = figures
        decoder = partial(MeteredDecoder, self.figures.meters)
        chunks = ChunkReader(source, partial(places_of_chunk, self.catalog), make_decoder=decoder)
        pieces = RangeReader(partial(places_of_range, self.catalog), chunks).read(info, offset, length)
        return _counting(pieces, partial(HealingCounter, self.figures.meters, source.figures))

    def compare(
        self, selection: str, directory: str | Path, *, data: bool = False, memory: int = DEFAULT_MEMORY
    ) -> Comparison:
        """Compare `RUN[:PATH]` with a directory; `data`: read the files, too; `memory`: bytes that it may take. Iterate
        over the answer, before the next comparison.

        >>> comparison = store.compare("latest:data", "data", data=True)
        >>> list(comparison), comparison.equal
        ([], True)
        """
        from manifests.longfields import LongFields
        from pipeline.compare import compare

        chosen = Selection.parse(selection)
        run = self.run(chosen.run, path=chosen.path)
        if self._long_fields is not None:
            self._long_fields.close()
        self._long_fields = fields = LongFields()
        path = self._meant_path(chosen, run)
        return compare(
            self.members, self.state, self.catalog, run, path, os.fspath(directory), fields, data=data, memory=memory
        )

    @property
    def notices(self) -> Sequence[str]:
        """What the user should know of where the backends were found: that the store is a copy, or that there are
        copies beside it.

        >>> store.notices
        []
        """
        return self.members.notices

    def absent_backends(self) -> Sequence[str]:
        """`PLACE: REASON` of each backend that does not answer.

        >>> store.absent_backends()
        []
        """
        from manifests.finding import why_absent_by_number

        return list(why_absent_by_number(self.members).values())

    @property
    def healed_records(self) -> int:
        """Records and manifests that were not whole, and that armour or another copy gave back, so far.

        >>> store.healed_records
        0
        """
        return self.members.healed + self.replicas.healed

    def stats(self) -> StoreStats:
        """Sums over the store.

        >>> store.stats().logical
        23
        """
        from manifests.inspect import store_stats

        return store_stats(self.catalog, self.state)

    def index_status(self) -> IndexStatus:
        """The dedupe index: its kind, and how it stands in this cache; changes nothing.

        >>> store.index_status().kind
        'memory'
        """
        from manifests.indexcache import index_status

        try:
            return index_status(self.state, self.replicas)
        except OSError as error:
            raise DrystoneError(f"looking at the dedupe index failed: {in_words(error)}") from error

    def rebuild_index(self, kind: str | None = None) -> IndexStatus:
        """Build the dedupe index of this cache anew, from the manifests. With `kind` other than the store's, that is
        recorded first, and all ingests use it from now on. Raises Unreadable where a manifest is lost, IndexBusy while
        somebody else changes the index.

        >>> store.rebuild_index("disk").kind
        'disk'
        """
        from manifests.indexcache import destroy_indexes, rebuild_indexes

        with self._alone(), standing() as done:
            self._release_known()
            if kind is not None and kind != self.state.index:
                self._choose_index(kind)
                done.append(f"all ingests use the kind {kind} from now on")
            try:
                if self.state.index == "disk":
                    rebuild_indexes(self.state, self.replicas)
                else:
                    destroy_indexes(self.replicas)
            except OSError as error:
                raise DrystoneError(f"building the dedupe index failed: {in_words(error)}") from error
            return self.index_status()

    def _choose_index(self, kind: str) -> None:
        require_index_kind(kind)
        self._require_writable_format()
        self.members.require_writable()
        self.log.complete(self.members)
        self._give_to_joined(storelog.choose_index(self.members, self.state, kind))
        self._reload()

    def verify(
        self,
        *,
        data: bool = False,
        workers: int | None = None,
        memory: int = DEFAULT_MEMORY,
        inline: bool = False,
        on_tick: Tick | None = None,
    ) -> VerifyResult:
        """Check records, manifests and the presence of shards; with `data`, every cell checksum and every chunk id. The
        store keeps a note of it, if it can be written to. What it finds is in the result.

        >>> store.verify(data=True, inline=True).exit_code
        0
        """
        from manifests.scrubs import note_verification
        from pipeline.topology import VERIFY_COUNTERS
        from pipeline.verify.run import verification_facts, verify

        tick = self.figures.watch(VERIFY_COUNTERS, on_tick)
        self._look_again()
        result = verify(
            self.members, self.log, self.state, self.catalog,
            data=data, workers=workers, memory=memory, inline=inline, on_tick=tick,
        )  # fmt: skip
        try:
            self._require_writable_format()
            with self._alone():
                record = note_verification(
                    self.members,
                    self.log,
                    self.state,
                    verification_facts(result, data),
                    result.shard_findings,
                    _key_of,
                    sorted(result.unreadable_packs),
                )
                self._count(record)  # the catalog stays: it knows already what the note says
                self._release_known()
        except (DrystoneError, LimitReached) as error:
            result.unnoted = str(error)
        return result


def _counting(pieces: Iterator[bytes], begin: Callable[[], HealingCounter]) -> Iterator[bytes]:
    """The pieces; what is healed for them is counted from the first on, as figures may be shared with earlier reads."""
    healing = begin()
    try:
        yield from pieces
    finally:
        healing.note()


def _key_of(finding: ShardFinding) -> str:
    from stages.shard import shard_key

    return shard_key(uuid.UUID(bytes=finding.pack_id), finding.shard)


__all__ = ["FileStore", "Selection"]
