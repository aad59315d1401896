"""A backend is a directory that was opened, and not a path: what is unmounted, or mounted over it, while a store is
open is noticed, and nothing is written below a mount point."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.config import ECScheme
from manifests.errors import TooFewBackends
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from tests.trees import assert_equal_trees, make_tree

INLINE = IngestOptions(inline=True, workers=1)
COMMAND = str(Path(sys.executable).with_name("drystone"))


class Disks:
    """Six mount points, and what is mounted there: directories of `disks`, so that they can be mounted again."""

    def __init__(self, place: Path) -> None:
        self.points = [place / "mnt" / name for name in "abcdef"]
        self.disks = [place / "disks" / name for name in "abcdef"]
        for path in (*self.points, *self.disks):
            path.mkdir(parents=True)

    def mount(self, number: int, source: Path | None = None) -> None:
        """Mount a disk, or `source`, at its point."""
        subprocess.run(["mount", "--bind", source or self.disks[number], self.points[number]], check=True)

    def unmount(self, number: int) -> None:
        subprocess.run(["umount", "-l", self.points[number]], check=True)

    def below(self, number: int) -> list[str]:
        """What lies below a mount point, by taking off all that is mounted there."""
        while subprocess.run(["umount", "-l", self.points[number]], capture_output=True).returncode == 0:
            pass
        return os.listdir(self.points[number])


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    probe = tmp_path / "probe"
    probe.mkdir()
    if subprocess.run(["mount", "--bind", probe, probe], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    subprocess.run(["umount", "-l", probe], check=True)
    made = Disks(tmp_path)
    try:
        for number in range(6):
            made.mount(number)
        yield made
    finally:
        for number in range(6):
            made.below(number)


@pytest.fixture
def store(disks: Disks, tmp_path: Path) -> Iterator[FileStore]:
    with FileStore.create(disks.points, cache=tmp_path / "cache", pack_size=256 << 10) as opened:
        opened.ingest([str(make_tree(tmp_path / "tree", 6, 20))], options=INLINE)
        yield opened


def put_over(disks: Disks, tmp_path: Path, number: int) -> Path:
    other = tmp_path / "other"
    other.mkdir(exist_ok=True)
    disks.mount(number, other)
    return other


@pytest.mark.parametrize("ending", ["unmounted", "mounted over"])
def test_an_open_store_writes_nothing_to_what_is_not_its_disk(
    disks: Disks, store: FileStore, tmp_path: Path, ending: str
) -> None:
    if ending == "unmounted":
        disks.unmount(2)
    else:
        put_over(disks, tmp_path, 2)
    more = make_tree(tmp_path / "more", 9, 20)
    result = store.ingest([str(more)], options=INLINE)
    assert result.exit_code == 3
    assert [line for line in result.lost_backends if str(disks.points[2]) in line]
    store.put_object("key", io.BytesIO(b"x" * 100_000))
    assert [backend.present for backend in store.list_backends()] == [True, True, False, True, True, True]
    if ending == "mounted over":
        assert os.listdir(tmp_path / "other") == []
        assert disks.below(2) == []
        disks.mount(2)
    else:
        assert disks.below(2) == []
    assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(more, tmp_path / "out" / "more")


def test_a_disk_that_is_mounted_again_is_used_again(disks: Disks, store: FileStore, tmp_path: Path) -> None:
    disks.unmount(4)
    assert store.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 3
    disks.mount(4)
    assert store.ingest([str(make_tree(tmp_path / "more", 9, 20))], options=INLINE).exit_code == 0
    assert all(backend.present for backend in store.list_backends())


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("ending", ["unmounted", "mounted over"])
def test_a_disk_that_goes_during_a_run_does_not_count(
    disks: Disks, store: FileStore, tmp_path: Path, ending: str, inline: bool
) -> None:
    """It goes when the first packs are stored: workers hold it open, and home looks again before its record."""
    gone: list[int] = []

    def take_away(_: object) -> None:
        if not gone and len(list((disks.disks[2] / "packs").rglob("*.?"))) > before:
            gone.append(2)
            disks.unmount(2) if ending == "unmounted" else put_over(disks, tmp_path, 2)  # type: ignore[func-returns-value]

    before = len(list((disks.disks[2] / "packs").rglob("*.?")))
    more = make_tree(tmp_path / "more", 9, 400, 60_000)
    result = store.ingest([str(more)], options=IngestOptions(inline=inline, workers=1), on_tick=take_away)
    if not gone:
        pytest.skip("the run was over before a pack was seen")
    assert result.exit_code == 3
    assert [line for line in result.lost_backends if str(disks.points[2]) in line]
    runs = [path.name for path in (disks.disks[2] / "log").iterdir()]
    assert not [name for name in runs if str(result.run_id) in name]
    assert disks.below(2) == []
    if ending == "mounted over":
        assert os.listdir(tmp_path / "other") == []
    store.refresh()
    assert store.restore("latest", tmp_path / "out", request=RestoreRequest("", inline=True)).exit_code == 0
    assert_equal_trees(more, tmp_path / "out" / "more")


def test_too_many_disks_that_go_during_a_run_keep_it_from_being_committed(
    disks: Disks, store: FileStore, tmp_path: Path
) -> None:
    runs = len(store.runs())
    with pytest.raises(TooFewBackends, match=r"mnt/[bc]"), store.batch():
        store.put_object("key", io.BytesIO(os.urandom(600_000)))
        disks.unmount(1)
        disks.unmount(2)
    assert disks.below(1) == disks.below(2) == []
    disks.mount(1)
    disks.mount(2)
    store.refresh()
    assert len(store.runs()) == runs and store.status().exit_code == 0


def test_an_empty_mount_point_is_no_backend(disks: Disks, store: FileStore, tmp_path: Path) -> None:
    store.close()
    disks.unmount(3)
    with FileStore.open(disks.points[0], cache=tmp_path / "cache") as opened:
        assert opened.ingest([str(tmp_path / "tree")], options=INLINE).exit_code == 3
        assert [info.location for info in opened.members.absent()] == [str(disks.points[3])]
    assert disks.below(3) == []


def test_an_open_store_reads_on_from_a_disk_that_was_unmounted(disks: Disks, store: FileStore, tmp_path: Path) -> None:
    name = min(path.name for path in (tmp_path / "tree").iterdir() if path.is_file() and path.stat().st_size > 9)
    for number in (0, 1, 2, 3):
        disks.unmount(number)
    assert b"".join(store.open_range(f"latest:tree/{name}")) == (tmp_path / "tree" / name).read_bytes()


def test_a_closed_store_lets_its_disks_go(disks: Disks, store: FileStore) -> None:
    assert store.status().exit_code == 0
    store.close()
    for point in disks.points:
        subprocess.run(["umount", point], check=True)  # refused while anybody has it open


def test_a_disk_that_goes_from_under_a_command_is_named(disks: Disks, tmp_path: Path) -> None:
    """A real file system, which is gone for good; the command reads from a pipe meanwhile."""
    disks.unmount(5)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disks.points[5]], check=True)
    FileStore.create(disks.points, cache=tmp_path / "cache", scheme=ECScheme(4, 2), pack_size=1 << 20).close()
    command = [COMMAND, "-s", str(disks.points[0]), "ingest", "-", "--name", "stream"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin is not None
        sent = 0
        while not any((disks.points[5] / "packs").rglob("*.?")):
            sent += running.stdin.write(os.urandom(1 << 20))
            assert sent < 100 << 20, "nothing was stored"
        disks.unmount(5)
        assert os.listdir(disks.points[5]) == []
        sent += running.stdin.write(os.urandom(20 << 20))
        out, err = running.communicate(timeout=60)
    assert running.returncode == 3, err
    assert str(disks.points[5]).encode() in out + err and b"Traceback" not in err
    assert disks.below(5) == []
    with FileStore.open(disks.points[0], cache=tmp_path / "cache") as opened:
        assert sum(map(len, opened.open_range("latest:stream"))) == sent


def test_another_stores_backend_mounted_instead_of_the_first_gets_nothing(
    disks: Disks, store: FileStore, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    with FileStore.create([stranger], scheme=ECScheme(1, 0), cache=tmp_path / "cache") as other:
        theirs = other.config.store_id
        place = Path(other.members.all[0].location)
    ours = store.config.store_id
    disks.unmount(0)
    disks.mount(0, place)
    store.put_object("precious", io.BytesIO(b"stone"))
    store.ingest([str(make_tree(tmp_path / "more", 9, 5))], options=INLINE)
    assert (store.config.store_id, [info.number for info in store.members.absent()]) == (ours, [0])
    with FileStore.open(disks.points[0], cache=tmp_path / "cache") as other:
        assert other.config.store_id == theirs and not other.runs() and not list(other.list_objects())


@pytest.mark.parametrize("command", ["verify --data", "status", "ingest ../tree"])
def test_a_command_goes_on_when_its_first_disks_go_while_it_begins(
    disks: Disks, store: FileStore, tmp_path: Path, command: str
) -> None:
    """The disks go between the opening of the store and the first look at its backends."""
    store.close()
    script = (
        "import sys, subprocess, pipeline.objects.turns as turns\n"
        "look, points = turns.WriteTurns._look_again, sys.argv[1:3]\n"
        "def unmount_first(store):\n"
        "    for point in points:\n"
        "        subprocess.run(['umount', '-l', point], capture_output=True)\n"
        "    look(store)\n"
        "turns.WriteTurns._look_again = unmount_first\n"
        "sys.argv[1:3] = []\n"
        "from pipeline.cli.app import run\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, disks.points[0], disks.points[5], "-s", disks.points[1], *command.split()],
        capture_output=True, text=True, cwd=disks.points[1].parent,
    )  # fmt: skip
    assert done.returncode in (3, 4), done.stderr
    assert str(disks.points[0]) in done.stdout + done.stderr and "no store at" not in done.stderr
