"""A backend whose requests are counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from manifests.access import PRIVATE, Access
from manifests.errors import KeyNotFound
from manifests.storage import BackendStorage, Buffer, Space
from pipeline.metrics.meters import OPERATIONS, Meters

_WRITE, _READ, _DELETE, _LIST, _LOOK = range(len(OPERATIONS))
Answer = TypeVar("Answer")


class MeteredBackend:
    """Hands all on to `storage`, backend `number` of its store, and counts what takes a request. That a key is not
    there is an answer, and no error. A listing takes as long as its entries, without what is done with them."""

    def __init__(self, storage: BackendStorage, meters: Meters, number: int) -> None:
        self._storage = storage
        self._meters = meters
        self._number = number

    @property
    def type(self) -> str:
        return self._storage.type

    @property
    def location(self) -> str:
        return self._storage.location

    def write(self, key: str, pieces: Sequence[Buffer]) -> None:
        self._timed(
            _WRITE,
            lambda: self._storage.write(key, pieces),
            lambda _: sum(memoryview(piece).nbytes for piece in pieces),
        )

    def read(self, key: str) -> bytes:
        return self._timed(_READ, lambda: self._storage.read(key), len)

    def read_range(self, key: str, offset: int, length: int) -> bytes:
        return self._timed(_READ, lambda: self._storage.read_range(key, offset, length), len)

    def delete(self, key: str) -> None:
        self._timed(_DELETE, lambda: self._storage.delete(key))

    def exists(self, key: str) -> bool:
        return self._timed(_LOOK, lambda: self._storage.exists(key))

    def size(self, key: str) -> int:
        return self._timed(_LOOK, lambda: self._storage.size(key))

    def list(self, prefix: str) -> Iterator[str]:
        return self._listed(self._storage.list(prefix))

    def list_sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        return self._listed(self._storage.list_sizes(prefix))

    def remove_folder(self, prefix: str) -> None:
        self._timed(_DELETE, lambda: self._storage.remove_folder(prefix))

    def space(self) -> Space:
        return self._timed(_LOOK, self._storage.space)

    def device(self) -> str:
        return self._storage.device()

    def local_path(self, key: str) -> Path | None:
        return self._storage.local_path(key)

    def identity(self) -> str:
        return self._storage.identity()

    def require_in_place(self) -> None:
        self._storage.require_in_place()

    def way_up(self) -> Sequence[str]:
        return self._storage.way_up()

    def changed(self, key: str) -> float | None:
        return self._timed(_LOOK, lambda: self._storage.changed(key))

    def require_empty(self) -> None:
        self._storage.require_empty()

    def make(self, access: Access = PRIVATE) -> None:
        self._storage.make(access)

    def unmake(self) -> None:
        self._storage.unmake()

    def access(self) -> Access:
        return self._storage.access()

    def shortcomings(self) -> Sequence[str]:
        return self._storage.shortcomings()

    def folders(self, limit: int | None = None) -> Sequence[str]:
        return self._storage.folders(limit)

    def close(self) -> None:
        self._storage.close()

    def _timed(
        self, operation: int, request: Callable[[], Answer], size: Callable[[Answer], int] = lambda _: 0
    ) -> Answer:
        began = time.perf_counter_ns()
        failed, moved = True, 0
        try:
            answer = request()
            failed, moved = False, size(answer)
            return answer
        except KeyNotFound:
            failed = False
            raise
        finally:
            took = time.perf_counter_ns() - began
            self._meters.note_request(self._number, operation, took, moved, failed=failed)

    def _listed(self, entries: Iterator[Answer]) -> Iterator[Answer]:
        failed, took = True, 0
        try:
            while True:
                began = time.perf_counter_ns()
                try:
                    entry = next(entries, None)
                finally:
                    took += time.perf_counter_ns() - began
                if entry is None:
                    failed = False
                    return
                yield entry
        except GeneratorExit:
            failed = False  # whoever asked has seen enough
            raise
        finally:
            self._meters.note_request(self._number, _LIST, took, 0, failed=failed)
