"""Disks that are mounted elsewhere: a directory above them finds all, and the log learns where they are."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from manifests.armour import seal_json
from manifests.errors import CopiedStore, CorruptRecord, TooFewBackends
from manifests.finding import LISTED_BELOW, LOOKED_INTO
from manifests.localdirectory import LocalDirectory
from manifests.log import fold, make_record
from manifests.store import BackendInfo
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.nobody import as_nobody
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))
NAMES, NEW = "abcdef", "uvwxyz"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", 6, 20)


@pytest.fixture
def mounts(tmp_path: Path, tree: Path) -> Path:
    """A directory of six disks with a store: each backend is a directory of its disk, beside `lost+found`."""
    for name in NAMES:
        (tmp_path / "mnt" / name / "lost+found").mkdir(parents=True)
    with FileStore.create([tmp_path / "mnt" / name / "dry" for name in NAMES], cache=tmp_path / "cache") as store:
        store.ingest([str(tree)], options=INLINE)
    return tmp_path / "mnt"


def mount_elsewhere(mounts: Path) -> Path:
    """The disks are mounted in a new directory, by new names: the place of one does not tell where the others are."""
    new = mounts.with_name("new")
    for name, other in zip(NAMES, NEW, strict=True):
        (new / other).parent.mkdir(exist_ok=True)
        (mounts / name).rename(new / other)
        (mounts / name).mkdir()  # the mount point stays
    return new


def opened(place: Path) -> FileStore:
    return FileStore.open(place, cache=Path(os.environ["DRYSTONE_CACHE"]))


def drystone(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def moves(place: Path) -> list[Path]:
    return sorted((place / "log").glob("*.move.json"))


def places(store: FileStore) -> set[str]:
    return {member.storage.location for member in store.members.present.values()}


def test_a_directory_above_the_disks_finds_them_two_levels_deep(mounts: Path, tree: Path, tmp_path: Path) -> None:
    new = mount_elsewhere(mounts)
    with opened(new) as store:
        assert places(store) == {str(new / name / "dry") for name in NEW} and store.notices == []
        assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
        assert store.status().exit_code == 0
    assert_equal_trees(tree, tmp_path / "out" / "tree")
    assert not moves(new / "u" / "dry")  # who reads writes nothing


def test_after_a_command_that_writes_each_backend_finds_the_others(mounts: Path, tree: Path) -> None:
    new = mount_elsewhere(mounts)
    with opened(new / "w" / "dry") as store:
        assert len(store.members.present) == 1
    assert drystone("-s", new, "ingest", tree, "-q").returncode == 0
    for name in NEW:
        with opened(new / name / "dry") as store:
            assert places(store) == {str(new / each / "dry") for each in NEW}
            assert len(moves(new / name / "dry")) == 1
    assert drystone("-s", new, "ingest", tree, "-q").returncode == 0
    assert drystone("-s", new / "x" / "dry", "ingest", tree, "-q").returncode == 0
    assert len(moves(new / "u" / "dry")) == 1  # once is enough
    assert os.listdir(mounts / "a") == []


@pytest.mark.parametrize("change", ["add", "remove", "put"])
def test_other_commands_that_write_teach_the_log_too(mounts: Path, tmp_path: Path, change: str) -> None:
    new = mount_elsewhere(mounts)
    with opened(new) as store:
        if change == "add":
            store.add_backend(tmp_path / "seventh")
        elif change == "remove":
            store.remove_backend(new / "v" / "dry")
        else:
            store.put_object("key", io.BytesIO(b"stone"))
        assert len(store.members.present) == {"add": 7, "remove": 5, "put": 6}[change]
    with opened(new / "y" / "dry") as store:
        assert len(store.members.present) == {"add": 7, "remove": 5, "put": 6}[change]


def test_domains_that_were_devices_are_those_of_the_new_places(mounts: Path, tree: Path) -> None:
    with opened(mounts / "a" / "dry") as store:
        store.add_backend(mounts / "a" / "dry", domain="attic")
    new = mount_elsewhere(mounts)
    with opened(new) as store:
        store.members.moved[:] = [
            info if info.domain == "attic" else BackendInfo(**{**vars(info), "domain": "device:7"})
            for info in store.members.moved
        ]
        store.ingest([str(tree)], options=INLINE)
    with opened(new) as store:
        assert sorted({info.domain for info in store.members.all}) == ["attic", "device:7"]


def test_a_directory_of_links_to_the_backends_is_as_good(mounts: Path, tree: Path, tmp_path: Path) -> None:
    shelf, disks = tmp_path / "shelf", tmp_path / "disks"
    shelf.mkdir()
    disks.mkdir()
    for name in NAMES:
        (shelf / name).symlink_to(mounts / name / "dry")
        (disks / name).symlink_to(mounts / name)
    for place in (shelf, disks):
        with opened(place) as store:
            assert len(store.members.present) == 6 and store.notices == []
            assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    assert not moves(mounts / "a" / "dry")  # they lie where they did
    new = mount_elsewhere(mounts)
    for name, other in zip(NAMES, NEW, strict=True):
        (shelf / name).unlink()
        (shelf / name).symlink_to(new / other / "dry")
    with opened(shelf) as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    with opened(new / "u" / "dry") as store:
        assert len(store.members.present) == 6


def test_odd_entries_are_no_obstacle(mounts: Path, tree: Path) -> None:
    new = mount_elsewhere(mounts)
    (new / "0 itself").symlink_to("0 itself")
    (new / "0 above").symlink_to(new)
    (new / "0 nowhere").symlink_to("nowhere")
    os.mkfifo(new / "0 fifo")
    (new / "file").write_bytes(b"x")
    (new / "u" / "loop").symlink_to("loop")
    (new / "2" / "backend.json").mkdir(parents=True)
    (new / "u" / "other" / "backend.json").mkdir(parents=True)
    (new / "v" / "other").mkdir()
    (new / "v" / "other" / "backend.json").write_bytes(b"{}")
    with opened(new) as store:
        assert places(store) == {str(new / name / "dry") for name in NEW} and store.notices == []
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_may_not_be_read_is_no_obstacle(mounts: Path, tmp_path: Path) -> None:
    new = mount_elsewhere(mounts)
    (new / "0 secret" / "below").mkdir(parents=True)
    (new / "u" / "0 secret").mkdir()
    subprocess.run(["chown", "-R", "65534:65534", *(new / name / "dry" for name in NEW)], check=True)
    for secret in (new / "0 secret", new / "u" / "0 secret", *(new / name / "lost+found" for name in NEW)):
        secret.chmod(0)
    assert as_nobody(tmp_path, lambda: len(places(FileStore.open(new, cache=tmp_path / "cache3")))) == 6


def test_a_look_is_bounded(mounts: Path, tree: Path) -> None:
    new = mount_elsewhere(mounts)
    for number in range(LISTED_BELOW + 1000):
        (new / "1" / f"{number}").mkdir(parents=True)
    asked = LocalDirectory.exists
    count = []

    def exists(self: LocalDirectory, key: str) -> bool:
        count.append(key)
        return asked(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalDirectory, "exists", exists)
        with opened(new) as store:
            assert len(store.members.present) == 6
    assert len(count) < 2000 and LOOKED_INTO >= 255  # a store has no more backends than that


def test_what_lies_deeper_than_a_backend_is_of_no_account(mounts: Path, tree: Path, tmp_path: Path) -> None:
    """As in a home directory, where one store has its backends and others lie below."""
    home = tmp_path / "home"
    with FileStore.create([home / name for name in "xyz"], cache=tmp_path / "cache") as store:
        store.ingest([str(tree)], options=INLINE)
    shutil.move(mounts, home / "other store")
    shutil.copytree(home / "x", home / "backup" / "x")
    with opened(home) as store:
        assert places(store) == {str(home / name) for name in "xyz"} and store.notices == []


def test_two_stores_below_a_directory_are_too_many(mounts: Path, tmp_path: Path) -> None:
    FileStore.create([mounts / name / "second" for name in NAMES], cache=tmp_path / "cache").close()
    done = drystone("-s", mounts, "runs")
    assert done.returncode == 2 and "2 stores; name one of the backends" in done.stderr


# --- copies


def test_a_copy_whose_original_is_away_is_not_taken_for_a_disk_that_moved(
    mounts: Path, tree: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(mounts, tmp_path / "copy"))
    away = mounts.rename(tmp_path / "away")
    with opened(copy) as store:
        assert len(store.members.present) == 6 and store.members.moved == []
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
        notes = store.status().notes
        assert sum("drystone backend add" in note for note in notes) == 6
    assert not moves(copy / "a" / "dry")
    away.rename(mounts)
    with opened(copy) as store, pytest.raises(CopiedStore):
        store.ingest([str(tree)], options=INLINE)
    with opened(mounts) as store:
        assert len(store.runs()) == 1 and store.ingest([str(tree)], options=INLINE).exit_code == 0


def test_a_disk_that_was_copied_to_another_one_is_noted_by_backend_add(
    mounts: Path, tree: Path, tmp_path: Path
) -> None:
    shutil.copytree(mounts / "c", tmp_path / "deep" / "er" / "c")
    shutil.rmtree(mounts / "c")
    with opened(mounts) as store:
        assert len(store.members.absent()) == 1
        store.add_backend(tmp_path / "deep" / "er" / "c" / "dry")
    with opened(mounts / "f" / "dry") as store:
        assert not store.members.absent() and store.status().notes == []


# --- what is absent


def test_what_to_do_about_absent_disks_is_said_in_order(mounts: Path) -> None:
    new = mount_elsewhere(mounts)
    status = drystone("-s", new / "u" / "dry", "status", "--json")
    advice = json.loads(status.stdout)["advice"]
    assert status.returncode == 3
    assert "name a directory above all backends" in advice[0] and str(mounts / "b" / "dry") in advice[0]
    [removal] = [each for each in advice[1:] if "backend remove" in each]
    assert "only if all" in removal and removal.endswith(" --force")  # without which it would be refused
    (new / "u").rename(new.with_name("drawer"))
    advice = json.loads(drystone("-s", new, "status", "--json").stdout)["advice"]
    assert "name a directory above all backends" in advice[0] and "only if" in advice[1]
    assert "backend remove" in advice[1]


def test_a_change_that_finds_too_few_backends_names_those_that_are_absent(mounts: Path, tmp_path: Path) -> None:
    new = mount_elsewhere(mounts)
    for arguments in (("add", new / "v" / "dry"), ("add", tmp_path / "x"), ("remove", new / "u" / "dry")):
        done = drystone("-s", new / "u" / "dry", "backend", *arguments)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        assert "1 of 6 backends answer, writing needs 4" in done.stderr and "changing/" not in done.stderr
        assert str(mounts / "d" / "dry") in done.stderr and "name a directory above all" in done.stderr
    assert not list(new.glob("*/dry/changing/*"))
    with opened(new / "u" / "dry") as store, pytest.raises(TooFewBackends, match="name a directory above"):
        store.members.put_everywhere("x", [b""])


# --- the record


def test_a_move_changes_places_and_domains_only() -> None:
    backends = [BackendInfo(n, uuid.UUID(int=n + 1), "local", f"/{n}", "d") for n in range(2)]
    init = make_record(uuid.UUID(int=1), "init", {"backends": [each.to_record() for each in backends]}, [])
    place = {"id": str(backends[1].backend_id), "location": "/far", "domain": "e"}
    stranger = {"id": str(uuid.UUID(int=77)), "location": "/x", "domain": "e"}
    move = make_record(uuid.UUID(int=2), "move", {"places": [place, stranger]}, [])
    for records in ([init, move], [move, init]):
        assert [(info.location, info.domain) for info in fold(records).backends] == [("/0", "d"), ("/far", "e")]


def test_a_move_that_makes_no_sense_is_damage(mounts: Path) -> None:
    record = make_record(uuid.UUID(int=9), "move", {"places": [{"id": "x", "location": "/", "domain": "d"}]}, [])
    for name in NAMES:
        (mounts / name / "dry" / record.key).write_bytes(seal_json(record.body))
    with pytest.raises(CorruptRecord, match="makes no sense"):
        opened(mounts)
