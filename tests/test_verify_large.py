"""verify --data checks the chunks of large contents where it reads these, and not once more with their packs: what it
finds is the same, whatever is damaged and however, and named once."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from manifests import format as fmt
from manifests.config import ChunkerSpec
from manifests.contents import ContentsPlan
from manifests.copies import OtherPlaces
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.topology import VerifyShape
from pipeline.verify import piecework
from pipeline.verify.run import VerifyResult
from stages.shard import ShardRecord, data_offset
from tests.corruptors import SHARD_CORRUPTORS, flip, lose, shard_length, shards
from tests.sampling import one_in
from tests.test_hostile_input import lie
from tests.trees import make_tree

INLINE = IngestOptions(inline=True, workers=1)
LARGE, NEVER = 8, 1 << 30
#: Those that break a field of a record alone say nothing of who reads what.
FIELDS = [name for name in SHARD_CORRUPTORS if not name.startswith(("record ", "second record "))]


def half_noise(size: int, seed: int) -> bytes:
    """Bytes that shrink, and hold no chunk twice."""
    noise = random.Random(seed)
    return b"".join(bytes(100) + noise.randbytes(100) for _ in range(size // 200))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of small files and of large ones, which repeat pieces of their own and of one another, in several packs
    and runs; a hole, and a chunk that is longer than a raw slot of these tests."""
    place = tmp_path_factory.mktemp("large")
    tree = make_tree(place / "tree", 2, 20, 40_000)
    noise, text = random.Random(1).randbytes(300_000), half_noise(500_000, 2)
    (tree / "a-noise").write_bytes(noise)
    (tree / "b-text").write_bytes(text + noise[:100_000] + text[:200_000])
    (tree / "c-text").write_bytes(half_noise(150_000, 3) + text[100_000:] + half_noise(150_000, 4))
    with open(tree / "d-holes", "wb") as file:
        file.write(half_noise(100_000, 5))
        file.seek(400_000)
        file.write(half_noise(100_000, 6))
    with (
        pytest.MonkeyPatch.context() as patch,
        FileStore.create(
            [place / "store"], chunker=ChunkerSpec("fastcdc", 4096), pack_size=320 << 10, cache=place / "cache"
        ) as store,
    ):
        for module in ("stages.compress", "pipeline.topology"):
            patch.setattr(f"{module}.BLOCK_TARGET", 30_000)  # so that packs hold several blocks
        patch.setattr("stages.compress.BLOCK_LARGEST", 60_000)
        store.ingest([str(tree)], options=INLINE)
        (tree / "e-late").write_bytes(noise[50_000:] + random.Random(7).randbytes(450_000))
        store.ingest([str(tree)], options=IngestOptions(inline=True, digests=("sha256",)))
    assert len(shards(place / "store", 0)) >= 3, "several packs"
    (place / "store").rename(place / "kept")
    return place / "kept"


def found(place: Path, monkeypatch: pytest.MonkeyPatch, large: int) -> VerifyResult:
    """What a verification finds, in an order of its own, without what it took and read."""
    monkeypatch.setattr("manifests.contents.LARGE", large)
    monkeypatch.setattr("manifests.contents.GROUP_ROWS", 150)
    monkeypatch.setattr("pipeline.verify.contents.SLICE_BYTES", 150_000)
    monkeypatch.setattr(VerifyShape, "hashers", 2)
    with FileStore.open(place / "store", cache=place / f"cache{large}") as store:
        result = store.verify(data=True, inline=True, workers=2)
    return replace(result, seconds=0, checked_bytes=0, damaged_shards=sorted(result.damaged_shards), bad_copies=[])


