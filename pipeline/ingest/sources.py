"""What a user names as sources, made into Source."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from manifests.errors import NotFound, UsageError
from pipeline.ingest.filelist import sort_list
from pipeline.names import parse_name
from stages.scan import Source

#: What the root directory is called as the source of absolute paths in a list; the second where the first is taken.
_ROOT_NAMES = (b"root", b"rootdir")


def make_sources(paths: Sequence[str], name: str = "") -> tuple[Source, ...]:
    """Sources as given by a user: `-` is standard input and wants `name`; a single one may be renamed by it, unless it
    is empty. Raises NotFound, UsageError."""
    if not paths:
        raise UsageError("name at least one source")
    if name and len(paths) != 1:
        raise UsageError(f"the name {name!r} is for one source; here are {len(paths)}")
    if name:
        parse_name(name)
    sources = []
    for path in paths:
        if path == "-":
            if not name:
                raise UsageError("standard input needs a name: --name backup.sql")
            sources.append(Source(b"-", os.fsencode(name), stream=True))
            continue
        full = os.path.abspath(path)
        if not os.path.lexists(full):
            raise NotFound(f"no such source: {path}")
        base = name or os.path.basename(full)
        if not base:
            raise UsageError("the root directory has no base name: give it one with --as")
        sources.append(Source(os.fsencode(full), os.fsencode(base)))
    names = [source.name for source in sources]
    twice = next((each for each in names if names.count(each) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two sources are called {os.fsdecode(twice)!r}; archive them in runs of their own, or rename one with --as"
        )
    return tuple(sources)


def list_sources(paths: Sequence[str], name: str = "") -> tuple[Source, ...]:
    """Sources that a list of paths is for: the directory in `paths`, or the current one and, for absolute paths that
    lie elsewhere, the root directory. Raises NotFound, UsageError."""
    if len(paths) > 1 or "-" in paths:
        raise UsageError("a list of paths (--files-from) is for one source, a directory")
    if paths:
        (source,) = make_sources(paths, name)
        if not os.path.isdir(source.path) or os.path.islink(source.path):
            raise UsageError(f"{paths[0]} is no directory, so no list of paths (--files-from) can be for it")
        return (source,)
    here = os.getcwdb()
    base = os.fsencode(parse_name(name)) if name else os.path.basename(here)
    if here == b"/":
        return (Source(here, base or _ROOT_NAMES[0]),)
    return (*make_sources([os.fsdecode(here)], name), Source(b"/", _ROOT_NAMES[base == _ROOT_NAMES[0]]))


def command_source(command: Sequence[str], name: str) -> Source:
    """The source whose stream is what `command` writes. Its path is the program only: arguments may hold secrets, and
    a log is for ever. Raises UsageError."""
    if not command:
        raise UsageError("--command needs one: ingest --name shop.sql --command -- pg_dump shop")
    if not name:
        raise UsageError("what a command writes needs a name: --name shop.sql")
    (source,) = make_sources(["-"], name)
    return Source(os.fsencode(command[0]), source.name, stream=True)


@dataclass(frozen=True)
class Inputs:
    """What is to be archived: the sources, and a sorted list (filelist.py) where only what it names below them is."""

    sources: tuple[Source, ...]
    listed: IO[bytes] | None = None


@contextlib.contextmanager
def gather(
    paths: Sequence[str], name: str = "", files_from: str = "", *, command: Sequence[str] = (), nul: bool = False
) -> Iterator[Inputs]:
    """The inputs that a user names: `paths`, those listed in the file `files_from` (`-` for standard input), or what
    `command` writes. The list is closed at the end. Raises NotFound, UsageError."""
    if nul and not files_from:
        raise UsageError("-0 says how the entries of --files-from end, and there is none")
    if command:
        if paths or files_from:
            raise UsageError("--command stands alone: what it writes is the source")
        source = command_source(command, name)
        if shutil.which(command[0]) is None:
            raise UsageError(f"no such command: {command[0]}")
        yield Inputs((source,))
    elif files_from:
        sources = list_sources(paths, name)
        with open_list(files_from) as file:
            listed, needed = sort_list(file, sources, nul=nul)
        with listed:
            yield Inputs(sources[:needed], listed)
    else:
        yield Inputs(make_sources(paths, name))


def open_list(name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    """The file called `name`; `-` is standard input, which stays open. Raises UsageError."""
    if name == "-":
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(name, "rb")
    except OSError as error:
        raise UsageError(f"opening {name} failed: {error.strerror}") from error
