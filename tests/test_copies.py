"""A copy of a store and its original never mix; stores that were moved and disks that were swapped just open."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.errors import BackendError, CopiedStore, DrystoneError, UsageError
from manifests.localdirectory import LocalDirectory
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.sampling import one_in
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]


@pytest.fixture
def original(make_store: MakeStore, tmp_path: Path) -> Path:
    """A store with a run of `tree`."""
    store = make_store("original")
    store.ingest([str(make_tree(tmp_path / "tree", 6, 20))], options=INLINE)
    store.close()
    return tmp_path / "original"


def copy_of(original: Path, *, without: tuple[int, ...] = ()) -> Path:
    copy = original.with_name("drill")
    shutil.copytree(original, copy)
    for number in without:
        shutil.rmtree(copy / f"backend-{number}")
    return copy


def contents(place: Path) -> dict[str, str]:
    return {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file()
    }


def opened(place: Path, *, adopt_copy: bool = False) -> FileStore:
    return FileStore.open(place, cache=Path(os.environ["DRYSTONE_CACHE"]), adopt_copy=adopt_copy)


def places(store: FileStore) -> set[str]:
    return {member.storage.location for member in store.members.present.values()}


def require_whole(place: Path, tree: Path, runs: int = 1) -> None:
    with opened(place) as store:
        assert len(store.runs()) == runs
        first = str(store.runs()[0].run_id)
        assert store.restore(first, place.parent / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(tree, place.parent / "out" / "tree")
    shutil.rmtree(place.parent / "out")


def drystone(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_what_a_copy_lacks_is_not_taken_from_its_original(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original, without=(1, 2, 3, 4))
    before = contents(original), contents(copy)
    status = drystone("-s", copy, "status", "--json")
    assert status.returncode == 3, status.stderr
    said = json.loads(status.stdout)
    assert [each["present"] for each in said["backends"]] == [True, False, False, False, False, True]
    assert any(f"{copy}/backend-0 is a copy of {original}/backend-0" in trouble for trouble in said["troubles"])
    restored = drystone("-s", copy, "restore", "--to", tmp_path / "out")
    assert restored.returncode == 3 and "holds a copy" in restored.stderr
    for named in (copy, copy / "backend-0", copy / "backend-5"):
        ingested = drystone("-s", named, "ingest", tmp_path / "tree")
        assert ingested.returncode == 1
        assert "--adopt-copy" in ingested.stderr and f"-s {original}" in ingested.stderr
    assert (contents(original), contents(copy)) == before


def test_a_whole_copy_is_read_alone_and_not_written_to(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original)
    before = contents(original), contents(copy)
    (tmp_path / "link").symlink_to(copy)
    for named in (copy, copy / "backend-2", tmp_path / "link"):
        with opened(named) as store:
            assert {Path(place).resolve().parent for place in places(store)} == {copy}
            assert "is a copy" in store.members.copied and len(store.notices) == 1
            assert not any("damaged" in advice for advice in store.status().advice)
            found = store.verify(data=True, inline=True)
            assert found.exit_code == 0, (named, found.bad_copies, found.absent_backends, found.damaged_shards)
            for write in (
                lambda store=store: store.ingest([str(tmp_path / "tree")], options=INLINE),
                lambda store=store: store.put_object("key", io.BytesIO(b"x")),
                lambda store=store: store.add_backend(tmp_path / "new"),
                lambda store=store: store.remove_backend(copy / "backend-1"),
                lambda store=store: store.rebuild_index("disk"),
            ):
                with pytest.raises(CopiedStore, match="--adopt-copy"):
                    write()
    require_whole(copy, tmp_path / "tree")
    assert [contents(original).items() ^ before[0].items(), contents(copy).items() ^ before[1].items()] == [
        set(),
        set(),
    ]
    assert not (tmp_path / "new").exists()


def test_the_original_knows_nothing_of_its_copies(original: Path, tmp_path: Path) -> None:
    copy_of(original)
    with opened(original) as store:
        assert store.notices == [] and {Path(place).parent for place in places(store)} == {original}
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
        assert store.status().exit_code == 0


@pytest.mark.parametrize("before", [True, False])
def test_an_adopted_copy_is_a_store_of_its_own(original: Path, tmp_path: Path, before: bool) -> None:
    copy = copy_of(original)
    old = contents(original)
    options = ["-s", copy, "--adopt-copy", "ingest"] if before else ["-s", copy, "ingest", "--adopt-copy"]
    more = make_tree(tmp_path / "more", 9, 20)
    done = drystone(*options, more, "--json")
    assert done.returncode == 0, done.stderr
    assert contents(original) == old
    for place in (original, copy):
        with opened(place) as store:
            assert store.notices == [] and {Path(each).parent for each in places(store)} == {place}
            assert store.ingest([str(more)], options=INLINE).exit_code == 0
            assert store.verify(data=True, inline=True).exit_code == 0
            assert store.status().exit_code == 0
    with opened(original) as one, opened(copy) as other:
        assert one.config.store_id != other.config.store_id
        assert not {each.id for each in one.list_backends()} & {each.id for each in other.list_backends()}
        assert [each.number for each in one.list_backends()] == [each.number for each in other.list_backends()]
    for number in (1, 4):
        shutil.rmtree(copy / f"backend-{number}")
    require_whole(copy, tmp_path / "tree", runs=3)
    require_whole(original, tmp_path / "tree", runs=2)


def test_an_adopted_copy_does_not_need_its_backend_json_to_be_read(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original)
    opened(copy, adopt_copy=True).close()
    for name in ("store.json", "backend.json"):
        (copy / "backend-3" / name).unlink()
    with opened(copy) as store:
        assert len(store.members.present) == 6 and list(store.members.unsure) == [3]
    require_whole(copy, tmp_path / "tree")


def test_a_copy_of_a_copy_may_be_adopted_too(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original)
    opened(copy, adopt_copy=True).close()
    (tmp_path / "deep").mkdir()
    second = shutil.copytree(copy, tmp_path / "deep" / "second")
    with opened(second) as store, pytest.raises(CopiedStore):
        store.ingest([str(tmp_path / "tree")], options=INLINE)
    with opened(second, adopt_copy=True) as store:
        assert len(store.config.origins) == 2
        assert store.verify(data=True, inline=True).exit_code == 0
        assert store.ingest([str(tmp_path / "tree")], options=IngestOptions(inline=True, workers=1)).exit_code == 0


def test_a_part_of_a_copy_may_be_adopted_and_what_it_lacks_is_absent(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original, without=(3,))
    with opened(copy, adopt_copy=True) as store:
        assert [info.location for info in store.members.absent()] == [str(copy / "backend-3")]
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 3
    require_whole(copy, tmp_path / "tree", runs=2)
    require_whole(original, tmp_path / "tree")


def test_originals_and_adopted_copies_side_by_side_are_told_apart(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original)
    opened(copy, adopt_copy=True).close()
    both = tmp_path / "both"
    both.mkdir()
    for number in range(6):
        (original / f"backend-{number}").rename(both / f"original-{number}")
        (copy / f"backend-{number}").rename(both / f"copy-{number}")
    with pytest.raises(UsageError, match="2 stores"):
        opened(both)
    for name in ("original", "copy"):
        with opened(both / f"{name}-1") as store:
            assert places(store) == {str(both / f"{name}-{number}") for number in range(6)}


def test_a_backend_that_left_before_the_copy_was_made_is_of_no_account(original: Path, tmp_path: Path) -> None:
    with opened(original) as store:
        store.remove_backend(original / "backend-2")
    copy = copy_of(original)
    opened(copy, adopt_copy=True).close()
    with opened(copy) as store:
        assert len(store.members.all) == 5 and store.notices == []
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
    require_whole(copy, tmp_path / "tree", runs=2)


def test_a_copy_that_is_adopted_by_several_at_once_gets_ids_once(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original)
    old = contents(original)
    named = (copy, copy, copy / "backend-3")
    started = [
        subprocess.Popen([COMMAND, "-s", str(each), "runs", "--adopt-copy"], stderr=subprocess.PIPE, text=True)
        for each in named
    ]
    ended = [(process.communicate(timeout=120)[1], process.returncode) for process in started]
    assert sorted(code for _, code in ended).count(0) == 1, ended
    assert all(code == 0 or "is no copy" in err or "under way" in err for err, code in ended), ended
    with opened(copy) as store:
        assert len(store.members.all) == 6 and not store.members.absent()
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
        assert store.verify(data=True, inline=True).exit_code == 0
    require_whole(copy, tmp_path / "tree", runs=2)
    assert contents(original) == old and not list(copy.glob("backend-*/changing/*"))


def test_only_a_copy_can_be_adopted(original: Path, tmp_path: Path) -> None:
    before = contents(original)
    (tmp_path / "link").symlink_to(original)
    for named in (original, original / "backend-3", tmp_path / "link"):
        with pytest.raises(UsageError, match="is no copy"):
            opened(named, adopt_copy=True)
    assert contents(original) == before
    copy = copy_of(original, without=(1,))
    (copy / "backend-1").symlink_to(original / "backend-1")
    with pytest.raises(UsageError, match="is no copy"):
        opened(copy, adopt_copy=True)
    assert contents(original) == before


def test_a_copy_whose_original_is_away_may_be_adopted(original: Path, tmp_path: Path) -> None:
    copy = copy_of(original)
    away = original.rename(tmp_path / "away")
    opened(copy, adopt_copy=True).close()
    away.rename(original)
    with opened(copy) as store:
        assert store.notices == [] and store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
    require_whole(original, tmp_path / "tree")


@pytest.mark.parametrize("step", one_in(2, range(1, 24, 3)))
def test_an_adoption_that_is_interrupted_is_finished_by_the_next(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """It writes 32 files: two marks, a record, and two identities, to each of six backends."""
    copy = copy_of(original)
    old, write, left = contents(original), LocalDirectory.write, [step]

    def fail(self: LocalDirectory, key: str, pieces: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise BackendError("scripted")
        write(self, key, pieces)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LocalDirectory, "write", fail)
        with pytest.raises(BackendError, match="scripted"):
            opened(copy, adopt_copy=True)
    try:
        with opened(copy) as store, pytest.raises(DrystoneError):
            store.ingest([str(tmp_path / "tree")], options=INLINE)
    except CopiedStore as error:
        assert "--adopt-copy" in str(error)
    with opened(copy, adopt_copy=True) as store:
        assert {Path(place).parent for place in places(store)} == {copy}
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
    require_whole(copy, tmp_path / "tree", runs=2)
    assert contents(original) == old


# --- what is no copy


def test_a_store_that_was_moved_just_opens(original: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    moved = original.rename(tmp_path / "far" / "moved")
    with opened(moved) as store:
        assert store.notices == [] and store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0


def test_another_store_in_the_old_place_is_no_original(original: Path, make_store: MakeStore, tmp_path: Path) -> None:
    moved = original.rename(tmp_path / "moved")
    make_store("original")
    with opened(moved) as store:
        assert store.notices == [] and store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0


def test_disks_that_were_swapped_just_open(original: Path, tmp_path: Path) -> None:
    (original / "backend-0").rename(original / "x")
    (original / "backend-1").rename(original / "backend-0")
    (original / "x").rename(original / "backend-1")
    with opened(original) as store:
        assert store.notices == [] and store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0


def test_links_to_the_backends_are_the_backends(original: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for number in range(6):
        (shelf / f"disk-{number}").symlink_to(original / f"backend-{number}")
    for named in (shelf, shelf / "disk-4"):
        with opened(named) as store:
            assert store.notices == [] and not store.members.absent()
            assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0


def test_a_bind_mount_is_the_directory_itself(original: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    if subprocess.run(["mount", "--bind", original, shelf], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with opened(shelf) as store:
            assert store.notices == [] and store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
    finally:
        subprocess.run(["umount", "-l", shelf], check=True)


def test_a_copy_of_one_backend_beside_the_others_is_left_alone(original: Path, tmp_path: Path) -> None:
    stray = shutil.copytree(original / "backend-3", original / "backend-3.old")
    before = contents(stray)
    with opened(original) as store:
        assert places(store) == {str(original / f"backend-{number}") for number in range(6)}
        (notice,) = store.notices
        assert str(stray) in notice and "left alone" in notice
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0
    assert contents(stray) == before
    with opened(stray) as store, pytest.raises(CopiedStore):  # but if it is what was named, it is what is meant
        assert places(store) == {str(stray)}
        store.ingest([str(tmp_path / "tree")], options=INLINE)
    assert contents(stray) == before


def test_a_copy_of_one_backend_in_a_store_that_was_moved_is_told_by_its_name(original: Path, tmp_path: Path) -> None:
    moved = original.rename(tmp_path / "moved")
    shutil.copytree(moved / "backend-3", moved / "backend-3.old")
    with opened(moved) as store:
        assert str(moved / "backend-3") in places(store) and not store.members.unsure
    (moved / "backend-3").rename(moved / "backend-3.older")
    with opened(moved) as store:
        assert "same id" in store.members.unsure[3]
        before = contents(moved / "backend-3.old"), contents(moved / "backend-3.older")
        assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 3
        assert (contents(moved / "backend-3.old"), contents(moved / "backend-3.older")) == before


def test_a_disk_that_was_cloned_and_replaced_is_the_backend(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / "backend-2", tmp_path / "clone")
    shutil.rmtree(original / "backend-2")
    (tmp_path / "clone").rename(original / "backend-2")
    with opened(original) as store:
        assert store.notices == [] and store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 0


def test_backends_that_lie_elsewhere_are_told_unless_that_is_too_much(tmp_path: Path) -> None:
    shelves = [tmp_path / name / f"disk-{number}" for name in ("one", "two") for number in range(3)]
    tree = make_tree(tmp_path / "tree", 6, 20)
    with FileStore.create(shelves, cache=tmp_path / "cache") as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    for arguments in (("ingest", tree), ("runs",), ("restore", "--to", tmp_path / "out"), ("status",)):
        said = drystone("-s", tmp_path / "one", *arguments)
        [line] = [line for line in said.stderr.splitlines() if "holds 3 of 6 backends" in line]
        assert all(str(tmp_path / f"two/disk-{n}") in line for n in range(3))
        assert "holds 3" not in said.stdout
    quiet = drystone("-s", tmp_path / "one", "ingest", tree, "-q")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    assert "holds 3" not in drystone("-s", tmp_path / "one" / "disk-0", "status").stderr


def test_a_copy_of_disks_in_several_places_is_complete_where_they_lie_alike(tmp_path: Path) -> None:
    disks = [tmp_path / "mnt" / name / "store" for name in "abcdef"]
    tree = make_tree(tmp_path / "tree", 6, 20)
    with FileStore.create(disks, cache=tmp_path / "cache") as store:
        store.ingest([str(tree)], options=INLINE)
    shutil.copytree(tmp_path / "mnt", tmp_path / "mnt2")
    before = contents(tmp_path / "mnt")
    copy = tmp_path / "mnt2" / "a" / "store"
    with FileStore.open(copy, cache=tmp_path / "cache") as store:
        assert places(store) == {str(tmp_path / "mnt2" / name / "store") for name in "abcdef"}
        with pytest.raises(CopiedStore):
            store.ingest([str(tree)], options=INLINE)
    with FileStore.open(copy, cache=tmp_path / "cache", adopt_copy=True) as store:
        assert places(store) == {str(tmp_path / "mnt2" / name / "store") for name in "abcdef"}
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    assert contents(tmp_path / "mnt") == before


def test_a_disk_that_is_copied_beside_its_original_in_one_directory(tmp_path: Path) -> None:
    """The copies of six disks lie where the six disks do; which is meant is said by naming one."""
    disks = [tmp_path / "mnt" / name for name in "abcdef"]
    tree = make_tree(tmp_path / "tree", 6, 20)
    with FileStore.create(disks, cache=tmp_path / "cache") as store:
        store.ingest([str(tree)], options=INLINE)
    for disk in disks:
        shutil.copytree(disk, disk.with_name(f"{disk.name}2"))
    copies = {str(disk.with_name(f"{disk.name}2")) for disk in disks}
    with FileStore.open(tmp_path / "mnt", cache=tmp_path / "cache") as store:
        assert places(store) == set(map(str, disks)) and len(store.notices) == 6
    with FileStore.open(tmp_path / "mnt" / "c2", cache=tmp_path / "cache") as store:
        assert places(store) == copies
        with pytest.raises(CopiedStore):
            store.ingest([str(tree)], options=INLINE)
    with FileStore.open(tmp_path / "mnt" / "c2", cache=tmp_path / "cache", adopt_copy=True) as store:
        assert places(store) == copies
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    with FileStore.open(tmp_path / "mnt" / "c", cache=tmp_path / "cache") as store:
        assert places(store) == set(map(str, disks)) and len(store.runs()) == 1


def test_a_directory_of_a_file_server_at_two_places_is_no_copy(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where device and inode are not the same, though the directory is: an overlay hides what it is."""
    shelf = original.with_name("shelf")
    shelf.symlink_to(original)
    identity = LocalDirectory.identity
    monkeypatch.setattr(LocalDirectory, "identity", lambda self: f"{identity(self)}:{os.path.dirname(self.location)}")
    before = contents(original)
    with pytest.raises(UsageError, match="same directory at two places"):
        opened(shelf, adopt_copy=True)
    assert contents(original) == before
