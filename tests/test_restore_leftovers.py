"""What a killed restore leaves behind is removed by the next one; what may be anybody else's is left."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manifests.processes import ProcessMark
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.outfile import OutputOptions, output_file
from pipeline.restore.run import RestoreRequest, RestoreResult
from stages.staging import Staging, remove_leftovers
from tests.sampling import one_in
from tests.test_endings import descendants, process_table

COMMAND = str(Path(sys.executable).with_name("drystone"))
INLINE = IngestOptions(inline=True, workers=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of small, large and hardlinked files, and a store that holds it."""
    place = tmp_path_factory.mktemp("leftovers")
    tree, chance = place / "tree", random.Random(1)
    for folder in range(20):
        (tree / f"dir{folder}").mkdir(parents=True)
        for number in range(20):
            (tree / f"dir{folder}" / f"file{number}").write_bytes(chance.randbytes(chance.randrange(30_000)))
    for number in range(3):
        (tree / f"large{number}").write_bytes(chance.randbytes(12_000_000))
    os.link(tree / "large0", tree / "dir0" / "another")
    with FileStore.create([place / "store"], cache=place / "cache") as store:
        assert store.ingest([str(tree)], options=INLINE).exit_code == 0
    return place


def restore(place: Path, to: Path, overwrite: str = "never") -> RestoreResult:
    with FileStore.open(place / "store", cache=place / "cache") as opened:
        return opened.restore("latest", to, request=RestoreRequest("", overwrite, inline=True, workers=1))


def staging(out: Path) -> list[str]:
    return sorted(name for name in os.listdir(out) if name.startswith(".drystone-restore-"))


