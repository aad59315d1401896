"""Ingest: the stations from a source to a committed run.

`scan` walks, `read` reads, cuts and names chunks, `dedupe` drops known ones, `compress` makes blocks, `write` makes
packs and shards, `collect` (in the supervisor) turns what is durable into manifests; `run` puts them together and
commits.
"""
