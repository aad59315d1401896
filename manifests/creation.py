"""A store is made: its backends and its first record, or, where anything fails, nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from manifests.access import PRIVATE, Access
from manifests.apart import require_apart
from manifests.backends import BackendStorage, open_backend, parse_place
from manifests.config import DEFAULT_INDEX, StoreConfig
from manifests.errors import BackendError, StoreExists, UsageError
from manifests.ids import new_id
from manifests.limits import LimitReached
from manifests.log import FOLDER, initialise
from manifests.store import BACKEND_KEY, STORE_KEY, BackendInfo, Member, Members, write_identity
from manifests.troubles import together


def create(
    config: StoreConfig,
    directories: Sequence[str | Path],
    index: str = DEFAULT_INDEX,
    access: Access = PRIVATE,
) -> Members:
    """Make a store: one directory (or place of another kind, `KIND:PLACE`) gets k+m backends as folders in it, several
    become the backends themselves. `index`: kind of its dedupe index; `access`: who may use it besides its owner.
    Raises StoreExists, UsageError, BackendError, TooFewBackends. Nothing is written before all places were looked at,
    and what was written is removed where a later step fails."""
    if not directories:
        raise UsageError("name at least one directory")
    roots = [parse_place(directory) for directory in directories]
    for number, place in enumerate(roots):
        storage = open_backend(*place)
        _require_empty(storage)
        require_apart(storage, [open_backend(*each) for each in roots[:number]])
    if len(roots) == 1:
        kind, top = roots[0]
        width = len(str(config.scheme.total_shards - 1))
        roots = [(kind, f"{top}/backend-{number:0{width}}") for number in range(config.scheme.total_shards)]
    begun: list[BackendStorage] = []
    try:
        present: dict[int, Member] = {}
        for number, storage in enumerate(open_backend(*place) for place in roots):
            begun.append(storage)
            storage.make(access)
            info = BackendInfo(number, new_id(), storage.type, storage.location, storage.device())
            write_identity(config, info, storage)
            present[number] = Member(info, storage)
        members = Members(config, [member.info for member in present.values()], present)
        initialise(members, index)
        if members.failed:
            raise BackendError(together(members.failed.values()))
        return members
    except BaseException:
        for storage in reversed(begun):
            _undo(storage)
        raise


def _require_empty(storage: BackendStorage) -> None:
    if storage.exists(BACKEND_KEY):
        raise StoreExists(f"{storage.location} is a backend of a store already")
    storage.require_empty()


def _undo(storage: BackendStorage) -> None:
    """Leave nothing of a backend that was just made. A place that can't be cleaned up is left as it is: the error that
    is on its way names what ails it, and says more."""
    steps: tuple[Callable[[], None], ...] = (
        partial(storage.delete, BACKEND_KEY),
        partial(storage.remove_folder, FOLDER),
        partial(storage.delete, STORE_KEY),
        storage.unmake,
    )
    for step in steps:
        with suppress(BackendError, LimitReached):
            step()