def files(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


@pytest.mark.parametrize("overwrite", ["never", "always"])
@pytest.mark.parametrize("moment", one_in(4, [0.25, 0.4, 0.55, 0.7, 0.9]))
def test_a_restore_whose_processes_are_all_killed_is_cleared_away_by_the_next(
    place: Path, tmp_path: Path, overwrite: str, moment: float
) -> None:
    out = tmp_path / "out"
    archived = files(place / "tree")
    if overwrite == "always":  # what is to be replaced must be there, old or new, at each moment
        old = {name: name.encode() for name in archived}
        for name, data in old.items():
            (out / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            (out / "tree" / name).write_bytes(data)
    line = [COMMAND, "-s", place / "store", "restore", "-q", "--to", out, "--overwrite", overwrite]
    process = subprocess.Popen(line)
    limit = time.monotonic() + 30
    while not (out.exists() and staging(out)) and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.002)
    time.sleep(moment - 0.25)
    process.send_signal(signal.SIGSTOP)  # it starts no more workers: one that is not killed would clear all away
    below = descendants(process.pid)
    for pid in (*below, process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    while any(pid in process_table() for pid in below) and time.monotonic() < limit:
        time.sleep(0.02)
    left = staging(out)
    assert left or moment > 0.25, "nothing was left behind, so nothing is tested"
    held = files(out / "tree") if (out / "tree").exists() else {}
    if overwrite == "always":
        assert held.keys() == archived.keys()
        assert all(data in (archived[name], old[name]) for name, data in held.items())
    else:
        assert all(data == archived[name] for name, data in held.items())
    done = subprocess.run([*line[:4], "--to", out, "--overwrite", overwrite], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [f"removed what a killed restore had left behind: {out}/{name}" for name in left] == [
        said for said in done.stderr.decode().splitlines() if "left behind" in said
    ]
    assert not staging(out)
    assert files(out / "tree") == archived
    assert (out / "tree" / "large0").stat().st_ino == (out / "tree" / "dir0" / "another").stat().st_ino


def test_a_restore_at_work_is_left_alone(place: Path, tmp_path: Path) -> None:
    at_work = Staging(str(tmp_path))
    result = restore(place, tmp_path)
    assert result.leftovers.at_work == (at_work.name,)
    assert os.path.isdir(at_work.objects)
    at_work.close()
    assert os.listdir(tmp_path) == ["tree"]


def make_leftover(folder: Path) -> Path:
    """A staging directory whose restore was killed."""
    program = f"import os; from stages.staging import Staging; print(Staging({str(folder)!r}).path); os._exit(0)"
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.stdout.reconfigure(line_buffering=True);" + program],
        capture_output=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    return Path(os.fsdecode(done.stdout.strip()))


def test_a_leftover_is_removed_and_named(tmp_path: Path) -> None:
    leftover = make_leftover(tmp_path)
    (leftover / "objects" / "part-1").write_bytes(b"half")
    assert remove_leftovers(str(tmp_path)).removed == (leftover.name,)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("how", ["copied", "renamed", "no record", "nonsense", "other host", "a file", "a link"])
def test_what_may_be_somebody_elses_is_left_and_named(tmp_path: Path, how: str) -> None:
    leftover = make_leftover(tmp_path)
    (leftover / "objects" / "precious").write_bytes(b"precious")
    record = leftover / "whose.json"
    if how == "copied":  # as an archive of a target that held one gives it back
        shutil.copytree(leftover, tmp_path / "copy")
        shutil.rmtree(leftover)
        (tmp_path / "copy").rename(leftover)
        (tmp_path / "other").mkdir()  # so that no inode comes again by chance
    elif how == "renamed":
        leftover = leftover.rename(tmp_path / ".drystone-restore-0123456789abcdef")
    elif how == "no record":
        record.unlink()
    elif how == "nonsense":
        record.write_text("[1]")
    elif how == "other host":
        record.write_text(json.dumps({**json.loads(record.read_text()), "host": "elsewhere", "boot": "another"}))
    else:
        (tmp_path / "outside").mkdir()
        leftover.rename(tmp_path / "outside" / "moved")
        if how == "a file":
            leftover.write_bytes(b"precious")
        else:
            leftover.symlink_to("outside/moved")
    if how == "copied" and json.loads(record.read_text())["inode"] == leftover.stat().st_ino:
        pytest.skip("the copy got the inode of the original")
    found = remove_leftovers(str(tmp_path))
    assert (found.removed, [name for name, _ in found.left]) == ((), [leftover.name])
    assert os.path.lexists(leftover)
    if how not in ("a file", "a link"):
        assert (leftover / "objects" / "precious").read_bytes() == b"precious"


def test_a_rebooted_machine_knows_its_leftovers(tmp_path: Path) -> None:
    leftover = make_leftover(tmp_path)
    record = leftover / "whose.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "before"}))
    known = (leftover.name,) if ProcessMark.here().machine else ()
    assert remove_leftovers(str(tmp_path)).removed == known


@pytest.mark.parametrize("changed", ["machine", "namespace", "host"])
def test_a_leftover_of_another_boot_that_may_be_of_another_machine_is_left(tmp_path: Path, changed: str) -> None:
    """Containers of one image have one host name, wherever they run."""
    leftover = make_leftover(tmp_path)
    record = leftover / "whose.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "another", changed: "another"}))
    found = remove_leftovers(str(tmp_path))
    assert not found.removed and "may still use it" in dict(found.left)[leftover.name]


@pytest.mark.parametrize("alive", [True, False])
def test_where_no_locks_are_the_process_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    def refuse(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    leftover = Path(Staging(str(tmp_path)).path) if alive else make_leftover(tmp_path)
    assert remove_leftovers(str(tmp_path)).removed == (() if alive else (leftover.name,))
    assert leftover.exists() == alive


def test_writing_a_file_clears_away_what_a_killed_writer_left(tmp_path: Path) -> None:
    leftover = make_leftover(tmp_path)
    (leftover / "objects" / "new").write_bytes(b"half")
    at_work = Staging(str(tmp_path))
    with output_file(str(tmp_path / "file"), OutputOptions()) as out:
        out.write(b"whole")
    assert sorted(os.listdir(tmp_path)) == sorted([at_work.name, "file"])
    at_work.close()


def test_a_range_clears_it_away(place: Path, tmp_path: Path) -> None:
    leftover = make_leftover(tmp_path)
    part = tmp_path / "part"
    line = [COMMAND, "-s", place / "store", "restore", "latest:tree/large0", "--range", "0-9", "--to", part]
    assert subprocess.run(line, stdout=subprocess.DEVNULL, timeout=60).returncode == 0
    assert not leftover.exists() and len(os.listdir(tmp_path)) == 1


def test_a_removal_that_was_cut_short_is_completed(tmp_path: Path) -> None:
    leftover = make_leftover(tmp_path)
    shutil.rmtree(leftover / "objects")
    assert remove_leftovers(str(tmp_path)).removed == (leftover.name,)


@pytest.mark.parametrize("record", [None, ""])
def test_what_was_left_before_it_had_a_record_is_removed(tmp_path: Path, record: str | None) -> None:
    leftover = make_leftover(tmp_path)
    shutil.rmtree(leftover / "objects")
    (leftover / "whose.json").unlink()
    if record is not None:
        (leftover / "whose.json").write_text(record)
    assert remove_leftovers(str(tmp_path)).removed == (leftover.name,)
    assert not os.listdir(tmp_path)


def test_a_restore_whose_new_directory_is_taken_for_a_leftover_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, removed = Staging._claim, []

    def claim_late(self: Staging, folder: int) -> None:
        if not removed:
            removed.extend(remove_leftovers(str(tmp_path)).removed)
        claim(self, folder)

    monkeypatch.setattr(Staging, "_claim", claim_late)
    staged = Staging(str(tmp_path))
    assert len(removed) == 1 and os.listdir(tmp_path) == [staged.name]
    assert remove_leftovers(str(tmp_path)).at_work == (staged.name,)
    assert staged.close() == "" and not os.listdir(tmp_path)


def test_the_lock_is_held_as_long_as_the_restore_lives(tmp_path: Path) -> None:
    staged = Staging(str(tmp_path))
    with open(os.path.join(staged.path, "whose.json")) as record, pytest.raises(BlockingIOError):
        fcntl.flock(record, fcntl.LOCK_EX | fcntl.LOCK_NB)
    staged.close()


def test_workers_that_are_left_remove_the_staging_directory_and_no_other(tmp_path: Path) -> None:
    staged = Staging(str(tmp_path))
    remove = pickle.loads(pickle.dumps(staged.cleanup))
    (tmp_path / staged.name).rename(tmp_path / "moved")
    (tmp_path / staged.name / "objects").mkdir(parents=True)
    for precious in ("precious", "objects/precious"):
        (tmp_path / staged.name / precious).write_bytes(b"precious")
    remove()
    assert len(list((tmp_path / staged.name).rglob("precious"))) == 2
    shutil.rmtree(tmp_path / staged.name)
    (tmp_path / "moved").rename(tmp_path / staged.name)
    (tmp_path / staged.name / "objects/part").write_bytes(b"half")
    remove()
    assert not os.listdir(tmp_path)
    assert staged.close() == ""
