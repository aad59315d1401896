"""The command line: thin commands over pipeline.filestore.FileStore.

`app` holds the group and the exit codes, `options` what commands share, `output` tables in all formats, `progress` what
a person sees meanwhile; one module for each command or two. argv and environment are read here only.
"""

from __future__ import annotations

import os


def main() -> None:
    """Entry point of the console script."""
    # Threads that numpy's BLAS would start and nobody would use; they cost a tenth of a second.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from pipeline.cli.app import run

    run()
