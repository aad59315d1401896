"""Writing a file that a user named: each goes through here.

What is there decides. A device, a FIFO or a descriptor (`/dev/stdout`) is written into as it is, never replaced. A
symlink is followed, as it is when a shell writes. A regular file gets its name when it is complete, and what has that
name already is kept unless it may be replaced; what appears there at the last moment is kept, too.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

from manifests.errors import BackendError, UsageError
from pipeline.errors import Interrupted, OutputFailed, OutputKept
from pipeline.owndirectories import OwnDirectories, require_target_outside
from pipeline.streams import wait_for_room
from stages.durable import sync_file
from stages.inheritance import ACCESS_ACL
from stages.naming import Namer
from stages.staging import Staging, open_own, remove_leftovers

_NEW = "new"
_MOST_LINKS = 40
_PIECE = 1 << 20
_OWN_DESCRIPTORS = re.compile(r"/proc/(\d+)(?:/task/\d+)?/fd")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """`overwrite`: never, if-changed (compared by content) or always; `mode`: of a new file, less the umask; `fsync`:
    the file is on disk before it has its name; None: where it replaces one; `own`: the store's backends, which no file
    is made in."""

    overwrite: str = "never"
    mode: int = 0o666
    fsync: bool | None = None
    own: OwnDirectories = field(default_factory=dict)


class Output:
    """A file that is being written. `written`: bytes so far; `is_stdout`: they go where standard output goes;
    `in_place`, in the end: the file that is there holds the same, and was left as it is; `left_behind`, in the end:
    a directory of ours that could not be removed, and why."""

    def __init__(self, path: str, fd: int) -> None:
        self._path = path
        self._fd = fd
        self.written = 0
        self.in_place = False
        self.left_behind = ""
        self.is_stdout = _same_file(fd, 1)

    def write(self, data: bytes | memoryview) -> None:
        """Write all of `data`. Raises BackendError; OutputFailed for standard output."""
        view = memoryview(data).cast("B")
        while view:
            try:
                count = os.write(self._fd, view)
            except BlockingIOError:
                wait_for_room(self._fd)
                continue
            except OSError as error:
                if self.is_stdout:
                    raise OutputFailed(error) from error
                raise _failure(self._path, error) from error
            view = view[count:]
            self.written += count


@contextmanager
def output_file(path: str, options: OutputOptions) -> Iterator[Output]:
    """Open the file `path` for writing; a regular file appears complete, when the block ends without an error. Raises
    UsageError for what can't be written as a file, OutputKept, BackendError, and Interrupted on SIGTERM."""
    with _blamed(path):
        number = _own_descriptor(path)
        if number is not None:
            place: Iterator[Output] = _into(path, _inherited(path, number))
        else:
            require_target_outside(path, options.own)
            found = _found(path)
            if found is not None and not stat.S_ISREG(found.st_mode):
                place = _into(path, _opened(path, found))
            elif found is not None and options.overwrite == "never":
                raise _kept(path)
            else:
                place = _new_file(path, found, options)
    yield from place


@contextmanager
def _blamed(path: str) -> Iterator[None]:
    """Around what is done to the output alone: the caller's own errors in between are none of writing it."""
    try:
        yield
    except OSError as error:
        raise _failure(path, error) from error


def _failure(path: str, error: OSError) -> BackendError:
    return BackendError(f"writing {path} failed: {error.strerror or error}")


def _found(path: str) -> os.stat_result | None:
    """What is at the end of a path; None where a file can be made. Raises UsageError, OSError."""
    if os.path.basename(path) in ("", ".", ".."):
        raise UsageError(f"{path!r} names no file to write; name one, as in {os.path.join(path, 'part')!r}")
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{path} is a directory; name a file in it")
    return found


def _kept(path: str) -> OutputKept:
    return OutputKept(f"{path} is there already and was kept; nothing was written; see --overwrite")


# --- what is written into --------------------------------------------------------------------------------------------


def _own_descriptor(path: str) -> int | None:
    """The number, where a path leads to a descriptor of this process, as /dev/stdout and /dev/fd/3 do."""
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(path)
        place = os.path.realpath(folder or ".")
        owner = _OWN_DESCRIPTORS.fullmatch(place)
        if owner is not None and int(owner[1]) == os.getpid() and name.isascii() and name.isdigit():
            return int(name)
        try:
            path = os.path.join(place, os.readlink(os.path.join(place, name)))
        except OSError:
            return None
    return None


