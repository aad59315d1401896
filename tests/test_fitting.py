"""Numbers and paths that no column holds: the nearest is recorded, it is said, and the run goes on."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from manifests.columns import OBJECT_DTYPE
from manifests.fitting import MISFIT_MOST, MISFITS, put, total
from manifests.objectrows import BATCH_HEAP, BATCH_ROWS, PATH_MOST, ObjectRows
from pipeline.filestore import FileStore
from pipeline.ingest.run import IngestOptions
from pipeline.restore.run import RestoreRequest
from pipeline.topology import SMALL_SLOT
from stages.scan import KIND, Source, scan

COMMAND = str(Path(sys.executable).with_name("drystone"))
SECOND = 10**9
LEAST, MOST = -(2**63), 2**63 - 1
TIMES = {
    "y1600": -11676096000 * SECOND,
    "y1677": LEAST,
    "y1900": -2208988800 * SECOND,
    "y1969": -1,
    "y2262": MOST,
    "y2263": MOST + 1,
    "y2300": 10413792000 * SECOND,
    "far": 10**14 * SECOND,
}
REASON = "its modification time is clipped to the years 1677 to 2262"


@pytest.fixture
def wide() -> Iterator[Path]:
    """A directory on a file system that holds all of TIMES, as tmpfs does; ext4 knows the years 1901 to 2446 alone."""
    for candidate in (tempfile.gettempdir(), "/dev/shm", "/run"):
        if not os.access(candidate, os.W_OK):
            continue
        with tempfile.TemporaryDirectory(dir=candidate) as folder:
            probe = Path(folder, "probe")
            probe.touch()
            for wanted in TIMES.values():
                os.utime(probe, ns=(0, wanted))
                if probe.stat().st_mtime_ns != wanted:
                    break
            else:
                probe.unlink()
                yield Path(folder)
                return
    pytest.skip("no file system here holds the years 1600 and 2300: neither TMPDIR nor /dev/shm")


def make_times(folder: Path) -> None:
    """A file, a directory with a file, a symlink and a FIFO for each of TIMES."""
    for name, when in TIMES.items():
        (folder / f"{name}.file").write_text(name)
        (folder / f"{name}.large").write_bytes(os.urandom(1 << 20))
        (folder / f"{name}.empty").touch()
        (folder / f"{name}.folder").mkdir()
        (folder / f"{name}.folder" / "inside").write_text(name)
        (folder / f"{name}.link").symlink_to("nowhere")
        os.mkfifo(folder / f"{name}.fifo")
        for path in folder.glob(f"{name}.*"):
            os.utime(path, ns=(0, when), follow_symlinks=False)
    (folder / "zz").write_text("the last")


def drystone(*words: str | Path, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words],
        capture_output=True, text=True, timeout=60, env={**os.environ, "DRYSTONE_STORE": str(store)},
    )  # fmt: skip


@pytest.mark.parametrize("inline", [True, False])
def test_times_that_fit_are_kept_and_others_are_clipped_and_named(wide: Path, tmp_path: Path, inline: bool) -> None:
    tree = wide / "tree"
    tree.mkdir()
    make_times(tree)
    misfits = {name for name, when in TIMES.items() if not LEAST <= when <= MOST}
    expected = {f"tree/{path.name}" for path in tree.iterdir() if path.name.split(".")[0] in misfits}
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        for _ in range(2):  # the second time with a parent
            result = store.ingest([str(tree)], options=IngestOptions(inline=inline, workers=1))
            assert result.exit_code == 3
            assert {os.fsdecode(path) for path, _ in result.tally.named_errors} == expected
            assert result.tally.reasons == {REASON: len(expected)}
        assert store.restore("latest", wide / "out", request=RestoreRequest("", inline=True)).exit_code == 0
        assert store.verify(data=True, inline=True).exit_code == 0
        recorded = {os.fsdecode(info.path): info for info in store.list(recursive=True)}
    for name, when in TIMES.items():
        clipped = min(max(when, LEAST), MOST)
        for kind in ("file", "large", "empty", "folder", "link", "fifo"):
            info = recorded[f"tree/{name}.{kind}"]
            assert info.mtime_ns == clipped, info
            assert bool(info.error) == (clipped != when), info
        for part in ("file", "large", "empty", "folder/inside"):
            restored = wide / "out" / "tree" / f"{name}.{part}"
            assert restored.read_bytes() == (tree / f"{name}.{part}").read_bytes()
    assert (wide / "out" / "tree" / "zz").read_text() == "the last"


def test_the_dry_run_and_the_comparison_say_it(wide: Path, tmp_path: Path) -> None:
    (wide / "tree").mkdir()
    make_times(wide / "tree")
    store = tmp_path / "store"
    assert drystone("init", store, store=store).returncode == 0
    dry = drystone("ingest", "--dry-run", wide / "tree", store=store)
    wet = drystone("ingest", wide / "tree", store=store)
    for done in (dry, wet):
        assert done.returncode == 3
        assert done.stderr.count(REASON) == (24 if done is dry else 10)
        assert "Traceback" not in done.stderr
    listed = drystone("ls", "-R", "--format", "jsonl", store=store)
    errors = {record["path"]: record.get("error") for record in map(json.loads, listed.stdout.splitlines())}
    assert errors["tree/y2300.file"] == REASON and errors["tree/zz"] is None
    compared = drystone("compare", "latest", wide / "tree", store=store)
    assert compared.returncode == 3 and "incomplete" in compared.stdout
    assert "tree/zz" not in compared.stdout and "tree/y1900.file" not in compared.stdout


def test_a_batch_of_misfits_fits_into_a_slot(wide: Path, tmp_path: Path) -> None:
    """As many rows as go into one, with the longest paths that do."""
    tree = wide / ("x" * 60)
    tree.mkdir()
    for number in range(BATCH_ROWS + 500):
        path = tree / f"{number:067}"
        path.touch()
        os.utime(path, ns=(0, TIMES["y2300"]))
    assert all(len(text) <= MISFIT_MOST for text in MISFITS.values())
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        result = store.ingest([str(tree)], options=IngestOptions(workers=1))
    assert (result.exit_code, result.tally.errors) == (3, BATCH_ROWS + 500)


def stat_of(**fields: int) -> os.stat_result:
    """A regular file's stat; `fields` are named as in os.stat_result."""
    order = ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size")
    values = {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, **fields}
    more = {name: values.get(name, 0) for name in ("st_mtime_ns", "st_ctime_ns", "st_rdev")}
    return os.stat_result((*(values.get(name, 0) for name in order), 0, 0, 0), more)


