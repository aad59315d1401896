"""The command line: thin commands over pipeline.filestore.FileStore.

`app` holds the group and the exit codes, `options` what commands share, `output` tables in all formats, `progress` what
a person sees meanwhile; one module for each command or two. argv and environment are read here only.
"""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from pipeline.cli.app import run

    run()
