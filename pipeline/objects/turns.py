"""Who writes to an open store, and when: turns, batches, and what is known between two writes.

Reads wait for nobody who writes. Writes take turns. An open batch is the store's: what any thread puts meanwhile goes
into it; whatever else writes waits for its end.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from manifests.config import StoreConfig
from manifests.errors import DamagedIndex, UsageError
from manifests.joined import give_to_joined
from manifests.log import Log, LogRecord, State, fold
from manifests.moving import note_moves
from manifests.replicas import Replicas
from manifests.store import Members
from manifests.totals import chunk_totals
from pipeline.objects.refs import IndexStats

if TYPE_CHECKING:
    from manifests.catalog import Catalog
    from pipeline.metrics.figures import StoreFigures
    from pipeline.objects.batch import WriteBatch
    from pipeline.objects.known import KnownIndexes
    from pipeline.objects.reading import Reading

NOTHING = IndexStats(0, 0)


class WriteTurns:
    """The part of FileStore that lets its threads write one after the other."""

    members: Members
    log: Log
    state: State
    replicas: Replicas
    figures: StoreFigures

    def __init__(self) -> None:
        self._closed = False
        #: For what readers and writers share, held for moments; who holds it never waits for `_turn`.
        self._lock = threading.RLock()
        #: Whose turn it is to write. Given back while a batch is open, which tells when it ends.
        self._turn = threading.Condition(threading.RLock())
        self._batch: WriteBatch | None = None
        self._batch_thread = 0
        self._known: KnownIndexes | None = None
        self._reading: Reading | None = None
        self._stats: IndexStats | None = None

    if TYPE_CHECKING:  # FileStore has them

        @property
        def config(self) -> StoreConfig: ...
        @property
        def catalog(self) -> Catalog: ...
        def _require_open(self) -> None: ...
        def _require_writable_format(self) -> None: ...
        def _drop_catalog(self) -> None: ...
        def _reopen(self) -> None: ...

    def refresh(self) -> None:
        """See what others have written since the store was opened, or last written to through this object.

        >>> with FileStore.open("archive") as other:
        ...     ref = other.put_object("photos/dog", io.BytesIO(b"woof"))
        >>> store.refresh()
        >>> store.get_object("photos/dog").size
        4
        """
        with self._turn:
            self._require_open()
            if self._batch is None:  # what a batch builds on must not change under it
                self._look_again()
                self._follow()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else writes meanwhile. Waits for a batch of another thread; in one of the same, raises UsageError."""
        with self._turn:
            while self._batch is not None:
                if self._batch_thread == threading.get_ident():
                    raise UsageError("a batch is open; end it first")
                self._turn.wait()
            self._require_open()
            yield

    @contextmanager
    def _writing(self, kind: str, preferred: int | None = None) -> Iterator[WriteBatch]:
        """A batch of this thread alone, committed at the end, or given up on an exception."""
        with self._alone():
            batch, self._batch_thread = self._begin(kind, preferred), threading.get_ident()
            try:
                yield batch
            except BaseException as error:
                self._give_up(batch, error)
                raise
            self._commit(batch)

    def _begin(self, kind: str, preferred: int | None = None) -> WriteBatch:
        from pipeline.objects.batch import WriteBatch
        from pipeline.objects.known import KnownIndexes

        self._prepare_to_write()
        if self._known is None:
            self._known = KnownIndexes(self.state, self.replicas)
        try:
            self._batch = WriteBatch(self.members, self.state, self._known, kind, self.figures, preferred)
        except BaseException as error:
            self._end_batch(error)
            raise
        return self._batch

    def _commit(self, batch: WriteBatch) -> None:
        try:
            record = batch.commit()
        except BaseException as error:
            self._end_batch(error)
            raise
        self._end_batch()
        if record is not None:
            self._note(record, IndexStats(batch.sums.new_chunks, batch.sums.new_bytes))

    def _give_up(self, batch: WriteBatch, error: BaseException) -> None:
        if self._batch is not batch:
            return  # closing the store has given it up
        try:
            batch.abort()
        finally:
            self._end_batch(error)

    def _end_batch(self, error: BaseException | None = None) -> None:
        """No batch is open any more; after an `error`, what is known includes what was not committed."""
        if self._known is not None:
            if isinstance(error, DamagedIndex):
                self._known.distrust()
            if error is not None or not self._known.lasting:
                self._release_known()
        self._batch = None
        self._turn.notify_all()

    def _prepare_to_write(self) -> None:
        """See what others have written since, and complete what they left."""
        self._require_open()
        self._require_writable_format()
        if self._batch is None:
            self._look_again()
            self._follow()
        self._complete()

    def _complete(self) -> None:
        """Complete the log by what others left, and by where backends lie now."""
        self.members.require_writable()
        self.log.complete(self.members)
        record = note_moves(self.members, self.state) if self._batch is None else None
        if record is not None:
            self._count(record)

    def _look_again(self) -> None:
        """A backend that failed, as by being full, may be well again; others may have been mounted or unmounted, or
        have got their records back. A batch stays with those that it began with."""
        if self._batch is None and (self.members.dropped or self.log.lost or self.members.have_changed()):
            self._reopen()

    def _follow(self) -> None:
        """See what others have written since."""
        with self._lock:
            news = self.log.follow(self.members)
            if news:
                self._forget()
                self._drop_catalog()
                self.state = fold(self.log.records.values())
                self.figures.held = chunk_totals(self.state)
                if any(record.kind == "backend" for record in news):
                    self._reopen()

    def _note(self, record: LogRecord, more: IndexStats = NOTHING) -> None:
        """Let a record of this process count, which made `more` chunks alive."""
        self._give_to_joined(record)
        with self._lock:
            self._add(record)
            self._drop_catalog()
            if self._reading is not None:
                self._reading.forget_places()  # what was placed nowhere may be placed now
            if self._stats is not None:
                self._stats = self._stats.plus(more.total_chunks, more.total_bytes)

    def _count(self, record: LogRecord) -> None:
        """Let a record of this process be part of the state. The catalog stays."""
        self._give_to_joined(record)
        self._add(record)

    def _give_to_joined(self, record: LogRecord) -> None:
        self.members.notices += give_to_joined(self.members, record)

    def _add(self, record: LogRecord) -> None:
        with self._lock:
            self.log.note(record, self.members)
            self.state = fold(self.log.records.values())
            self.figures.held = chunk_totals(self.state)

    def _release_known(self) -> None:
        if self._known is not None:
            self._known.close()
            self._known = None

    def _forget(self) -> None:
        """Others may have written: look at everything anew."""
        with self._lock:
            self._release_known()
            self._reading = self._stats = None