@pytest.mark.parametrize(
    ("field", "column", "value", "recorded", "fits"),
    [
        ("st_uid", "uid", -1, 2**32 - 1, True),  # as Python gives the greatest
        ("st_gid", "gid", 2**32 - 1, 2**32 - 1, True),
        ("st_uid", "uid", 2**32, 2**32 - 1, False),
        ("st_ino", "inode", 2**64 - 1, 2**64 - 1, True),
        ("st_ino", "inode", 2**64, 2**64 - 1, False),
        ("st_dev", "device", -2, 2**64 - 2, True),
        ("st_dev", "device", 2**70, 2**64 - 1, False),
        ("st_rdev", "rdev", 2**64 - 1, 2**64 - 1, True),
        ("st_nlink", "links", 2**32 - 1, 2**32 - 1, True),
        ("st_nlink", "links", 2**32, 2**32 - 1, False),
        ("st_size", "size", 2**63 - 1, 2**63 - 1, True),
        ("st_size", "size", -1, 0, False),
        ("st_mtime_ns", "mtime_ns", MOST, MOST, True),
        ("st_mtime_ns", "mtime_ns", MOST + 1, MOST, False),
        ("st_mtime_ns", "mtime_ns", LEAST - 1, LEAST, False),
        ("st_ctime_ns", "ctime_ns", 10**30, MOST, False),
    ],
)
def test_each_number_of_a_stat(field: str, column: str, value: int, recorded: int, fits: bool) -> None:
    rows = ObjectRows()
    rows.add_files([b"before", b"it", b"behind"], 0, [stat_of(), stat_of(**{field: value}), stat_of(st_size=7)], (0, 0))
    (batch,) = rows.batches(everything=True)
    assert int(batch.rows[column][1]) == recorded
    errors = batch.all_bytes("error")
    assert errors == [b"", b"" if fits else MISFITS[column].encode(), b""]
    assert batch.rows["misfit"].tolist() == [0, int(not fits), 0]
    assert int(batch.rows["size"][2]) == 7
    again = np.zeros(3, OBJECT_DTYPE)
    wrong = put(again, column, [2, 1], [value, 5])
    assert int(again[column][2]) == recorded and int(again[column][1]) == 5
    assert wrong == ({} if fits else {2: MISFITS[column]})


def test_huge_sizes_add_up(tmp_path: Path) -> None:
    sizes = np.array([2**63 - 1] * 5 + [3], np.uint64)
    assert total(sizes) == 5 * (2**63 - 1) + 3


