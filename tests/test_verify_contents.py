"""verify --data reads whole contents in order, and compares them with the digests that were recorded of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from manifests.contents import ContentsPlan
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.verify.run import VerifyResult
from stages.compress import Decoder
from tests.test_fixity import store_of_wrong_digests
from tests.trees import make_tree

MakeStore = Callable[..., FileStore]
SIZES = {"empty": 0, "one-chunk": 900, "one-block": 90_000, "many": 2_500_000}


def verify(store: FileStore, inline: bool = True, workers: int = 1) -> VerifyResult:
    return store.verify(data=True, inline=inline, workers=workers)


def wrong_names(result: VerifyResult) -> set[str]:
    assert result.wrong_object_count == len(result.wrong_objects)
    return {os.path.basename(path).decode() for _, path in result.wrong_objects}


@pytest.mark.parametrize("large", [2048, 10])
@pytest.mark.parametrize("wrong", ["BLAKE3", "SHA-256"])
def test_a_wrong_digest_is_found_and_its_objects_named(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, large: int
) -> None:
    monkeypatch.setattr("manifests.contents.LARGE", large)
    monkeypatch.setattr("pipeline.verify.contents.TASK_ROWS", large)
    store = store_of_wrong_digests(make_store, monkeypatch, tmp_path / "tree", SIZES, wrong)
    bad = {"one-block", "many"} if wrong == "BLAKE3" else set(SIZES)
    result = verify(store)
    assert (result.exit_code, wrong_names(result), result.lost_object_count) == (3, bad, 0)
    # The same contents archived as they are: only the first run's objects are wrong.
    store.ingest([str(tmp_path / "tree")], options=IngestOptions(inline=True, digests=("sha256",)))
    result = verify(store)
    assert (result.exit_code, wrong_names(result)) == (3, bad)
    assert {run for run, _ in result.wrong_objects} == {store.runs()[0].run_id}


@pytest.mark.parametrize("workers", [1, 3])
def test_all_contents_are_read_by_workers(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("manifests.contents.LARGE", 200)
    tree = make_tree(tmp_path / "tree", 3, 40, largest=2_000_000)
    for number in range(4):
        (tree / f"large{number}").write_bytes(os.urandom(3_000_000))
    store = make_store(pack_size=1 << 20)
    # Without and with more digests: a content is read once for both.
    store.ingest([str(tree)], options=IngestOptions(inline=True))
    store.ingest([str(tree)], options=IngestOptions(inline=True, digests=("md5", "sha512")))
    assert verify(store, inline=False, workers=workers).exit_code == 0
    plan = ContentsPlan(store.catalog)
    contents = [batch.rows for batch in plan.small()]
    assert len(list(plan.large())) >= 4
    numbers = np.concatenate([np.unique(rows["content"]) for rows in contents])
    assert len(numbers) == len(set(numbers.tolist())) > 20


def test_each_block_of_a_large_content_is_decompressed_once(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "large").write_bytes(os.urandom(3_000_000))
    store = make_store(pack_size=1 << 20)
    store.ingest([str(tmp_path / "large")], options=IngestOptions(inline=True))
    decoded: list[int] = []
    decode = Decoder.decode
    monkeypatch.setattr(Decoder, "decode", lambda self, *more: (decoded.append(1), decode(self, *more))[1])
    assert verify(store).exit_code == 0
    ((packs, blocks),) = store.catalog.connection.execute("SELECT count(*), sum(blocks) FROM packs").fetchall()
    # Once with its pack, once with its content; and each directory.
    assert len(decoded) == packs + 2 * blocks


@pytest.mark.parametrize(
    "change",
    [
        'UPDATE extents SET "offset" = "offset" + 1 WHERE "offset" > 0',
        ('DELETE FROM extents WHERE "offset" = (SELECT max("offset") FROM extents)'),
        "UPDATE extents SET chunk_id = (SELECT min(chunk_id) FROM extents)",
    ],
)
def test_extents_that_are_not_those_of_their_content_are_found(
    make_store: MakeStore, tmp_path: Path, change: str
) -> None:
    (tmp_path / "file").write_bytes(os.urandom(90_000))
    store = make_store()
    store.ingest([str(tmp_path / "file")], options=IngestOptions(inline=True))
    store.catalog.use("extents")
    execute = store.catalog.connection.execute
    execute("CREATE TABLE other AS SELECT * FROM extents")
    execute("DROP VIEW extents")
    execute("ALTER TABLE other RENAME TO extents")
    execute(change)
    result = verify(store)
    assert (result.exit_code, wrong_names(result)) == (3, {"file"})


def test_a_lost_content_is_named_as_lost_only(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(90_000))
    store = make_store(scheme="1+0")
    store.ingest([str(tmp_path / "file")], options=IngestOptions(inline=True))
    (pack,) = (tmp_path / "store" / "backend-0" / "packs").rglob("*.0")
    pack.unlink()
    result = verify(store)
    assert (result.exit_code, result.lost_object_count, result.wrong_objects) == (3, 1, [])


def test_manifests_and_directories_tell_the_same_until_a_row_differs(make_store: MakeStore, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree", 2, 40, largest=500_000)
    store = make_store(pack_size=1 << 20)
    store.ingest([str(tmp_path / "tree")], options=IngestOptions(inline=True))
    assert verify(store).damaged_shards == []
    execute = store.catalog.connection.execute
    for table, column in (("chunks", "block"), ("chunks", "length"), ("blocks", "stored"), ("blocks", "codec")):
        store.catalog.use(table)
        view = str(execute(f"SELECT sql FROM duckdb_views() WHERE view_name = '{table}'").fetchall()[0][0])
        execute(f"CREATE TABLE other AS SELECT * FROM {table}")
        execute(f'UPDATE other SET "{column}" = "{column}" + 1 WHERE rowid = 0')
        execute(f"DROP VIEW {table}")
        execute(f"CREATE VIEW {table} AS SELECT * FROM other")
        result = verify(store)
        assert (result.mislisted_packs, len(result.damaged_shards)) == (1, 1)
        # One byte more behind a block does no harm.
        assert result.exit_code == (4 if column == "stored" else 3)
        execute(f"DROP VIEW {table}")
        execute(view)
        execute("DROP TABLE other")
    assert verify(store).damaged_shards == []
