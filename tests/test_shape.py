"""How many workers of each kind an ingest has: from the cores, the memory, and what the last like run saw."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from manifests.config import ChunkerSpec, CodecSpec, ECScheme, StoreConfig
from manifests.errors import UsageError
from manifests.log import Run
from manifests.objectrows import ObjectRows
from pipeline.budget import available_cores
from pipeline.filestore import FileStore
from pipeline.ingest.mix import observed_mix
from pipeline.ingest.run import IngestOptions
from pipeline.ingest.scan import portions
from pipeline.topology import Mix, ingest_shape

CONFIG = StoreConfig(uuid.UUID(int=1), 0, ECScheme(), ChunkerSpec(), CodecSpec(), 32 << 20)


def run_of(host: str, codec: str, **busy: float) -> Run:
    return Run(uuid.UUID(int=7), "", {"host": host, "compression": codec, "busy": busy})


def test_two_readers_and_one_writer_on_two_cores_more_where_there_are_many() -> None:
    small, large = (ingest_shape(CONFIG, cores, 64 << 30, None) for cores in (2, 64))
    assert (small.readers, small.compressors, small.writers) == (2, 2, 1)
    assert (large.readers, large.compressors, large.writers) == (16, 64, 4)


def test_a_stage_that_was_slow_gets_more_workers() -> None:
    runs = [
        run_of("here", "zstd:3", read=1, chunk=3, compress=8, encode=1, write=1),
        run_of("there", "zstd:3", read=9, chunk=9, compress=9, encode=9, write=9),
        run_of("here", "lz4", read=9, chunk=9, compress=9, encode=9, write=9),
        run_of("here", "zstd:3", read=1, chunk=1, compress=0.1, encode=1, write=1),
        Run(uuid.UUID(int=8), "", {"host": "here"}),
    ]
    mix = observed_mix(runs, "here", "zstd:3")
    assert mix == Mix(0.5, 0.25)
    shape = ingest_shape(CONFIG, 16, 64 << 30, None, mix)
    assert (shape.readers, shape.compressors, shape.writers) == (8, 16, 4)
    assert observed_mix(runs, "elsewhere", "zstd:3") is None
    assert Mix(9.0, 0.0).of(4) == (4, 1)


def test_little_memory_costs_readers_before_compressors() -> None:
    least = ingest_shape(CONFIG, 1, 64 << 30, 1).memory
    shape = ingest_shape(CONFIG, 8, 900 << 20, None, Mix(1.0, 1.0))
    assert shape.memory <= 900 << 20 and shape.compressors == 8 and shape.readers == 1
    with pytest.raises(UsageError, match="at least"):
        ingest_shape(CONFIG, 8, least // 2, None)


def test_who_has_more_cores_than_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(b"some")
    monkeypatch.setattr("pipeline.ingest.run.available_cores", lambda: 64)
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        options = IngestOptions(inline=True, memory=600 << 20)
        short = store.ingest([str(tmp_path / "source")], options=options)
        assert 4 < short.compressors < 64 and short.memory_wanted > 1 << 30
        asked = store.ingest([str(tmp_path / "source")], options=replace(options, workers=2))
        assert (asked.compressors, asked.memory_wanted) == (2, 0)


def test_large_neighbours_go_to_several_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, length in enumerate([300_000, 10, 200_000, 0, 90_000, 90_000, 90_000, 700_000]):
        (source / f"file {number}").write_bytes(os.urandom(length))
    rows = ObjectRows()
    rows.add_files([b"file"] * 4, 0, [os.stat(source / f"file {number}") for number in (0, 1, 2, 7)], (0, 0))
    monkeypatch.setattr("pipeline.ingest.scan.PORTION", 256_000)
    parts = [part for batch in rows.batches(everything=True) for part in portions(batch)]
    assert [part.rows["size"].tolist() for part in parts] == [[300_000, 10, 200_000], [700_000]]
    assert [path for part in parts for path in part.all_bytes("path")] == [b"file"] * 4
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        monkeypatch.setattr("pipeline.ingest.run.available_cores", lambda: 2)
        result = store.ingest([str(source)], options=IngestOptions(inline=True))
        assert next(figures.workers for figures in result.stages if figures.stage == "chunk") == 2
        assert [info.size for info in store.list("latest", recursive=True) if info.kind == "file"] == [
            300_000, 10, 200_000, 0, 90_000, 90_000, 90_000, 700_000,
        ]  # fmt: skip


def test_only_the_cores_that_a_process_may_use_count() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_run_notes_how_busy_its_stages_were(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(os.urandom(3 << 20))
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        store.ingest([str(tmp_path / "source")])
        summary = store.run().summary
    assert summary["compression"] == "zstd:3"
    assert summary["busy"]["compress"] > 0 and summary["busy"]["read"] > 0
