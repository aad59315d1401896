"""The command line: thin commands over pipeline.filestore.FileStore.

`app` holds the group and the exit codes, `options` what commands share, `output` tables in all formats, `progress` what
a person sees meanwhile; one module for each command or two. argv and environment are read here only.
"""

from __future__ import annotations

import os
import sys

#: Commands that need workers, and options with which they need none.
_WORKING, _IDLE = {"ingest", "restore", "verify"}, {"-h", "--help", "--dry-run"}


def main() -> None:
    """Entry point of the console script."""
    try:
        _begin()
        from pipeline.cli.app import run
    except KeyboardInterrupt:
        from pipeline.printing import warn

        warn("drystone: stopped")
        if (server := sys.modules.get("pipeline.forkserver")) is not None:
            server.end()
        os._exit(130)
    run()


def _begin() -> None:
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        # Paths would not be what DuckDB, the log and other machines make of their bytes. Python begins anew with UTF-8.
        os.execv(sys.executable, [sys.orig_argv[0], "-X", "utf8", *sys.orig_argv[1:]])
    from pipeline.importpath import safe_path

    sys.path[:] = safe_path()
    from pipeline.streams import occupy

    occupy()
    if "OPENBLAS_NUM_THREADS" not in os.environ:
        # Threads that numpy's BLAS would start and nobody would use; they cost a tenth of a second. Not in os.environ,
        # which is the user's and goes to commands that are archived.
        os.putenv("OPENBLAS_NUM_THREADS", "1")
    words = set(sys.argv[1:])
    if words & _WORKING and not words & _IDLE:
        # It takes as long to start as all that this process imports. A guess: who needs it asks again.
        from pipeline.forkserver import begin

        begin()
