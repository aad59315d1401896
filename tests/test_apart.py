"""Each backend is a directory of its own: a directory is known by what it is, and not by its path."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.errors import NotFound, StoreExists, UsageError
from manifests.localdirectory import LocalDirectory
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.nobody import as_nobody
from tests.trees import make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))
MakeStore = Callable[..., FileStore]


@pytest.fixture
def place(make_store: MakeStore, tmp_path: Path) -> Path:
    """The directory of a store with a run of `tree`."""
    store = make_store()
    store.ingest([str(make_tree(tmp_path / "tree", 6, 20))], options=INLINE)
    store.close()
    return tmp_path / "store"


def opened(place: Path) -> FileStore:
    return FileStore.open(place, cache=Path(os.environ["DRYSTONE_CACHE"]))


def drystone(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def files(place: Path) -> set[str]:
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.name != "changing" or path.is_file()}


def links(place: Path, tmp_path: Path) -> list[Path]:
    """Other paths to backend 0."""
    (tmp_path / "link").symlink_to(place / "backend-0")
    (tmp_path / "above").symlink_to(place)
    return [tmp_path / "link", tmp_path / "above" / "backend-0", place / "backend-1" / ".." / "backend-0"]


def test_a_member_is_known_by_whatever_path_it_is_added(place: Path, tmp_path: Path) -> None:
    before = files(place)
    for path in links(place, tmp_path):
        done = drystone("-s", place, "backend", "add", path)
        assert done.returncode == 0 and done.stdout.startswith("part of the store already: "), done.stderr
        assert f"at {place}/backend-0," in done.stdout
    assert files(place) == before
    with opened(place) as store:
        assert store.add_backend(tmp_path / "link", domain="attic").number == 0
        assert store.get_backend(str(tmp_path / "link")).failure_domain == "attic"
        assert store.members.all[0].location == str(place / "backend-0") and len(store.members.all) == 6
        store.remove_backend(tmp_path / "link", dry_run=True)
        with pytest.raises(NotFound):
            store.get_backend(str(tmp_path))


def test_a_bind_mount_of_a_member_is_the_member(place: Path, tmp_path: Path) -> None:
    bound = tmp_path / "bound"
    bound.mkdir()
    if subprocess.run(["mount", "--bind", place / "backend-2", bound], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert "part of the store already" in drystone("-s", place, "backend", "add", bound).stdout
        refused = drystone("-s", place, "backend", "add", bound / "below")
        assert refused.returncode == 2 and "lies in the backend" in refused.stderr
    finally:
        subprocess.run(["umount", "-l", bound], check=True)


def test_the_same_directory_seen_with_two_identities_is_no_copy(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below an overlay, or on a file server."""
    (tmp_path / "seen").symlink_to(place / "backend-3")
    identity = LocalDirectory.identity
    monkeypatch.setattr(LocalDirectory, "identity", lambda self: f"{identity(self)}:{os.path.dirname(self.location)}")
    before = files(place)
    with opened(place) as store, pytest.raises(UsageError, match=r"part of the store already"):
        store.add_backend(tmp_path / "seen")
    assert files(place) - {"backend-3/inflight"} == before - {"backend-3/inflight"}


def test_no_advice_about_a_copy_ruins_anything(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "backend-3", tmp_path / "copy")
    refused = drystone("-s", place, "backend", "add", tmp_path / "copy")
    assert refused.returncode == 2 and "copy of" in refused.stderr and "backend.json" not in refused.stderr


@pytest.mark.parametrize(
    "given",
    [
        ("x", "x"),
        ("x", "./x/"),
        ("x", "link-to-x"),
        ("here/x", "link-to-here/x"),
        ("here/deep/er/x", "link-to-here/deep/er/x"),
    ],
)
def test_init_knows_a_directory_that_is_named_twice(tmp_path: Path, given: tuple[str, str]) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link-to-here").symlink_to("here")
    if "link-to-x" in given:
        (tmp_path / "x").mkdir()
        (tmp_path / "link-to-x").symlink_to("x")
    before = files(tmp_path)
    done = drystone("init", tmp_path / "y", *(f"{tmp_path}/{each}" for each in given))
    assert done.returncode == 2 and "named twice" in done.stderr
    assert files(tmp_path) == before


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("outer", "inner"), [("z", "z/b"), ("z", "z/b/c/d"), ("here/z", "link/z/b")])
def test_init_refuses_backends_inside_one_another(tmp_path: Path, outer: str, inner: str, order: int) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    before = files(tmp_path)
    done = drystone("init", *[tmp_path / each for each in (outer, inner, "q")][::order])
    assert done.returncode == 2 and "lies in the backend" in done.stderr
    assert files(tmp_path) == before


