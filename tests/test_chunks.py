"""Chunks by id: read, received from elsewhere, deleted; and what an index makes of tombstones."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
from blake3 import blake3

from manifests.errors import ChunkInUse, NotFound, Unreadable, UsageError, WrongChunk
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.metrics.meters import Count
from pipeline.objects.refs import Chunk, IndexStats

Make = Callable[..., FileStore]
INLINE = IngestOptions(inline=True, workers=1)


def chunk_of(data: bytes) -> Chunk:
    return Chunk(blake3(data).digest(), data)


def test_a_chunk_is_stored_once_and_read_whole_and_by_ranges(make_store: Make, tmp_path: Path) -> None:
    store, chunk = make_store(), chunk_of(os.urandom(10_000))
    assert store.write_chunk(chunk.chunk_id, chunk.data)
    records = len(store.log.records)
    assert not store.write_chunk(chunk.chunk_id.hex(), memoryview(chunk.data))
    assert len(store.log.records) == records
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as again:
        assert again.get_chunk(chunk.chunk_id).read() == again.get_chunk_data(chunk.chunk_id.hex()) == chunk.data
        for offset, length in ((0, 0), (5, 10), (9_990, 100), (10_000, 1), (20_000, 5)):
            wanted = chunk.data[offset : offset + length]
            assert again.get_chunk_data_range(chunk.chunk_id, offset, length) == wanted
            assert again.get_chunk_range(chunk.chunk_id, offset, length).read() == wanted
        info = again.get_chunk_info(chunk.chunk_id)
        assert (info.chunk_id, info.length) == (chunk.chunk_id, 10_000)
        assert again.get_ec_group(info.pack_id).can_recover
        with pytest.raises(UsageError):
            again.get_chunk_data_range(chunk.chunk_id, -1, 1)


def test_a_received_chunk_serves_objects(make_store: Make) -> None:
    store, data = make_store(), os.urandom(900)
    store.write_chunk(blake3(data).digest(), data)
    before = store.get_index_stats()
    store.put_object("key", io.BytesIO(data))
    assert store.get_index_stats() == before and store.get_object_data("key").read() == data


def test_chunks_longer_than_a_slot_are_received(make_store: Make) -> None:
    store = make_store(pack_size=1 << 20)
    chunks = [chunk_of(os.urandom(size)) for size in (16 << 20, 1, 5 << 20, 300)]
    assert store.write_chunks(chunks) == 4
    for chunk in chunks:
        assert store.get_chunk_data(chunk.chunk_id) == chunk.data
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_chunks_that_are_not_what_they_say_are_refused_with_all_that_came_along(make_store: Make) -> None:
    store, good = make_store(), chunk_of(b"good")
    with pytest.raises(WrongChunk):
        store.write_chunks([good, Chunk(good.chunk_id, b"evil")])
    with pytest.raises(NotFound):
        store.get_chunk(good.chunk_id)
    for chunk in (Chunk(b"short", b"x"), chunk_of(b""), chunk_of(bytes((16 << 20) + 1))):
        with pytest.raises(UsageError):
            store.write_chunks([chunk])
    for name in ("xyz", "00", b"1", 32, None):
        with pytest.raises(UsageError):
            store.get_chunk(name)  # type: ignore[arg-type]
    for data in (5, "text", None):
        with pytest.raises(UsageError):
            store.write_chunk(blake3(bytes(5)).digest(), data)  # type: ignore[arg-type]
    assert store.write_chunks([good, good]) == 1


def test_a_preferred_backend_gets_a_shard(make_store: Make, tmp_path: Path) -> None:
    store = make_store(scheme="2+1")
    for number in range(3, 9):
        store.add_backend(tmp_path / "more" / str(number))
    wanted = store.list_backends()[6]
    for _ in range(4):
        chunk = chunk_of(os.urandom(500))
        store.write_chunk(chunk.chunk_id, chunk.data, wanted.id)
        group = store.get_ec_group(store.get_chunk_info(chunk.chunk_id).pack_id)
        assert wanted.id in {shard.backend for shard in group.shards}
    with pytest.raises(NotFound):
        store.write_chunk(chunk.chunk_id, chunk.data, "nowhere")


def test_chunks_are_those_that_duckdb_finds_in_the_manifests(make_store: Make, tmp_path: Path) -> None:
    store = make_store()
    (tmp_path / "file").write_bytes(os.urandom(90_000))
    store.ingest([str(tmp_path / "file")], options=INLINE)
    chunks = [chunk_of(os.urandom(size)) for size in (1, 700, 5000)]
    store.write_chunks(chunks)
    for _ in range(2):
        store.delete_chunk(chunks[1].chunk_id)
        store.write_chunk(chunks[1].chunk_id, chunks[1].data)
    store.delete_chunk(chunks[2].chunk_id)
    manifests = tmp_path / "store" / "backend-4" / "manifests"
    wanted = duckdb.sql(f"""
        SELECT DISTINCT chunk_id, pack_id, block, "offset", length FROM '{manifests}/chunks/*.parquet'
        ANTI JOIN '{manifests}/tombstones/*.parquet' USING (chunk_id, pack_id)
    """).fetchall()
    found = [tuple(row.values()) for batch in store.iterate_chunks() for row in batch.to_pylist()]
    assert sorted(found) == sorted(wanted)
    assert store.get_index_stats() == IndexStats(len(wanted), sum(row[-1] for row in wanted))
    assert {chunks[0].chunk_id, chunks[1].chunk_id} < {row[0] for row in wanted}


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_unchanged_files_are_read_again_where_a_chunk_of_them_was_deleted(
    make_store: Make, tmp_path: Path, kind: str
) -> None:
    store, data = make_store(index=kind), os.urandom(50_000)
    (tmp_path / "tree").mkdir()
    for name, content in (("large", data), ("small", b"small")):
        (tmp_path / "tree" / name).write_bytes(content)
        os.utime(tmp_path / "tree" / name, (1, 1))
    time.sleep(2.1)  # files that were just made are not taken for unchanged
    for unchanged in (0, 2):
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).tally.unchanged == unchanged
    store.catalog.use("extents")
    part = next(store.catalog.tuples('SELECT chunk_id FROM extents ORDER BY "offset"'))[0]
    for name in (part, blake3(b"small").digest()):
        with pytest.raises(ChunkInUse):
            store.delete_chunk(name)
        store.delete_chunk(name, force=True)
    store.rebuild_index()
    assert store.ingest([str(tmp_path / "tree")], options=INLINE).tally.unchanged == 0
    for run in store.runs():
        assert b"".join(store.open_range(f"{run.run_id}:tree/large")) == data
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_deleted_chunk_stays_deleted_and_can_be_stored_again(make_store: Make, tmp_path: Path, kind: str) -> None:
    store, data = make_store(index=kind), os.urandom(900)
    name = blake3(data).digest()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(os.urandom(3000))
    store.ingest([str(tmp_path / "tree")], options=INLINE)  # the index of kind disk is there, and older
    store.write_chunk(name, data)
    store.put_object("other", io.BytesIO(b"other"))
    store.delete_chunk(name)
    for _ in range(2):
        for read in (store.get_chunk, store.get_chunk_data, store.get_chunk_info, store.delete_chunk):
            with pytest.raises(NotFound):
                read(name)
        assert name not in {each for batch in store.iterate_chunks() for each in batch["chunk_id"].to_pylist()}
        store.rebuild_index()
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    (tmp_path / "tree" / "again").write_bytes(data)
    assert store.ingest([str(tmp_path / "tree")], options=INLINE).tally.new_bytes == 900
    assert store.get_chunk_data(name) == data
    assert b"".join(store.open_range("latest:tree/again")) == data
    assert store.rebuild_index("disk" if kind == "memory" else "memory").kind != kind
    assert not store.write_chunk(name, data)
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_a_chunk_in_use_is_deleted_by_force_alone_and_then_its_objects_are_lost(make_store: Make) -> None:
    store = make_store()
    small, large = os.urandom(500), os.urandom(100_000)
    store.put_object("small", io.BytesIO(small))
    store.put_object("large", io.BytesIO(large))
    store.catalog.use("extents")
    part = next(store.catalog.tuples('SELECT chunk_id FROM extents ORDER BY "offset"'))[0]
    for name in (blake3(small).digest(), part):
        with pytest.raises(ChunkInUse):
            store.delete_chunk(name)
    store.delete_object("small")
    store.delete_chunk(blake3(small).digest())
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0
    assert store.get_object_data("large").read() == large
    store.delete_chunk(part, force=True)
    with pytest.raises(Unreadable):
        store.get_object_data("large").read()
    assert store.verify(data=True, inline=True, workers=1).exit_code == 3
    store.put_object("large again", io.BytesIO(large))
    assert store.get_object_data("large").read() == large  # what was stored again is there again
    assert store.verify(data=True, inline=True, workers=1).exit_code == 0


def test_statistics_are_right_whatever_was_done_before_and_after_they_were_asked_for(
    make_store: Make, tmp_path: Path
) -> None:
    store = make_store()
    assert store.get_index_stats().to_json() == {"total_chunks": 0, "total_bytes": 0}

    def agree() -> IndexStats:
        kept = store.get_index_stats()
        with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as fresh:
            assert fresh.get_index_stats() == kept
        rows = [row for batch in store.iterate_chunks() for row in batch.to_pylist()]
        assert kept == IndexStats(len(rows), sum(row["length"] for row in rows))
        assert store.figures.held is not None and kept == IndexStats(*store.figures.held)
        return kept

    store.put_object("key", io.BytesIO(os.urandom(60_000)))
    assert agree().total_bytes == 60_000
    chunk = chunk_of(b"a chunk")
    store.write_chunk(chunk.chunk_id, chunk.data)
    assert agree().total_bytes == 60_007
    store.delete_chunk(chunk.chunk_id)
    assert agree().total_bytes == 60_000
    words = store.figures.sums().words
    assert (words[Count.RECEIVED], words[Count.DELETED]) == (1, 1) and words[Count.CREATED] == agree().total_chunks
    (tmp_path / "file").write_bytes(b"a chunk")
    store.ingest([str(tmp_path / "file")], options=INLINE)
    assert agree().total_bytes == 60_007
