"""What manifests cost, on a real tree: the standard library of the Python that runs this."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions, IngestResult
from stages.select import SelectOptions

#: Bytes of `chunks` and `extents` for each new chunk, and of `objects` for each unchanged object of a later run.
NEW_CHUNK, UNCHANGED_OBJECT = 85, 60


def cost(store: FileStore, result: IngestResult, *tables: str) -> int:
    """Bytes that a run's manifests take in some tables, on one backend."""
    adds = next(record for record in store.log.records.values() if record.record_id == result.run_id).adds()
    return sum(file.size for file in adds if file.table in tables)


def test_manifests_cost_few_bytes(
    make_store: Callable[..., FileStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.ingest.read.QUIET_NS", -4 * 10**18)
    store = make_store(chunker="fastcdc:16KiB", pack_size=32 << 20)
    options = IngestOptions(inline=True, select=SelectOptions(patterns=("*", "!*/", "!*.py", "site-packages/")))
    first, second = (store.ingest([sysconfig.get_paths()["stdlib"]], options=options) for _ in range(2))
    assert first.tally.new_chunks > 1000
    assert cost(store, first, "chunks", "extents") / first.tally.new_chunks <= NEW_CHUNK
    assert second.tally.unchanged == second.tally.files > 500
    objects = second.tally.files + second.tally.directories + second.tally.others
    assert cost(store, second, "objects") / objects <= UNCHANGED_OBJECT
    assert sum(file.size for file in store.state.files("extents")) == cost(store, first, "extents")


def test_a_digest_is_there_though_it_is_not_written(make_store: Callable[..., FileStore], tmp_path: Path) -> None:
    """A digest that is the content id is written once; who asks for it gets it."""
    store = make_store()
    (tmp_path / "file").write_bytes(b"one chunk")
    store.ingest([str(tmp_path / "file")], options=IngestOptions(inline=True))
    store.catalog.use("objects")
    row = store.catalog.one("SELECT digest, content_id FROM objects")
    assert row["digest"] == row["content_id"] is not None
    (path,) = store.replicas.paths(store.state.files("objects"))
    assert store.catalog.one(f"SELECT digest FROM read_parquet('{path}')")["digest"] is None
    assert [digest for _, digest in store.digests("latest:file")] == [row["content_id"]]
