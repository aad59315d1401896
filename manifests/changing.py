"""One change of a store's backends at a time: who changes them writes a mark of its own first, and then looks for the
marks of others.

A mark lies on as many backends as a settled record, and is looked for on all that answer, so of two changes at least
one sees the other. The log, which it reads then, holds all that earlier changes wrote. A mark of a process
that is surely gone is no obstacle.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from manifests import format as fmt
from manifests.armour import open_json, seal_json
from manifests.backends import BackendStorage
from manifests.config import text
from manifests.errors import BackendError, CorruptRecord, StoreBusy
from manifests.log import utc_now
from manifests.processes import ProcessMark
from manifests.storage import Buffer

FOLDER = "changing"
#: How long a change waits for others to end, in seconds, before it is refused.
PATIENCE = 10.0
#: Bounds of the time until another try; drawn, so that two changes do not meet again and again.
_PAUSE = 0.05, 0.5

Write = Callable[[str, Sequence[Buffer]], object]


@contextmanager
def changing(what: str, places: Sequence[BackendStorage], write: Write) -> Iterator[None]:
    """Nobody else changes the backends at `places` within this block; what was read before it may be outdated. `what`
    is for messages; `write` puts a key on the places. Raises StoreBusy, and what `write` raises."""
    key, limit = f"{FOLDER}/{uuid.uuid4()}.json", time.monotonic() + PATIENCE
    record = {"format": fmt.FORMAT_NAME, "type": "change", "what": what, "time": utc_now()}
    sealed = seal_json({**record, **ProcessMark.here().to_record()})
    try:
        while True:
            write(key, [sealed])
            try:
                require_no_change(places, key)
                break
            except StoreBusy:
                if time.monotonic() >= limit:
                    raise
            _remove(places, key)
            time.sleep(random.uniform(*_PAUSE))
        yield
    finally:
        _remove(places, key)


def require_no_change(places: Sequence[BackendStorage], own: str = "") -> None:
    """Raises StoreBusy where somebody, but for the mark `own`, changes the backends, as far as can be told."""
    for storage in places:
        keys = list[str]()
        with suppress(BackendError):  # a disk that fails is one to remove; the others have the marks, too
            keys += storage.list(FOLDER)
        for key in keys:
            if key != own:
                _require_over(storage, key)


def _require_over(storage: BackendStorage, key: str) -> None:
    where, what, since = f"{storage.location}/{key}", "change", ""
    gone: bool | None = None
    try:
        record, _ = open_json(storage.read(key))
        process = ProcessMark.from_record(record)
        what, gone = text(record["what"]), process.is_gone()
        since = f" by process {process.pid} of host {process.host}, begun {text(record['time'])},"
    except (CorruptRecord, KeyError, TypeError, ValueError):
        pass  # a mark that nobody can read counts
    except BackendError:
        if not storage.exists(key):
            return  # it ended meanwhile
    if gone:
        _remove([storage], key)
        return
    certain = "is" if gone is False else "may be"
    raise StoreBusy(
        f"another {what}{since} {certain} under way; nothing was changed: try again when it has ended; if it surely "
        f"has, remove {where}, and {key} from the other backends"
    )


def _remove(places: Sequence[BackendStorage], key: str) -> None:
    """Remove a mark. Best effort: the process that it names will be gone."""
    for storage in places:
        with suppress(BackendError):
            storage.delete(key)


__all__ = ["PATIENCE", "changing", "require_no_change"]
