"""The stages of the data path, as pure modules: bytes in, bytes out; no process, queue, clock or log.

    scan, read → chunk → dedupe → compress → pack, erasure, shard            (ingest)
    shard, erasure → compress → assemble → target                            (restore)

Nouns are those of manifests/FORMAT.md: chunk, block, pack, shard, cell, row. Stages do not import one another; the
stations in `pipeline` put them together.
"""
