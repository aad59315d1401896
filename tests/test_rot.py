"""Rot: whatever of a store is rotten, what can be given back is given back bit for bit, and what was healed is said.

Each corruptor (tests/corruptors.py) is named for the field that it breaks.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from manifests.config import ChunkerSpec
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.corruptors import RECORD_CORRUPTORS, SHARD_CORRUPTORS
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree and a store of it in several packs, away from where its log says it is: only copies of it are opened."""
    place = tmp_path_factory.mktemp("rot")
    tree = make_tree(place / "tree", 3, 40, 300_000)
    with FileStore.create(
        [place / "store"], chunker=ChunkerSpec("fastcdc", 4096), pack_size=320 << 10, cache=place / "cache"
    ) as store:
        store.ingest([str(tree)], options=INLINE)
        (tree / "noise").write_bytes(random.Random(1).randbytes(500_000))
        store.ingest([str(tree)], options=INLINE)
    (place / "store").rename(place / "kept")
    assert len(set((place / "kept").glob("*/packs/*/*.0"))) >= 2, "several packs"
    return tree, place / "kept"


def check_heals(kept: tuple[Path, Path], place: Path) -> None:
    """Everything comes back from the damaged copy at `place`, which is said; a range too; verify names the damage."""
    tree, _ = kept
    largest = max((path for path in tree.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    with FileStore.open(place / "store", cache=place / "cache") as store:
        read = b"".join(store.open_range(f"latest:tree/{largest.relative_to(tree)}"))
        result = store.restore("latest", place / "out", request=RestoreRequest("", inline=True, workers=1))
        check = store.verify(data=True, inline=True, workers=1)
    assert read == largest.read_bytes()
    assert result.exit_code == 0, result.failures
    assert_equal_trees(tree, place / "out" / "tree")
    assert check.exit_code == 4, check
    assert check.damaged_shards or check.bad_copies
    assert not check.lost_objects


@pytest.mark.parametrize("field", SHARD_CORRUPTORS)
def test_a_rotten_shard_heals(kept: tuple[Path, Path], tmp_path: Path, field: str) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    SHARD_CORRUPTORS[field](tmp_path / "store")
    check_heals(kept, tmp_path)


@pytest.mark.parametrize("field", RECORD_CORRUPTORS)
def test_a_rotten_record_or_manifest_heals(kept: tuple[Path, Path], tmp_path: Path, field: str) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    RECORD_CORRUPTORS[field](tmp_path / "store")
    check_heals(kept, tmp_path)
