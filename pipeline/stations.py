"""All stations that workers run: the fork server imports this once, so that a worker starts with everything loaded."""

from __future__ import annotations

from pipeline.ingest.compress import compress_station
from pipeline.ingest.dedupe import dedupe_station
from pipeline.ingest.read import read_station
from pipeline.ingest.scan import scan_station
from pipeline.ingest.write import write_station
from pipeline.restore.work import restore_station
from pipeline.verify.hashing import hash_station
from pipeline.verify.work import verify_station

__all__ = [
    "compress_station",
    "dedupe_station",
    "hash_station",
    "read_station",
    "restore_station",
    "scan_station",
    "verify_station",
    "write_station",
]
