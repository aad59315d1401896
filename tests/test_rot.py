"""Rot: whatever of a store is rotten, what can be given back is given back bit for bit, and what was healed is said.

Each corruptor (tests/corruptors.py) is named for the field that it breaks.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manifests import backends
from manifests import format as fmt
from manifests.backends import LocalDirectory
from manifests.config import ChunkerSpec
from manifests.errors import CorruptRecord, TooFewBackends, Unreadable
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.packreader import ReadFigures
from pipeline.restore.run import RestoreRequest, RestoreResult
from pipeline.verify.run import VerifyResult
from stages.assemble import ByteRange
from stages.shard import ShardRecord, cell_count, data_offset, file_size
from tests.corruptors import RECORD_CORRUPTORS, SHARD_CORRUPTORS, flip, lose, one_cell_each, shard_length, shards
from tests.sampling import one_in
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


@pytest.mark.parametrize("field", one_in(6, SHARD_CORRUPTORS))
def test_a_rotten_shard_heals(kept: tuple[Path, Path], tmp_path: Path, field: str) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    SHARD_CORRUPTORS[field](tmp_path / "store")
    check_heals(kept, tmp_path)


@pytest.mark.parametrize("field", one_in(6, RECORD_CORRUPTORS))
def test_a_rotten_record_or_manifest_heals(kept: tuple[Path, Path], tmp_path: Path, field: str) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    RECORD_CORRUPTORS[field](tmp_path / "store")
    check_heals(kept, tmp_path)


# --- beyond healing


def restored(place: Path, store: str = "store") -> tuple[RestoreResult, VerifyResult]:
    with FileStore.open(place / store, cache=place / "cache") as opened:
        result = opened.restore("latest", place / "out", request=RestoreRequest("", inline=True, workers=1))
        return result, opened.verify(data=True, inline=True, workers=1)


def test_what_cannot_be_healed_is_named_and_the_rest_is_restored(kept: tuple[Path, Path], tmp_path: Path) -> None:
    """One row of one pack has three bad cells: its block's objects are lost, all others come back."""
    tree, _ = kept
    shutil.copytree(kept[1], tmp_path / "store")
    noise = min(path.name.partition(".")[0] for path in shards(tmp_path / "store", 0))  # the first pack
    for index in (0, 1, 2):
        for path in shards(tmp_path / "store", index):
            if path.name.startswith(noise):
                flip(path, data_offset(shard_length(path)) + 10)
    result, check = restored(tmp_path)
    assert result.exit_code == 3 and check.exit_code == 3
    failed = {path for path, _ in result.failures}
    assert failed and b"tree/noise" not in failed
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        latest = store.run().run_id
    assert {path for run, path in check.lost_objects if run == latest} == failed
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            back = tmp_path / "out" / "tree" / path.relative_to(tree)
            assert back.exists() != (b"tree/" + os.fsencode(path.relative_to(tree)) in failed)
            assert not back.exists() or back.read_bytes() == path.read_bytes()
    assert sum("bad cell" in line for line in check.damaged_shards) == 3


def test_a_lost_directory_costs_no_object(kept: tuple[Path, Path], tmp_path: Path) -> None:
    """The directory is beyond healing; the manifests say the same, so nothing is lost."""
    shutil.copytree(kept[1], tmp_path / "store")
    for path in shards(tmp_path / "store", 3):
        record = ShardRecord.parse(path.read_bytes()[: fmt.RECORD_SIZE])[0]
        last = (record.payload - 1) % record.shard_length
        row = last // fmt.CELL_SIZE * fmt.CELL_SIZE
        for index in (3, 4, 5):
            other = next(each for each in shards(tmp_path / "store", index) if each.stem == path.stem)
            flip(other, data_offset(record.shard_length) + (last if index == 3 else row))
    result, check = restored(tmp_path)
    lost = {path for path, _ in result.failures}
    assert {path for _, path in check.lost_objects} >= lost
    assert check.lost_directories == 2
    assert check.exit_code == (3 if lost else 4)


