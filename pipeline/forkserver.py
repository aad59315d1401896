"""The fork server that workers start from: one process without threads, with all stations imported.

A command that needs workers starts it before it imports anything else, so that both import at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import forkserver
from typing import Any

PRELOAD = ["pipeline.stations"]


def context() -> Any:
    """The multiprocessing context whose processes start from the fork server."""
    # One BLAS thread, so that the fork server has no threads when it forks.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(PRELOAD)
    return chosen


def warm_up() -> None:
    """Start the fork server, if it does not run yet, without waiting for it."""
    context()
    forkserver.ensure_running()
