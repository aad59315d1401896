"""The figures of a run: the same names in the summary of an ingest, of a dry run, and in the list of runs."""

from __future__ import annotations

from pipeline.cli.fields import Kind

#: What was there to be archived.
FOUND = {
    "files": Kind.INTEGER,
    "directories": Kind.INTEGER,
    "others": Kind.INTEGER,
    "bytes": Kind.INTEGER,
}
#: What became of it.
STORED = {
    "unchanged": Kind.INTEGER,
    "unchanged_bytes": Kind.INTEGER,
    "new_chunks": Kind.INTEGER,
    "new_bytes": Kind.INTEGER,
    "stored_bytes": Kind.INTEGER,
    "parity_bytes": Kind.INTEGER,
    "packs": Kind.INTEGER,
    "adopted_packs": Kind.INTEGER,
    "adopted_bytes": Kind.INTEGER,
}
