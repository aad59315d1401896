"""Who may read a store: its owner, and those that it is shared with, whatever anybody's umask."""

from __future__ import annotations

import grp
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manifests.access import PRIVATE, Access, make_private, shared, unmeant_readers
from manifests.config import ECScheme
from manifests.errors import BackendError, UsageError
from manifests.localdirectory import LocalDirectory
from pipeline import filestore
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from tests.sampling import one_in
from tests.trees import make_tree

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)


def drystone(*arguments: object, umask: int = 0o022, code: int = 0, user: int | None = None) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, umask=umask, user=user, group=user
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def modes(place: Path) -> dict[str, set[str]]:
    """The modes of the directories and of the files below a place."""
    found: dict[str, set[str]] = {"directories": set(), "files": set()}
    for path in (place, *place.rglob("*")):
        info = path.lstat()
        kind = "directories" if stat.S_ISDIR(info.st_mode) else "files"
        found[kind].add(oct(stat.S_IMODE(info.st_mode)))
    return found


def require_other_users() -> None:
    """Skip where no command can be run as another user."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    try:
        subprocess.run([COMMAND, "--version"], user=65534, group=65534, capture_output=True, check=True)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("other users can't reach the command")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", 6, 20)


@pytest.fixture
def below_others(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that everybody can reach, as no temporary one of pytest is."""
    place = Path("/var/tmp") / f"drystone-{os.getpid()}-{os.urandom(4).hex()}"
    place.mkdir(mode=0o755)
    place.chmod(0o755)
    yield place
    subprocess.run(["rm", "-rf", place], check=True)


@pytest.mark.parametrize(("umask", "index"), [(0o000, "memory"), (0o022, "disk")])
def test_a_store_is_its_owners_alone(tmp_path: Path, tree: Path, umask: int, index: str) -> None:
    store, cache = tmp_path / "deep" / "store", Path(os.environ["DRYSTONE_CACHE"])
    drystone("init", store, "--index", index, umask=umask)
    drystone("-s", store, "ingest", tree, umask=umask)
    drystone("-s", store, "ingest", tree, "--force", umask=umask)
    drystone("-s", store, "verify", "--data", umask=umask)
    drystone("-s", store, "ls", umask=umask)
    drystone("-s", store, "backend", "add", tmp_path / "more", umask=umask)
    for place in (store, tmp_path / "more"):
        assert modes(place) == {"directories": {"0o700"}, "files": {"0o600"}}
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700
    for inside in cache.iterdir():
        found = modes(inside)
        assert found["directories"] <= {"0o700"} and found["files"] <= {"0o600"}


def test_traces_of_a_run_are_the_owners_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    drystone("init", store, umask=0)
    command = [COMMAND, "-s", str(store), "ingest", "-", "--name", "x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, umask=0, stdout=subprocess.DEVNULL) as running:
        assert running.stdin is not None
        sent = 0
        while not list(store.glob("backend-*/inflight/*/journal*")) and sent < 400 << 20:
            sent += running.stdin.write(os.urandom(1 << 20))
        assert modes(store) == {"directories": {"0o700"}, "files": {"0o600"}}
        running.kill()
        running.communicate()


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        (["--mode", "0750"], 0o2750),
        (["--mode", "770"], 0o2770),
        (["--mode", "0755"], 0o2755),
        (["--mode", "0700"], 0o700),
        (["--group", str(os.getegid())], 0o2750),
        (["--group", grp.getgrgid(os.getegid()).gr_name, "--mode", "0770"], 0o2770),
    ],
)
@pytest.mark.parametrize("umask", one_in(2, [0o077, 0o000]))
def test_a_shared_store_is_as_open_as_was_asked_for(
    tmp_path: Path, tree: Path, options: list[str], mode: int, umask: int
) -> None:
    store = tmp_path / "store"
    said = drystone("init", store, *options, umask=umask)
    drystone("-s", store, "ingest", tree, umask=0o077 - umask)
    drystone("-s", store, "backend", "add", tmp_path / "more", umask=umask)
    for place in (store, tmp_path / "more"):
        assert modes(place) == {"directories": {oct(mode)}, "files": {oct(mode & 0o666)}}
    assert ("shared: " in said) == (mode != 0o700)


