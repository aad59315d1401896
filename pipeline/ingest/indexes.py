"""The two indexes of a run, of chunks and of contents with extents: what it looks up in, and what it is told.

Of kind `memory` they are made anew, from all manifests. Of kind `disk` they lie over those in the cache, which are
brought up to date first; what these lack, because somebody else changes them or they can't be written, comes from the
manifests, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from manifests.errors import DamagedIndex
from manifests.index import Entries
from manifests.indexcache import TABLES, IndexCache, UsableIndex
from manifests.known import count_rows, known_chunks, known_contents, lost_tables
from manifests.log import State
from manifests.nocache import NoCache
from manifests.oserrors import in_words
from manifests.replicas import Replicas
from pipeline.errors import PipelineError
from pipeline.ingest.dedupe import IndexOptions


@dataclass(frozen=True)
class RunIndexes:
    """The indexes of one run over `state`. `below`: those on disk, by table; none of kind `memory`. `lost` gets why
    manifest files could not be read; `no_cache`: why nothing can lie on disk."""

    state: State
    replicas: Replicas
    below: dict[str, UsableIndex]
    lost: list[str]
    no_cache: str = ""

    @classmethod
    @contextmanager
    def opened(
        cls, state: State, replicas: Replicas, check: Callable[[], None], lost: list[str]
    ) -> Iterator[RunIndexes]:
        """Ready for use, and released at the end. `check` is called between batches and may raise. Where a manifest is
        lost, those on disk may hold what nothing places any more, so they are left alone."""
        below: dict[str, UsableIndex] = {}
        no_cache = ""
        with ExitStack() as stack:
            if state.index == "disk" and not lost_tables(state, replicas):
                try:
                    for table in TABLES:
                        usable = IndexCache(replicas.cache, table).bring_up_to_date(state, replicas, check)
                        below[table] = stack.enter_context(usable)
                except NoCache as error:
                    no_cache = in_words(error)
            try:
                yield cls(state, replicas, below, lost, no_cache)
            except (DamagedIndex, PipelineError) as error:
                # Rot that the file's looks don't tell of is met while looking up, at worst by a signal.
                if isinstance(error, DamagedIndex) or error.worker == "dedupe":
                    for usable in below.values():
                        usable.distrust()
                raise

    @property
    def chunks(self) -> IndexOptions:
        """How the dedupe station opens its index of chunks."""
        return self._options("chunks", count_rows(self.state, "chunks"))

    @property
    def contents(self) -> IndexOptions:
        """How the dedupe station opens its index of contents."""
        return self._options("extents", 0)

    def _options(self, table: str, expected: int) -> IndexOptions:
        below = self.below.get(table)
        return IndexOptions(self.state.index, expected, None if below is None else below.folder)

    def known_chunks(self) -> Iterator[Entries]:
        """Chunks (KNOWN) that the station is to be told of."""
        return known_chunks(self.state, self.replicas, self.lost, self._covered("chunks"))

    def known_contents(self) -> Iterator[Entries]:
        """Contents (KNOWN) that the station is to be told of."""
        return known_contents(self.state, self.replicas, self.lost, self._covered("extents"))

    def _covered(self, table: str) -> frozenset[str]:
        below = self.below.get(table)
        return below.files if below is not None else frozenset()

    @property
    def trouble(self) -> str:
        """Why an index on disk could not be used, or empty."""
        return self.no_cache or next((usable.trouble for usable in self.below.values() if usable.trouble), "")
