"""A whole store on memory backends, inline in one process: no directory takes part, so whatever went past the
interface would show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.config import ChunkerSpec
from manifests.errors import DrystoneError, NotFound
from manifests.memory import PLACES
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    yield f"memory:/{tmp_path.name}"
    for location in [each for each in PLACES if each.startswith(f"/{tmp_path.name}")]:
        del PLACES[location]


def test_a_store_lives_in_memory_and_survives_m_losses(place: str, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 3, 30)
    with FileStore.create([place], chunker=ChunkerSpec("fastcdc", 4096), cache=tmp_path / "cache") as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    for lost in (1, 4):
        PLACES[f"{place.removeprefix('memory:')}/backend-{lost}"].files.clear()
    with FileStore.open(place, cache=tmp_path / "cache") as store:
        assert [info.number for info in store.members.absent()] == [1, 4]
        assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
        assert store.ingest([str(tree)], options=INLINE).tally.new_chunks == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")


def test_it_opens_from_one_backend_and_is_whole(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in memory only")
    with FileStore.create([place], cache=tmp_path / "cache") as store:
        store.ingest([str(tmp_path / "file")], options=INLINE)
    with FileStore.open(f"{place}/backend-3", cache=tmp_path / "cache") as store:
        assert not store.members.absent()
        assert store.verify(data=True, inline=True, workers=1).exit_code == 0
        assert b"".join(store.open_range("latest:file")) == b"in memory only"


def test_workers_of_other_processes_fail_aloud_and_nothing_is_committed(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    with FileStore.create([place], cache=tmp_path / "cache") as store:
        with pytest.raises(DrystoneError, match="inline only"):
            store.ingest([str(tmp_path / "file")], options=IngestOptions(workers=1))
        assert store.runs() == []


def test_where_nothing_was_made_there_is_no_store(place: str) -> None:
    with pytest.raises(NotFound):
        FileStore.open(place)
