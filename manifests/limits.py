"""What the system denies this process: descriptors, threads, memory, long files.
No disk and no code is to blame for it."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator


class LimitReached(Exception):
    """The system denies this process descriptors, threads, memory or long files. It is no DrystoneError, so that
    nobody takes it for damage of what is read, or for the failure of a backend."""


_SIZE = "this process may not write files of that size: raise `ulimit -f`"
_FILES = "this process may not open more files: raise `ulimit -n`"
_THREADS = "the system starts no more threads or processes: raise `ulimit -u` or `ulimit -v`, or free memory"
_MEMORY = "the system gives this process no more memory: raise `ulimit -v` or the container's limit, or free some"
_OF_NUMBER = {
    errno.EMFILE: _FILES,
    errno.ENFILE: "the system has too many open files: close some, or raise fs.file-max",
    errno.ENOMEM: _MEMORY,
}
#: What Python, the dynamic linker and DuckDB say of it, who give no number.
_OF_TEXT = {
    "can't start new thread": _THREADS,
    "Cannot allocate memory": _MEMORY,
    "failed to map segment": _MEMORY,
    "Allocation failure": _MEMORY,
    "Too many open files": _FILES,
    "Resource temporarily unavailable": _THREADS,
}


def denied(error: BaseException) -> str | None:
    """What the system denied, if that is why `error` was raised, and how to get more of it."""
    for each in _with_causes(error):
        if isinstance(each, LimitReached):
            return str(each)
        if isinstance(each, OSError) and each.errno in _OF_NUMBER:
            return _OF_NUMBER[each.errno]
        if isinstance(each, OSError) and each.errno == errno.EFBIG and _limits_files():
            return _SIZE
        if isinstance(each, BlockingIOError):  # fork
            return _THREADS
        if isinstance(each, MemoryError):
            return _MEMORY
        if isinstance(each, RuntimeError | ImportError) or type(each).__module__.endswith("duckdb"):
            found = next((what for text, what in _OF_TEXT.items() if text in str(each)), None)
            if found is not None:
                return found
    return None


def _limits_files() -> bool:
    """Whether this process has a limit of its own; some file systems have one for all."""
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    seen = set[int]()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__
