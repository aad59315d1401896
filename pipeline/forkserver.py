"""The fork server that workers start from: one process without threads, with all stations imported.

A command that needs workers starts it before it imports anything else, so that both import at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from contextlib import suppress
from multiprocessing import forkserver, util
from typing import Any

from manifests.errors import UsageError

PRELOAD = ["pipeline.stations"]


def context() -> Any:
    """The multiprocessing context whose processes start from the fork server."""
    # One BLAS thread, so that the fork server has no threads when it forks.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(PRELOAD)
    return chosen


def socket_folder() -> str:
    """The directory that the fork server's socket lies in, made if need be. Multiprocessing removes it when the
    interpreter is taken down; who ends in another way does so himself."""
    return util.get_temp_dir()


def remove_socket_folder() -> None:
    """For a process that ends by os._exit."""
    with suppress(OSError):  # it could not even be made
        shutil.rmtree(socket_folder())


def warm_up() -> None:
    """Start the fork server, if it does not run yet, without waiting for it. Raises UsageError where the directory for
    temporary files has so long a path that no socket can lie in it."""
    context()
    try:
        forkserver.ensure_running()
    except OSError as error:
        if error.errno is not None:
            raise
        folder = tempfile.gettempdir()
        raise UsageError(
            f"{folder}, where temporary files go, has too long a path for a socket in it: set TMPDIR to a shorter one"
        ) from error


def begin() -> None:
    """The same for who may not need it: where it can't be started, whoever does is told."""
    with suppress(OSError, UsageError):
        warm_up()