def check_covered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the manifests, blocks are covered: else all here would compare a thing with itself."""
    with FileStore.open(place / "store", cache=place / "cache") as store, OtherPlaces() as others:
        monkeypatch.setattr("manifests.contents.LARGE", LARGE)
        plan = ContentsPlan(store.catalog, others)
        ids = [row["pack_id"] for row in store.catalog.rows("SELECT pack_id FROM packs")]
        assert sum(map(len, plan.covered(ids).values())) >= 5


def check_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> VerifyResult:
    """What is found is what is found where no block is covered."""
    result = found(place, monkeypatch, LARGE)
    assert result == found(place, monkeypatch, NEVER)
    return result


def test_nothing_is_found_where_nothing_is_damaged(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(kept, tmp_path / "store")
    check_covered(tmp_path, monkeypatch)
    assert check_same(tmp_path, monkeypatch).exit_code == 0


@pytest.mark.parametrize("field", one_in(6, FIELDS))
def test_rot_that_heals_is_found_and_nothing_is_lost(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    shutil.copytree(kept, tmp_path / "store")
    SHARD_CORRUPTORS[field](tmp_path / "store")
    result = check_same(tmp_path, monkeypatch)
    assert (result.exit_code, result.lost_chunks, result.wrong_object_count) == (4, 0, 0)


@pytest.mark.parametrize("row", [0, 2, 4])
def test_what_is_beyond_healing_is_named_once(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int
) -> None:
    """Three cells of a row of each pack: chunks that several contents share are lost once."""
    shutil.copytree(kept, tmp_path / "store")
    for index in (0, 1, 2):
        for path in shards(tmp_path / "store", index):
            flip(path, data_offset(shard_length(path)) + row * fmt.CELL_SIZE % shard_length(path) + 10)
    result = check_same(tmp_path, monkeypatch)
    assert result.exit_code == 3 and result.lost_chunks and result.lost_object_count and not result.wrong_object_count
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        store.catalog.use("chunks")
        assert result.lost_chunks < store.catalog.one("SELECT count(*) AS n FROM chunks")["n"]


def test_all_is_lost(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All data shards but one: each chunk is named once, and no digest beside it."""
    shutil.copytree(kept, tmp_path / "store")
    for index in (0, 1, 2):
        for path in shards(tmp_path / "store", index):
            lose(path, data_offset(shard_length(path)), shard_length(path))
    result = check_same(tmp_path, monkeypatch)
    assert result.exit_code == 3 and result.lost_chunks and not result.wrong_object_count


def test_a_lost_directory(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifests tell what lies in the packs; the blocks beside the directory are lost with it."""
    shutil.copytree(kept, tmp_path / "store")
    for path in shards(tmp_path / "store", 3):
        record = ShardRecord.parse(path.read_bytes()[: fmt.RECORD_SIZE])[0]
        last = (record.payload - 1) % record.shard_length
        row = last // fmt.CELL_SIZE * fmt.CELL_SIZE
        for index in (3, 4, 5):
            other = next(each for each in shards(tmp_path / "store", index) if each.stem == path.stem)
            flip(other, data_offset(record.shard_length) + (last if index == 3 else row))
    result = check_same(tmp_path, monkeypatch)
    assert result.lost_directories >= 3


@pytest.mark.parametrize(
    ("table", "column", "change"),
    one_in(
        2,
        [
            ("chunks", "offset", lambda old: old - (old > 0)),
            ("chunks", "length", lambda old: old - 1),
            ("blocks", "offset", lambda old: old + 1),
            ("blocks", "codec", lambda old: fmt.CODEC_LZ4),
        ],
        several=True,
    ),
)
def test_packs_of_which_the_manifests_tell_something_else(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, column: str, change: Callable[[int], int]
) -> None:
    shutil.copytree(kept, tmp_path / "store")
    lie(tmp_path / "store", table, column, change)
    check_covered(tmp_path, monkeypatch)
    result = check_same(tmp_path, monkeypatch)
    assert result.mislisted_packs and result.exit_code == 3


def test_pieces_that_are_longer_than_a_slot(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that fit into no slot are copied piece by piece, and a chunk over several slots."""
    shutil.copytree(kept, tmp_path / "store")
    monkeypatch.setattr(piecework, "RAW_BYTES", 5000)
    assert check_same(tmp_path, monkeypatch).exit_code == 0
    for path in shards(tmp_path / "store", 1)[:1]:
        for index in (0, 1, 2):
            other = next(each for each in shards(tmp_path / "store", index) if each.stem == path.stem)
            flip(other, data_offset(shard_length(path)) + 50)
    assert check_same(tmp_path, monkeypatch).lost_chunks


def test_several_workers_and_hashers(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own, with slots that are soon full."""
    shutil.copytree(kept, tmp_path / "store")
    for path in shards(tmp_path / "store", 0) + shards(tmp_path / "store", 1) + shards(tmp_path / "store", 2):
        flip(path, data_offset(shard_length(path)) + 20_000 % shard_length(path))
    expected = found(tmp_path, monkeypatch, LARGE)
    monkeypatch.setattr("pipeline.verify.contents.SLICE_BYTES", 20_000)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.verify(data=True, workers=3)
    assert result.lost_chunks == expected.lost_chunks > 0
    assert result.lost_objects == expected.lost_objects
    assert (result.bad_cells, result.wrong_object_count) == (expected.bad_cells, expected.wrong_object_count)