def test_a_backend_inside_another_one_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place / "backend-0")
    before = files(place)
    for inside in (place / "backend-0" / "sub", tmp_path / "link" / "packs" / "sub"):
        done = drystone("-s", place, "backend", "add", inside)
        assert done.returncode == 2 and "lies in the backend" in done.stderr
        assert drystone("init", inside, tmp_path / "q", "--ec", "1+1").returncode == 2  # also one of another store
        assert drystone("init", inside).returncode == 2
    assert files(place) == before and not (tmp_path / "q").exists()


def test_a_directory_belongs_to_one_store(place: Path, make_store: MakeStore, tmp_path: Path) -> None:
    make_store("other")
    (tmp_path / "link").symlink_to(tmp_path / "other" / "backend-0")
    with opened(place) as store, pytest.raises(StoreExists, match="another store"):
        store.add_backend(tmp_path / "link")
    assert drystone("init", tmp_path / "link", tmp_path / "q").returncode == 1


def test_backends_may_lie_beside_others_and_beside_files_of_that_name(place: Path, tmp_path: Path) -> None:
    (tmp_path / "backend.json").write_text("{}")  # of another program
    with opened(place) as store:
        assert store.add_backend(place / "backend-6").number == 6
        assert store.add_backend(tmp_path / "deep" / "er").number == 7


def test_a_new_disk_in_the_place_of_a_dead_one_is_told_from_it(place: Path) -> None:
    shutil.rmtree(place / "backend-5")
    added = drystone("-s", place, "backend", "add", place / "backend-5")
    with opened(place) as store:
        dead, new = store.members.all[5], store.members.all[6]
        assert store.get_backend(str(place / "backend-5")).id == new.backend_id
        advice = store.status().advice
    assert f"drystone backend remove {dead.backend_id}" in added.stdout.splitlines()[-1]
    assert not any("attach" in each for each in advice)
    assert any(f"drystone backend remove {dead.backend_id}" in each for each in advice)
    listed = drystone("-s", place, "backend", "list").stdout.splitlines()
    assert [line.endswith("(another backend is there now)") for line in listed].count(True) == 1
    assert drystone("-s", place, "backend", "remove", dead.backend_id).returncode == 0


# --- what may lie in a new backend


@pytest.mark.parametrize("name", ["lost+found", "System Volume Information"])
def test_what_file_systems_put_there_is_no_obstacle(place: Path, tmp_path: Path, name: str) -> None:
    disks = [tmp_path / disk for disk in "abc"]
    for disk in disks:
        (disk / name).mkdir(parents=True, mode=0o700)
    done = drystone("init", *disks, "--ec", "2+1")
    assert done.returncode == 0, done.stderr
    tree = tmp_path / "tree"
    assert drystone("-s", disks[1], "ingest", tree, "-q").returncode == 0
    (tmp_path / "d" / name).mkdir(parents=True)
    assert drystone("-s", place, "backend", "add", tmp_path / "d").returncode == 0
    (tmp_path / "one" / name).mkdir(parents=True)
    assert drystone("init", tmp_path / "one").returncode == 0


def test_what_else_lies_there_is_named(place: Path, tmp_path: Path) -> None:
    for name in ("letters", ".Trash-1000", "lost"):
        (tmp_path / f"with {name}" / name).mkdir(parents=True)
    (tmp_path / "with lost+found").mkdir()
    (tmp_path / "with lost+found" / "lost+found").write_bytes(b"a file of that name")
    for disk in tmp_path.glob("with *"):
        name = disk.name.removeprefix("with ")
        for arguments in (("init", disk, tmp_path / "q"), ("-s", place, "backend", "add", disk)):
            done = drystone(*arguments)
            assert done.returncode == 1 and f"it holds {name}" in done.stderr


def test_a_fresh_ext4_file_system_is_a_place_for_a_backend(place: Path, tmp_path: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 32 << 20)
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4 here")
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, disk], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        assert (disk / "lost+found").is_dir()
        added = drystone("-s", place, "backend", "add", disk)
        assert added.returncode == 0, added.stderr
        with opened(disk) as store:
            assert len(store.members.present) == 7
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_may_not_be_looked_into_is_not_called_absent(place: Path) -> None:
    for path in (place / "backend-0", *place.rglob("*")):
        os.chown(path, 65534, 65534)
    place.chmod(0o700)

    def ask() -> int:
        """How many places are told of as they should be."""
        right = 0
        for named in (place, place / "backend-0", place / "nothing"):
            with pytest.raises(NotFound) as caught:
                FileStore.open(named, cache=place)
            line = str(caught.value)
            right += "that can be read" in line and "Permission denied" in line and "\n" not in line
        return right

    assert as_nobody(place.parent, ask) == 3
