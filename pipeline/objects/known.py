"""What an open store knows of its chunks and contents while it puts: the indexes of a run, kept from put to put.

Of kind `memory` they are made once, from all manifests, and hold what this store itself puts from then on. Of kind
`disk` they are opened anew for each batch, which costs nothing, so that the files can be brought up to date in between.
"""

from __future__ import annotations

from contextlib import ExitStack, closing

from manifests.log import State
from manifests.replicas import Replicas
from pipeline.ingest.indexes import RunIndexes
from pipeline.ingest.overlay import OverlayIndex
from stages.dedupe import MemoryIndex


class KnownIndexes:
    """Indexes over one state. Owned by the thread that writes; `close` releases them."""

    def __init__(self, state: State, replicas: Replicas) -> None:
        self.lasting = state.index != "disk"
        self._stack = ExitStack()
        try:
            lost: list[str] = []
            run = self._run = self._stack.enter_context(RunIndexes.opened(state, replicas, lambda: None, lost))
            self.chunks: MemoryIndex | OverlayIndex = self._stack.enter_context(closing(run.chunks.open()))
            self.contents: MemoryIndex | OverlayIndex = self._stack.enter_context(closing(run.contents.open()))
            for index, batches in ((self.chunks, run.known_chunks()), (self.contents, run.known_contents())):
                for rows in batches:
                    index.put_batch(rows["id"], rows["length"])
        except BaseException:
            self._stack.close()
            raise

    def distrust(self) -> None:
        """Rot was met while looking up: what lies on disk is built anew when it is needed next."""
        for usable in self._run.below.values():
            usable.distrust()

    def close(self) -> None:
        self._stack.close()
