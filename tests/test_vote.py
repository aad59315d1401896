"""Copies of which none is whole, put together."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from blake3 import blake3

from manifests.errors import Unreadable
from manifests.vote import mend_by_vote
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.trees import assert_equal_trees, make_tree

TEXT = random.Random(1).randbytes(50_000)


def is_right(data: bytes) -> bool:
    return blake3(data).digest() == blake3(TEXT).digest()


def rotten(places: list[int]) -> bytes:
    copy = bytearray(TEXT)
    for place in places:
        copy[place] ^= 0x55
    return bytes(copy)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_one_wrong_byte_in_each_copy_at_another_place(count: int) -> None:
    assert mend_by_vote([rotten([1000 * number]) for number in range(count)], len(TEXT), is_right) == TEXT


def test_whole_sectors_and_ends_that_are_gone() -> None:
    zeroed = TEXT[:4096] + bytes(4096) + TEXT[8192:]
    assert mend_by_vote([zeroed, TEXT[:30_000], rotten([0, 20_000])], len(TEXT), is_right) == TEXT


def test_what_is_wrong_everywhere_is_not_made_up() -> None:
    assert mend_by_vote([rotten([7]), rotten([7, 9000])], len(TEXT), is_right) is None
    assert mend_by_vote([], len(TEXT), is_right) is None


def test_manifests_with_a_wrong_byte_in_every_copy_serve(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 8, 30)
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        store.ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
    chance = random.Random(2)
    touched = 0
    for path in (tmp_path / "store").glob("backend-*/manifests/*/*.parquet"):
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1
        path.write_bytes(data)
        touched += 1
    assert touched >= 30
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True, workers=1))
        assert (result.exit_code, result.failures) == (0, [])
        assert result.healed_records >= 5
    assert_equal_trees(tree, tmp_path / "out" / "tree")


def test_a_manifest_that_is_lost_costs_what_it_alone_tells(tmp_path: Path) -> None:
    first, second = make_tree(tmp_path / "first", 1, 10), make_tree(tmp_path / "second", 2, 10)
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        for tree in (first, second):
            store.ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
        lost = store.runs()[1].run_id
    for path in (tmp_path / "store").glob(f"backend-*/manifests/packs/{lost}-0.parquet"):
        data = bytearray(path.read_bytes())
        data[100:300] = bytes(200)
        path.write_bytes(data)
    request = RestoreRequest("", inline=True, workers=1)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        result = store.restore(str(store.runs()[0].run_id), tmp_path / "out", request=request)
        assert (result.exit_code, result.failed) == (3, 0)
        assert len(result.lost_manifests) == 1 and str(lost) in result.lost_manifests[0]
        assert_equal_trees(first, tmp_path / "out" / "first")
        result = store.restore("latest", tmp_path / "out", request=request)
        assert result.exit_code == 3 and result.failed > 0
        assert store.verify(data=True, inline=True, workers=1).exit_code == 3
        with pytest.raises(Unreadable, match=str(lost)):
            store.stats()
