"""How DuckDB plans: no query of a restore compares every row of a table with every row of another."""

from __future__ import annotations

import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from manifests.catalog import Catalog
from manifests.copies import OtherPlaces
from manifests.ids import new_id
from manifests.log import make_record, write_record
from manifests.longfields import LongFields
from manifests.plan import RestorePlan
from manifests.tables import TableWriter, constant_id, file_name
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from stages.assemble import ByteRange

INLINE = IngestOptions(inline=True, workers=1)


WORDS = ("nested loop", "nested_loop", "cross product", "cross_product", "piecewise", "iejoin")


class Plans:
    """What DuckDB says of how it will run the queries that a catalog gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._found: list[tuple[str, str]] = []
        batches, execute = Catalog.batches, Catalog.execute

        def noted_batches(catalog: Catalog, query: str, parameters: Any = None) -> Iterator[Any]:
            self._explain(catalog, query, parameters)
            return batches(catalog, query, parameters)

        def noted_execute(catalog: Catalog, query: str, parameters: Any = None) -> None:
            if re.search(r"\sAS\s+(SELECT|WITH)\s", query):
                self._explain(catalog, query, parameters)
            execute(catalog, query, parameters)

        monkeypatch.setattr(Catalog, "batches", noted_batches)
        monkeypatch.setattr(Catalog, "execute", noted_execute)

    def _explain(self, catalog: Catalog, query: str, parameters: Any) -> None:
        with catalog.connection.cursor() as cursor:
            self._found.append((query, str(cursor.execute(f"EXPLAIN {query}", parameters or []).fetchall())))

    def require_hash_joins(self, least: int) -> None:
        assert len(self._found) >= least
        for query, plan in self._found:
            for word in WORDS:
                assert word not in plan.lower(), f"{word} in the plan of: {query}"


def test_of_a_small_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        folder = tmp_path / "tree" / f"dir{number % 40}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{number}").write_bytes(b"%d " % number * 50)
    (tmp_path / "tree" / "large").write_bytes(b"".join(b"%d " % number for number in range(400_000)))
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
        plans = Plans(monkeypatch)
        request = RestoreRequest("", inline=True, workers=1)
        assert store.restore("latest", tmp_path / "out", request=request).exit_code == 0
        assert sum(map(len, store.open_range("latest:tree/large", ByteRange(0, 999_999)))) == 1_000_000
        assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    plans.require_hash_joins(15)


OBJECTS, BLOCK_CHUNKS, PACK_BLOCKS = 80_000, 230, 60
ZEROS = ("uid", "gid", "mtime_ns", "device", "inode", "links")


def write_manifests(store: FileStore) -> uuid.UUID:
    """Manifests of a run of as many files as a source tree has, without any shards: enough to plan with."""
    ids = np.random.default_rng(1).integers(0, 256, (OBJECTS, 32), np.uint8)
    numbers = np.arange(OBJECTS)
    blocks = int(numbers[-1]) // BLOCK_CHUNKS + 1
    lengths = np.random.default_rng(2).integers(1, 32_000, OBJECTS)
    starts = (np.cumsum(lengths) - lengths)[::BLOCK_CHUNKS]
    run_id = new_id(store.state.newest)
    packs = [new_id(run_id) for _ in range(blocks // PACK_BLOCKS + 1)]
    pack_of = np.array([np.frombuffer(pack.bytes, "V16")[0] for pack in packs])
    order = np.lexsort(ids.T[::-1])
    block = numbers // BLOCK_CHUNKS
    tables: dict[str, dict[str, Any]] = {
        "objects": {
            "run": constant_id(run_id, OBJECTS),
            "row": numbers,
            "path": pa.array([b"tree/dir%d/file%d" % (number // 20, number) for number in range(OBJECTS)]),
            "kind": pa.DictionaryArray.from_arrays(pa.array(np.zeros(OBJECTS, np.int8)), pa.array(["file"])),
            "size": lengths,
            "content_kind": np.ones(OBJECTS, np.uint8),
            **{name: pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), OBJECTS, [None, pa.py_buffer(ids.tobytes())])
               for name in ("content_id", "digest")},
            "mode": np.full(OBJECTS, stat.S_IFREG | 0o644),
            **{name: np.zeros(OBJECTS, np.int64) for name in ZEROS},
        },
        "chunks": {
            "chunk_id": ids[order],
            "pack_id": pack_of[block // PACK_BLOCKS][order],
            "block": (block % PACK_BLOCKS)[order],
            "offset": (np.cumsum(lengths) - lengths - np.repeat(starts, BLOCK_CHUNKS)[:OBJECTS])[order],
            "length": lengths[order],
        },
        "blocks": {
            "pack_id": pack_of[np.arange(blocks) // PACK_BLOCKS],
            "block": np.arange(blocks) % PACK_BLOCKS,
            "offset": np.arange(blocks) % PACK_BLOCKS * 500_000,
            "stored": np.full(blocks, 500_000),
            "raw": np.add.reduceat(lengths, np.arange(0, OBJECTS, BLOCK_CHUNKS)),
            "codec": np.full(blocks, 2),
        },
        "packs": {
            "pack_id": pack_of,
            **{name: np.full(len(packs), value) for name, value in
               {"kind": 1, "k": 4, "m": 2, "payload": 31 << 20, "shard_length": 31 << 18}.items()},
        },
    }  # fmt: skip
    files = []
    for table, columns in tables.items():
        writer = TableWriter(table)
        writer.append(columns)
        files.append(writer.publish(store.members, file_name(run_id, 0)))
    write_record(store.members, make_record(run_id, "ingest", {"run": {}}, files))
    return run_id


def test_of_a_large_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as made:
        run_id = write_manifests(made)
    plans = Plans(monkeypatch)
    with (
        FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store,
        LongFields() as fields,
        OtherPlaces() as others,
    ):
        plan = RestorePlan(store.catalog, run_id, b"", fields)
        plan.locate(others)
        assert sum(len(batch.rows) for batch in plan.blocks()) == OBJECTS
        assert not list(plan.missing())
    plans.require_hash_joins(6)