def test_huge_sparse_files_are_surveyed_and_left_out(wide: Path, tmp_path: Path) -> None:
    (wide / "tree").mkdir()
    for number in range(5):
        try:
            with open(wide / "tree" / str(number), "wb") as file:
                file.truncate(2**63 - 4096)
        except OSError as error:
            pytest.skip(f"no file system here holds files of 8 EiB: {error}")
    (wide / "tree" / "small").write_text("small")
    with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
        found = store.survey([str(wide / "tree")])
        assert found.tally.bytes == 5 * (2**63 - 4096) + 5
    store_at = tmp_path / "store"
    done = drystone("ingest", wide / "tree", "--exclude-larger-than", "1MiB", "--json", store=store_at)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["files"] == 1


def make_deep(place: Path, depth: int, name: str) -> None:
    """A chain of directories with a file at its end, and one beside the first."""
    place.mkdir()
    (place / "beside").write_text("beside")
    fd = os.open(place, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def remove_deep(place: Path) -> None:
    subprocess.run(["rm", "-rf", place], check=True)


def test_paths_that_are_too_long_are_named_and_the_rest_goes_in(wide: Path, tmp_path: Path) -> None:
    tree = wide / "tree"
    name = "d" * 250
    depth = PATH_MOST // 251 + 20
    make_deep(tree, depth, name)
    try:
        with FileStore.create([tmp_path / "store"], cache=tmp_path / "cache") as store:
            result = store.ingest([str(tree)], options=IngestOptions(workers=1))
        assert (result.exit_code, result.tally.errors) == (3, 1)
        ((path, reason),) = result.tally.named_errors
        assert len(path) == PATH_MOST and path.startswith(f"tree/{name}/{name}".encode())
        assert reason.startswith("its path of ") and reason.endswith(f"at most {PATH_MOST} are archived")
        assert result.tally.files == 1, "the one beside"
        assert result.tally.directories == (PATH_MOST - len("tree")) // 251 + 1
    finally:
        remove_deep(tree)


@pytest.mark.parametrize("length", [PATH_MOST - 1, PATH_MOST, PATH_MOST + 1])
def test_the_longest_path(length: int) -> None:
    path = b"x" * length
    for fill in ("add", "add_files"):
        rows = ObjectRows()
        if fill == "add":
            rows.add(path, 0, KIND["file"], stat_of(st_size=9))
        else:
            rows.add_files([path, b"short"], 0, [stat_of(st_size=9), stat_of()], (0, 0))
        batch = next(rows.batches(everything=True))
        assert batch.nbytes < SMALL_SLOT and BATCH_HEAP <= SMALL_SLOT
        assert batch.all_bytes("path")[0] == path[:PATH_MOST]
        assert bool(batch.rows["error_len"][0]) == (length > PATH_MOST)
        assert int(batch.rows["kind"][0]) == KIND["unknown" if length > PATH_MOST else "file"]


def test_memory_of_a_walk_does_not_grow_by_the_square_of_the_depth(wide: Path) -> None:
    """One path is held, not one for each directory on the way."""
    import tracemalloc

    depth, name = 600, "d" * 200
    make_deep(wide / "tree", depth, name)
    try:
        for _ in scan([Source(os.fsencode(wide / "tree"), b"tree")]):
            pass
        tracemalloc.start()
        for _ in scan([Source(os.fsencode(wide / "tree"), b"tree")]):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    finally:
        remove_deep(wide / "tree")
    assert most < 8 << 20, f"{most} bytes; all paths together take {depth * depth * 201 // 2}"


def test_a_restore_names_what_was_incomplete_in_the_archive(tmp_path: Path) -> None:
    """It gave back all that the archive has, so its exit code is 0."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("late", "usual"):
        (tree / name).write_bytes(name.encode())
    os.mknod(tree / "socket", stat.S_IFSOCK | 0o600)
    os.utime(tree / "late", (10_413_792_000, 10_413_792_000))
    if (tree / "late").stat().st_mtime < 10**10:
        pytest.skip("the file system keeps no times beyond 2262")
    store = tmp_path / "store"
    with FileStore.create([store], cache=tmp_path / "cache"):
        pass
    assert drystone("ingest", tree, store=store).returncode == 3
    done = drystone("restore", "--to", tmp_path / "out", store=store)
    assert done.returncode == 0, done.stderr
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["incomplete in the archive"] * 2
    assert "tree/late" in done.stderr and "tree/socket: sockets are not archived" in done.stderr
    assert (tmp_path / "out" / "tree" / "late").read_bytes() == b"late"
    done = drystone("restore", "--to", tmp_path / "jsonl", "--format", "jsonl", store=store)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines if "incomplete" in line and line["type"] == "item"] == [
        "tree/late",
        "tree/socket",
    ]
    assert lines[-1]["incomplete"] == 2 and lines[-1]["exit_code"] == 0
    done = drystone("restore", "latest:tree/usual", "--to", tmp_path / "one", store=store)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