def _inherited(path: str, number: int) -> int:
    """A copy of a descriptor that whoever started us handed over. Raises UsageError where they did not."""
    standard = (sys.__stdin__, sys.__stdout__, sys.__stderr__)
    try:
        # What is /dev/null because it was closed, and what we opened ourselves, is not what the user means.
        if standard[number] is None if number < len(standard) else not os.get_inheritable(number):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return os.dup(number)
    except OSError:
        raise UsageError(f"{path}: nothing is open as descriptor {number}") from None


def _opened(path: str, found: os.stat_result) -> int:
    if stat.S_ISSOCK(found.st_mode):
        raise UsageError(f"{path} is a socket, which can't be written as a file; name another one")
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC
    if stat.S_ISBLK(found.st_mode):
        flags |= os.O_EXCL  # refused while it is mounted
    fd = os.open(path, flags)
    if not os.path.samestat(os.fstat(fd), found):
        os.close(fd)
        raise _kept(path)
    return fd


def _into(path: str, fd: int) -> Iterator[Output]:
    try:
        yield Output(path, fd)
        with _blamed(path):
            if stat.S_ISBLK(os.fstat(fd).st_mode):
                sync_file(fd)
    finally:
        _close(path, fd)


# --- what is made ----------------------------------------------------------------------------------------------------


def _new_file(path: str, found: os.stat_result | None, options: OutputOptions) -> Iterator[Output]:
    real = os.path.realpath(path)
    durable = found is not None if options.fsync is None else options.fsync
    with _terminable(), ExitStack() as stack:
        with _blamed(path):
            if found is not None and not (os.path.exists(real) and os.path.samestat(os.stat(real), found)):
                raise UsageError(f"{path} leads to a file that has no name; name one")
            folder, name = os.path.split(real)
            with suppress(OSError):  # a directory may be written into and not be read
                remove_leftovers(folder)
            staging = Staging(folder)
            stack.callback(_clear, staging, made := list[Output]())
            source = open_own(staging.objects, staging.identity)
            stack.callback(os.close, source)
            target = _opened_folder(folder, stack)
            fd = os.open(_NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, options.mode, dir_fd=source)
            file = stack.enter_context(ExitStack())
            file.callback(_close, path, fd)
        output = Output(path, fd)
        made.append(output)
        yield output
        with _blamed(path):
            if found is not None:
                if options.overwrite == "if-changed" and _same_content(fd, real):
                    output.in_place = True
                    return
                _resemble(fd, real, found)
            if durable:
                sync_file(fd)
            file.close()  # network file systems and quotas say at last whether it could be written
            _give_name(path, source, target, name, replace=found is not None)
            if durable:
                with suppress(PermissionError):  # a directory may be written into and not be read
                    sync_file(_opened_folder(folder, stack, os.O_RDONLY))


def _close(path: str, fd: int) -> None:
    with _blamed(path):
        os.close(fd)


def _clear(staging: Staging, made: list[Output]) -> None:
    reason = staging.close()
    for output in made if reason else ():
        output.left_behind = f"{staging.path}: {reason}"


def _opened_folder(path: str, stack: ExitStack, flags: int = os.O_PATH) -> int:
    fd = os.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


def _give_name(path: str, source: int, folder: int, name: str, *, replace: bool) -> None:
    """Rename the complete file. What may be replaced is a regular file, still at the last moment."""
    if replace:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                raise _kept(path)
            os.rename(_NEW, name, src_dir_fd=source, dst_dir_fd=folder)
            return
    try:
        Namer().name(source, os.fsencode(_NEW), folder, os.fsencode(name))
    except FileExistsError:
        raise OutputKept(f"{path} appeared while this was written, and was kept; see --overwrite") from None


def _resemble(fd: int, path: str, found: os.stat_result) -> None:
    """Let a file be open to those whom the one that it replaces was open to."""
    mode = stat.S_IMODE(found.st_mode) & 0o777
    try:
        os.fchown(fd, found.st_uid, found.st_gid)
    except PermissionError:
        mode &= 0o707
    os.fchmod(fd, mode)
    with suppress(OSError):
        os.setxattr(fd, ACCESS_ACL, os.getxattr(path, ACCESS_ACL))


def _same_content(fd: int, path: str) -> bool:
    """Whether an open file holds what the file at `path` does."""
    size = os.fstat(fd).st_size
    with open(path, "rb", buffering=0) as other:
        if os.fstat(other.fileno()).st_size != size:
            return False
        for at in range(0, size, _PIECE):
            if os.pread(fd, _PIECE, at) != os.pread(other.fileno(), _PIECE, at):
                return False
    return True


def _same_file(fd: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(fd, other)
    except OSError:
        return False


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as an exception, so that what was begun is removed; in threads other than the main one it is somebody
    else's."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
