"""A store is found by ids: moved, renamed, swapped, opened from one backend."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.errors import NotFound, UsageError
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.trees import assert_equal_trees, make_tree

MakeStore = Callable[..., FileStore]


@pytest.fixture
def archived(make_store: MakeStore, tmp_path: Path) -> tuple[Path, Path]:
    """A tree, and the directory of its store."""
    tree = make_tree(tmp_path / "tree", 6, 20)
    make_store().ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
    return tree, tmp_path / "store"


def check(location: Path, tree: Path, place: Path, absent: int = 0) -> None:
    """The store at `location` gives the tree back, with so many backends absent."""
    with FileStore.open(location, cache=place / "cache") as store:
        assert len(store.members.absent()) == absent
        assert store.restore("latest", place / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(tree, place / "out" / "tree")
    shutil.rmtree(place / "out")


def test_it_opens_from_its_directory_and_from_each_backend(archived: tuple[Path, Path], tmp_path: Path) -> None:
    tree, store = archived
    for location in (store, *sorted(store.iterdir())):
        check(location, tree, tmp_path)


def test_it_may_be_moved(archived: tuple[Path, Path], tmp_path: Path) -> None:
    tree, store = archived
    moved = tmp_path / "attic" / "renamed"
    moved.parent.mkdir()
    store.rename(moved)
    check(moved, tree, tmp_path)
    check(moved / "backend-3", tree, tmp_path)


def test_backends_may_be_renamed_and_swapped(archived: tuple[Path, Path], tmp_path: Path) -> None:
    tree, store = archived
    (store / "backend-0").rename(store / "x")
    (store / "backend-5").rename(store / "backend-0")
    (store / "x").rename(store / "backend-5")
    (store / "backend-2").rename(store / "a disk with another name")
    check(store, tree, tmp_path)
    check(store / "a disk with another name", tree, tmp_path)


def test_backends_on_disks_of_their_own_are_found_again(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 8, 20)
    places = [tmp_path / "mnt" / name / "drystone" for name in ("a", "b", "c", "d", "e", "f")]
    with FileStore.create(places, cache=tmp_path / "cache") as store:
        store.ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
    check(places[4], tree, tmp_path)
    (tmp_path / "mnt").rename(tmp_path / "media")
    check(tmp_path / "media" / "c" / "drystone", tree, tmp_path)
    shutil.rmtree(tmp_path / "media" / "a")
    shutil.rmtree(tmp_path / "media" / "e")
    check(tmp_path / "media" / "c" / "drystone", tree, tmp_path, absent=2)


def test_fewer_directories_than_shards_hold_several_each(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 8, 20)
    with FileStore.create([tmp_path / name for name in "abc"], cache=tmp_path / "cache") as store:
        assert store.members.tolerance == 1
        store.ingest([str(tree)], options=IngestOptions(inline=True, workers=1))
    (tmp_path / "elsewhere").mkdir()
    for name in "abc":
        (tmp_path / name).rename(tmp_path / "elsewhere" / "gone")
        check(tmp_path / ("b" if name == "a" else "a"), tree, tmp_path, absent=1)
        (tmp_path / "elsewhere" / "gone").rename(tmp_path / name)


def test_backends_of_other_stores_are_no_members(
    archived: tuple[Path, Path], make_store: MakeStore, tmp_path: Path
) -> None:
    tree, store = archived
    make_store("other")
    shutil.copytree(tmp_path / "other" / "backend-0", store / "stranger")
    check(store / "backend-1", tree, tmp_path)
    with pytest.raises(UsageError, match="2 stores"):
        FileStore.open(store, cache=tmp_path / "cache")
    with pytest.raises(NotFound):
        FileStore.open(tmp_path / "tree", cache=tmp_path / "cache")
