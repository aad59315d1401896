"""What a user names as sources, made into Source."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from manifests.errors import NotFound, UsageError
from manifests.paths import asks_for_directory, from_current_directory, take_out_dots
from pipeline.ingest.filelist import sort_list
from pipeline.names import parse_name
from stages.scan import Source

#: What the root directory is called as the source of absolute paths in a list; the second where the first is taken.
_ROOT_NAMES = (b"root", b"rootdir")
#: Directories whose entries are the open descriptors of a process.
_DESCRIPTORS = re.compile(rb"/proc/[^/]+(/task/[^/]+)?/fd")
#: Missing sources that a message names.
_NAMED = 10
_DENIED = os.strerror(errno.EACCES)
_NOT_THERE = os.strerror(errno.ENOENT)


@dataclass(frozen=True)
class Place:
    """A place that a user wrote. `path`: absolute, with a slash at its end where it leads through a link at its end;
    `trouble`: why nothing can be found there, or empty."""

    path: bytes
    trouble: str = ""


def find_place(text: str) -> Place:
    """The place that a path names. A link is the link itself, unless the path asks for a directory (`link/`). Raises
    UsageError where it is empty."""
    written = os.fsencode(text)
    if not written:
        raise UsageError("an empty path names nothing; write . for the current directory")
    path = from_current_directory(written)
    try:
        os.lstat(written)
        path = take_out_dots(path)
        if asks_for_directory(written) and not stat.S_ISDIR(os.lstat(path).st_mode):
            path += b"/"
        return Place(path)
    except FileNotFoundError as error:
        if b"/.." not in path:
            path = take_out_dots(path)
        return Place(path, str(error.strerror))
    except OSError as error:
        return Place(path, str(error.strerror))


def make_sources(paths: Sequence[str], name: str = "") -> tuple[Source, ...]:
    """Sources as given by a user: `-` is standard input and wants `name`; a single one may be renamed by it, unless it
    is empty. Of several, some may be missing: the scan names them. Raises NotFound where none is there, UsageError."""
    if not paths:
        raise UsageError("name at least one source")
    if name and len(paths) != 1:
        raise UsageError(f"the name {name!r} is for one source; here are {len(paths)}")
    if name:
        parse_name(name)
    if "-" in paths:
        if not name:
            raise UsageError("standard input needs a name: --name backup.sql")
        return (Source(b"-", os.fsencode(name), stream=True),)
    places = [find_place(path) for path in paths]
    missing = [
        path if place.trouble == _NOT_THERE else f"{path} ({place.trouble})"
        for path, place in zip(paths, places, strict=True)
        if place.trouble
    ]
    if len(missing) == len(places):
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        what = "no source can be read" if any(place.trouble == _DENIED for place in places) else "no such source"
        raise NotFound(f"{what}: {', '.join(missing[:_NAMED])}{more}")
    for path, place in zip(paths, places, strict=True):
        if _is_descriptor(place.path):
            raise UsageError(
                f"{path} is an open descriptor, no file that could be archived; to archive what can be read from it, "
                f"redirect standard input and name it: drystone ingest - --name NAME < {path}"
            )
    if name:
        return (Source(places[0].path, os.fsencode(name)),)
    names = tell_apart([place.path for place in places])
    return tuple(Source(place.path, each, parents=each.count(b"/")) for place, each in zip(places, names, strict=True))


def _is_descriptor(path: bytes) -> bool:
    """Whether a path names a descriptor of a process, as `<(command)` and /dev/stdin do: as a file it is a link, which
    leads nowhere once the process has ended."""
    try:
        target = os.readlink(path)
    except OSError:
        return False
    folder = os.path.dirname(path)
    folders = [folder, os.path.dirname(os.path.join(folder, target))] if folder == b"/dev" else [folder]
    return any(_DESCRIPTORS.fullmatch(os.path.realpath(each)) for each in folders)


def tell_apart(paths: Sequence[bytes]) -> list[bytes]:
    """Names for sources: the last part of each path; where two would be equal, or one would lie below another, with as
    many of the directories above as it takes. The order of the paths makes no difference. Raises UsageError."""
    parts = [[part for part in path.split(b"/") if part not in (b"", b".", b"..")] for path in paths]
    if not all(parts):
        raise UsageError("the root directory has no base name: give it one with --as")
    depths = [1] * len(parts)
    while True:
        names = [b"/".join(part[-depth:]) for part, depth in zip(parts, depths, strict=True)]
        clashing = _clashing(names)
        if not any(clashing):
            return names
        for numbers in clashing:
            longer = [number for number in numbers if depths[number] < len(parts[number])]
            if longer:
                break
        else:
            text = os.fsdecode(paths[next(numbers[0] for numbers in clashing if numbers)])
            raise UsageError(
                f"two sources are called {text!r}; name each once, or archive them in runs of their own, with --as"
            )
        for number in longer:
            depths[number] += 1


def _clashing(names: Sequence[bytes]) -> tuple[list[int], list[int], list[int]]:
    """The numbers of names that are equal to another, that lie below another, and that another lies below. Longer names
    are given in this order: a name that clashes with none stays short."""
    counts = Counter(names)
    equal = [number for number, name in enumerate(names) if counts[name] > 1]
    if equal:
        return equal, [], []
    below = [number for number, name in enumerate(names) if any(above in counts for above in _above(name))]
    tops = {above for number in below for above in _above(names[number])}
    return [], below, [number for number, name in enumerate(names) if name in tops]


def _above(name: bytes) -> Iterator[bytes]:
    while b"/" in name:
        name = name.rpartition(b"/")[0]
        yield name


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
    here = take_out_dots(from_current_directory(b"."))
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
    paths: Sequence[str],
    name: str = "",
    files_from: str = "",
    *,
    command: Sequence[str] = (),
    nul: bool = False,
    stream: int = 0,
) -> Iterator[Inputs]:
    """The inputs that a user names: `paths`, those listed in the file `files_from` (`-` for standard input), or what
    `command` writes. `stream`: the descriptor that a path `-` is read from. The list is closed at the end. Raises
    NotFound, UsageError."""
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
            listed, needed = sort_list(file, sources, nul=nul, name=files_from)
        with listed:
            yield Inputs(sources[:needed], listed)
    else:
        sources = make_sources(paths, name)
        if any(source.stream for source in sources):
            require_open(stream)
        yield Inputs(sources)


def require_open(stream: int) -> None:
    """Raises UsageError if the descriptor that `-` stands for can't be read from: if it is closed, its number may have
    become that of any other file."""
    try:
        open_for = fcntl.fcntl(stream, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError:
        open_for = os.O_WRONLY
    if open_for == os.O_WRONLY or (stream == 0 and sys.stdin is None):
        raise UsageError("- stands for standard input, which is not open for reading: redirect it, or name a file")


def open_list(name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
    """The file called `name`; `-` is standard input, which stays open. Raises UsageError."""
    if name == "-":
        require_open(0)
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(name, "rb")
    except OSError as error:
        raise UsageError(f"opening {name} failed: {error.strerror}") from error
