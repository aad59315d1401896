"""verify --data reads whole contents in order, and compares them with the digests that were recorded of them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from manifests import format as fmt
from manifests.contents import ContentsPlan
from manifests.copies import OtherPlaces
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.topology import VerifyShape
from pipeline.verify.run import VerifyResult
from stages.compress import Decoder
from tests.sampling import one_in
from tests.test_fixity import store_of_wrong_digests
from tests.trees import make_tree

MakeStore = Callable[..., FileStore]
SIZES = {"empty": 0, "one-chunk": 900, "one-block": 90_000, "many": 2_500_000}


def verify(store: FileStore, inline: bool = True, workers: int = 1) -> VerifyResult:
    return store.verify(data=True, inline=inline, workers=workers)


def wrong_names(result: VerifyResult) -> set[str]:
    assert result.wrong_object_count == len(result.wrong_objects)
    return {os.path.basename(path).decode() for _, path in result.wrong_objects}


@pytest.mark.parametrize("large", one_in(2, [2048, 10]))
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


def several_hashers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerifyShape, "hashers", 2)
    monkeypatch.setattr("manifests.contents.GROUP_ROWS", 300)


@pytest.mark.parametrize("workers", [1, 3])
def test_all_contents_are_read_by_workers(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("manifests.contents.LARGE", 200)
    monkeypatch.setattr("pipeline.verify.contents.SLICE_BYTES", 400_000)
    several_hashers(monkeypatch)
    tree = make_tree(tmp_path / "tree", 3, 40, largest=2_000_000)
    for number in range(4):
        (tree / f"large{number}").write_bytes(os.urandom(3_000_000))
    store = make_store(pack_size=1 << 20)
    # Without and with more digests: a content is read once for both.
    store.ingest([str(tree)], options=IngestOptions(inline=True))
    store.ingest([str(tree)], options=IngestOptions(inline=True, digests=("md5", "sha512")))
    assert verify(store, inline=False, workers=workers).exit_code == 0
    with OtherPlaces() as others:
        plan = ContentsPlan(store.catalog, others)
    contents = [batch.rows for batch in plan.small()]
    assert len(list(plan.large())) >= 4
    numbers = np.concatenate([np.unique(rows["content"]) for rows in contents])
    assert len(numbers) == len(set(numbers.tolist())) > 20


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the length of each block that is decompressed from now on."""
    decoded: list[int] = []
    decode, decode_into = Decoder.decode, Decoder.decode_into

    def noted(method: Callable[..., memoryview | None]) -> Callable[..., memoryview | None]:
        def call(self: Decoder, codec: int, stored: bytes, length: int, *more: memoryview) -> memoryview | None:
            # What is not compressed goes from decode_into to decode.
            if method is decode or codec == fmt.CODEC_ZSTD:
                decoded.append(length)
            return method(self, codec, stored, length, *more)

        return call

    monkeypatch.setattr(Decoder, "decode", noted(decode))
    monkeypatch.setattr(Decoder, "decode_into", noted(decode_into))
    return decoded


def decoded_and_expected(store: FileStore, decoded: list[int]) -> tuple[list[int], list[int]]:
    """Lengths of what one verification decompressed, and those of each block and directory of the store."""
    decoded.clear()
    assert verify(store).exit_code == 0
    found = sorted(decoded)
    store.catalog.use("packs", "blocks")
    rows = store.catalog.rows("SELECT raw FROM blocks UNION ALL SELECT directory_raw FROM packs")
    return found, sorted(row["raw"] for row in rows)


def half_noise(size: int, seed: int) -> bytes:
    """Bytes that shrink, and hold no chunk twice."""
    return b"".join(bytes(100) + piece for piece in batched_noise(size, seed))


def batched_noise(size: int, seed: int) -> Iterator[bytes]:
    noise = random.Random(seed)
    return (noise.randbytes(100) for _ in range(size // 200))


@pytest.mark.parametrize("make", [lambda size, seed: random.Random(seed).randbytes(size), half_noise])
def test_each_block_of_large_contents_is_decompressed_once(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[int, int], bytes]
) -> None:
    """Over many tasks and batches of rows."""
    monkeypatch.setattr("manifests.catalog.BATCH_ROWS", 150)
    monkeypatch.setattr("pipeline.verify.contents.SLICE_BYTES", 3 << 20)
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(3):
        (tree / f"large{number}").write_bytes(make(4_000_000, number))
    store = make_store(pack_size=1 << 20)
    store.ingest([str(tree)], options=IngestOptions(inline=True))
    decoded = count_decoded(monkeypatch)
    found, expected = decoded_and_expected(store, decoded)
    assert found == expected


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
    store.catalog.use("chunks", "blocks")
    for table, column in (
        ("stored_chunks", "block"), ("stored_chunks", "length"), ("blocks", "stored"), ("blocks", "codec"),
    ):  # fmt: skip
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