@pytest.mark.parametrize(
    ("mode", "group", "words"),
    [
        ("rwx", "", "no mode"),
        ("0999", "", "no mode"),
        ("0500", "", "owner"),
        ("0740", "", "others"),
        ("01777", "", "no mode"),
        ("", "no such group", "no group"),
    ],
)
def test_what_is_no_way_to_share_is_refused(tmp_path: Path, mode: str, group: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        shared(mode, group)
    options = [*(["--mode", mode] if mode else []), *(["--group", group] if group else [])]
    assert words in drystone("init", tmp_path / "store", *options, code=2)
    assert not (tmp_path / "store").exists()


def test_no_wish_is_privacy() -> None:
    assert shared() == PRIVATE == Access(0o700, None)


def test_members_of_the_group_write_what_the_others_read(below_others: Path) -> None:
    require_other_users()
    group, store, data = 65534, below_others / "store", below_others / "data"
    data.mkdir()
    (data / "file").write_bytes(b"shared")
    drystone("init", store, "--group", group, "--mode", "0770")
    environment = {**os.environ, "DRYSTONE_CACHE": str(below_others / "cache"), "TMPDIR": "/tmp"}
    (below_others / "cache").mkdir(mode=0o777)
    (below_others / "cache").chmod(0o777)
    done = subprocess.run(
        [COMMAND, "-s", store, "ingest", data], user=1234, group=group, env=environment, umask=0o077, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert modes(store) == {"directories": {"0o2770"}, "files": {"0o660"}}
    assert {path.stat().st_gid for path in store.rglob("*")} == {group}
    reading = subprocess.run([COMMAND, "-s", store, "runs"], user=1235, group=group, env=environment)
    assert reading.returncode == 0
    stranger = subprocess.run(
        [COMMAND, "-s", store, "runs"], user=1236, group=1236, env=environment, text=True, capture_output=True
    )
    assert stranger.returncode == 1 and "Permission denied" in stranger.stderr and "Traceback" not in stranger.stderr


def test_a_store_that_is_open_is_named_with_what_closes_it(below_others: Path, tmp_path: Path, tree: Path) -> None:
    store = below_others / "a store"
    drystone("init", store)
    assert "can read" not in drystone("-s", store, "status")
    for path in (store, *store.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    drystone("-s", store, "ingest", tree)
    said = drystone("-s", store, "status")
    (line,) = [line for line in said.splitlines() if "can read" in line]
    assert line.startswith("note: everybody can read ") and str(store / "backend-0") in line
    assert json.loads(drystone("-s", store, "status", "--json"))["notes"] == [line.removeprefix("note: ")]
    subprocess.run(line.partition("to close: ")[2], shell=True, check=True)
    assert "can read" not in drystone("-s", store, "status")
    drystone("-s", store, "ingest", tree, "--force", umask=0)
    for backend in store.iterdir():
        assert modes(backend) == {"directories": {"0o700"}, "files": {"0o600"}}


@pytest.mark.parametrize(
    ("mode", "above", "who"),
    [
        (0o700, 0o755, ""),
        (0o755, 0o755, "everybody"),
        (0o755, 0o700, ""),
        (0o711, 0o755, "everybody"),
        (0o750, 0o755, "group"),
        (0o2750, 0o755, ""),
        (0o2755, 0o755, "everybody"),
    ],
)
def test_who_can_read_a_directory(below_others: Path, mode: int, above: int, who: str) -> None:
    place = below_others / "above" / "place"
    place.mkdir(parents=True)
    if who == "group":
        if os.geteuid() != 0:
            pytest.skip("giving a directory to another group takes root")
        os.chown(place, -1, 54321)
    place.chmod(mode)
    place.parent.chmod(above)
    found, _ = unmeant_readers(str(place))
    assert found == ("group 54321" if who == "group" else who)
    place.parent.chmod(0o755)


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_a_cache_is_made_and_kept_private(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        make_private(tmp_path / "a" / "b")
    finally:
        os.umask(old)
    assert modes(tmp_path / "a") == {"directories": {"0o700"}, "files": set()}
    (tmp_path / "a" / "b").chmod(0o755)
    make_private(tmp_path / "a" / "b")
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_directory_of_another_user_is_no_place_for_a_private_store(below_others: Path) -> None:
    require_other_users()
    place = below_others / "place"
    place.mkdir()
    place.chmod(0o777)
    said = drystone("init", *(place / str(n) for n in range(1)), place, "--ec", "1+1", code=1, user=65534)
    assert "belongs to another user" in said
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("name", ["store.json", "backend.json", "log/"])
@pytest.mark.parametrize("number", [0, 4])
def test_a_store_that_can_not_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    from manifests.errors import BackendError
    from manifests.localdirectory import LocalDirectory

    write: Callable[..., None] = LocalDirectory.write
    hits: list[str] = []
    there = tmp_path / "there"
    there.mkdir(mode=0o755)
    there.chmod(0o755)

    def fail(self: LocalDirectory, key: str, pieces: object) -> None:
        if key.startswith(name) and self.location.endswith(f"-{number}"):
            hits.append(key)
            raise BackendError(f"writing {key}: scripted")
        write(self, key, pieces)

    places = [there, *(tmp_path / "disks" / f"disk-{n}" for n in range(5))]
    with monkeypatch.context() as patch:
        patch.setattr(LocalDirectory, "write", fail)
        for directories in ([tmp_path / "deep" / "store"], places):
            with pytest.raises(BackendError, match="scripted"):
                FileStore.create(directories, cache=tmp_path / "cache")
    assert hits
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]
    assert list(there.iterdir()) == [] and stat.S_IMODE(there.stat().st_mode) == 0o755
    for directories in ([tmp_path / "deep" / "store"], places):
        FileStore.create(directories, cache=tmp_path / "cache").close()


def test_a_directory_keeps_its_group_and_mode_where_no_store_comes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place := tmp_path / "place").mkdir(mode=0o755)
    other = next((each for each in os.getgroups() if each != place.stat().st_gid), 1 if os.geteuid() == 0 else None)
    if other is None:
        pytest.skip("the user is in one group only")

    def denied(self: LocalDirectory, key: str, pieces: object) -> None:
        raise BackendError("no")

    monkeypatch.setattr(LocalDirectory, "write", denied)
    before = place.stat()
    with pytest.raises(BackendError):
        FileStore.create([place], scheme=ECScheme(1, 0), access=Access(0o2770, other), cache=tmp_path / "cache")
    assert (place.stat().st_gid, place.stat().st_mode) == (before.st_gid, before.st_mode)


def test_nothing_is_made_where_no_cache_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise UsageError("no home")

    monkeypatch.setattr(filestore, "default_cache", nowhere)
    with pytest.raises(UsageError, match="no home"):
        FileStore.create([tmp_path / "store"])
    assert not (tmp_path / "store").exists()
