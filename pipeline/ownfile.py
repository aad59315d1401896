"""Writing a file whose name is Drystone's own choice, in a directory that somebody else may write into.

Whatever has the name is replaced, and never followed or written into: a link that another user put there leads nowhere.
"""

from __future__ import annotations

import os
import secrets

from manifests.errors import BackendError


def write_own_file(folder: str, name: str, data: bytes, mode: int) -> None:
    """Write the file `name` in the directory `folder`, with this mode whatever the umask: whole, or what was there
    stays. Raises BackendError."""
    try:
        place = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _replace(place, name, data, mode)
        finally:
            os.close(place)
    except OSError as error:
        raise BackendError(f"writing {os.path.join(folder, name)} failed: {error.strerror or error}") from error


def _replace(place: int, name: str, data: bytes, mode: int) -> None:
    temp = f".{name}.{secrets.token_hex(8)}"
    fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place)
    try:
        try:
            os.fchmod(fd, mode)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)  # which may be where writing fails
        os.rename(temp, name, src_dir_fd=place, dst_dir_fd=place)
    except BaseException:
        os.unlink(temp, dir_fd=place)
        raise
