"""A backend joins while others write: whoever comes second gives it what the other one can't know of."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.filestore as filestore
import pipeline.ingest.run as ingest_run
from manifests import joined, scrubs, tombstones
from manifests import log as storelog
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.objects import batch
from tests.sampling import one_in
from tests.trees import make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]
#: How to write a record, and the module that makes it.
WRITES: dict[str, tuple[object, Callable[[FileStore, Path], object]]] = {
    "ingest": (ingest_run, lambda store, tree: store.ingest([str(tree)], options=INLINE)),
    "put": (batch, lambda store, tree: store.put_object("key", io.BytesIO(b"stone"))),
    "delete": (tombstones, lambda store, tree: store.delete_object("first")),
    "chunk": (tombstones, lambda store, tree: store.delete_chunk(store_chunk(store), force=True)),
    "verify": (scrubs, lambda store, tree: store.verify(inline=True)),
    "index": (storelog, lambda store, tree: store.rebuild_index("disk")),
}


def store_chunk(store: FileStore) -> bytes:
    return bytes(next(iter(store.iterate_chunks())).column("chunk_id")[0].as_py())


def require_complete(place: Path, new: Path, cache: Path) -> None:
    """Each backend holds the same records and manifest files."""

    def held(backend: Path) -> set[str]:
        return {
            str(path.relative_to(backend))
            for folder in ("log", "manifests")
            for path in (backend / folder).rglob("*")
            if path.is_file()
        }

    assert held(new) == held(place / "backend-0") == held(place / "backend-5")
    with FileStore.open(place, cache=cache) as store:
        assert len(store.members.present) == 7
        assert [share.lacking for share in store.status().backends] == [0] * 7


@pytest.fixture
def stores(make_store: MakeStore, tmp_path: Path) -> tuple[FileStore, FileStore]:
    """A store, opened twice."""
    one = make_store()
    one.put_object("first", io.BytesIO(b"pebble"))
    return one, FileStore.open(tmp_path / "store", cache=tmp_path / "cache-2")


@pytest.mark.parametrize("write", one_in(2, WRITES))
def test_a_backend_that_joins_before_a_record_is_written_gets_it(
    stores: tuple[FileStore, FileStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    one, other = stores
    module, use = WRITES[write]
    real = storelog.write_record

    def join_first(*arguments: object) -> int:
        monkeypatch.setattr(module, "write_record", real)
        other.add_backend(tmp_path / "new")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "write_record", join_first)
    with other:
        use(one, make_tree(tmp_path / "tree", 3, 8))
    require_complete(tmp_path / "store", tmp_path / "new", tmp_path / "cache-3")
    assert not one.notices
    one.put_object("last", io.BytesIO(b"sand"))
    assert len(one.members.all) == 7
    require_complete(tmp_path / "store", tmp_path / "new", tmp_path / "cache-3")


@pytest.mark.parametrize("write", one_in(2, WRITES))
def test_a_backend_gets_what_is_recorded_while_it_joins(
    stores: tuple[FileStore, FileStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    one, other = stores
    real = filestore.join

    def write_meanwhile(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            # It looked before the backend was there.
            patch.setattr(joined, "backend_records", lambda members: [])
            WRITES[write][1](other, make_tree(tmp_path / "tree", 3, 8))

    with monkeypatch.context() as patch, other:
        patch.setattr(filestore, "join", write_meanwhile)
        one.add_backend(tmp_path / "new")
    require_complete(tmp_path / "store", tmp_path / "new", tmp_path / "cache-3")


def test_a_backend_that_can_not_be_reached_is_named(
    stores: tuple[FileStore, FileStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = stores
    real = storelog.write_record

    def join_first(*arguments: object) -> int:
        monkeypatch.setattr(ingest_run, "write_record", real)
        other.add_backend(tmp_path / "new")
        (tmp_path / "new").rename(tmp_path / "away")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest_run, "write_record", join_first)
    with other:
        result = one.ingest([str(make_tree(tmp_path / "tree", 3, 8))], options=INLINE)
    assert result.exit_code == 3
    assert [each for each in result.lost_backends if f"{tmp_path / 'new'} joined meanwhile" in each]
    (tmp_path / "away").rename(tmp_path / "new")
    one.add_backend(tmp_path / "new")
    require_complete(tmp_path / "store", tmp_path / "new", tmp_path / "cache-3")


def test_commands_at_once(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([COMMAND, "-s", str(tmp_path / "store"), *arguments])

    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        assert store.members.count == 6
    tree = str(make_tree(tmp_path / "tree", 5, 60, 200_000))
    ingest = run("ingest", tree, "-q")
    limit = time.monotonic() + 60
    while not list(tmp_path.glob("store/backend-0/inflight/*/marker.json")) and time.monotonic() < limit:
        time.sleep(0.01)
    add = run("backend", "add", str(tmp_path / "new"))
    assert (add.wait(120), ingest.wait(120)) == (0, 0)
    require_complete(tmp_path / "store", tmp_path / "new", tmp_path / "cache-3")