def test_a_log_record_that_is_rotten_everywhere_is_named(kept: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    for path in (tmp_path / "store").glob("*/log/*.ingest.json"):
        flip(path, 0, 400)
    name = next((tmp_path / "store").glob("*/log/*.ingest.json")).name
    with pytest.raises(CorruptRecord, match=f"log/{name}.*put back a copy"):
        FileStore.open(tmp_path / "store", cache=tmp_path / "cache")


@pytest.mark.parametrize("beside", [range(2), range(4, 6)])
def test_m_backends_lost_and_the_identity_of_another(kept: tuple[Path, Path], tmp_path: Path, beside: range) -> None:
    """A rotten backend.json costs nothing but the right to be written to."""
    shutil.copytree(kept[1], tmp_path / "store")
    for number in beside:
        shutil.rmtree(tmp_path / "store" / f"backend-{number}")
    for name in ("backend.json", "store.json"):
        flip(tmp_path / "store/backend-2" / name, 0, 300)
    before = sorted((tmp_path / "store/backend-2").rglob("*"))
    result, check = restored(tmp_path)
    assert result.exit_code == 0 and result.healed_records and check.exit_code == 4
    assert_equal_trees(kept[0], tmp_path / "out" / "tree")
    assert any(copy.backend.endswith("backend-2") and copy.key == "backend.json" for copy in check.bad_copies)
    with (
        FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store,
        pytest.raises(TooFewBackends, match="3 of 6"),
    ):
        store.ingest([str(kept[0])], options=INLINE)
    assert sorted((tmp_path / "store/backend-2").rglob("*")) == before


def test_rotten_copies_of_a_manifest_mend_each_other(make_store: Callable[..., FileStore], tmp_path: Path) -> None:
    """A manifest of several slices, of which no copy is whole: each slice comes from a copy where it is."""
    with make_store(chunker="fixed:64") as store:
        (tmp_path / "many").write_bytes(random.Random(2).randbytes(3_000_000))
        store.ingest([str(tmp_path / "many")], options=INLINE)
        files = [file for file in store.state.files("chunks") if file.size > fmt.SLICE_SIZE + 1000]
    assert files
    for number, path in enumerate(sorted((tmp_path / "store").glob(f"*/{files[0].key}"))):
        flip(path, number % 2 * fmt.SLICE_SIZE + 7)
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache2") as store:
        assert (
            b"".join(store.open_range("latest:many", ByteRange.parse("-1000")))
            == (tmp_path / "many").read_bytes()[-1000:]
        )
        assert store.healed_records == 1
        assert len(store.verify().bad_copies) == 6
    for path in (tmp_path / "store").glob(f"*/{files[0].key}"):
        flip(path, 9)
    with (
        FileStore.open(tmp_path / "store", cache=tmp_path / "cache3") as store,
        pytest.raises(Unreadable, match="bytes 0 to"),
    ):
        b"".join(store.open_range("latest:many"))


def test_restore_and_cat_say_what_they_healed(kept: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    one_cell_each(tmp_path / "store")
    for path in (tmp_path / "store").glob("backend-0/*/*.json"):
        flip(path, 30)
    command = [str(Path(sys.executable).with_name("drystone")), "-s", str(tmp_path / "store")]
    back = subprocess.run([*command, "restore", "--to", tmp_path / "out"], capture_output=True, text=True, check=True)
    assert re.search(r"decoded \d+ missing or damaged cells on the way; see: drystone verify --data", back.stdout)
    assert re.search(r"healed \d+ damaged records and manifests on the way", back.stdout)
    shown = subprocess.run([*command, "cat", "latest:tree/noise"], capture_output=True, check=True)
    assert shown.stdout == (kept[0] / "noise").read_bytes()
    assert b"damaged cells on the way; see: drystone verify --data" in shown.stderr
    check = subprocess.run([*command, "verify", "--data"], capture_output=True, text=True)
    assert check.returncode == 4 and "12 bad cells" in check.stdout
    for path in shards(tmp_path / "store"):
        assert f"{path.name}: 1 bad cell" in check.stderr


# --- sectors that can't be read


@pytest.fixture
def bad_sectors(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[range]]]:
    """Key → ranges of it, on whatever backend, that can't be read; each must be hit."""
    sectors: dict[str, list[range]] = {}
    hit: set[str] = set()

    class Failing(LocalDirectory):
        def read_range(self, key: str, offset: int, length: int) -> bytes:
            for bad in sectors.get(key, ()):
                if offset < bad.stop and bad.start < offset + length:
                    hit.add(key)
                    raise self._error("reading", key, OSError(errno.EIO, os.strerror(errno.EIO)))
            return super().read_range(key, offset, length)

    monkeypatch.setitem(backends.BACKEND_TYPES, "local", Failing)
    yield sectors
    assert hit == sectors.keys(), "a fault was never hit"


def test_an_unreadable_sector_costs_its_cell_alone(
    kept: tuple[Path, Path], tmp_path: Path, bad_sectors: dict[str, list[range]]
) -> None:
    """One in the data of each shard, no more than m in a row, and one over a record and table of each."""
    shutil.copytree(kept[1], tmp_path / "store")
    for path in shards(tmp_path / "store"):
        length, index = shard_length(path), int(path.suffix[1:])
        at = data_offset(length) + index // 2 * fmt.CELL_SIZE + 900
        key = str(path.relative_to(path.parents[2]))
        bad_sectors[key] = [
            range(at, at + 512),
            range(300) if index % 2 else range(file_size(length) - 300, 1 << 40),
        ]
    result, check = restored(tmp_path)
    assert result.exit_code == 0, result.failures
    assert_equal_trees(kept[0], tmp_path / "out" / "tree")
    assert check.exit_code == 4 and check.bad_cells == 12


# --- what healing costs


def test_a_bad_cell_costs_a_row(kept: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        before, after = ReadFigures(), ReadFigures()
        whole = b"".join(store.open_range("latest:tree/noise", figures=before))
        pack = max(shards(tmp_path / "store", 1), key=lambda path: path.name)
        flip(pack, data_offset(shard_length(pack)) + 3 * fmt.CELL_SIZE)
        assert b"".join(store.open_range("latest:tree/noise", figures=after)) == whole
    heads = 6 * data_offset(shard_length(pack))
    assert after.healed_cells == 1
    assert before.bytes < after.bytes <= before.bytes + 5 * fmt.CELL_SIZE + heads
    assert after.requests <= before.requests + 2 * 4


def test_a_run_of_bad_cells_is_decoded_row_by_row_where_others_are_bad_too(
    kept: tuple[Path, Path], tmp_path: Path
) -> None:
    """All of shard 0 is bad, and in each row one more cell: k cells of each row are read, and a few."""
    shutil.copytree(kept[1], tmp_path / "store")
    rows = 0
    for path in shards(tmp_path / "store", 0):
        length = shard_length(path)
        lose(path, data_offset(length), length)
        for row in range(cell_count(length)):
            other = next(each for each in shards(tmp_path / "store", 1 + row % 5) if each.stem == path.stem)
            flip(other, data_offset(length) + row * fmt.CELL_SIZE)
            rows += 1
    figures = ReadFigures()
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        assert b"".join(store.open_range("latest:tree/noise", figures=figures)) == (kept[0] / "noise").read_bytes()
        result = store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True, workers=1))
    assert result.exit_code == 0
    assert_equal_trees(kept[0], tmp_path / "out" / "tree")
    size = 500_000 + 6 * 4096
    assert figures.bytes <= size + size // 4 * 5 + 6 * fmt.CELL_SIZE, "k+m-1 cells a row more, and heads"


def test_a_manifest_is_put_together_without_a_cache_where_that_is_of_no_use(
    kept: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(kept[1], tmp_path / "store")
    for number, path in enumerate(sorted((tmp_path / "store").glob("backend-*/manifests/*/*"))):
        flip(path, 40 + 7 * number)
    store_id = json.loads((kept[1] / "backend-0/store.json").read_bytes().splitlines()[0])["store_id"]
    (tmp_path / "cache" / store_id).mkdir(parents=True)
    (tmp_path / "cache" / store_id / "mended").write_text("in the way")
    with FileStore.open(tmp_path / "store", cache=tmp_path / "cache") as store:
        assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(kept[0], tmp_path / "out" / "tree")
